//! Purpose: the control plane's own numbers, as Prometheus text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

use super::Api;
use crate::kubernetes::Cluster;
use crate::model::Kind;
use crate::webhook::Figures;

/// Answers of the API by class of status.
#[derive(Debug, Default)]
pub struct Requests {
    classes: [AtomicU64; 5],
}

impl Requests {
    /// Counts an answer.
    pub fn count(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        if let Some(counter) = self.classes.get(class) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

pub(super) async fn render(State(api): State<Arc<Api>>) -> impl IntoResponse {
    let set = api.store.current();
    let proxies = api.roster.proxies();
    let (pushes, nacks, streams) = api.roster.counts();
    let behind =
        proxies.iter().filter(|proxy| proxy.running_revision.is_none_or(|running| running < proxy.desired_revision));
    let mut objects: BTreeMap<&str, usize> = Kind::ALL.iter().map(|kind| (kind.as_str(), 0)).collect();
    for key in set.objects.keys() {
        *objects.entry(key.kind.as_str()).or_default() += 1;
    }
    let mut page = Page::default();
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    page.head("outrigger_control_build_info", "gauge", "Always 1; the version is a label.");
    page.line("outrigger_control_build_info", &version, 1);
    page.single("outrigger_control_revision", "gauge", "The newest policy revision.", set.revision);
    page.head("outrigger_control_objects", "gauge", "Stored objects by kind.");
    for (kind, count) in &objects {
        page.line("outrigger_control_objects", &[("kind", kind)], *count as u64);
    }
    page.single("outrigger_control_proxies", "gauge", "Connected proxies.", proxies.len() as u64);
    page.single(
        "outrigger_control_proxies_behind",
        "gauge",
        "Connected proxies that do not run the newest revision.",
        behind.count() as u64,
    );
    page.single("outrigger_control_streams_total", "counter", "xDS streams ever opened.", streams);
    page.head("outrigger_control_pushes_total", "counter", "Pushes by xDS type.");
    for (kind, count) in &pushes {
        page.line("outrigger_control_pushes_total", &[("type", kind)], *count);
    }
    page.head("outrigger_control_nacks_total", "counter", "Refused pushes by xDS type.");
    for (kind, count) in &nacks {
        page.line("outrigger_control_nacks_total", &[("type", kind)], *count);
    }
    page.head("outrigger_control_api_requests_total", "counter", "API answers by status class.");
    for (class, counter) in ["1xx", "2xx", "3xx", "4xx", "5xx"].iter().zip(&api.requests.classes) {
        let count = counter.load(Ordering::Relaxed);
        page.line("outrigger_control_api_requests_total", &[("class", class)], count);
    }
    if let Some(cluster) = &api.cluster {
        cluster_lines(&mut page, cluster);
    }
    if let Some(webhook) = &api.webhook {
        render_webhook(webhook, &mut page);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page.text)
}

fn cluster_lines(page: &mut Page, cluster: &Cluster) {
    let pulses = cluster.pulses();
    const AGE: &str = "outrigger_control_kubernetes_view_age_seconds";
    page.head(AGE, "gauge", "Age of what is known of a kind: 0 while its watch stands.");
    for pulse in &pulses {
        page.line(AGE, &[("resource", pulse.resource)], pulse.age.as_secs());
    }
    const FAILURES: &str = "outrigger_control_kubernetes_watch_failures_total";
    page.head(FAILURES, "counter", "How often a watch broke.");
    for pulse in &pulses {
        page.line(FAILURES, &[("resource", pulse.resource)], pulse.failures);
    }
    let leads = u64::from(cluster.is_leader());
    page.single("outrigger_control_kubernetes_leader", "gauge", "1 while this replica writes statuses.", leads);
}

fn render_webhook(webhook: &Figures, page: &mut Page) {
    page.head(
        "outrigger_control_webhook_reviews_total",
        "counter",
        "Answers of the webhook by what was said about the pod.",
    );
    for (verdict, count) in webhook.verdicts() {
        page.line("outrigger_control_webhook_reviews_total", &[("verdict", verdict.as_str())], count);
    }
    let (rotations, failures) = webhook.rotations();
    let name = "outrigger_control_webhook_certificates_total";
    page.single(name, "counter", "Certificates that the webhook took into use.", rotations);
    let name = "outrigger_control_webhook_certificate_failures_total";
    page.single(name, "counter", "Times that certificate or caBundle could not be kept right.", failures);
    let name = "outrigger_control_webhook_certificate_expiry_seconds";
    let help = "When the webhook's own certificate ends, in seconds since 1970; 0 where somebody else makes it.";
    page.single(name, "gauge", help, webhook.certificate_ends());
}

/// Text under construction. Label values here are our own words and need no escapes.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let _ = writeln!(self.text, "{name}{{{}}} {value}", labels.join(","));
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        let _ = writeln!(self.text, "{name} {value}");
    }
}
