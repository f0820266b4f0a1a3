//! What holds for volumes of every type: sub-paths that follow changes, groups, propagation, and attacks by what pods leave
//! in their volumes. Functions are named after the CVE that they would have caught. One daemon for all.
mod common;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use common::{Instance, apply, keeps_secrets, ready, text, told, until};

/// A pod with one container `c`, which ends when `/tmp/end` is there: flow text for its metadata beside the name, its container and its spec.
fn pod(name: &str, metadata: &str, container: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, {metadata}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{spec}\n  \
         containers:\n  - {{name: c, image: \"hfbox:1\", command: [sh, -c, \"until test -e /tmp/end; do sleep 0.1; done\"], {container}}}\n---\n"
    )
}

fn sh(instance: &Instance, pod: &str, script: &str) -> String {
    instance.kubectl(&["exec", pod, "--", "sh", "-c", script])
}

fn field(instance: &Instance, object: &str, path: &str) -> String {
    instance.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")])
}

fn delete(instance: &Instance, pods: &[&str]) {
    instance.kubectl(&[&["delete", "pod", "--grace-period=0", "--force"], pods].concat());
}

const SETTINGS: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {file: one, other: x}\n---\n";

/// Sub-paths, a file and a directory, show what their ConfigMap has, for pods that ask for it; and nothing in between.
fn sub_paths_follow(instance: &mut Instance) {
    let volumes = "  volumes: [{name: v, configMap: {name: settings, items: [{key: file, path: dir/file}, \
                   {key: other, path: other}, {key: file, path: plain}]}}]";
    let mounts = "volumeMounts: [{name: v, mountPath: /etc/plain, subPath: plain}, {name: v, mountPath: /etc/dir, subPath: dir}]";
    let asked = "annotations: {holdfast.dev/follow-sub-paths: \"true\"}";
    apply(
        instance,
        &(SETTINGS.to_owned() + &pod("follows", asked, mounts, volumes) + &pod("stays", "", mounts, volumes)),
    );
    ready(instance, "follows");
    ready(instance, "stays");
    let watch = "while :; do for f in /etc/plain /etc/dir/file; do v=$(cat $f 2>&1); \
                 case $v in one|two|three|four) ;; *) echo \"$f: $v\" >> /tmp/wrong;; esac; done; done & echo";
    sh(instance, "follows", watch);
    let shows = |instance: &Instance, value: &str| {
        let data = format!("{{\"data\": {{\"file\": \"{value}\"}}}}");
        instance.kubectl(&["patch", "configmap", "settings", "-p", &data]);
        until(&format!("the container sees {value}"), || {
            let seen = sh(instance, "follows", "cat /etc/plain /etc/dir/file");
            (seen == format!("{value}{value}")).then_some(())
        });
    };
    shows(instance, "two");
    // Another process finds everything as it is.
    instance.end("KILL");
    instance.up();
    shows(instance, "three");
    assert_eq!(sh(instance, "follows", "cat /tmp/wrong 2>/dev/null; grep -c /etc/plain /proc/mounts"), "1\n");
    assert_eq!(sh(instance, "follows", "echo x > /etc/plain || echo refused"), "refused\n");
    assert_eq!(sh(instance, "stays", "cat /etc/plain"), "one");
    // A container that starts again begins with what there is, and follows.
    sh(instance, "follows", "touch /tmp/end");
    until("the container was restarted", || {
        (field(instance, "pod/follows", ".status.containerStatuses[0].restartCount") != "0").then_some(())
    });
    ready(instance, "follows");
    shows(instance, "four");
    delete(instance, &["follows", "stays"]);
}

/// A bundle of trusted certificates reaches a file, and so does its change.
fn trust_bundles_are_projected(instance: &Instance) {
    let certificate = |name: &str| {
        let out = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-keyout",
                "/dev/null",
            ])
            .args(["-days", "2", "-subj", &format!("/CN={name}")])
            .output()
            .expect("run openssl");
        text(&out.stdout)
    };
    let bundle = |name: &str, text: &str| {
        let lines: String = text.lines().map(|line| format!("    {line}\n")).collect();
        format!(
            "apiVersion: certificates.k8s.io/v1beta1\nkind: ClusterTrustBundle\nmetadata: {{name: \"example.com:s:{name}\", \
             labels: {{use: \"yes\"}}}}\nspec:\n  signerName: example.com/s\n  trustBundle: |\n{lines}---\n"
        )
    };
    let (one, two) = (certificate("one"), certificate("two"));
    let volumes = "  volumes: [{name: v, projected: {sources: [{clusterTrustBundle: {signerName: example.com/s, \
                   labelSelector: {matchLabels: {use: \"yes\"}}, path: ca.pem}}]}}]";
    apply(instance, &pod("trusts", "", "volumeMounts: [{name: v, mountPath: /v}]", volumes));
    told(instance, "trusts", "combination of signerName and labelSelector matched zero ClusterTrustBundles");
    apply(instance, &bundle("a", &format!("{one}noise\n{one}").replace(&format!("noise\n{one}"), "noise")));
    ready(instance, "trusts");
    assert_eq!(sh(instance, "trusts", "cat /v/ca.pem"), one);
    // Once, whoever says it.
    apply(instance, &(bundle("b", &one) + &bundle("c", &two)));
    until("both certificates are there", || {
        let seen = sh(instance, "trusts", "cat /v/ca.pem");
        (seen.matches("BEGIN").count() == 2 && seen.contains(&two) && seen.contains(&one)).then_some(())
    });
    let twice = instance.kubectl_with(&["apply", "-f", "-"], &bundle("d", &format!("{one}{one}")));
    assert!(text(&twice.stderr).contains("duplicate trust anchor (indices [0 1])"), "{}", text(&twice.stderr));
    delete(instance, &["trusts"]);
}

/// What a container mounts in a part of a volume reaches the host, and outlives the container there, as with all of it.
fn mounts_in_sub_paths_reach_the_host(instance: &Instance) {
    let top = instance.dir.path().join("both-ways");
    fs::create_dir_all(top.join("part")).expect("make a directory");
    let run = |words: &[&str]| assert!(Command::new(words[0]).args(&words[1..]).status().expect("run").success());
    let path = top.to_string_lossy().into_owned();
    run(&["mount", "-t", "tmpfs", "holdfast-test", &path]);
    run(&["mount", "--make-shared", &path]);
    fs::create_dir_all(top.join("part/inner")).expect("make a directory");
    let volumes = format!("  volumes: [{{name: h, hostPath: {{path: {path}}}}}]");
    let mounts = "securityContext: {privileged: true}, volumeMounts: [{name: h, mountPath: /h, subPath: part, \
                  mountPropagation: Bidirectional}]";
    apply(instance, &pod("both-ways", "", mounts, &volumes));
    ready(instance, "both-ways");
    sh(instance, "both-ways", "mount -t tmpfs none /h/inner && echo kept > /h/inner/file");
    assert_eq!(fs::read_to_string(top.join("part/inner/file")).expect("read"), "kept\n");
    // Upon the part itself, too.
    sh(instance, "both-ways", "mount -t tmpfs none /h && echo kept > /h/file");
    delete(instance, &["both-ways"]);
    until("the pod's directory is gone", || {
        let pods = Path::new(&instance.data_dir()).join("kubelet/pods");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mount table");
        (!mounts.lines().any(|l| l.contains(&*pods.to_string_lossy()) && l.contains("volume-subpaths"))).then_some(())
    });
    let whole = fs::read_to_string(top.join("part/file"));
    run(&["umount", &format!("{path}/part")]);
    let kept = fs::read_to_string(top.join("part/inner/file"));
    run(&["umount", "-R", &path]);
    assert_eq!(whole.expect("taking the pin away has unmounted what was upon it"), "kept\n");
    assert_eq!(kept.expect("taking the pin away has unmounted it"), "kept\n");
}

/// Root in the container cannot touch what the node keeps up to date, so that updates cannot be lured to the node's files.
fn cve_2017_1002102_files_of_the_node_are_read_only(instance: &Instance) {
    let victim = instance.dir.path().join("victim");
    fs::create_dir(&victim).expect("make a directory");
    fs::write(victim.join("file"), "whole").expect("write");
    let volumes = "  volumes: [{name: v, configMap: {name: settings}}, {name: d, downwardAPI: {items: [{path: l, \
                   fieldRef: {fieldPath: metadata.labels}}]}}]";
    let mounts =
        "securityContext: {privileged: true}, volumeMounts: [{name: v, mountPath: /v}, {name: d, mountPath: /d}]";
    apply(instance, &(SETTINGS.to_owned() + &pod("lures", "labels: {a: \"0\"}", mounts, volumes)));
    ready(instance, "lures");
    let lure = format!(
        "for v in /v /d; do rm $v/..data; ln -s {0} $v/..data_tmp; ln -s {0} $v/..2099_01_01_00_00_00.000000001; mv $v/l $v/m; \
         mkdir $v/..2000; done 2>&1 | grep -vc 'Read-only file system'; true",
        victim.display()
    );
    assert_eq!(sh(instance, "lures", &lure), "0\n");
    for n in 1..5 {
        instance.kubectl(&["patch", "configmap", "settings", "-p", &format!("{{\"data\": {{\"file\": \"{n}\"}}}}")]);
        instance.kubectl(&["label", "--overwrite", "pod/lures", &format!("a={n}")]);
    }
    until("the last update is there", || (sh(instance, "lures", "cat /v/file /d/l") == "4a=\"4\"").then_some(()));
    delete(instance, &["lures"]);
    until("the pod is gone", || {
        let all = instance.kubectl(&["get", "pods", "-o", "name"]);
        (!all.contains("pod/lures")).then_some(())
    });
    assert_eq!(fs::read_to_string(victim.join("file")).expect("read"), "whole");
}

/// FIFOs, devices, sockets and links in a volume block nobody, lead nowhere, and go with it.
fn strange_files_block_nobody(instance: &Instance) {
    let victim = instance.dir.path().join("kept");
    fs::create_dir_all(victim.join("below")).expect("make a directory");
    let make = format!(
        "set -e; mkfifo /e/fifo; mknod /e/zero c 1 5; ln -s {} /e/link; ln -s / /e/root; mkdir -p /e/d; mkfifo /e/d/fifo; chmod 0 /e/d",
        victim.display()
    );
    let init = format!(
        "  securityContext: {{fsGroup: 2000}}\n  initContainers: [{{name: i, image: \"hfbox:1\", command: [sh, -c, {make:?}], \
         volumeMounts: [{{name: e, mountPath: /e}}]}}]\n  volumes: [{{name: e, emptyDir: {{sizeLimit: 1Mi}}}}]"
    );
    let sub = |path: &str| {
        format!("volumeMounts: [{{name: e, mountPath: /sub, subPath: {path}}}, {{name: e, mountPath: /e}}]")
    };
    apply(instance, &(pod("fifo", "", &sub("fifo"), &init) + &pod("device", "", &sub("zero"), &init)));
    apply(instance, &(pod("root", "", &sub("root"), &init) + &pod("root-deep", "", &sub("link/below"), &init)));
    ready(instance, "fifo");
    assert_eq!(sh(instance, "fifo", "test -p /sub && echo fifo"), "fifo\n");
    ready(instance, "device");
    // The node's devices stay out of reach by their numbers too.
    assert_eq!(sh(instance, "device", "test -c /sub && echo device"), "device\n");
    for name in ["root", "root-deep"] {
        told(instance, name, "failed to prepare subPath for volumeMount \"e\" of container \"c\"");
    }
    delete(instance, &["fifo", "device", "root", "root-deep"]);
    assert!(victim.join("below").is_dir(), "removal followed a link");
}

/// A cgroup-wide group of rights: all files of a volume are the group's, at once where the top says so already.
fn groups_own_volumes(instance: &Instance) {
    let dir = instance.dir.path().join("grouped");
    for n in 0..20 {
        let d = dir.join(format!("d{n}"));
        fs::create_dir_all(&d).expect("make a directory");
        (0..100).for_each(|f| fs::write(d.join(f.to_string()), "").expect("write"));
    }
    let node = instance.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let objects = format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: grouped}}\nspec: {{capacity: {{storage: 1Gi}}, accessModes: \
         [ReadWriteMany], storageClassName: \"\", persistentVolumeReclaimPolicy: Retain, local: {{path: {}}}, nodeAffinity: \
         {{required: {{nodeSelectorTerms: [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [\"{node}\"]}}]}}]}}}}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: grouped}}\nspec: {{accessModes: [ReadWriteMany], \
         storageClassName: \"\", volumeName: grouped, resources: {{requests: {{storage: 1Gi}}}}}}\n---\n",
        dir.display()
    );
    let spec = |group: u32, policy: &str| {
        format!(
            "  securityContext: {{runAsUser: 1000, runAsGroup: 1000, fsGroup: {group}, fsGroupChangePolicy: {policy}, \
             supplementalGroups: [4000]}}\n  volumes: [{{name: v, persistentVolumeClaim: {{claimName: grouped}}}}]"
        )
    };
    let mount = "volumeMounts: [{name: v, mountPath: /v}]";
    apply(instance, &(objects + &pod("g1", "", mount, &spec(2001, "Always"))));
    ready(instance, "g1");
    // 50: the image puts its user there.
    let look = "stat -c '%g %a' /v /v/d7 /v/d19/99 | tr '\\n' ' '; echo ok > /v/d3/3 && id -G";
    assert_eq!(sh(instance, "g1", look), "2001 2775 2001 2775 2001 664 1000 50 2001 4000\n");
    // The top says that all is done: what has another group below it is not looked at, but by the other policy.
    let odd = dir.join("d5/5");
    std::os::unix::fs::chown(&odd, None, Some(77)).expect("change the group");
    apply(instance, &pod("g2", "", mount, &spec(2001, "OnRootMismatch")));
    ready(instance, "g2");
    assert_eq!(fs::metadata(&odd).expect("metadata").gid(), 77);
    apply(instance, &pod("g3", "", mount, &spec(2001, "Always")));
    ready(instance, "g3");
    assert_eq!(fs::metadata(&odd).expect("metadata").gid(), 2001);
    // All of it is that group's: another is shown it as its own, and nothing changes on the disk.
    let mapped = "annotations: {holdfast.dev/map-fs-group: \"true\"}";
    apply(instance, &pod("g4", mapped, mount, &spec(2004, "OnRootMismatch")));
    ready(instance, "g4");
    let look =
        "stat -c '%g %a' /v /v/d19/99 | tr '\\n' ' '; echo new > /v/d3/new && cat /v/d3/3; stat -c %u:%g /v/d3/new";
    assert_eq!(sh(instance, "g4", look), "2004 2775 2004 664 ok\n1000:2004\n");
    assert_eq!(fs::metadata(&dir).expect("metadata").gid(), 2001);
    assert_eq!(sh(instance, "g1", "stat -c %g /v/d3/new"), "2001\n");
    delete(instance, &["g1", "g2", "g3", "g4"]);
}

fn is_private(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o007 == 0)
}

/// Secrets are written to memory only, behind directories that nobody else may enter.
fn secrets_stay_in_memory(instance: &Instance) {
    let objects = "apiVersion: v1\nkind: Secret\nmetadata: {name: canary}\nstringData: {key: canary-5d41402abc4b2a76b9719d911017c592}\n---\n";
    let volumes = "  volumes: [{name: s, secret: {secretName: canary, defaultMode: 0400}}, {name: p, projected: {sources: [{secret: \
                   {name: canary}}]}}, {name: bad, secret: {secretName: canary, items: [{key: none, path: x}]}}]";
    let mounts = "volumeMounts: [{name: s, mountPath: /s}, {name: p, mountPath: /p}]";
    let fine = volumes.split(", {name: bad").next().expect("one part").to_owned() + "]";
    apply(instance, &(objects.to_owned() + &pod("keeps", "", mounts, &fine) + &pod("waits", "", mounts, volumes)));
    ready(instance, "keeps");
    assert_eq!(
        sh(instance, "keeps", "stat -L -c %a /s/key; stat -f -c %T /s /p; grep -c ' /[sp] tmpfs ro' /proc/mounts"),
        "400\ntmpfs\ntmpfs\n2\n"
    );
    told(instance, "waits", "references non-existent secret key: none");
    let pods = Path::new(&instance.data_dir()).join("kubelet/pods");
    assert!(is_private(&pods), "others may enter {}", pods.display());
    // Nothing that the node says or writes beside the volumes has it.
    keeps_secrets(instance, &["canary-5d41402abc4b2a76b9719d911017c592"], &[]);
    // What containers are told, secrets of their environment too, only the node reads.
    let containers = fs::read_dir(Path::new(&instance.data_dir()).join("runtime/containers")).expect("containers");
    let records: Vec<_> = containers.flatten().map(|c| c.path().join("launch.json")).filter(|p| p.exists()).collect();
    let modes = records.iter().map(|p| fs::metadata(p).map(|m| m.permissions().mode() & 0o777).unwrap_or(0o600));
    assert!(!records.is_empty() && modes.into_iter().all(|mode| mode == 0o600));
    delete(instance, &["keeps", "waits"]);
}

/// Ends a thread that looks at it, in all outcomes.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Containers start with a sub-path while somebody who has the volume, too, exchanges it with a link that leads out.
fn cve_2021_25741_containers_start_inside_of_their_volume(instance: &Instance) {
    let scratch = tempfile::tempdir().expect("a directory");
    let at = |path: &str| scratch.path().join(path);
    for (dir, marker) in [("volume/d/x", "inside"), ("outside/x", "outside")] {
        fs::create_dir_all(at(dir)).expect("made");
        fs::write(at(dir).join("marker"), marker).expect("written");
    }
    symlink(at("outside"), at("volume/l")).expect("a link");
    let containers: String = (0..12)
        .map(|n| {
            format!(
                "  - {{name: c{n}, image: \"hfbox:1\", command: [sh, -c, 'test \"$(cat /m/marker)\" = inside'], \
                 volumeMounts: [{{name: v, mountPath: /m, subPath: d/x}}]}}\n"
            )
        })
        .collect();
    let volume = format!("[{{name: v, hostPath: {{path: {}}}}}]", at("volume").display());
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: race}}\nspec:\n  restartPolicy: Never\n  volumes: {volume}\n  containers:\n{containers}"
    );
    let (stop, mut refused) = (AtomicBool::new(false), false);
    std::thread::scope(|scope| {
        let _ends = Stops(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let (dir, link) = (at("volume/d"), at("volume/l"));
                renameat_with(CWD, &dir, CWD, &link, RenameFlags::EXCHANGE).expect("exchange two names");
            }
        });
        apply(instance, &pod);
        // Some have met one order by then, some the other; who was refused tries again.
        let deadline = Instant::now() + Duration::from_secs(4);
        while Instant::now() < deadline {
            let states = field(instance, "pod/race", ".status.containerStatuses[*].state");
            refused |= states.contains("CreateContainerConfigError");
            if refused && states.contains("terminated") {
                break;
            }
        }
    });
    // What `d` is in the end is chance: all are to find the directory.
    if at("volume/d").is_symlink() {
        renameat_with(CWD, at("volume/d"), CWD, at("volume/l"), RenameFlags::EXCHANGE).expect("exchange two names");
    }
    until("all containers have ended", || {
        let phase = field(instance, "pod/race", ".status.phase");
        assert_ne!(phase, "Failed", "a container was shown what is outside of its volume");
        (phase == "Succeeded").then_some(())
    });
    println!("some met the link: {refused}");
    delete(instance, &["race"]);
}

#[test]
fn volumes_of_every_type() {
    let mut instance = Instance::start();
    sub_paths_follow(&mut instance);
    trust_bundles_are_projected(&instance);
    mounts_in_sub_paths_reach_the_host(&instance);
    cve_2017_1002102_files_of_the_node_are_read_only(&instance);
    strange_files_block_nobody(&instance);
    groups_own_volumes(&instance);
    secrets_stay_in_memory(&instance);
    cve_2021_25741_containers_start_inside_of_their_volume(&instance);
}
