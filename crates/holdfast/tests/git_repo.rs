//! gitRepo volumes: real servers, real containers.
mod common;

use std::{fs, path::PathBuf, process::Command};

use common::{Instance, keeps_secrets, text, told, until};
use testkit::git_server::{GitServer, git, hostile, repositories, repository};

fn pod(name: &str, source: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {{fsGroup: 4711}}
  containers:
  - name: c
    image: nginx:alpine
    volumeMounts:
    - {{name: v, mountPath: /v}}
  volumes: [{{name: v, gitRepo: {source}}}]
"
    )
}

fn apply(instance: &Instance, manifest: &str) {
    let applied = instance.kubectl_with(&["apply", "-f", "-"], manifest);
    assert!(applied.status.success(), "{}", text(&applied.stderr));
}

fn ready(instance: &Instance, pods: &[&str]) {
    for pod in pods {
        instance.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
    }
}

fn read(instance: &Instance, pod: &str, file: &str) -> String {
    instance.kubectl(&["exec", pod, "--", "cat", file])
}

/// What volumes of git repositories are on the disk.
fn volumes(instance: &Instance) -> Vec<PathBuf> {
    let pods = fs::read_dir(instance.dir.path().join("data/kubelet/pods")).into_iter().flatten().flatten();
    let all =
        pods.flat_map(|pod| fs::read_dir(pod.path().join("volumes/kubernetes.io~git-repo")).into_iter().flatten());
    all.flatten().map(|v| v.path()).collect()
}

/// Whether a process clones from this address.
fn clones(instance: &Instance) -> usize {
    let told = Command::new("pgrep").args(["-P", &instance.pid().to_string(), "-f", "__git-clone"]).output();
    text(&told.expect("run pgrep").stdout).lines().count()
}

#[test]
fn a_repository_is_cloned_once_for_its_pod_and_stays_as_the_pod_leaves_it() {
    let scratch = tempfile::tempdir().expect("a directory");
    let dir = repositories(scratch.path());
    let (first, _) = repository(&dir, "app");
    let daemon = GitServer::daemon(&dir);
    let http = GitServer::http(&dir, None, None);
    let allowed = dir.display().to_string();
    let mut instance = Instance::start_with(&["--allow-git-dir", &allowed]);
    let by_git = format!("git://{}/app.git", daemon.address);
    apply(
        &instance,
        &[
            pod("head", &format!("{{repository: '{by_git}', directory: .}}")),
            pod("branch", &format!("{{repository: 'http://{}/app.git', revision: dev}}", http.address)),
            pod("commit", &format!("{{repository: '{by_git}', revision: {first}, directory: a/b}}")),
            pod("tag", &format!("{{repository: 'file://{allowed}/app.git', revision: v2, directory: site}}")),
        ]
        .concat(),
    );
    ready(&instance, &["head", "branch", "commit", "tag"]);
    assert_eq!(read(&instance, "head", "/v/README"), "two\n");
    assert_eq!(read(&instance, "branch", "/v/app/README"), "dev\n");
    assert_eq!(read(&instance, "commit", "/v/a/b/README"), "one\n");
    assert_eq!(read(&instance, "tag", "/v/site/README"), "two\n");
    assert_eq!(read(&instance, "head", "/v/.git/HEAD"), "ref: refs/heads/main\n");
    let shell = |pod: &str, script: &str| instance.kubectl(&["exec", pod, "--", "sh", "-c", script]);
    let modes = shell("head", "stat -c '%u:%g %a %n' /v /v/README /v/run.sh /v/sub && /v/run.sh && ls /v/.git");
    for line in
        ["0:4711 2777 /v\n", "0:4711 664 /v/README\n", "0:4711 775 /v/run.sh\n", "0:4711 2775 /v/sub\n", "ran\n"]
    {
        assert!(modes.contains(line), "{line} in {modes}");
    }
    assert!(!modes.contains("hooks"), "{modes}");

    // The server goes on; the pod's tree is the pod's.
    shell("head", "echo mine > /v/README; echo new > /v/new; rm /v/link");
    let work = dir.join("app.work");
    fs::write(work.join("README"), "three\n").expect("written");
    git(&work, &["commit", "-qam", "three"]);
    testkit::git_server::publish(&dir, "app");
    drop(daemon);
    let kept = || {
        assert_eq!(read(&instance, "head", "/v/README"), "mine\n");
        assert_eq!(shell("head", "ls -A /v"), ".git\nREADME\nnew\nrun.sh\nsub\n");
    };
    shell("head", "kill 1");
    until("the container is started again", || {
        let count = "jsonpath={.status.containerStatuses[0].restartCount}{.status.containerStatuses[0].ready}";
        (instance.kubectl(&["get", "pod", "head", "-o", count]) == "1true").then_some(())
    });
    kept();
    instance.end("KILL");
    instance.up();
    ready(&instance, &["head"]);
    assert_eq!(read(&instance, "head", "/v/README"), "mine\n");
    apply(&instance, &pod("later", &format!("{{repository: 'http://{}/app.git', directory: .}}", http.address)));
    ready(&instance, &["later"]);
    assert_eq!(read(&instance, "later", "/v/README"), "three\n");
    instance.kubectl(&["delete", "pods", "--all", "--timeout=60s"]);
    until("nothing is left", || volumes(&instance).is_empty().then_some(()));
}

#[test]
fn what_is_wrong_is_told_and_mended_by_itself_and_a_pod_that_waits_can_go() {
    let scratch = tempfile::tempdir().expect("a directory");
    let dir = repositories(scratch.path());
    repository(&dir, "app");
    hostile(&dir, "evil", &[("HOOKS", "100755 BLOB post-checkout"), ("T", "40000 HOOKS .GIT")]);
    let daemon = GitServer::daemon(&dir);
    let silent = GitServer::silent();
    let instance = Instance::start_with(&["--log", "debug"]);
    let (up, address) = (daemon.address, format!("git://{}/app.git", daemon.address));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    apply(
        &instance,
        &[
            pod("revision", &format!("{{repository: '{address}', revision: v3}}")),
            pod("down", &format!("{{repository: 'git://{closed}/app.git'}}")),
            pod("none", &format!("{{repository: 'git://{up}/none.git'}}")),
            pod("evil", &format!("{{repository: 'git://{up}/evil.git', directory: a}}")),
            pod("local", &format!("{{repository: '{}/app.git'}}", dir.display())),
            pod("ext", "{repository: 'ext::sh -c touch% /canary'}"),
            pod("secret", "{repository: 'https://me:s3cr3t-canary@nowhere.invalid/x'}"),
            pod("waits", &format!("{{repository: 'git://{}/app.git'}}", silent.address)),
        ]
        .concat(),
    );
    until("a clone waits for the server", || (clones(&instance) > 0).then_some(()));
    let volume = "MountVolume.SetUp failed for volume \"v\"";
    for (pod, words) in [
        ("revision", "gitRepo.revision: pathspec \"v3\" did not match"),
        ("down", "gitRepo.repository: Connection refused"),
        ("none", "gitRepo.repository: the server refuses it"),
        ("evil", "has a name that cannot be: \".GIT\""),
        ("local", "--allow-git-dir"),
        ("ext", "gitRepo.repository: "),
        ("secret", "clone of https://nowhere.invalid/x failed: gitRepo.repository: its host is not known"),
    ] {
        told(&instance, pod, volume);
        told(&instance, pod, words);
    }
    // Whoever may read the pod may read the password that its author put there, and nobody else.
    keeps_secrets(&instance, &["s3cr3t-canary"], &["pods"]);
    assert!(!std::path::Path::new("/canary").exists());

    let server = GitServer::daemon_at(&closed.to_string(), &dir);
    git(&dir.join("app.git"), &["tag", "v3", "v1"]);
    ready(&instance, &["down", "revision"]);
    assert_eq!(read(&instance, "revision", "/v/app/README"), "one\n");
    drop(server);

    let begun = std::time::Instant::now();
    instance.kubectl(&["delete", "pods", "--all", "--timeout=60s"]);
    until("no process and no directory is left", || {
        (clones(&instance) == 0 && volumes(&instance).is_empty()).then_some(())
    });
    println!("gone after {:?}", begun.elapsed());
}
