//! Volumes of images and artifacts: pulled as a container's image is, read-only, shared, and gone with the pod.
mod common;
#[path = "../../images/tests/common/mod.rs"]
mod made;

use std::{collections::BTreeMap, sync::Arc};

use base64::Engine;
use common::{Instance, keeps_secrets, ready, text, told, until};
use made::{
    Made, dir, file, gzip, image, layer,
    registry::{Login, Registry},
    sha,
};
use serde_json::{Value, json};

/// A pod whose container `c` mounts the volume `i` of an image at `/i`, and more of the container and of the spec.
fn pod(name: &str, source: &Value, container: &Value, spec: &Value) -> Value {
    let mut c = json!({"name": "c", "image": "hfbox:1", "command": ["sh", "-c", "trap 'exit 3' TERM; sleep 999 & wait"],
        "volumeMounts": [{"name": "i", "mountPath": "/i"}]});
    c.as_object_mut().expect("object").extend(container.as_object().expect("object").clone());
    let mut all =
        json!({"terminationGracePeriodSeconds": 1, "containers": [c], "volumes": [{"name": "i", "image": source}]});
    all.as_object_mut().expect("object").extend(spec.as_object().expect("object").clone());
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": all})
}

fn apply(instance: &Instance, objects: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let output = instance.kubectl_with(&["apply", "-f", "-"], &list.to_string());
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// What a command in a pod says, good or bad.
fn sh(instance: &Instance, name: &str, command: &str) -> String {
    let out = instance.kubectl_with(&["exec", name, "-c", "c", "--", "sh", "-c", command], "");
    text(&out.stdout) + &text(&out.stderr)
}

/// An artifact of files by title; one without a title has the digest for a name.
fn artifact(files: &[(Option<&str>, &str)]) -> Made {
    let layers: Vec<Value> = files
        .iter()
        .map(|(title, data)| {
            let annotations: BTreeMap<&str, &str> =
                title.iter().map(|t| ("org.opencontainers.image.title", *t)).collect();
            json!({"mediaType": "text/plain", "digest": sha(data.as_bytes()), "size": data.len(), "annotations": annotations})
        })
        .collect();
    let config = b"{}".to_vec();
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.example.model",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha(&config), "size": config.len()},
        "layers": layers})
    .to_string()
    .into_bytes();
    let mut blobs: Vec<_> = files.iter().map(|(_, data)| (sha(data.as_bytes()), data.as_bytes().to_vec())).collect();
    blobs.extend([(sha(&config), config.clone()), (sha(&manifest), manifest.clone())]);
    Made { blobs, manifest, config, diff_ids: vec![] }
}

/// Mounts of the instance's image volumes.
fn mounts(instance: &Instance) -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mount table");
    table.lines().filter(|l| l.contains(&instance.data_dir()) && l.contains("kubernetes.io~image")).count()
}

/// The registry's user and password, as a Secret and a request have them.
fn encoded_user() -> String {
    base64::engine::general_purpose::STANDARD.encode("user:pass")
}

/// A secret for pulling from a registry.
fn secret(host: &str) -> Value {
    let config = json!({"auths": {host: {"auth": encoded_user()}}}).to_string();
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "user"},
        "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config}})
}

#[test]
fn images_and_artifacts_are_volumes() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let registry: Arc<Registry> = runtime.block_on(Registry::start(Login::Token));
    let host = registry.host.clone();
    let lower =
        layer(&[dir("d", 0o755), file("d/a", "lower"), file("d/gone", "x"), file("run.sh", "#!/bin/sh\necho ran\n")]);
    let upper = layer(&[dir("d", 0o755), file("d/a", "upper"), file("d/.wh.gone", "")]);
    registry.offer("data/two:1", &image(&[lower.clone(), upper], gzip));
    registry.offer(
        "data/model:1",
        &artifact(&[(Some("model.bin"), "weights"), (Some("doc/readme"), "words"), (None, "bare")]),
    );
    registry.offer("data/bad:1", &artifact(&[(Some("../../escaped"), "x")]));
    let mut instance = Instance::start_with(&["--log", "debug"]);
    let reference = |name: &str| json!({"reference": format!("{host}/data/{name}:1")});
    let with_user = json!({"imagePullSecrets": [{"name": "user"}]});
    let mounts_of_part = json!({"volumeMounts": [{"name": "i", "mountPath": "/i"}, {"name": "i", "mountPath": "/part", "subPath": "d"}]});
    let always = json!({"reference": format!("{host}/data/model:1"), "pullPolicy": "Always"});
    let never = json!({"reference": "absent:1", "pullPolicy": "Never"});
    apply(
        &instance,
        &[
            secret(&host),
            pod("two", &reference("two"), &mounts_of_part, &with_user),
            pod("model", &reference("model"), &json!({}), &with_user),
            pod("bad", &reference("bad"), &json!({}), &with_user),
            pod("denied", &always, &json!({}), &json!({})),
            pod("late", &reference("late"), &json!({}), &with_user),
            pod("never", &never, &json!({}), &json!({})),
        ],
    );
    ready(&instance, "two");
    ready(&instance, "model");
    assert_eq!(sh(&instance, "two", "cat /i/d/a; echo; ls /i/d /part"), "upper\n/i/d:\na\n\n/part:\na\n");
    assert!(sh(&instance, "two", "echo x > /i/new").contains("Read-only file system"));
    assert!(sh(&instance, "two", "chmod +x /i/run.sh; /i/run.sh").contains("Permission denied"), "it is noexec");
    let bare = sha(b"bare");
    let words = format!("weights words bare {}", &bare["sha256:".len()..][..8]);
    let read = "echo $(cat /i/model.bin) $(cat /i/doc/readme) $(cat /i/????????????????????????????????????????????????????????????????) \
                $(ls /i | grep -v model | grep -v doc | cut -c1-8)";
    assert_eq!(sh(&instance, "model", read).trim(), words);
    told(&instance, "two", &format!("Successfully pulled image \"{host}/data/two:1\" in "));
    told(&instance, "bad", "has the title \"../../escaped\", which is no name of a file");
    told(&instance, "denied", "pull access denied");
    told(&instance, "never", "Container image \"absent:1\" is not present with pull policy of Never");
    let reason = instance.kubectl(&[
        "get",
        "pod",
        "never",
        "-o",
        "jsonpath={.status.containerStatuses[0].state.waiting.reason}",
    ]);
    assert_eq!(reason, "ErrImageNeverPull");
    told(&instance, "late", "Error: ErrImagePull");

    // An image that is here is for pods that could have pulled it; unlike an imported one.
    apply(
        &instance,
        &[
            pod("guest", &reference("two"), &json!({}), &json!({})),
            pod("friend", &reference("two"), &json!({}), &with_user),
        ],
    );
    ready(&instance, "friend");
    told(
        &instance,
        "friend",
        &format!("\"{host}/data/two:1\" already present on machine and can be accessed by the pod"),
    );
    told(&instance, "guest", "pull access denied");
    instance.kubectl(&["delete", "pods", "guest", "friend", "--timeout=60s"]);
    keeps_secrets(&instance, &[&encoded_user()], &[]);

    // What was missing comes; the daemon dies and its pods go on; a container comes back.
    registry.offer("data/late:1", &image(&[lower], gzip));
    instance.end("KILL");
    instance.up();
    assert_eq!(sh(&instance, "model", "cat /i/model.bin"), "weights");
    sh(&instance, "two", "kill 1");
    ready(&instance, "late");
    until("the container is back", || sh(&instance, "two", "cat /part/a").contains("upper").then_some(()));
    assert_eq!(mounts(&instance), 3);
    instance.kubectl(&["delete", "pods", "--all", "--timeout=60s"]);
    until("nothing is mounted", || (mounts(&instance) == 0).then_some(()));
    drop(runtime);
}
