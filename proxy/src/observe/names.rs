//! **Purpose.** Every metric and every label of this proxy, once, in one flat table.
//!
//! **Units.** Seconds and bytes, as Prometheus asks; the unit stands in the name.
//!
//! **Source.** <https://prometheus.io/docs/practices/naming/>.
//!
//! **Tests.** At the foot: unique, documented, named by the rules.

/// How the values of a metric behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetricType {
    /// Only grows while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A spread of values in cumulative buckets.
    Histogram,
}

impl MetricType {
    /// Its word in a `# TYPE` line.
    pub fn label(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// What a value of a metric measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Bytes; the name says `bytes`.
    Bytes,
    /// A plain count or level.
    Count,
    /// Seconds; the name says `seconds`.
    Seconds,
}

macro_rules! labels {
    ($($label:ident $name:literal $help:literal;)+) => {
        /// Name of a label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Label { $(#[doc = $help] $label,)+ }

        impl Label {
            /// Every label.
            pub const ALL: &'static [Self] = &[$(Self::$label,)+];
            /// Its name in the exposition.
            pub fn name(self) -> &'static str { match self { $(Self::$label => $name,)+ } }
            /// What it holds.
            pub fn help(self) -> &'static str { match self { $(Self::$label => $help,)+ } }
        }
    };
}

macro_rules! metrics {
    ($($metric:ident $kind:ident $unit:ident $name:literal [$($label:ident)*] $help:literal;)+) => {
        /// A metric.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Metric { $(#[doc = $help] $metric,)+ }

        impl Metric {
            /// Every metric, in the order of the table; `metric as usize` is its place.
            pub const ALL: &'static [Self] = &[$(Self::$metric,)+];
            /// Its name in the exposition.
            pub fn name(self) -> &'static str { match self { $(Self::$metric => $name,)+ } }
            /// How its values behave.
            pub fn kind(self) -> MetricType { match self { $(Self::$metric => MetricType::$kind,)+ } }
            /// What a value measures.
            pub fn unit(self) -> Unit { match self { $(Self::$metric => Unit::$unit,)+ } }
            /// The labels of each of its samples, in order.
            pub fn labels(self) -> &'static [Label] { match self { $(Self::$metric => &[$(Label::$label),*],)+ } }
            /// One line for people.
            pub fn help(self) -> &'static str { match self { $(Self::$metric => $help,)+ } }
        }
    };
}

labels! {
    Class       "class"        "Class of the status code: 1xx to 5xx, or none when no answer was sent.";
    Cluster     "cluster"      "Name of the upstream cluster.";
    Code        "code"         "gRPC code that a call ended with, in capitals.";
    Driver      "driver"       "I/O driver in use: uring or epoll.";
    Endpoint    "endpoint"     "Address and port of the endpoint.";
    Flag        "flag"         "Envoy's response flag for the fault; empty when Envoy has none.";
    Kind        "kind"         "What happened, as in the outrigger-fault header.";
    Listener    "listener"     "Name of the listener the request came in by.";
    Method      "method"       "gRPC method; other for those without a place of their own.";
    Path        "path"         "Path of a configuration field.";
    Reason      "reason"       "Why.";
    Resource    "resource"     "What a circuit limit bounds: connections, pending_requests, requests or retries.";
    Route       "route"        "Name of the route; empty when none matched.";
    Rule        "rule"         "Identity of the rate limit.";
    Service     "service"      "gRPC service with its package; other as for method.";
    Side        "side"         "Whose doing a fault is: downstream, local or upstream.";
    Stage       "stage"        "Where in the pipeline a fault arose.";
    Type        "type"         "Kind of xDS resource, as the last part of its type URL.";
    Verdict     "verdict"      "What the first bytes of a connection were: bad-hello, http1, http2, opaque, silent, skipped or tls.";
    Version     "version"      "Version of this program.";
    VirtualHost "virtual_host" "Name of the virtual host; empty when none matched.";
    Worker      "worker"       "Number of the worker thread, from 0.";
}

metrics! {
    BuildInfo          Gauge   Count   "outrigger_build_info" [Version] "Always 1; the label tells the version.";
    ConfigEpoch        Gauge   Count   "outrigger_config_epoch" [] "Number of the configuration in use; 0 before the first.";
    ConfigListeners    Gauge   Count   "outrigger_config_listeners" [] "Listeners in the configuration in use.";
    ConfigClusters     Gauge   Count   "outrigger_config_clusters" [] "Clusters in the configuration in use.";
    Ready              Gauge   Count   "outrigger_ready" [] "1 when /ready answers 200, else 0.";
    CaptureProven      Gauge   Count   "outrigger_capture_proven" [] "1 while heartbeats come back through the capture's rules; only with --capture-heartbeat.";
    CaptureHeartbeats  Counter Count   "outrigger_capture_heartbeats_total" [Reason] "Heartbeats sent through the capture's rules, by whether they were answered or lost.";
    IoDriver           Gauge   Count   "outrigger_io_driver" [Driver Reason] "Always 1; the labels tell the I/O driver and why it was chosen.";

    Faults             Counter Count   "outrigger_faults_total" [Side Stage Kind Flag] "Answers made by this proxy itself, and closes without one, over all listeners and routes.";

    ListenerAccepted       Counter Count "outrigger_listener_accepted_connections_total" [Listener] "Connections accepted.";
    ListenerConnections    Gauge   Count "outrigger_listener_connections" [Listener] "Connections open.";
    ListenerRequests       Counter Count "outrigger_listener_requests_total" [Listener] "Requests whose head was read.";
    ListenerAcceptFailures Counter Count "outrigger_listener_accept_failures_total" [Listener] "Accepts that failed, mostly for want of file descriptors.";
    ListenerFaults         Counter Count "outrigger_listener_faults_total" [Listener Side Stage Kind] "Faults answered before a route was known, and closes without an answer.";
    ListenerReceived       Counter Bytes "outrigger_listener_received_bytes_total" [Listener] "Bytes received from downstream on opaque connections.";
    ListenerDetected       Counter Count "outrigger_listener_detections_total" [Listener Verdict] "Connections whose first bytes were waited for to choose a filter chain, by what they were.";
    ListenerAccess         Counter Count "outrigger_listener_access_total" [Listener Verdict] "Requests and opaque connections that RBAC was asked about, by what each filter said; shadows only count.";
    ListenerProxyHeaders   Counter Count "outrigger_listener_proxy_headers_total" [Listener] "PROXY headers taken off.";
    ListenerServerFirst    Counter Count "outrigger_listener_server_first_total" [Listener] "Destinations found to have a server that speaks first: their next connections are not waited for.";
    ListenerHanded         Counter Count "outrigger_listener_handed_connections_total" [Listener] "Connections handed to the listener that has their original destination for its address.";
    ListenerHeartbeats     Counter Count "outrigger_listener_heartbeats_total" [Listener] "Heartbeats of the capture that were answered.";
    ListenerSent           Counter Bytes "outrigger_listener_sent_bytes_total" [Listener] "Bytes sent downstream on opaque connections.";

    RouteRequests        Counter   Count   "outrigger_route_requests_total" [Listener VirtualHost Route] "Requests that matched.";
    RouteResponses       Counter   Count   "outrigger_route_responses_total" [Listener VirtualHost Route Class] "Answers by class of status code.";
    RouteActive          Gauge     Count   "outrigger_route_active_requests" [Listener VirtualHost Route] "Requests in flight.";
    RouteLatency         Histogram Seconds "outrigger_route_latency_seconds" [Listener VirtualHost Route] "From the first byte of the request head to the last byte of the answer; bounds hold within one sixteenth.";
    RouteRetries         Counter   Count   "outrigger_route_retries_total" [Listener VirtualHost Route] "Tries after the first.";
    RouteRetrySuccess    Counter   Count   "outrigger_route_retry_successes_total" [Listener VirtualHost Route] "Retries whose answer was passed on without a fault.";
    RouteRetrySuppressed Counter   Count   "outrigger_route_retry_suppressed_total" [Listener VirtualHost Route Reason] "Retries that the policy asked for and that were not made.";
    RouteLimited         Counter   Count   "outrigger_route_limited_total" [Listener VirtualHost Route] "Requests refused by a rate limit.";
    RouteWouldLimit      Counter   Count   "outrigger_route_would_limit_total" [Listener VirtualHost Route] "Requests over a rate limit that is not enforced.";
    RouteFaults          Counter   Count   "outrigger_route_faults_total" [Listener VirtualHost Route Side Stage Kind] "Answers made by this proxy itself.";
    RouteReceived        Counter   Bytes   "outrigger_route_received_bytes_total" [Listener VirtualHost Route] "Body bytes received from downstream.";
    RouteSent            Counter   Bytes   "outrigger_route_sent_bytes_total" [Listener VirtualHost Route] "Body bytes sent downstream.";

    ClusterRequests        Counter   Count   "outrigger_cluster_requests_total" [Cluster] "Tries sent or begun.";
    ClusterResponses       Counter   Count   "outrigger_cluster_responses_total" [Cluster Class] "Answers of the upstream by class of status code.";
    ClusterLatency         Histogram Seconds "outrigger_cluster_latency_seconds" [Cluster] "From the start of a try to its response head; bounds hold within one sixteenth.";
    ClusterRetries         Counter   Count   "outrigger_cluster_retries_total" [Cluster] "Tries after the first.";
    ClusterRetrySuppressed Counter   Count   "outrigger_cluster_retry_suppressed_total" [Cluster Reason] "Retries that the policy asked for and that were not made.";
    ClusterConnects        Counter   Count   "outrigger_cluster_connects_total" [Cluster] "Connections opened.";
    ClusterConnectFailures Counter   Count   "outrigger_cluster_connect_failures_total" [Cluster] "Connects that failed.";
    ClusterConnections     Gauge     Count   "outrigger_cluster_connections" [Cluster] "Connections open.";
    ClusterReuses          Counter   Count   "outrigger_cluster_connection_reuses_total" [Cluster] "Requests sent on a connection that was used before.";
    ClusterFaults          Counter   Count   "outrigger_cluster_faults_total" [Cluster Side Stage Kind] "Faults of tries, whether or not they were retried.";
    ClusterPanicPicks      Counter   Count   "outrigger_cluster_panic_picks_total" [Cluster] "Picks made among all endpoints because too few were usable.";
    ClusterEndpoints       Gauge     Count   "outrigger_cluster_endpoints" [Cluster] "Endpoints in the configuration in use.";
    ClusterLimit           Gauge     Count   "outrigger_cluster_limit" [Cluster Resource] "Circuit limits of the cluster.";

    GrpcRequests           Counter   Count   "outrigger_grpc_requests_total" [Cluster Service Method Code] "gRPC calls that ended, by code; those that this proxy answered too.";
    GrpcRequestMessages    Counter   Count   "outrigger_grpc_request_messages_total" [Cluster Service Method] "Messages that callers sent in gRPC calls that ended.";
    GrpcResponseMessages   Counter   Count   "outrigger_grpc_response_messages_total" [Cluster Service Method] "Messages that callers were sent in gRPC calls that ended.";

    EndpointActive          Gauge   Count "outrigger_endpoint_active_requests" [Cluster Endpoint] "Tries in flight.";
    EndpointRequests        Counter Count "outrigger_endpoint_requests_total" [Cluster Endpoint] "Tries begun.";
    EndpointSuccesses       Counter Count "outrigger_endpoint_successes_total" [Cluster Endpoint] "Tries answered below 500.";
    EndpointFailures        Counter Count "outrigger_endpoint_failures_total" [Cluster Endpoint] "Tries answered 5xx or failed.";
    EndpointConnectFailures Counter Count "outrigger_endpoint_connect_failures_total" [Cluster Endpoint] "Connects that failed.";
    EndpointConnections     Gauge   Count "outrigger_endpoint_connections" [Cluster Endpoint] "Connections open.";
    EndpointEjected         Gauge   Count "outrigger_endpoint_ejected" [Cluster Endpoint] "1 while outlier detection keeps the endpoint out of use.";
    EndpointEjections       Counter Count "outrigger_endpoint_ejections_total" [Cluster Endpoint] "Times outlier detection took the endpoint out of use.";

    LimitTokens        Gauge   Count   "outrigger_limit_tokens" [Rule] "Tokens left in the bucket of a local rate limit.";
    LimitMaxTokens     Gauge   Count   "outrigger_limit_max_tokens" [Rule] "Most tokens the bucket of a local rate limit holds.";

    XdsConnected       Gauge   Count   "outrigger_xds_connected" [] "1 while a stream to the control plane is open.";
    XdsConnects        Counter Count   "outrigger_xds_connects_total" [] "Streams opened to the control plane.";
    XdsAccepted        Counter Count   "outrigger_xds_accepted_total" [Type] "Responses acknowledged.";
    XdsRejected        Counter Count   "outrigger_xds_rejected_total" [Type] "Responses refused with a reason.";
    XdsResources       Gauge   Count   "outrigger_xds_resources" [Type] "Resources held.";
    XdsAge             Gauge   Seconds "outrigger_xds_age_seconds" [] "Time since the control plane was last heard.";
    XdsIgnoredFields   Counter Count   "outrigger_xds_ignored_fields_total" [Path] "Configuration fields accepted but without effect here.";

    WorkerConnections  Gauge   Count "outrigger_worker_connections" [Worker] "Downstream connections that the worker serves, with those on their way to it from other workers.";
    WorkerHandedOver   Counter Count "outrigger_worker_handed_over_connections_total" [Worker] "Connections that the worker accepted and handed to one with fewer.";

    ReactorTurns       Counter Count   "outrigger_reactor_turns_total" [Worker] "Turns of the event loop.";
    ReactorSyscalls    Counter Count   "outrigger_reactor_syscalls_total" [Worker] "System calls made by the I/O driver.";
    ReactorSubmissions Counter Count   "outrigger_reactor_submissions_total" [Worker] "Operations handed to the kernel.";
    ReactorCompletions Counter Count   "outrigger_reactor_completions_total" [Worker] "Operations ended by the kernel.";
    ReactorCancels     Counter Count   "outrigger_reactor_cancels_total" [Worker] "Operations cancelled.";
    ReactorReceived    Counter Bytes   "outrigger_reactor_received_bytes_total" [Worker] "Bytes received from sockets.";
    ReactorSent        Counter Bytes   "outrigger_reactor_sent_bytes_total" [Worker] "Bytes sent to sockets.";
    ReactorSpliced     Counter Bytes   "outrigger_reactor_spliced_bytes_total" [Worker] "Bytes moved from socket to socket inside the kernel.";
    ReactorCopied      Counter Bytes   "outrigger_reactor_copied_bytes_total" [Worker] "Bytes of bodies copied in the proxy's memory.";
    ReactorZeroCopySends Counter Count "outrigger_reactor_zero_copy_sends_total" [Worker] "Sends whose bytes the kernel was to read in place.";
    ReactorZeroCopyCopied Counter Count "outrigger_reactor_zero_copy_copied_total" [Worker] "Of these, those that the kernel copied after all.";
    ReactorBuffers     Gauge   Count   "outrigger_reactor_buffers_in_use" [Worker] "Blocks of the receive pool in use.";
    ReactorExhausted   Counter Count   "outrigger_reactor_buffer_exhausted_total" [Worker] "Times the receive pool was empty.";
    ReactorTasks       Gauge   Count   "outrigger_reactor_tasks" [Worker] "Tasks alive.";
    ReactorSockets     Gauge   Count   "outrigger_reactor_sockets" [Worker] "Sockets open.";
    ReactorTimers      Gauge   Count   "outrigger_reactor_timers" [Worker] "Timers armed.";

    ProcessCpu         Counter Seconds "process_cpu_seconds_total" [] "User and system CPU time spent.";
    ProcessResident    Gauge   Bytes   "process_resident_memory_bytes" [] "Resident memory size.";
    ProcessVirtual     Gauge   Bytes   "process_virtual_memory_bytes" [] "Virtual memory size.";
    ProcessThreads     Gauge   Count   "process_threads" [] "Threads.";
    ProcessOpenFds     Gauge   Count   "process_open_fds" [] "Open file descriptors.";
    ProcessMaxFds      Gauge   Count   "process_max_fds" [] "Most file descriptors the process may open.";
    ProcessStart       Gauge   Seconds "process_start_time_seconds" [] "Start of the process in seconds since the Unix epoch.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn is_snake(name: &str) -> bool {
        name.split('_')
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
            && name.starts_with(|c: char| c.is_ascii_lowercase())
    }

    #[test]
    fn names_are_unique_and_well_formed() {
        let names: HashSet<_> = Metric::ALL.iter().map(|metric| metric.name()).collect();
        assert_eq!(names.len(), Metric::ALL.len());
        for metric in Metric::ALL {
            let name = metric.name();
            assert!(is_snake(name), "{name}");
            assert!(name.starts_with("outrigger_") || name.starts_with("process_"), "{name}");
            for suffix in ["_bucket", "_count", "_sum"] {
                assert!(!name.ends_with(suffix), "{name}: {suffix} belongs to histograms");
            }
        }
        let labels: HashSet<_> = Label::ALL.iter().map(|label| label.name()).collect();
        assert_eq!(labels.len(), Label::ALL.len());
        for label in Label::ALL {
            assert!(is_snake(label.name()) && label.name() != "le", "{label:?}");
        }
    }

    #[test]
    fn counters_end_in_total_and_units_stand_in_the_name() {
        for metric in Metric::ALL {
            let name = metric.name();
            assert_eq!(name.ends_with("_total"), metric.kind() == MetricType::Counter, "{name}");
            let base = name.strip_suffix("_total").unwrap_or(name);
            assert_eq!(base.ends_with("_seconds"), metric.unit() == Unit::Seconds, "{name}");
            assert_eq!(base.ends_with("_bytes"), metric.unit() == Unit::Bytes, "{name}");
        }
    }

    #[test]
    fn all_is_documented_in_one_line_that_ends_with_a_dot() {
        let metrics = Metric::ALL.iter().map(|metric| (metric.name(), metric.help()));
        for (name, help) in metrics.chain(Label::ALL.iter().map(|label| (label.name(), label.help()))) {
            assert!(help.ends_with('.') && !help.contains('\n') && help.len() > 3, "{name}: {help:?}");
        }
    }

    #[test]
    fn every_label_is_used_and_none_twice_in_a_metric() {
        for metric in Metric::ALL {
            let distinct: HashSet<_> = metric.labels().iter().collect();
            assert_eq!(distinct.len(), metric.labels().len(), "{metric:?}");
        }
        for label in Label::ALL {
            assert!(Metric::ALL.iter().any(|metric| metric.labels().contains(label)), "{label:?} is used nowhere");
        }
    }

    #[test]
    fn the_place_of_a_metric_is_its_number() {
        for (at, metric) in Metric::ALL.iter().enumerate() {
            assert_eq!(*metric as usize, at);
        }
    }
}
