//! Images end to end: pods that pull, `holdfast image`, and what collection removes. Registries are small ones on loopback.
mod common;
#[path = "../../images/tests/common/mod.rs"]
mod made;

use std::{fs, io::Read, path::Path, sync::Arc};

use base64::Engine;
use common::{Instance, ready, text, until};
use made::{
    Entry, Made, dir, file, gzip, image, index, layer, oci_parts,
    registry::{Login, Registry},
    sha, symlink, write_dir, write_tar,
};
use serde_json::{Value, json};

/// A registry in the background, and what keeps it there.
struct Served {
    registry: Arc<Registry>,
    _runtime: tokio::runtime::Runtime,
}

fn serve(login: Login) -> Served {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let registry = runtime.block_on(Registry::start(login));
    Served { registry, _runtime: runtime }
}

/// The static busybox of the stand-in images.
fn busybox() -> Vec<u8> {
    let mut archive = tar::Archive::new(fs::File::open(common::images().join("fortune.tar")).expect("open"));
    for entry in archive.entries().expect("archive") {
        let mut blob = vec![];
        entry.expect("entry").read_to_end(&mut blob).expect("read");
        if !blob.starts_with(&[0x1f, 0x8b]) {
            continue;
        }
        let mut layer = tar::Archive::new(flate2::read::MultiGzDecoder::new(&blob[..]));
        for entry in layer.entries().expect("layer") {
            let mut entry = entry.expect("entry");
            if entry.path().expect("path").ends_with("bin/busybox") && entry.header().entry_type().is_file() {
                let mut program = vec![];
                entry.read_to_end(&mut program).expect("read");
                return program;
            }
        }
    }
    panic!("no busybox in the stand-in image");
}

fn program(path: &str, data: &[u8]) -> Entry {
    Entry { data: data.to_vec(), mode: 0o755, ..file(path, "") }
}

/// An image that says a word and stays.
fn speaker(busybox: &[u8], word: &str) -> Vec<Vec<u8>> {
    let base = layer(&[
        dir("bin", 0o755),
        dir("etc", 0o755),
        program("bin/busybox", busybox),
        symlink("bin/sh", "busybox"),
        file("etc/passwd", "www:x:33:33::/:/bin/sh\n"),
        file("etc/group", "www:x:33:\n"),
    ]);
    let script = format!("#!/bin/sh\ntrap 'exit 0' TERM\necho {word}\nbusybox sleep 1000 & wait\n");
    vec![base, layer(&[dir("bin", 0o755), program("bin/app", script.as_bytes())])]
}

fn pod(name: &str, image: &str, more: &Value) -> Value {
    let mut spec = json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "app", "image": image}]});
    spec.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

fn apply(instance: &Instance, objects: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let output = instance.kubectl_with(&["apply", "-f", "-"], &list.to_string());
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Part of a pod, as jsonpath says it.
fn field(instance: &Instance, pod: &str, path: &str) -> String {
    instance.kubectl(&["get", "pod", pod, "-o", &format!("jsonpath={{{path}}}")])
}

/// All messages of a pod's events of one reason, once there is one.
fn told(instance: &Instance, pod: &str, reason: &str) -> String {
    let selector = format!("involvedObject.name={pod},reason={reason}");
    let ask = || {
        let args = [
            "get",
            "events",
            "--field-selector",
            &selector,
            "-o",
            "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}",
        ];
        Some(instance.kubectl(&args)).filter(|t| !t.is_empty())
    };
    until(&format!("event {reason} of {pod}"), ask)
}

#[test]
fn pods_pull_by_tag_digest_mirror_and_user() {
    let (open, private) = (serve(Login::None), serve(Login::Token));
    let made = image(&speaker(&busybox(), "hello"), gzip);
    open.registry.offer("team/app:1", &made);
    open.registry.offer("library/app:latest", &made);
    private.registry.offer("team/app:1", &made);
    let digest = sha(&index(&made, &json!({})));
    let (host, closed) = (open.registry.host.as_str(), private.registry.host.as_str());
    // The same listener under a name that is not taken for loopback.
    let other = host.replace("127.0.0.1", "0.0.0.0");
    let mirror = format!("docker.io=http://{host}");
    let instance = Instance::empty(&["--registry-mirror", &mirror, "--insecure-registry", &other]);
    let secret = |name: &str, password: &str| {
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("user:{password}"));
        let config = json!({"auths": {closed: {"auth": auth}}}).to_string();
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config}})
    };
    let with = |secret: &str| json!({"imagePullSecrets": [{"name": secret}]});
    apply(
        &instance,
        &[
            secret("right", "pass"),
            secret("wrong", "word"),
            pod("tag", &format!("{host}/team/app:1"), &json!({})),
            pod("digest", &format!("{host}/team/app@{digest}"), &json!({})),
            pod("mirror", "app", &json!({})),
            pod("insecure", &format!("{other}/team/app:1"), &json!({})),
            pod("right", &format!("{closed}/team/app:1"), &with("right")),
        ],
    );
    for (name, repository) in [
        ("tag", format!("{host}/team/app")),
        ("digest", format!("{host}/team/app")),
        ("mirror", "docker.io/library/app".into()),
        ("insecure", format!("{other}/team/app")),
        ("right", format!("{closed}/team/app")),
    ] {
        ready(&instance, name);
        assert_eq!(instance.kubectl(&["logs", name]), "hello\n", "{name}");
        // One image under many names: any of its names may be shown, with the digest that was pulled.
        let id = field(&instance, name, ".status.containerStatuses[0].imageID");
        assert!(id.ends_with(&format!("@{digest}")), "{name} {repository}: {id}");
    }
    let pulled = told(&instance, "tag", "Pulled");
    let expect = format!("Successfully pulled image \"{host}/team/app:1\" in ");
    assert!(pulled.starts_with(&expect) && pulled.contains(" including waiting). Image size: "), "{pulled}");
    apply(
        &instance,
        &[
            pod(
                "wrong",
                &format!("{closed}/team/app:1"),
                &json!({"imagePullSecrets": [{"name": "wrong"}], "containers": [
            {"name": "app", "image": format!("{closed}/team/app:1"), "imagePullPolicy": "Always"}]}),
            ),
            pod("missing", &format!("{host}/team/nothing:1"), &json!({})),
            pod("misnamed", "Not A Name", &json!({})),
            pod(
                "never",
                "absent:1",
                &json!({"containers": [{"name": "app", "image": "absent:1", "imagePullPolicy": "Never"}]}),
            ),
        ],
    );
    let waits = |name: &str| {
        until(&format!("{name} says why it waits"), || {
            let reason = field(&instance, name, ".status.containerStatuses[0].state.waiting.reason");
            Some(reason).filter(|r| !r.is_empty() && r != "ContainerCreating")
        })
    };
    for name in ["wrong", "missing"] {
        let failed = told(&instance, name, "Failed");
        assert!(["ErrImagePull", "ImagePullBackOff"].contains(&waits(name).as_str()));
        assert!(failed.contains("Error: ErrImagePull"), "{failed}");
        assert!(told(&instance, name, "BackOff").starts_with("Back-off pulling image"));
    }
    let failed = told(&instance, "wrong", "Failed");
    let parts = [closed, "team/app:1", "pull access denied", "refuses user \"user\"", "imagePullSecrets"];
    assert!(parts.iter().all(|part| failed.contains(part)), "{failed}");
    let failed = told(&instance, "missing", "Failed");
    assert!(
        [host, "team/nothing:1", ": not found; check the name"].iter().all(|part| failed.contains(part)),
        "{failed}"
    );
    assert_eq!(waits("misnamed"), "InvalidImageName");
    assert!(told(&instance, "misnamed", "InspectFailed").contains("couldn't parse image name \"Not A Name\""));
    assert_eq!(waits("never"), "ErrImageNeverPull");
}

/// A listener that takes no connection: whoever dials it waits in vain.
fn black_hole() -> (String, Vec<std::net::TcpStream>, tokio::net::TcpListener, tokio::runtime::Runtime) {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let _inside = runtime.enter();
    let socket = tokio::net::TcpSocket::new_v4().expect("socket");
    socket.bind("127.0.0.1:0".parse().expect("address")).expect("bind");
    let listener = socket.listen(1).expect("listen");
    let address = listener.local_addr().expect("address");
    let dial = || std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(300));
    // Until its queue is full.
    let waiting: Vec<_> = std::iter::from_fn(|| dial().ok()).take(64).collect();
    assert!(waiting.len() < 64, "the queue does not fill");
    drop(_inside);
    (address.to_string(), waiting, listener, runtime)
}

#[test]
fn a_registry_that_does_not_answer_hides_no_local_image() {
    let served = serve(Login::None);
    served.registry.offer("team/app:1", &image(&speaker(&busybox(), "still here"), gzip));
    let (hole, _waiting, _listener, _runtime) = black_hole();
    let mirror = format!("registry.invalid=http://{hole}");
    let instance = Instance::empty(&["--registry-mirror", &mirror]);
    let name = "registry.invalid/team/app:1";
    let alive = format!("registry.invalid=http://{}", served.registry.host);
    let output =
        instance.ours(&["image", "pull", name, "--registry-mirror", &alive, "--data-dir", &instance.data_dir()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let always = json!({"containers": [{"name": "app", "image": name, "imagePullPolicy": "Always"}]});
    apply(&instance, &[pod("present", name, &json!({})), pod("always", name, &always)]);
    for pod in ["present", "always"] {
        ready(&instance, pod);
        assert_eq!(instance.kubectl(&["logs", pod]), "still here\n");
    }
    assert_eq!(
        told(&instance, "present", "Pulled").trim(),
        format!("Container image \"{name}\" already present on machine and can be accessed by the pod")
    );
    let pulled = told(&instance, "always", "Pulled");
    assert!(
        ["its registry does not answer", &hole, "i/o timeout"].iter().all(|part| pulled.contains(part)),
        "{pulled}"
    );
}

fn docker_archive(path: &Path, made: &Made, name: &str) {
    let config = ("config.json".to_owned(), made.config.clone());
    let mut layers: Vec<(String, Vec<u8>)> = made.blobs[..made.diff_ids.len()]
        .iter()
        .enumerate()
        .map(|(n, (_, bytes))| (format!("{n}/layer.tar"), bytes.clone()))
        .collect();
    let names: Vec<&String> = layers.iter().map(|(name, _)| name).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": names}]).to_string();
    layers.extend([config, ("manifest.json".to_owned(), manifest.into_bytes())]);
    write_tar(path, &layers);
}

#[test]
fn image_commands_work_with_the_daemon_running_and_stopped() {
    let private = serve(Login::Basic);
    let host = private.registry.host.as_str();
    let busybox = busybox();
    private.registry.offer("team/pulled:1", &image(&speaker(&busybox, "pulled"), gzip));
    let mut instance = Instance::empty(&[]);
    let data = instance.data_dir();
    let at = |name: &str| instance.dir.path().join(name);
    let named = |name: &str| json!({"io.containerd.image.name": name});
    write_dir(
        &at("layout"),
        &oci_parts(&image(&speaker(&busybox, "layout"), gzip), &named("docker.io/library/layout:1")),
    );
    write_tar(
        &at("oci.tar"),
        &oci_parts(&image(&speaker(&busybox, "archive"), gzip), &named("docker.io/library/archive:1")),
    );
    docker_archive(&at("docker.tar"), &image(&speaker(&busybox, "docker"), <[u8]>::to_vec), "docker:1");
    // One layer is the whole of a root file system.
    let script = b"#!/bin/sh\necho rootfs\nbusybox sleep 1000\n";
    let rootfs =
        [dir("bin", 0o755), program("bin/busybox", &busybox), symlink("bin/sh", "busybox"), program("bin/app", script)];
    fs::write(at("rootfs.tar"), layer(&rootfs)).expect("write");
    fs::write(at("auth.json"), json!({"auths": {host: {"username": "user", "password": "pass"}}}).to_string())
        .expect("write");
    let paths =
        ["layout", "oci.tar", "docker.tar", "rootfs.tar", "auth.json"].map(|n| at(n).to_string_lossy().into_owned());
    let run = |instance: &Instance, args: &[&str]| {
        let output = instance.ours(&[&["image"], args, &["--data-dir", &data]].concat());
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let [layout, oci, docker, rootfs, auth] = &paths;
    let done = |said: &str| (true, format!("{said}\n"), String::new());
    // Running.
    assert_eq!(run(&instance, &["import", layout]), done("docker.io/library/layout:1"));
    assert_eq!(run(&instance, &["import", docker]), done("docker.io/library/docker:1"));
    let (fine, _, error) = run(&instance, &["import", rootfs]);
    assert!(!fine && error.contains("--name"), "{error}");
    let name = format!("{host}/team/pulled:1");
    let (fine, _, error) = run(&instance, &["pull", &name]);
    assert!(!fine && error.contains("pull access denied") && error.contains("--authfile"), "{error}");
    let (fine, out, error) = run(&instance, &["pull", &name, "--authfile", auth]);
    assert!(fine && out.starts_with(&format!("{host}/team/pulled@sha256:")), "{out}{error}");
    // Stopped.
    instance.end("TERM");
    assert_eq!(run(&instance, &["import", rootfs, "--name", "box:1"]), done("docker.io/library/box:1"));
    assert_eq!(run(&instance, &["import", oci, "--name", "other:2"]), done("docker.io/library/other:2"));
    assert_eq!(run(&instance, &["rm", "layout:1"]), done("layout:1 removed"));
    let (fine, _, error) = run(&instance, &["rm", "layout:1"]);
    assert!(!fine && error.contains("layout:1") && error.contains("holdfast image list"), "{error}");
    let (_, list, _) = run(&instance, &["list"]);
    let names: Vec<&str> = list.lines().skip(1).filter_map(|l| l.split_whitespace().next()).collect();
    assert_eq!(names, ["docker.io/library/docker:1", &name, "docker.io/library/box:1", "docker.io/library/other:2"]);
    instance.up();
    let command = json!({"containers": [{"name": "app", "image": "box:1", "command": ["/bin/app"]}]});
    apply(
        &instance,
        &[
            pod("docker", "docker:1", &json!({})),
            pod("pulled", &name, &json!({})),
            pod("other", "other:2", &json!({})),
            pod("box", "box:1", &command),
        ],
    );
    for (pod, word) in [("docker", "docker"), ("pulled", "pulled"), ("other", "archive"), ("box", "rootfs")] {
        ready(&instance, pod);
        assert_eq!(instance.kubectl(&["logs", pod]), format!("{word}\n"));
        let present = told(&instance, pod, "Pulled");
        assert!(present.contains("already present on machine"), "{present}");
    }
}

#[test]
fn layers_go_when_nobody_needs_them() {
    let mut instance = Instance::empty(&[]);
    let busybox = busybox();
    let import = |instance: &Instance, name: &str| {
        let path = instance.dir.path().join("image.tar");
        let note = json!({"io.containerd.image.name": format!("docker.io/library/{name}:1")});
        write_tar(&path, &oci_parts(&image(&speaker(&busybox, name), gzip), &note));
        let output = instance.ours(&["image", "import", &path.to_string_lossy(), "--data-dir", &instance.data_dir()]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    let remove = |instance: &Instance, name: &str| {
        let output = instance.ours(&["image", "rm", &format!("{name}:1"), "--data-dir", &instance.data_dir()]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    let layers = |instance: &Instance| {
        fs::read_dir(Path::new(&instance.data_dir()).join("images/layers")).expect("read").count()
    };
    // Both share the layer with busybox.
    import(&instance, "used");
    import(&instance, "unused");
    assert_eq!(layers(&instance), 3);
    apply(&instance, &[pod("used", "used:1", &json!({}))]);
    ready(&instance, "used");
    remove(&instance, "used");
    remove(&instance, "unused");
    // Collection begins with the daemon.
    instance.end("TERM");
    instance.up();
    until("the unused layer is gone", || (layers(&instance) == 2).then_some(()));
    assert_eq!(instance.kubectl(&["exec", "used", "--", "/bin/busybox", "cat", "/etc/group"]), "www:x:33:\n");
    instance.kubectl(&["delete", "pod", "used"]);
    instance.end("TERM");
    instance.up();
    until("all layers are gone", || (layers(&instance) == 0).then_some(()));
}
