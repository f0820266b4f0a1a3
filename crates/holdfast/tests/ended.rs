//! Volumes of plugins that ended: accepted, and their pods told what became of them. Nobody is connected to.
mod common;

use std::{io::ErrorKind, net::TcpListener};

use common::{Instance, text, told, until};

const SECRET: &str = "secretRef: {name: s}";

fn sources(address: &str) -> [(&'static str, String, &'static str); 4] {
    [
        ("quobyte", format!("quobyte: {{registry: \"{address}\", volume: v}}"), "csi.quobyte.com"),
        (
            "scaleio",
            format!("scaleIO: {{gateway: \"http://{address}\", system: s, {SECRET}, volumeName: v}}"),
            "PowerFlex",
        ),
        ("storageos", "storageos: {volumeName: v}".to_owned(), "Akamai"),
        ("photon", "photonPersistentDisk: {pdID: p}".to_owned(), "csi.vsphere.vmware.com"),
    ]
}

fn pod(name: &str, volume: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {{name: c, image: \"hfbox:1\", command: [sleep, \"999\"], volumeMounts: [{{name: d, mountPath: /d}}]}}\n  \
         volumes: [{{name: d, {volume}}}]\n---\n"
    )
}

/// A persistent volume, its claim and a pod on it, all named `name`.
fn claimed(name: &str, source: &str) -> String {
    let spec = "accessModes: [ReadWriteOnce], storageClassName: \"\"";
    let source = source.replace(SECRET, "secretRef: {name: s, namespace: default}");
    format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}, capacity: {{storage: 1Gi}}, {source}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}, volumeName: {name}, resources: {{requests: {{storage: 1Gi}}}}}}\n---\n{}",
        pod(name, &format!("persistentVolumeClaim: {{claimName: {name}}}"))
    )
}

#[test]
fn pods_are_told_what_became_of_their_volumes() {
    let instance = Instance::start();
    // CVE-2020-8555: a class or volume must not send anybody of ours to an address of its author's choice.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    listener.set_nonblocking(true).expect("set");
    let address = listener.local_addr().expect("bound").to_string();
    let mut objects = String::new();
    for (name, source, _) in sources(&address) {
        objects += &pod(&format!("own-{name}"), &source);
        objects += &claimed(&format!("pv-{name}"), &source);
    }
    for (name, parameters) in [
        ("quobyte", format!("quobyteAPIServer: \"http://{address}\", registry: \"{address}\"")),
        ("scaleio", format!("gateway: \"http://{address}/api\", system: s, secretRef: s")),
        ("storageos", format!("adminSecretName: s, endpoint: \"http://{address}\"")),
        ("glusterfs", format!("resturl: \"http://{address}\"")),
    ] {
        objects += &format!(
            "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {name}}}\n\
             provisioner: kubernetes.io/{name}\nparameters: {{{parameters}}}\n---\n\
             apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: dynamic-{name}}}\nspec: \
             {{accessModes: [ReadWriteOnce], storageClassName: {name}, resources: {{requests: {{storage: 1Gi}}}}}}\n---\n"
        );
    }
    let out = instance.kubectl_with(&["apply", "-f", "-"], &objects);
    assert!(out.status.success(), "{}", text(&out.stderr));
    for (name, _, words) in sources(&address) {
        let (own, claimed) = (format!("own-{name}"), format!("pv-{name}"));
        told(&instance, &own, "failed to get Plugin from volumeSpec for volume \"d\" err=no volume plugin matched");
        told(&instance, &own, words);
        told(&instance, &claimed, &format!("for volume \"{claimed}\" err=no volume plugin matched"));
        told(&instance, &claimed, words);
        for subject in [format!("pod/{own}"), format!("pod/{claimed}"), format!("pv/{claimed}")] {
            let why = text(&instance.ours(&["why", &subject, "--kubeconfig", &instance.kubeconfig()]).stdout);
            assert!(why.contains(words), "{subject}: {why}");
        }
    }
    let dynamic = instance.ours(&["why", "pvc/dynamic-quobyte", "--kubeconfig", &instance.kubeconfig()]);
    assert!(text(&dynamic.stdout).contains("csi.quobyte.com"), "{}", text(&dynamic.stdout));
    instance.kubectl(&["delete", "pods,pvc,pv", "--all", "--timeout=20s"]);
    until("nothing left of them", || instance.kubectl(&["get", "pods,pvc,pv", "-o", "name"]).is_empty().then_some(()));
    let connected = listener.accept().map(|(_, from)| from);
    assert_eq!(connected.expect_err("nobody connects").kind(), ErrorKind::WouldBlock);
}
