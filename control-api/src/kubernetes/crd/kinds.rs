//! Purpose: the specs of our kinds, as schemas: fields, ranges, defaults, and the rules that cross fields.
//! Shape: one function a kind, one per stanza that kinds share. `model` reads the same objects; where the two could say
//! different things, a test asks a real API server and compares.
//! Limits: a schema cannot look across objects (references, settings made twice); `model::link` does, and says so in
//! the status of the object.

use serde_json::json;

use super::schema::{Field, Schema, optional, optionals, required};

const MAX: u32 = u32::MAX;

/// An IPv4 address that is no multicast one, or something in brackets; and a port from 1.
const ADDRESS_PATTERN: &str = "^((25[0-5]|24[0-9]|22[0-3]|2[01][0-9]|1[0-9][0-9]|[1-9]?[0-9])\
    ([.](25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}|\\[[0-9a-fA-F:.]+\\])\
    :0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$";

/// `spec` of an AccessPolicy.
pub(super) fn access_policy() -> Schema {
    let rule = Schema::object(
        "Calls from one of these to one of those.",
        optionals(vec![
            ("from", Schema::list("Who calls: one of these; anyone where absent.", source(), 1..=16)),
            ("to", Schema::list("What is asked for: one of these; anything where absent.", operation(), 1..=16)),
        ]),
    );
    Schema::object(
        "Who may call the services that it attaches to, or the pods of its namespace.",
        optionals(vec![
            ("targetRefs", target_refs(&OWN_TARGETS)),
            (
                "action",
                Schema::choice(
                    "What becomes of a call that a rule matches. Denials come first; where a policy allows, what none \
                     allows is denied.",
                    &["Allow", "Deny"],
                )
                .default("Allow"),
            ),
            (
                "mode",
                Schema::choice("Audit counts what would be refused, and refuses nothing.", &["Enforce", "Audit"])
                    .default("Enforce"),
            ),
            ("rules", Schema::list("Without any, nobody is allowed, or everybody denied.", rule, 0..=32)),
        ]),
    )
}

fn source() -> Schema {
    let account = Schema::text("A service account of this namespace, or NAMESPACE/NAME.", 317)
        .pattern("^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/)?[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$");
    let blocks = |doc: &str| {
        let block = Schema::text("An IP address, or a block such as 10.0.0.0/8 or fd00::/64.", 49)
            .rule("isIP(self) || isCIDR(self)", "must be an IP address or a block of them");
        Schema::list(doc, block, 1..=64)
    };
    let parts = ["namespaces", "namespaceSelector", "podSelector", "serviceAccounts", "addresses", "notAddresses"];
    Schema::object(
        "Who calls, by its pod or its address; all that is set must hold.",
        optionals(vec![
            ("namespaces", Schema::list("Pods of one of these namespaces.", Schema::label("A namespace."), 1..=64)),
            (
                "namespaceSelector",
                selector("Pods of namespaces with these labels; all namespaces where there are none."),
            ),
            ("podSelector", selector("Pods with these labels; of this namespace, where nothing else says of which.")),
            ("serviceAccounts", Schema::list("Pods that run as one of these accounts.", account, 1..=64)),
            ("addresses", blocks("Callers at one of these addresses.")),
            ("notAddresses", blocks("Callers at none of these addresses.")),
        ]),
    )
    .rule(&any_of(&parts), "sets nothing")
    .rule(
        "!has(self.namespaces) || !has(self.namespaceSelector)",
        "namespaces and namespaceSelector exclude each other",
    )
}

fn selector(doc: &str) -> Schema {
    let value =
        Schema::text("A label's value.", 63).pattern("^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$").may_be_empty();
    Schema::object(doc, vec![optional("matchLabels", Schema::map("Labels, all of which it must have.", value, 64))])
}

fn operation() -> Schema {
    let methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    let path = Schema::object(
        "A path, without a query.",
        vec![
            optional(
                "type",
                Schema::choice("How it matches.", &["Exact", "PathPrefix", "RegularExpression"]).default("PathPrefix"),
            ),
            optional("value", Schema::text("What it matches; / where absent.", 1024)),
        ],
    );
    let header = Schema::object(
        "A header.",
        vec![
            optional("type", Schema::choice("How it matches.", &["Exact", "RegularExpression"]).default("Exact")),
            required("name", Schema::text("Its name.", 256).pattern("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")),
            required("value", Schema::text("What it matches.", 4096)),
        ],
    );
    let method = Schema::choice("A method.", &methods);
    Schema::object(
        "What is asked for over HTTP; all that is set must hold. Of a connection that is not HTTP, a rule that allows \
         never holds, and one that denies holds whatever is asked.",
        optionals(vec![
            ("methods", Schema::list("One of these methods.", method, 1..=methods.len())),
            ("paths", Schema::list("One of these paths.", path, 1..=64)),
            ("headers", Schema::list("All of these headers.", header, 1..=16)),
        ]),
    )
    .rule(&any_of(&["methods", "paths", "headers"]), "sets nothing; use one of methods, paths, headers")
}

/// That one of the fields is set.
fn any_of(fields: &[&str]) -> String {
    fields.iter().map(|field| format!("has(self.{field})")).collect::<Vec<_>>().join(" || ")
}

/// `spec` of an Upstream.
pub(super) fn upstream() -> Schema {
    let mut fields = vec![
        optional("serviceName", Schema::label("The name that callers use; the object's own name where absent.")),
        optional("port", Schema::integer("The port at which callers use it; any where absent.", 1..=65_535)),
        optional("portName", Schema::label("Name of that port, for sectionName of a policy.")),
        optional("addresses", addresses()),
        required("endpoints", endpoints()),
        optional(
            "appProtocol",
            Schema::choice(
                "What the endpoints speak.",
                &["http", "h2c", "kubernetes.io/h2c", "grpc", "downstream", "detect", "tcp", "tls"],
            )
            .default("http"),
        ),
    ];
    fields.extend(connection());
    Schema::object("A group of endpoints, and how to treat them.", fields)
        .rule(
            "self.endpoints.map(one, one.weight).sum() <= 4294967295",
            "the sum of the endpoints' weights must be at most 4294967295",
        )
        .rule(
            "has(self.port) || !(has(self.portName) || has(self.addresses))",
            "portName and addresses need port beside them: a captured connection is known by address and port",
        )
}

/// How the endpoints of an upstream are treated.
fn connection() -> Vec<Field> {
    optionals(vec![
        ("loadBalancing", load_balancing()),
        ("connectTimeout", Schema::span("Limit of connecting; as MeshConfig says, else 1s.", ("1ms", "1h"))),
        ("outlierDetection", outlier_detection()),
        ("limits", limits()),
        (
            "panicThresholdPercent",
            Schema::percent("Below this share of healthy endpoints all are used; 0 turns it off."),
        ),
        ("idleTimeout", Schema::span("How long an unused connection is kept.", ("1ms", "24h"))),
        ("maxRequestsPerConnection", Schema::integer("How many requests one connection serves.", 1..=MAX)),
    ])
}

fn addresses() -> Schema {
    let address = Schema::text("An IP address, such as 10.96.0.10 or fd00::10.", 45)
        .rule("isIP(self)", "must be an IP address")
        .rule(
            "!isIP(self) || !(ip(self).isUnspecified() || ip(self).isLoopback() || self.lowerAscii().startsWith('ff') || \
             self.matches('^(22[4-9]|23[0-9])[.]'))",
            "is no address of a service",
        );
    Schema::list("Addresses at which callers use it, of no endpoint.", address, 0..=16).unique()
}

fn endpoints() -> Schema {
    let address = Schema::text("IP address and port, such as 10.0.0.7:8080 or [fd00::7]:8080.", 53)
        .pattern(ADDRESS_PATTERN)
        .rule(
            "!self.startsWith('[') || (isIP(self.substring(1, self.indexOf(']'))) && ip(self.substring(1, \
             self.indexOf(']'))).family() == 6)",
            "must be an IPv6 address in the brackets",
        )
        .rule(
            "!self.startsWith('0.0.0.0:') && !self.startsWith('[::]') && !self.startsWith('[ff') && \
             !self.startsWith('[FF')",
            "must not be the unspecified or a multicast address",
        );
    let endpoint = Schema::object(
        "One address.",
        vec![
            required("address", address),
            optional("weight", Schema::integer("Its share within its zone.", 1..=1_000_000).default(1)),
            optional("zone", Schema::label("Its zone.")),
            optional(
                "health",
                Schema::choice("What is known of it.", &["Unknown", "Healthy", "Draining"]).default("Unknown"),
            ),
        ],
    );
    Schema::list("The endpoints; with none, requests are answered 503.", endpoint, 0..=10_000).keyed("address")
}

fn load_balancing() -> Schema {
    Schema::object(
        "How an endpoint is chosen.",
        vec![
            optional(
                "policy",
                Schema::choice(
                    "In turn by weight, the least busy of some, or any.",
                    &["RoundRobin", "LeastRequest", "Random"],
                )
                .default("RoundRobin"),
            ),
            optional("choiceCount", Schema::integer("How many LeastRequest compares; 2 where absent.", 2..=64)),
        ],
    )
    .rule(
        "!has(self.choiceCount) || self.policy == 'LeastRequest'",
        "choiceCount belongs to the policy LeastRequest only",
    )
}

fn outlier_detection() -> Schema {
    let acted = |what: &str| Schema::percent(&format!("Share of detections of {what} acted upon."));
    let span = |doc: &str| Schema::span(doc, ("1ms", "24h"));
    Schema::object(
        "When an endpoint is ejected; a knob that is absent has Envoy's default.",
        optionals(vec![
            ("consecutive5xx", Schema::count("Answers of class 5xx in a row.")),
            ("consecutiveGatewayFailure", Schema::count("Answers 502, 503 or 504 in a row.")),
            ("consecutiveLocalOriginFailure", Schema::count("Failures to connect, and resets, in a row, when split.")),
            ("interval", span("How often ejections are reviewed.")),
            ("baseEjectionTime", span("First ejection; multiplied by the number of ejections.")),
            ("maxEjectionTime", span("Longest ejection.")),
            ("maxEjectionPercent", Schema::percent("Largest share ejected at once.")),
            ("enforcingConsecutive5xx", acted("consecutive5xx")),
            ("enforcingConsecutiveGatewayFailure", acted("consecutiveGatewayFailure")),
            ("enforcingConsecutiveLocalOriginFailure", acted("consecutiveLocalOriginFailure")),
            ("splitExternalLocalOriginErrors", Schema::boolean("Count local failures apart.")),
        ]),
    )
    .rule(
        "!has(self.baseEjectionTime) || !has(self.maxEjectionTime) || duration(self.maxEjectionTime) >= \
         duration(self.baseEjectionTime)",
        "maxEjectionTime must not be shorter than baseEjectionTime",
    )
}

fn limits() -> Schema {
    Schema::object(
        "Bounds on what is open at once; one that is absent has Envoy's default.",
        optionals(vec![
            ("maxConnections", Schema::count("Connections.")),
            ("maxPendingRequests", Schema::count("Requests that wait for a connection.")),
            ("maxRequests", Schema::count("Requests in flight.")),
            ("maxRetries", Schema::count("Retries in flight.")),
        ]),
    )
}

/// `spec` of a TrafficPolicy.
pub(super) fn traffic_policy() -> Schema {
    let mut fields = vec![required("targetRefs", target_refs(&ROUTES_TOO))];
    fields.extend(traffic());
    fields.extend(optionals(vec![
        ("localRateLimit", bucket("A limit that each proxy keeps by itself.", Vec::new())),
        ("outlierDetection", outlier_detection()),
        ("limits", limits()),
    ]));
    Schema::object("Timeouts, retries and limits for what it attaches to.", fields)
        .rule(
            "has(self.timeouts) || has(self.retry) || has(self.upgrades) || has(self.localRateLimit) || \
             has(self.outlierDetection) || has(self.limits)",
            "sets nothing; use one of timeouts, retry, upgrades, localRateLimit, outlierDetection, limits",
        )
        .rule(
            "!(has(self.outlierDetection) || has(self.limits)) || self.targetRefs.all(one, one.kind in \
             ['Service', 'Upstream'])",
            "outlierDetection and limits belong to targets of kind Upstream or Service only",
        )
        .rule(ONE_TRY_TIMEOUT.0, ONE_TRY_TIMEOUT.1)
}

/// How exchanges are made.
fn traffic() -> Vec<Field> {
    optionals(vec![("timeouts", timeouts()), ("retry", retry()), ("upgrades", upgrades())])
}

/// What holds of [`traffic`], and what is said where it does not.
const ONE_TRY_TIMEOUT: (&str, &str) = (
    "!(has(self.timeouts) && has(self.timeouts.perTry) && has(self.retry) && has(self.retry.perTryTimeout))",
    "timeouts.perTry is also set as retry.perTryTimeout; keep one",
);

/// `spec` of a MeshConfig.
pub(super) fn mesh_config() -> Schema {
    let traffic = Schema::object("How exchanges are made, where no policy and no route says it.", traffic());
    let access =
        Schema::choice("What becomes of a call that no AccessPolicy is about: Allow where absent.", &["Allow", "Deny"]);
    Schema::object(
        "What holds where nobody said anything nearer. In the control plane's namespace it is for all, in another for that one, \
         field by field over the first.",
        optionals(vec![
            (
                "outboundTraffic",
                Schema::choice(
                    "What becomes of captured connections to what nobody knows: passed on, as where absent, or closed.",
                    &["AllowAny", "RegistryOnly"],
                ),
            ),
            (
                "detectionTimeout",
                Schema::span(
                    "How long the client of a port of unknown protocol may say nothing before its server is taken to speak \
                     first: 1s where absent.",
                    ("10ms", "15s"),
                ),
            ),
            ("access", Schema::object("Who may call whom.", vec![optional("default", access)])),
            (
                "connection",
                Schema::object("How endpoints are treated, where their Upstream does not say it.", connection()),
            ),
            ("traffic", traffic.rule(ONE_TRY_TIMEOUT.0, ONE_TRY_TIMEOUT.1)),
        ]),
    )
}

fn timeouts() -> Schema {
    let span = |doc: &str| Schema::span(doc, ("0s", "24h"));
    Schema::object(
        "Limits in time; 0s turns one off.",
        optionals(vec![
            ("request", span("Limit of the whole exchange.")),
            ("perTry", span("Limit of one try.")),
            ("stream", span("Longest life of a stream, whatever moves in it.")),
            ("grpcDeadlineMax", span("Most of the deadline that a caller of gRPC may set.")),
        ]),
    )
    .rule(
        "!has(self.request) || !has(self.perTry) || duration(self.request) == duration('0s') || \
         duration(self.perTry) <= duration(self.request)",
        "perTry must not be longer than request",
    )
}

fn retry() -> Schema {
    let words = [
        "5xx",
        "gateway-error",
        "connect-failure",
        "reset",
        "reset-before-request",
        "refused-stream",
        "retriable-4xx",
        "retriable-status-codes",
        "cancelled",
        "deadline-exceeded",
        "internal",
        "resource-exhausted",
        "unavailable",
    ];
    let backoff = Schema::object(
        "Pauses between tries.",
        vec![
            required("base", Schema::span("First pause.", ("1ms", "1h"))),
            optional("max", Schema::span("Longest pause.", ("1ms", "1h"))),
        ],
    )
    .rule("!has(self.max) || duration(self.max) >= duration(self.base)", "max must not be shorter than base");
    let on = Schema::list("Envoy's conditions.", Schema::choice("A condition.", &words), 1..=words.len()).unique();
    let codes = Schema::integer("A status code.", 400..=599);
    Schema::object(
        "When to try again.",
        optionals(vec![
            ("on", on.default(json!(["connect-failure", "refused-stream", "gateway-error"]))),
            ("attempts", Schema::integer("How many more tries.", 0..=50).default(1)),
            ("perTryTimeout", Schema::span("Limit of one try.", ("1ms", "24h"))),
            ("statusCodes", Schema::list("Status codes that are worth another try.", codes, 1..=64)),
            ("backoff", backoff),
            (
                "nonIdempotent",
                Schema::boolean("Whether methods that are not idempotent are tried again too.").default(false),
            ),
        ]),
    )
    .rule(
        "!('retriable-status-codes' in self.on) || has(self.statusCodes)",
        "statusCodes is required with retriable-status-codes",
    )
}

fn upgrades() -> Schema {
    let word =
        Schema::text("The word of an Upgrade header, such as websocket.", 64).pattern("^[-A-Za-z0-9._/+]+$").rule(
            "self.lowerAscii() != 'h2c'",
            "h2c would tunnel requests past every rule; set appProtocol: h2c on the Upstream",
        );
    Schema::list("Upgrades that are granted.", word, 0..=16).rule(
        "self.all(one, self.exists_one(other, other.lowerAscii() == one.lowerAscii()))",
        "an upgrade is in the list twice",
    )
}

/// `spec` of a RateLimit.
pub(super) fn rate_limit() -> Schema {
    bucket(
        "A limit, and what it attaches to: a bucket that is filled steadily, one token a request.",
        vec![
            required("targetRefs", target_refs(&ROUTES_TOO)),
            optional("scope", Schema::choice("Who shares it: nobody; each proxy has its own.", &["Local"])),
        ],
    )
}

fn bucket(doc: &str, mut fields: Vec<Field>) -> Schema {
    fields.extend([
        required("requests", Schema::integer("Requests in each span.", 1..=MAX)),
        optional("per", Schema::span("The span.", ("50ms", "24h")).default("1s")),
        optional("burst", Schema::integer("Most requests at once; as `requests` where absent.", 1..=MAX)),
    ]);
    Schema::object(doc, fields).rule(
        "!has(self.burst) || self.burst >= self.requests || duration(self.per).getMilliseconds() * self.burst >= \
         50 * self.requests",
        "burst is too small for this rate: it would have to be refilled more often than every 50ms",
    )
}

/// The kinds that have endpoints.
const OWN_TARGETS: [&str; 2] = ["Upstream", "Service"];
const ROUTES_TOO: [&str; 4] = ["HTTPRoute", "GRPCRoute", "Upstream", "Service"];

fn target_refs(kinds: &[&str]) -> Schema {
    let own_group = "!has(self.group) || self.group == (self.kind == 'Upstream' ? 'outrigger.dev' : self.kind == 'Service' ? \
                     '' : 'gateway.networking.k8s.io')";
    let (doc, section) = match kinds.len() {
        2 => (
            "An upstream, or a Service or one port of it, in the namespace of this object.",
            "One port of a Service, by name or number.",
        ),
        _ => (
            "A route or one rule of it, an upstream, or a Service or one port of it, in the namespace of this object.",
            "One rule of a route, or one port of a Service, by name or number.",
        ),
    };
    let target = Schema::object(
        doc,
        vec![
            optional("group", Schema::choice("The kind's group.", &["", "gateway.networking.k8s.io", "outrigger.dev"])),
            required("kind", Schema::choice("The kind.", kinds)),
            required("name", Schema::subdomain("The name.")),
            optional("sectionName", Schema::subdomain(section)),
        ],
    )
    .rule(own_group, "group must be that of the kind")
    .rule("!has(self.sectionName) || self.kind != 'Upstream'", "an Upstream has no sections; leave sectionName out");
    Schema::list("What it attaches to.", target, 1..=64).rule(
        "self.all(one, self.exists_one(other, other.kind == one.kind && other.name == one.name && \
         (has(other.sectionName) ? other.sectionName : '') == (has(one.sectionName) ? one.sectionName : '')))",
        "a target is in the list twice",
    )
}
