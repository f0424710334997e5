//! What `outriggerctl inject` puts into a pod is what the proxy takes: its bootstrap and its command line.

use std::process::Command;

use outrigger_tests::world::binary;
use outrigger_tests::world::scratch::Scratch;
use serde_json::Value;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: orders-0, namespace: shop, annotations: {ANNOTATIONS}}\n\
    spec: {containers: [{name: app, image: 'orders:1'}]}\n";

/// The proxy's container and the pod's annotations after injection.
fn inject(scratch: &Scratch, annotations: &str) -> (Value, Value) {
    let file = scratch.write("pod.yaml", &POD.replace("ANNOTATIONS", annotations)).unwrap();
    let mut command = Command::new(binary::find("outriggerctl").unwrap());
    let output = command.args(["inject", "-o", "json", "-f"]).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pod: Value = serde_json::from_slice(&output.stdout).unwrap();
    (pod["spec"]["initContainers"][1].clone(), pod["metadata"]["annotations"].clone())
}

/// What the kubelet makes of a variable's value.
fn expand(text: &str) -> String {
    let pod = [
        ("POD_NAME", "orders-0"),
        ("POD_NAMESPACE", "shop"),
        ("SERVICE_ACCOUNT", "orders"),
        ("POD_IPS", "10.1.2.3,fd00::3"),
    ];
    let text = pod.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value));
    assert!(!text.contains("$("), "{text}");
    text
}

fn variable(container: &Value) -> String {
    let list = container["env"].as_array().unwrap();
    let one = list.iter().find(|one| one["name"] == "OUTRIGGER_BOOTSTRAP").unwrap();
    expand(one["value"].as_str().unwrap())
}

#[track_caller]
fn assert_taken(scratch: &Scratch, bootstrap: &str) {
    let file = scratch.write("bootstrap.yaml", bootstrap).unwrap();
    let mut command = Command::new(binary::find("outrigger-proxy").unwrap());
    let output = command.arg("--check").arg("-c").arg(file).output().unwrap();
    assert!(output.status.success(), "{bootstrap}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_proxy_takes_the_injected_bootstrap() {
    let scratch = Scratch::new("inject").unwrap();
    let others = "outrigger.dev/xds-address: '[fd00::10]:15010', outrigger.dev/outbound-policy: registry-only";
    for annotations in ["", others] {
        let (container, _) = inject(&scratch, annotations);
        assert_taken(&scratch, &variable(&container));
    }
    let (container, annotations) = inject(&scratch, "outrigger.dev/bootstrap-from: projected-file");
    let rest = annotations["outrigger.dev/bootstrap"].as_str().unwrap();
    assert_taken(&scratch, &(variable(&container) + rest));
}
