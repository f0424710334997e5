//! Purpose: values that would not work are refused before anything is installed, by a message that names them.

use super::rendered::{HELMS, NAMESPACE, helm};

/// What is set, and words that the refusal must have.
const BAD: &[(&[&str], &[&str])] = &[
    (&["nosuch=1"], &["nosuch"]),
    (&["injector.nosuch=1"], &["injector", "nosuch"]),
    (&["bindAddress=127.0.0.1"], &["bindAddress", "0.0.0.0"]),
    (&["replicas=0"], &["replicas", "1"]),
    (&["replicas=two"], &["replicas", "integer"]),
    (&["image.pullPolicy=Sometimes"], &["image", "pullPolicy", "IfNotPresent"]),
    (&["image.control=Upper Case"], &["image", "control"]),
    (&["image.tag=a/b"], &["image", "tag"]),
    (&["image.pullSecrets[0].nam=x"], &["pullSecrets", "nam"]),
    (&["store.type=etcd"], &["store", "type", "kubernetes", "redb"]),
    (&["store.type=redb"], &["replicas is 2", "store.type redb", "set replicas to 1"]),
    (&["store.type=redb", "replicas=1", "autoscaling.enabled=true"], &["autoscaling.enabled", "store.type redb"]),
    (&["autoscaling.enabled=true", "autoscaling.maxReplicas=1"], &["autoscaling.maxReplicas is 1", "minReplicas, 2"]),
    (&["autoscaling.cpuPercent=101"], &["autoscaling", "cpuPercent", "100"]),
    (&["persistence.size=lots"], &["persistence", "size"]),
    (&["log.format=xml"], &["log", "format", "json"]),
    (&["log.level="], &["log", "level"]),
    (&["topologySpread.zone=Maybe"], &["topologySpread", "zone", "DoNotSchedule"]),
    (&["podDisruptionBudget.maxUnavailable=0"], &["podDisruptionBudget", "maxUnavailable"]),
    (&["shutdownDelaySeconds=30"], &["shutdownDelaySeconds is 30", "terminationGracePeriodSeconds, 30"]),
    (&["networkPolicy.apiFrom=x"], &["networkPolicy", "apiFrom", "array"]),
    (&["injector.failurePolicy=Maybe"], &["injector", "failurePolicy", "Ignore"]),
    (&["injector.timeoutSeconds=31"], &["injector", "timeoutSeconds", "30"]),
    (&["injector.reinvocationPolicy=Always"], &["injector", "reinvocationPolicy", "IfNeeded"]),
    (&["injector.excludedNamespaces[0]=Kube_System"], &["injector", "excludedNamespaces"]),
    (&["injector.xdsAddress=nowhere"], &["injector", "xdsAddress"]),
    (&["injector.resources.limits.disk=1"], &["injector", "resources", "disk"]),
    (&["injector.defaults.log-levl=info"], &["injector", "defaults", "log-levl"]),
    (&["injector.defaults.io=kqueue"], &["injector", "defaults", "io", "epoll"]),
    (&["injector.defaults.image=mine"], &["injector", "defaults", "image"]),
    (&["injector.certManager.duration=soon"], &["certManager", "duration"]),
    (
        &["injector.enabled=false", "injector.certManager.enabled=true"],
        &["injector.certManager.enabled", "injector.enabled"],
    ),
    (
        &["injector.certManager.enabled=true", "injector.certManager.issuerRef.kind=ClusterIssuer"],
        &["injector.certManager.issuerRef.kind is ClusterIssuer", "issuerRef.name is empty"],
    ),
    (&["seccomp.install=yes"], &["seccomp", "install", "boolean"]),
    (&["seccomp.kubeletFolder=var/lib"], &["seccomp", "kubeletFolder"]),
    (&["metrics.podMonitor.interval=often"], &["podMonitor", "interval"]),
    (&["metrics.dashboard.labels.grafana_dashboard=null"], &["dashboard", "labels"]),
];

#[test]
#[ignore = "needs Helm: make chart"]
fn a_bad_value_is_refused_by_its_name() {
    for variable in HELMS {
        for (settings, words) in BAD {
            let mut arguments = vec!["template", "outrigger", "charts/outrigger", "-n", NAMESPACE];
            arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
            let output = helm(variable, &arguments);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{variable} accepts {settings:?}");
            for word in *words {
                assert!(said.contains(word), "{variable}, {settings:?}: the refusal does not say {word:?}: {said}");
            }
        }
    }
}

#[test]
#[ignore = "needs Helm: make chart"]
fn an_older_kubernetes_is_refused_and_every_newer_one_served() {
    let render = |version: &str| {
        helm(HELMS[1], &["template", "outrigger", "charts/outrigger", "-n", NAMESPACE, "--kube-version", version])
    };
    let refused = render("1.30.9");
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("1.31"), "{refused:?}");
    for minor in 31..=37 {
        let output = render(&format!("1.{minor}.0"));
        assert!(output.status.success(), "1.{minor}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
