//! `flexVolume`: what programs are asked in which order, what the node does in their place, and what it keeps to itself.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use serde_json::{Value, from_str, from_value, json};
use sys::{FakeSys, FileKind, Program, Ran, Sys};
use testkit::{FakeDriver, flex};
use volumes::{
    Cancel, FlexVolume, Growth, Inputs, Ownership, PodVolumes, Ready, Resolved, SecretRef, Settings, Source,
    VolumeError, resolve,
};

const SHARED: &str = "/kubelet/plugins/kubernetes.io/flexvolume/example.com/any/mounts/vol";

/// A machine with one driver, whose answers the test says.
struct World {
    sys: Arc<FakeSys>,
    asked: Arc<Mutex<Vec<Vec<String>>>>,
    settings: Settings,
}

impl World {
    /// `answer`: what a command is answered, `""` for one that is not supported.
    fn new(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let (sys, asked) = (Arc::new(FakeSys::default()), Arc::new(Mutex::new(Vec::new())));
        sys.with_file("/flex/example.com~any/any", FileKind::File);
        let log = asked.clone();
        sys.with_programs(move |program: &Program<'_>| {
            assert_eq!((program.path, program.environment.len()), (Path::new("/flex/example.com~any/any"), 1));
            let said: Vec<String> = program.arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect();
            let text = answer(&said[0]);
            log.lock().unwrap().push(said);
            match text.as_str() {
                "late" => Err(io::ErrorKind::TimedOut.into()),
                "" => Ok(ran(1, r#"{"status": "Not supported"}"#)),
                text => Ok(ran(0, text)),
            }
        });
        let settings = Settings { flex_dir: "/flex".into(), flex_secrets: true, ..Settings::default() };
        Self { sys, asked, settings }
    }

    fn volumes(&self) -> PodVolumes {
        let driver = FakeDriver::new(self.sys.clone(), None, "/none".into());
        let volumes = PodVolumes::new("/kubelet/pods".into(), self.sys.clone());
        volumes.with_drivers(driver).with_settings(self.settings.clone())
    }

    fn set_up(&self, pod: &str, source: FlexVolume) -> Result<Ready, VolumeError> {
        let own = Ownership { fs_group: Some(7), ..Ownership::default() };
        self.volumes().set_up(pod, "v", &resolved(source), &own)
    }

    /// What the driver was asked since the last look, the options left out.
    fn asked(&self) -> Vec<String> {
        let plain = |call: Vec<String>| call.into_iter().filter(|a| !a.starts_with('{')).collect::<Vec<_>>().join(" ");
        std::mem::take(&mut *self.asked.lock().unwrap()).into_iter().map(plain).collect()
    }

    fn options(&self, command: &str) -> BTreeMap<String, String> {
        let asked = self.asked.lock().unwrap();
        let call = asked.iter().find(|call| call[0] == command).unwrap();
        from_str(call.iter().find(|a| a.starts_with('{')).unwrap()).unwrap()
    }

    fn is_clean(&self) -> bool {
        let kept = |path: &str| self.sys.tree(path).into_iter().filter(|p| format!("{p:?}").contains("vol")).count();
        self.sys.mounts().is_empty() && kept("/kubelet/pods") == 0 && self.sys.open(Path::new(SHARED)).is_err()
    }
}

fn ran(status: i32, text: &str) -> Ran {
    Ran { status: Some(status), output: text.into(), errors: b"a word of warning".to_vec() }
}

fn ok() -> String {
    r#"{"status": "Success"}"#.into()
}

fn volume() -> FlexVolume {
    flex::volume("example.com/any")
}

fn resolved(source: FlexVolume) -> Resolved {
    Resolved { source: Source::Flex(Box::new(source)), read_only: false, mount_options: Vec::new() }
}

/// Answers of a driver that attaches a device, and leaves all else to the node.
fn a_disk(command: &str) -> String {
    match command {
        "init" => ok(),
        "attach" => r#"{"status": "Success", "device": "/dev/disk"}"#.into(),
        "isattached" => r#"{"status": "Success", "attached": true}"#.into(),
        _ => String::new(),
    }
}

#[test]
fn the_node_does_what_a_driver_does_not() {
    let w = World::new(a_disk);
    w.sys.with_file("/dev/disk", FileKind::BlockDevice);
    w.sys.with_disk("/dev/disk", 1 << 20, false);
    let ready = w.set_up("a", FlexVolume { fs_type: "xfs".into(), ..volume() }).unwrap();
    assert_eq!(ready.host_path, Path::new("/kubelet/pods/a/volumes/example.com~any/vol"));
    assert_eq!(w.sys.filesystem_on("/dev/disk"), Some(("xfs".into(), 1 << 20)), "formatted");
    assert_eq!(w.sys.stat(&w.sys.open(&ready.host_path).unwrap()).unwrap().gid, 7);
    let set_up = ["init", "getvolumename", "attach here", "waitforattach /dev/disk"];
    let mounting = [format!("mountdevice {SHARED} /dev/disk"), format!("mount {}", ready.host_path.display())];
    let all: Vec<String> = set_up.map(String::from).into_iter().chain(mounting).collect();
    assert_eq!(w.asked(), all);
    // The second pod of the machine finds it attached and mounted.
    w.set_up("b", volume()).unwrap();
    assert_eq!(w.asked(), ["init", "getvolumename", "mount /kubelet/pods/b/volumes/example.com~any/vol"]);
    w.volumes().tear_down("a").unwrap();
    assert_eq!(w.asked(), [format!("unmount {}", ready.host_path.display())]);
    // A process that starts finds it in place, and asks nobody.
    w.set_up("b", volume()).unwrap();
    assert_eq!(w.asked(), [""; 0]);
    // It grows by the node's hand.
    w.sys.with_disk("/dev/disk", 2 << 20, false);
    let source = Source::Flex(Box::new(volume()));
    assert_eq!(w.volumes().expand("b", "v", &source, 2 << 20).unwrap(), Growth::Done);
    let grown = [format!("expandvolume {SHARED} 2097152 1"), format!("expandfs /dev/disk {SHARED} 2097152 1")];
    assert_eq!(w.asked()[1..], grown);
    assert_eq!(w.sys.filesystem_on("/dev/disk"), Some(("xfs".into(), 2 << 20)));
    w.volumes().tear_down("b").unwrap();
    let gone = ["unmount /kubelet/pods/b/volumes/example.com~any/vol", "detach vol here"];
    assert_eq!(w.asked(), gone);
    assert!(w.is_clean(), "{:?} {:?}", w.sys.mounts(), w.sys.tree("/kubelet"));
}

#[test]
fn pods_own_volumes_of_one_name_are_not_one() {
    let w = World::new(a_disk);
    w.sys.with_file("/dev/disk", FileKind::BlockDevice);
    w.sys.with_disk("/dev/disk", 1 << 20, false);
    for pod in ["a", "b"] {
        w.set_up(pod, FlexVolume { persistent: false, ..volume() }).unwrap();
        assert!(w.asked().contains(&format!("mountdevice {SHARED}-{pod} /dev/disk")));
    }
    for pod in ["a", "b"] {
        w.volumes().tear_down(pod).unwrap();
        assert_eq!(w.asked().last().unwrap(), "detach vol here");
    }
    assert!(w.is_clean());
}

#[test]
fn a_driver_is_told_what_upstream_tells_it() {
    let w = World::new(|command| match command {
        "init" => r#"{"status": "Success", "Capabilities": {"ATTACH": false, "fsGroup": false}}"#.into(),
        _ => ok(),
    });
    let pod: Pod = from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
        "spec": {"serviceAccountName": "sa", "containers": [], "volumes": []}}))
    .unwrap();
    let flex = json!({"driver": "example.com/any", "fsType": "ext4", "options": {"share": "x y'\""}, "readOnly": true,
        "secretRef": {"name": "s"}});
    let own: Volume = from_value(json!({"name": "v", "flexVolume": flex})).unwrap();
    let resolved = resolve(&pod, &own, &Inputs { node_name: "n".into(), ..Inputs::default() }).unwrap();
    assert!(resolved.read_only);
    let own = Ownership { fs_group: Some(7), ..Ownership::default() };
    let ready = w.volumes().set_up("u", "v", &resolved, &own).unwrap();
    assert!(ready.read_only);
    let told = w.options("mount");
    let want = json!({"kubernetes.io/fsType": "ext4", "kubernetes.io/readwrite": "ro", "kubernetes.io/pvOrVolumeName": "v",
        "kubernetes.io/pod.name": "p", "kubernetes.io/pod.namespace": "ns", "kubernetes.io/pod.uid": "u",
        "kubernetes.io/serviceAccount.name": "sa", "kubernetes.io/mounterArgs.FsGroup": "7",
        "kubernetes.io/secret/key": "b2YgbnMvcw==", "share": "x y'\""});
    assert_eq!(json!(told), want);
    assert_eq!(w.asked().len(), 2, "it does not attach");
    assert_ne!(w.sys.stat(&w.sys.open(&ready.host_path).unwrap()).unwrap().gid, 7);
    let record = w.sys.open(Path::new("/kubelet/pods/u/volumes/kubernetes.io~flexvolume/v/flex.json")).unwrap();
    let record = String::from_utf8(w.sys.read_file(&record).unwrap()).unwrap();
    assert!(!record.contains("b2Yg"), "{record}");
    w.volumes().tear_down("u").unwrap();

    let claim: PersistentVolumeClaim = from_value(json!({"metadata": {"name": "c", "uid": "cu"},
        "spec": {"volumeName": "pv"}, "status": {"phase": "Bound", "capacity": {"storage": "1Ki"}}}))
    .unwrap();
    let volume: PersistentVolume = from_value(json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"uid": "cu"},
        "flexVolume": {"driver": "d", "secretRef": {"name": "s", "namespace": "other"}}}}))
    .unwrap();
    let inputs = Inputs {
        claims: [("c".to_owned(), Some(claim))].into(),
        volumes: [("pv".to_owned(), Some(volume))].into(),
        ..Inputs::default()
    };
    let used: Volume = from_value(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}})).unwrap();
    let Source::Flex(found) = resolve(&pod, &used, &inputs).unwrap().source else { panic!("another type") };
    assert_eq!((found.name.as_str(), found.persistent, found.has_bytes), ("pv", true, 1024));
    assert_eq!(found.secret, Some(SecretRef { namespace: "other".into(), name: "s".into() }));
}

#[test]
fn what_goes_wrong_is_said_and_nothing_is_left() {
    let check = |driver: &str, answer: &'static str, operation: &str, words: &str| {
        let w = World::new(move |command| match command {
            "init" => a_disk("init"),
            "attach" if answer.starts_with("attach") => answer.trim_start_matches("attach").into(),
            "mount" if !answer.starts_with("attach") => answer.into(),
            _ => ok(),
        });
        let secret = Some(SecretRef { namespace: "ns".into(), name: "s".into() });
        let error = w.set_up("a", FlexVolume { driver: driver.into(), secret, ..volume() }).unwrap_err();
        let VolumeError::Flex { operation: during, why, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*during, operation, "{why}");
        assert!(why.contains(words), "{why}");
        assert!(!why.contains("of ns/s") && !why.contains("b2YgbnMvcw=="), "a secret is told: {why}");
        w.volumes().tear_down("a").unwrap();
        assert!(w.is_clean());
    };
    const DRIVER: &str = "example.com/any";
    let failed = r#"attach{"status": "Failure", "message": "no such disk"}"#;
    let reason = "attach command failed, status: Failure, reason: no such disk";
    check(DRIVER, failed, "AttachVolume.Attach", reason);
    let echo = r#"{"status": "Failure", "message": "of ns/s and b2YgbnMvcw== are wrong"}"#;
    check(DRIVER, echo, "MountVolume.SetUp", "reason: *** and *** are wrong");
    check(
        DRIVER,
        "not json, of ns/s",
        "MountVolume.SetUp",
        "answered with no JSON object: not json, *** a word of warning",
    );
    check(DRIVER, "late", "MountVolume.SetUp", "took longer than 120 s and was killed");
    check("example.com/other", "", "MountVolume.SetUp", "this node has no program /flex/example.com~other/other");
    check("../../bin/sh", "", "MountVolume.SetUp", "is not a name that a driver can have");

    let mut w = World::new(|_| ok());
    w.settings.flex_secrets = false;
    let secret = Some(SecretRef { namespace: "ns".into(), name: "s".into() });
    let error = w.set_up("a", FlexVolume { secret: secret.clone(), ..volume() }).unwrap_err().to_string();
    assert!(error.contains("--flex-volume-secrets"), "{error}");
    assert_eq!(w.asked(), ["init"], "no secret is read");
    w.settings.flex_secrets = true;
    let other = secret.map(|s| SecretRef { name: "of-another-type".into(), ..s });
    let error = w.set_up("a", FlexVolume { secret: other, ..volume() }).unwrap_err().to_string();
    assert!(error.contains("ns/of-another-type err: cannot get secret of type example.com/any"), "{error}");

    let cancel = Cancel::default();
    cancel.cancel();
    let own = Ownership::default();
    let error = w.volumes().set_up_while("c", "v", &resolved(volume()), &own, &cancel).unwrap_err();
    assert!(matches!(error, VolumeError::Cancelled), "{error:?}");
}

#[test]
fn a_driver_that_went_keeps_what_it_attached() {
    let w = World::new(|command| if command == "init" { a_disk("init") } else { ok() });
    w.set_up("a", volume()).unwrap();
    let hidden = World { settings: Settings { flex_dir: "/elsewhere".into(), ..w.settings.clone() }, ..w };
    let error = hidden.volumes().tear_down("a").unwrap_err().to_string();
    assert!(error.contains("detached by its driver") && error.contains("/elsewhere/example.com~any/any"), "{error}");
    let back = World { settings: Settings { flex_dir: "/flex".into(), ..hidden.settings.clone() }, ..hidden };
    back.volumes().tear_down("a").unwrap();
    assert_eq!(back.asked().last().unwrap(), "detach vol here");
    assert!(back.is_clean());
}

#[test]
fn what_is_no_longer_attached_is_attached_again() {
    let w = World::new(|command| match command {
        "isattached" => r#"{"status": "Success", "attached": false}"#.into(),
        other => a_disk(other),
    });
    w.sys.with_file("/dev/disk", FileKind::BlockDevice);
    w.sys.with_disk("/dev/disk", 1 << 20, false);
    w.set_up("a", volume()).unwrap();
    w.asked();
    // As after a reboot: nothing is mounted.
    for point in [Path::new("/kubelet/pods/a/volumes/example.com~any/vol"), &Path::new(SHARED).join("data")] {
        let above = w.sys.open(point.parent().unwrap()).unwrap();
        w.sys.unmount(&above, point.file_name().unwrap(), sys::Unmount::Strict).unwrap();
    }
    w.set_up("a", volume()).unwrap();
    assert_eq!(w.asked()[..4], ["init", "getvolumename", "isattached here", "attach here"]);
    w.volumes().tear_down("a").unwrap();
    assert!(w.is_clean());
}

#[test]
fn the_value_of_options_is_one_argument() {
    // The protocol's form, whatever is in it.
    let w = World::new(|_| ok());
    let options = [("k".to_owned(), "$(reboot); `reboot`\n\"".to_owned())].into();
    w.set_up("a", FlexVolume { options, ..volume() }).unwrap();
    let told = w.options("mount");
    assert_eq!(told["k"], "$(reboot); `reboot`\n\"");
    assert!(w.asked().iter().any(|call| call == "mount /kubelet/pods/a/volumes/example.com~any/vol"));
    let _: Value = json!(told);
}
