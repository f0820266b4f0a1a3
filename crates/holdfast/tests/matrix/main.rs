//! What volumes have in common, on every type that needs no server: types are rows, few pods of one daemon have them all, and
//! the same scripts look at each.
#[path = "../common/mod.rs"]
mod common;
mod memory;
mod place;
mod rows;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::net::UnixListener,
    path::Path,
};

use common::{Instance, apply, mounted_below, ready, sh, told, until};
use memory::Memory;
use place::{HugePages, Place, install_flex, run};
use rows::{Kind, MIB, Row, claimed, objects, rows};
use testkit::{LoopDevice, git_server};

const WAIT: &str = "command: [sh, -c, \"trap 'exit 3' TERM; sleep 9999 & wait\"], image: \"hfbox:1\", env: [{name: DIR, value: d}, \
                    {name: BIN, value: bin}]";
const GROUP: &str =
    "securityContext: {fsGroup: 4711, supplementalGroups: [5822], seLinuxOptions: {level: \"s0:c1,c2\"}}";

/// A pod with its rows: `c` looks at all that can be asked of a mount, `u` is another user who shares them.
fn pod(name: &str, rows: &[&Row]) -> String {
    let list = |of: &dyn Fn(&Row) -> Vec<String>| rows.iter().flat_map(|row| of(row)).collect::<Vec<_>>().join(", ");
    let device = |row: &Row| match row.kind {
        Kind::Device(_) => vec![format!("{{name: {0}, devicePath: /dev/{0}}}", row.name)],
        _ => Vec::new(),
    };
    let whole = |row: &Row| match row.kind {
        Kind::Device(_) => Vec::new(),
        _ => vec![format!("{{name: {0}, mountPath: /{0}/rw}}", row.name)],
    };
    let filled = |row: &Row| if row.takes_writes() || row.kind == Kind::Huge { whole(row) } else { Vec::new() };
    let (looked, devices, shared, filled) = (list(&Row::looked_at), list(&device), list(&whole), list(&filled));
    let fill = "for v in /*/rw; do mkdir -p $v/d; test -e $v/f || echo top > $v/f; test -e $v/d/f || echo deep > $v/d/f; done; true";
    let huge = if name == "huge" { "resources: {limits: {memory: 64Mi, hugepages-2Mi: 4Mi}}, " } else { "" };
    let volumes: Vec<_> = rows.iter().map(|row| format!("{{name: {}, {}}}", row.name, row.source)).collect();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  {GROUP}\n  \
         initContainers:\n  - {{name: i, image: \"hfbox:1\", {huge}command: [sh, -c, {fill:?}], volumeMounts: [{filled}]}}\n  \
         containers:\n  - {{name: c, {WAIT}, {huge}securityContext: {{privileged: true}}, volumeMounts: [{looked}], \
         volumeDevices: [{devices}]}}\n  - {{name: u, {WAIT}, {huge}securityContext: {{runAsUser: 1000}}, volumeMounts: \
         [{shared}], volumeDevices: [{devices}]}}\n  volumes: [{}]\n---\n",
        volumes.join(", ")
    )
}

/// What is right and what was seen, by row and property; all that differ are told at once.
#[derive(Default)]
struct Findings {
    wrong: Vec<String>,
}

impl Findings {
    fn expect(&mut self, row: &Row, property: &str, want: &str, seen: &str) {
        if want != seen {
            let wrong = format!("{} {property}: {seen:?}, not {want:?}", row.name);
            println!("{wrong}");
            self.wrong.push(wrong);
        }
    }

    fn told(self) {
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
    }
}

/// Answers of a script that prints `ROW PROPERTY ANSWER`.
fn answers(said: &str) -> BTreeMap<(&str, &str), String> {
    let line = |line| {
        let mut words = str::splitn(line, 3, ' ');
        Some(((words.next()?, words.next()?), words.next().unwrap_or_default().to_owned()))
    };
    said.lines().filter_map(line).collect()
}

/// A script for each row: `$1` its name, `$2` its directory, `$3` its file.
fn each(rows: &[&Row], script: &str) -> String {
    let calls: String = rows.iter().map(|r| format!("each {} {} {}\n", r.name, r.parts().0, r.parts().1)).collect();
    let write = "w() { if (echo x > $1) 2> /dev/null; then echo taken; else echo refused; fi; }";
    format!("{write}\neach() {{\n{script}\n}}\n{calls}")
}

/// The mounts of a container at and below rows' directories: options, and what kind of propagation they have.
const MOUNTS: &str = r#"awk '{ p = "alone"; for (i = 7; $i != "-"; i++) { split($i, t, ":"); p = t[1] } print "mount", $5, $6, p }' /proc/self/mountinfo"#;

const LOOK: &str = r#"for m in rw ro rro both subd subro; do test -d /$1/$m && echo $1 $m $(w /$1/$m/new); done
for m in f S c b; do test -$m /$1/rw && echo $1 kind $m; done
echo $1 group $(stat -L -c %g /$1/rw /$1/rw/$3)
cmp -s /$1/subf /$1/rw/$3 && echo $1 subf same
for f in $(ls /$1/rw/$2); do cmp -s /$1/expr/$f /$1/rw/$2/$f && echo $1 expr same; break; done"#;

/// Writes, groups and sub-paths, as both containers see them.
fn look(instance: &Instance, pod: &str, rows: &[&Row], findings: &mut Findings) {
    let said = sh(instance, pod, &format!("{MOUNTS}; id -G | sed 's/^/pod id /'\n{}", each(rows, LOOK)));
    let seen = answers(&said);
    let of = |row: &str, property: &str| seen.get(&(row, property)).cloned().unwrap_or_default();
    let user = instance.kubectl(&["exec", pod, "-c", "u", "--", "sh", "-c", &{
        let user = "echo $1 user $(w /$1/rw/user); test -b /dev/$1 && echo $1 device b";
        format!("id -G | sed 's/^/pod id /'\n{}true", each(rows, user))
    }]);
    let users = answers(&user);
    let ids = (of("pod", "id"), users.get(&("pod", "id")).cloned().unwrap_or_default());
    assert_eq!(ids, ("0 4711 5822".into(), "1000 50 4711 5822".into()), "groups of the processes of {pod}");
    for row in rows {
        if row.is_tree() {
            let write = |yes| if yes { "taken" } else { "refused" };
            for place in ["rw", "both", "subd"] {
                findings.expect(row, place, write(row.takes_writes()), &of(row.name, place));
            }
            for place in ["ro", "rro", "subro"] {
                findings.expect(row, place, "refused", &of(row.name, place));
            }
            let is_own = matches!(row.kind, Kind::Own | Kind::Image);
            findings.expect(row, "group", if is_own { "0 0" } else { "4711 4711" }, &of(row.name, "group"));
            findings.expect(row, "subf", "same", &of(row.name, "subf"));
            findings.expect(row, "expr", "same", &of(row.name, "expr"));
            let other = users.get(&(row.name, "user")).cloned().unwrap_or_default();
            findings.expect(row, "user", write(row.kind == Kind::Written), &other);
        }
        if let Kind::Single(kind) = row.kind {
            findings.expect(row, "kind", &kind.to_string(), &of(row.name, "kind"));
        }
        if let Kind::Device(_) = row.kind {
            findings.expect(row, "device", "b", users.get(&(row.name, "device")).map_or("", |s| s));
        }
        flags(row, &said, findings);
    }
}

/// What the mounts of a row are.
fn flags(row: &Row, said: &str, findings: &mut Findings) {
    let only_read = matches!(row.kind, Kind::Files | Kind::Image);
    for mount in row.looked_at() {
        let part = mount.split('/').nth(2).and_then(|rest| rest.split([',', '}']).next()).expect("a mount path");
        let at = format!("/{}/{part}", row.name);
        let line = said.lines().find(|line| line.split(' ').nth(1) == Some(&at)).unwrap_or_default();
        let options = line.split(' ').nth(2).unwrap_or_default();
        let mode = if only_read || mount.contains("readOnly: true") { "ro" } else { "rw" };
        findings.expect(row, &at, mode, options.split(',').next().unwrap_or_default());
        let reach = match part {
            "h2c" => "master",
            "both" => "shared",
            _ => "alone",
        };
        findings.expect(row, &format!("{at} propagation"), reach, line.split(' ').nth(3).unwrap_or_default());
        let has_option = row.option.is_empty() || options.split(',').any(|option| option == row.option);
        findings.expect(row, &format!("{at} {}", row.option), "true", &has_option.to_string());
    }
}

const MOUNT_INSIDE: &str = r#"mount -t tmpfs none /$1/both/$2 && echo in > /$1/both/$2/in
for m in rw ro rro h2c both; do echo $1 in-$m $(cat /$1/$m/$2/in 2> /dev/null); done"#;
const LOOK_INSIDE: &str = r#"for m in rw ro rro h2c both; do echo $1 in-$m $(cat /$1/$m/$2/in) $(w /$1/$m/$2/new); done
echo $1 kept $(cat /$1/rw/new)"#;

fn count(instance: &Instance, pod: &str) -> String {
    instance.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[*].restartCount}"])
}

/// Mounts that appear in volumes while a container runs, and what it has of them when it is started again.
fn mounts_inside(instance: &Instance, pods: &BTreeSet<&str>, rows: &[Row], findings: &mut Findings) {
    let trees = |pod: &str| rows.iter().filter(|row| row.pod == pod && row.is_tree()).collect::<Vec<_>>();
    for pod in pods {
        let (rows, said) = (trees(pod), sh(instance, pod, &each(&trees(pod), MOUNT_INSIDE)));
        let seen = answers(&said);
        for (row, (place, want)) in rows
            .iter()
            .flat_map(|row| [("rw", ""), ("ro", ""), ("rro", ""), ("h2c", "in"), ("both", "in")].map(|p| (row, p)))
        {
            let property = format!("in-{place}");
            findings.expect(row, &property, want, seen.get(&(row.name, &*property)).map_or("nothing", |s| s));
        }
        sh(instance, pod, "kill 1");
    }
    for pod in pods {
        until("the container is started again", || (count(instance, pod) == "1 0").then_some(()));
        ready(instance, pod);
        let (rows, said) = (trees(pod), sh(instance, pod, &each(&trees(pod), LOOK_INSIDE)));
        let seen = answers(&said);
        let of = |row: &Row, property: &str| seen.get(&(row.name, property)).cloned().unwrap_or_default();
        for row in rows {
            let is_huge = row.kind == Kind::Huge;
            for place in ["rw", "ro", "h2c", "both"] {
                findings.expect(row, &format!("again in-{place}"), "in taken", &of(row, &format!("in-{place}")));
            }
            findings.expect(row, "again in-rro", "in refused", &of(row, "in-rro"));
            let kept = if row.takes_writes() && !is_huge { "x" } else { "" };
            findings.expect(row, "kept", kept, &of(row, "kept"));
        }
    }
    for pod in pods {
        let path = "jsonpath={.status.containerStatuses[?(@.name==\"c\")].volumeMounts[*].recursiveReadOnly}";
        let said = instance.kubectl(&["get", "pod", pod, "-o", path]);
        let mounted = rows.iter().filter(|row| row.pod == *pod && !row.looked_at().is_empty()).count();
        assert_eq!(said.matches("Enabled").count(), mounted, "{pod} says {said}");
    }
}

fn node_says(instance: &Instance, what: &str) -> String {
    let node = instance.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    instance.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/{what}")])
}

fn figures(summary: &serde_json::Value, row: &Row) -> Option<serde_json::Value> {
    let pod = summary["pods"].as_array()?.iter().find(|pod| pod["podRef"]["name"] == row.pod)?;
    pod["volume"].as_array()?.iter().find(|volume| volume["name"] == row.name).cloned()
}

/// How full volumes are, by the node's two ways to say it.
fn usage(instance: &Instance, rows: &[Row], findings: &mut Findings) {
    let counts = |row: &Row| row.claim().is_some() || !matches!(row.kind, Kind::Own | Kind::Image | Kind::Single(_));
    let summary = until("figures of all volumes", || {
        let summary = serde_json::from_str(&node_says(instance, "stats/summary")).expect("JSON");
        rows.iter().filter(|row| counts(row)).all(|row| figures(&summary, row).is_some()).then_some(summary)
    });
    let metrics = node_says(instance, "metrics");
    for row in rows {
        let Some(said) = figures(&summary, row) else { continue };
        findings.expect(row, "has figures", "true", &counts(row).to_string());
        let (capacity, used) = (said["capacityBytes"].as_u64(), said["usedBytes"].as_u64());
        let is_right = match row.kind {
            Kind::Device(mib) => (capacity, used) == (Some(mib * MIB), Some(0)),
            Kind::Huge => capacity >= used,
            _ if row.name == "inline" => (capacity, used) == (Some(4 * MIB), Some(77)),
            _ => capacity > used && used > Some(0),
        };
        findings.expect(row, &format!("figures {said}"), "true", &is_right.to_string());
        let Some(claim) = row.claim() else { continue };
        findings.expect(row, "claim", &claim, said["pvcRef"]["name"].as_str().unwrap_or_default());
        for (name, value) in [("capacity", capacity), ("used", used)] {
            let labels = format!("{{namespace=\"default\",persistentvolumeclaim=\"{claim}\"}}");
            let line = format!("kubelet_volume_stats_{name}_bytes{labels} {}", value.unwrap_or_default());
            findings.expect(row, &line, "true", &metrics.lines().any(|l| l == line).to_string());
        }
    }
}

/// Pages that are taken count, and no more can be had than the volume's limit.
fn huge_pages_are_bounded(instance: &Instance) {
    let pods = fs::read_dir(Path::new(&instance.data_dir()).join("kubelet/pods")).expect("pods").flatten();
    let volumes = pods.map(|pod| pod.path().join("volumes/kubernetes.io~empty-dir/few-pages/data"));
    let volume = volumes.into_iter().find(|path| path.is_dir()).expect("the volume");
    let take = |name: &str| {
        let file = fs::File::create(volume.join(name)).expect("make a file");
        rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, 2 * MIB)
    };
    take("one").expect("a page");
    assert_eq!(take("two"), Err(rustix::io::Errno::NOSPC));
}

/// A pod with some of the rows, in one container without rights.
fn plain(name: &str, policy: &str, rows: &[&Row], read_only: bool) -> String {
    let more = if read_only { ", readOnly: true}" } else { "}" };
    let source =
        |row: &Row| format!("{{name: {}, {}{more}}}", row.name, row.source.strip_suffix('}').expect("a source"));
    let (mut mounts, mut devices) = (Vec::new(), Vec::new());
    for row in rows {
        match row.kind {
            Kind::Device(_) => devices.push(format!("{{name: {0}, devicePath: /dev/{0}}}", row.name)),
            _ => mounts.push(format!("{{name: {0}, mountPath: /{0}/rw}}", row.name)),
        }
    }
    let volumes: Vec<_> = rows.iter().map(|row| source(row)).collect();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  securityContext: \
         {{fsGroup: 4711, fsGroupChangePolicy: {policy}}}\n  containers:\n  - {{name: c, {WAIT}, volumeMounts: [{}], \
         volumeDevices: [{}]}}\n  volumes: [{}]\n---\n",
        mounts.join(", "),
        devices.join(", "),
        volumes.join(", ")
    )
}

/// What outlives its pods is given to a group again as the pod says; and is only read where that is what a pod wants.
fn used_again(instance: &Instance, rows: &[Row], findings: &mut Findings) {
    let kept: Vec<_> = rows.iter().filter(|row| row.pod == "claims" && row.kind == Kind::Written).collect();
    let bears_it =
        |row: &&Row| ["persistentVolumeClaim", "csi", "flexVolume"].iter().any(|s| row.source.starts_with(s));
    let read: Vec<_> = rows.iter().filter(bears_it).collect();
    apply(instance, &(plain("mismatch", "OnRootMismatch", &kept, false) + &plain("reads", "Always", &read, true)));
    let mut groups = |pod: &str, group: &str| {
        ready(instance, pod);
        let script = format!("echo $1 odd $(stat -c %g /$1/rw/odd); echo {pod} > /$1/rw/from");
        let said = sh(instance, pod, &each(&kept, &script));
        let seen = answers(&said);
        for row in &kept {
            let seen = seen.get(&(row.name, "odd")).cloned().unwrap_or_default();
            findings.expect(row, &format!("group in {pod}"), group, &seen);
        }
    };
    groups("mismatch", "77");
    apply(instance, &plain("always", "Always", &kept, false));
    groups("always", "4711");
    ready(instance, "reads");
    let write = "if test -b /dev/$1; then echo $1 reads $(w /dev/$1); else echo $1 reads $(w /$1/rw/new); fi\n\
                 echo $1 from $(cat /$1/rw/from 2> /dev/null)";
    let said = sh(instance, "reads", &each(&read, write));
    let seen = answers(&said);
    for row in kept {
        // Beside those who write.
        let from = seen.get(&(row.name, "from")).map_or("", |s| s);
        findings.expect(row, "what another pod wrote", "always", from);
    }
    for row in read {
        findings.expect(row, "readOnly of the source", "refused", seen.get(&(row.name, "reads")).map_or("", |s| s));
    }
}

/// All pods go, with a daemon that is killed as soon as it is told so, and leave nothing.
fn gone(instance: &mut Instance) {
    instance.kubectl(&["delete", "pods", "--all", "--wait=false"]);
    instance.end("KILL");
    instance.up();
    instance.kubectl(&["wait", "--for=delete", "pods", "--all", "--timeout=60s"]);
    let kubelet = Path::new(&instance.data_dir()).join("kubelet");
    until("the pods' directories are gone", || {
        fs::read_dir(kubelet.join("pods")).map_or(true, |mut pods| pods.next().is_none()).then_some(())
    });
    until("nothing is mounted", || mounted_below(&kubelet).is_empty().then_some(()));
}

#[test]
fn what_volumes_have_in_common_holds_for_every_type() {
    let pages = HugePages::new();
    let place = Place::new();
    git_server::repository(&git_server::repositories(place.dir.path()), "app");
    let [disk, raw, block] = [64, 8, 1].map(|mib| LoopDevice::empty(place.dir.path(), mib * MIB));
    let _socket = UnixListener::bind(place.path("socket")).expect("a socket");
    run(&["mknod", &place.path("null").to_string_lossy(), "c", "1", "3"]);
    run(&["cp", "-a", &block.path().to_string_lossy(), &place.path("loop").to_string_lossy()]);
    let (plugins, repositories) = (install_flex(&place), place.path("repositories").to_string_lossy().into_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let dir = tempfile::Builder::new().prefix("holdfast-test-").tempdir_in(place.dir.path()).expect("a directory");
    let mut instance = Instance::within(dir, &["--allow-git-dir", &repositories, "--volume-plugin-dir", &plugins]);
    let image = common::images().join("hfbox.tar").to_string_lossy().into_owned();
    assert!(instance.ours(&["image", "import", &image, "--data-dir", &instance.data_dir()]).status.success());
    Memory::serve(&runtime, &instance);
    apply(&instance, &objects(&instance, &place, &disk, &raw));

    let rows = rows(&place, pages.before.is_some());
    if pages.before.is_none() {
        println!("skipped: emptyDir of huge pages, which this machine does not let the test set aside");
    }
    let of = |pod: &str| rows.iter().filter(|row| row.pod == pod).collect::<Vec<_>>();
    let pods: BTreeSet<&str> = rows.iter().map(|row| row.pod).collect();
    // A new daemon asks for new tokens, and with a new version of files the directory that a sub-path shows goes.
    let (late, early): (Vec<&str>, Vec<&str>) = pods.iter().copied().partition(|name| *name == "files");
    let manifest = |names: &[&str]| names.iter().map(|name| pod(name, &of(name))).collect::<String>();
    apply(
        &instance,
        &(manifest(&early) + &plain("optional", "Always", &[&claimed("", "optional", Kind::Own, "")], false)),
    );
    // Whatever it was about to do for them.
    instance.end("KILL");
    instance.up();
    apply(&instance, &manifest(&late));
    let mut findings = Findings::default();
    let begun = std::time::Instant::now();
    let step = |what: &str| println!("{what}: {:?}", begun.elapsed());
    for pod in &pods {
        ready(&instance, pod);
        look(&instance, pod, &of(pod), &mut findings);
    }
    told(&instance, "optional", "Mount options are not supported for this volume type");
    if pages.before.is_some() {
        huge_pages_are_bounded(&instance);
    }
    step("looked at");
    mounts_inside(&instance, &pods, &rows, &mut findings);
    step("containers started again");
    usage(&instance, &rows, &mut findings);
    step("figures");
    sh(&instance, "claims", "for v in /*/rw; do touch $v/odd && chgrp 77 $v/odd; done");
    instance.end("KILL");
    instance.up();
    for pod in &pods {
        ready(&instance, pod);
        assert_eq!(count(&instance, pod), "1 0", "{pod} went on");
    }
    gone(&mut instance);
    step("gone");
    used_again(&instance, &rows, &mut findings);
    step("used again");
    gone(&mut instance);
    step("gone");
    findings.told();
}
