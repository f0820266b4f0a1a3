//! LUNs on a fake kernel, by both initiators: had once by a machine, given up with the last pod, and what is wrong is said.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use sys::{FakeSys, Sys, When};
use testkit::{FakeDriver, FakeTarget, plugin_suite::lun};
use volumes::{Cancel, Growth, IscsiSource, Ownership, PodVolumes, Ready, Resolved, SecretRef, Source, VolumeError};

struct World {
    sys: Arc<FakeSys>,
    target: Arc<FakeTarget>,
    drivers: Arc<FakeDriver>,
}

impl World {
    fn new(by_kernel: bool) -> Self {
        let sys = Arc::new(FakeSys::default());
        let target = FakeTarget::new(&sys, by_kernel);
        let kernel: Arc<dyn Sys> = sys.clone();
        let drivers = FakeDriver::new(kernel, Some(sys.clone()), "/host/device".into());
        Self { sys, target, drivers }
    }

    /// As a process that has just started has them.
    fn volumes(&self) -> PodVolumes {
        PodVolumes::new("/kubelet/pods".into(), self.sys.clone()).with_drivers(self.drivers.clone())
    }

    #[track_caller]
    fn is_clean(&self) {
        assert!(self.sys.attendants().is_empty() && self.sys.loops().is_empty(), "{:?}", self.sys.loops());
        assert_eq!(self.target.sessions(), []);
        assert!(self.sys.mounts().is_empty(), "{:?}", self.sys.mounts());
        for dir in ["/kubelet/pods", "/kubelet/plugins/kubernetes.io/iscsi"] {
            assert_eq!(self.sys.tree(dir), Vec::<std::path::PathBuf>::new());
        }
    }
}

fn resolved(source: &IscsiSource) -> Resolved {
    Resolved { source: Source::Iscsi(Box::new(source.clone())), read_only: false, mount_options: Vec::new() }
}

fn set_up(volumes: &PodVolumes, pod: &str, source: &IscsiSource) -> Result<Ready, VolumeError> {
    volumes.set_up(pod, "v", &resolved(source), &Ownership::default())
}

fn refused(volumes: &PodVolumes, source: &IscsiSource) -> String {
    let said = set_up(volumes, "r", source).unwrap_err().to_string();
    volumes.tear_down("r").unwrap();
    said
}

#[test]
fn a_machine_has_a_lun_once_and_gives_it_up_with_the_last_pod() {
    for by_kernel in [false, true] {
        let w = World::new(by_kernel);
        w.target.have(&[(1, 1 << 20), (2, 1 << 20)]);
        let volumes = w.volumes();
        let one = set_up(&volumes, "one", &lun(1)).unwrap();
        assert_eq!(one.host_path, Path::new("/kubelet/pods/one/volumes/kubernetes.io~iscsi/v/data"));
        // Another portal of the same disk: another device for it would not know what is written by this one.
        let elsewhere = IscsiSource { portals: vec!["10.0.0.2:3260".into()], ..lun(1) };
        let two = set_up(&volumes, "two", &elsewhere).unwrap();
        let id = |ready: &Ready| w.sys.stat(&w.sys.open(&ready.host_path).unwrap()).unwrap().id();
        assert_eq!(id(&one), id(&two));
        let raw = set_up(&volumes, "raw", &IscsiSource { block: true, ..lun(2) }).unwrap();
        assert!(raw.device && raw.host_path.starts_with("/dev"), "{raw:?}");
        let before = w.target.log().len();
        // As after a restart.
        let volumes = w.volumes();
        set_up(&volumes, "one", &lun(1)).unwrap();
        assert_eq!(set_up(&volumes, "raw", &IscsiSource { block: true, ..lun(2) }).unwrap().host_path, raw.host_path);
        assert_eq!(w.target.log().len(), before, "{:?}", &w.target.log()[before..]);
        volumes.tear_down("one").unwrap();
        assert!(w.sys.open(&two.host_path.join("f")).is_err() && id(&two).1 > 0, "the other pod's mount");
        volumes.tear_down("two").unwrap();
        assert_eq!(w.target.sessions().len(), usize::from(by_kernel), "the session of the other LUN");
        volumes.tear_down("raw").unwrap();
        assert_eq!(w.sys.tree("/etc/iscsi/nodes/iqn.2026-11.test:t/10.0.0.1,3260,1"), Vec::<std::path::PathBuf>::new());
        w.is_clean();
    }
}

#[test]
fn what_is_wrong_is_said_with_its_field() {
    for by_kernel in [false, true] {
        let w = World::new(by_kernel);
        let volumes = w.volumes();
        let says = |source: &IscsiSource, words: &str| {
            let said = refused(&volumes, source);
            assert!(said.contains(words) && said.contains("volume \"lun-"), "kernel {by_kernel}: {said}");
            w.is_clean();
        };
        says(
            &IscsiSource { portals: vec!["10.0.0.9:3260".into()], ..lun(1) },
            "portal 10.0.0.9:3260 (iscsi.targetPortal, iscsi.portals) cannot be reached",
        );
        says(
            &IscsiSource { iqn: "iqn.2026-11.test:none".into(), ..lun(1) },
            "no target \"iqn.2026-11.test:none\" for this node (iscsi.iqn)",
        );
        w.target.want("me", "the secret");
        let login = if by_kernel {
            "refuses user or password (iscsi.secretRef)"
        } else {
            "wants CHAP (iscsi.chapAuthSession, iscsi.secretRef)"
        };
        says(&lun(1), login);
        let with = |secret: &str| IscsiSource {
            chap_session: true,
            secret: Some(SecretRef { namespace: "ns".into(), name: secret.into() }),
            ..lun(1)
        };
        says(&with("missing"), "couldn't get secret ns/missing error: secrets \"missing\" not found");
        says(&IscsiSource { secret: None, ..with("x") }, "iscsi.secretRef is missing");
        let pairs = |user: &str, password: &str| -> BTreeMap<String, String> {
            let keys = ["node.session.auth.username", "node.session.auth.password"].map(str::to_owned);
            keys.into_iter().zip([user, password].map(str::to_owned)).filter(|(_, v)| !v.is_empty()).collect()
        };
        w.drivers.have_secret("chap", pairs("me", ""));
        says(&with("chap"), "secret ns/chap has no key node.session.auth.password, which iscsi.chapAuthSession needs");
        w.drivers.have_secret("chap", pairs("me", "two\nlines"));
        says(&with("chap"), "more than one line");
        w.drivers.have_secret("chap", pairs("me", "another"));
        says(&with("chap"), "refuses user or password");
        if !by_kernel {
            for (key, discovery) in
                [("node.session.auth.password_in", false), ("discovery.sendtargets.auth.username_in", true)]
            {
                let mut words = pairs("me", "the secret");
                words.extend(["username", "password"].map(|k| (format!("discovery.sendtargets.auth.{k}"), "x".into())));
                words.insert(key.into(), "target".into());
                w.drivers.have_secret("chap", words);
                let said =
                    format!("secret ns/chap has {key}: that the target proves who it is needs the kernel's initiator");
                says(&IscsiSource { chap_discovery: discovery, ..with("chap") }, &said);
            }
        }
        if by_kernel {
            let proof = |secret: &str| {
                let mut words = pairs("me", "the secret");
                words.insert("node.session.auth.username_in".into(), "target".into());
                words.insert("node.session.auth.password_in".into(), secret.into());
                words
            };
            w.drivers.have_secret("chap", proof("its secret"));
            w.target.prove("target", "another");
            says(&with("chap"), "does not prove who it is by node.session.auth.username_in and");
            w.target.prove("target", "its secret");
            set_up(&volumes, "p", &with("chap")).unwrap();
            volumes.tear_down("p").unwrap();
            w.is_clean();
        }
        w.drivers.have_secret("chap", pairs("me", "the secret"));
        set_up(&volumes, "p", &with("chap")).unwrap();
        volumes.tear_down("p").unwrap();
        w.is_clean();
        let log = w.target.log().join("\n");
        assert!(!log.contains("the secret") && !log.contains("another"), "{log}");
    }
}

#[test]
fn a_lun_that_is_not_there_is_no_disk() {
    let w = World::new(false);
    assert!(refused(&w.volumes(), &lun(7)).contains("has no LUN 7 for this node (iscsi.lun)"));
    w.is_clean();
}

#[test]
fn several_portals_are_several_ways() {
    let portals = vec!["10.0.0.9:3260".to_owned(), "10.0.0.1:3260".to_owned(), "10.0.0.2:3260".to_owned()];
    let source = IscsiSource { portals, block: true, ..lun(1) };
    for by_kernel in [false, true] {
        let w = World::new(by_kernel);
        w.target.answer_at(&["10.0.0.1:3260", "10.0.0.2:3260"]);
        w.target.join_paths();
        let volumes = w.volumes();
        let ready = set_up(&volumes, "p", &source).unwrap();
        if by_kernel {
            assert_eq!(ready.host_path, Path::new("/dev/dm-0"));
            assert_eq!(w.target.sessions().len(), 2);
        }
        volumes.tear_down("p").unwrap();
        w.is_clean();
    }
}

#[test]
fn an_initiator_name_is_another_machine_to_the_target() {
    let w = World::new(true);
    let source = IscsiSource { initiator: Some("iqn.2026-11.test:me".into()), ..lun(1) };
    let volumes = w.volumes();
    set_up(&volumes, "p", &source).unwrap();
    let interface = "10.0.0.1:3260:lun-1";
    assert_eq!(w.target.sessions(), [("10.0.0.1:3260".to_owned(), interface.to_owned())]);
    let log = w.target.log().join("\n");
    assert!(
        log.contains(&format!("-m iface -I {interface} -o update -n iface.initiatorname -v iqn.2026-11.test:me: 0")),
        "{log}"
    );
    assert!(log.contains("-n iface.transport_name -v tcp: 0") && !log.contains("<empty>"), "{log}");
    set_up(&volumes, "q", &lun(1)).unwrap();
    assert_eq!(w.target.sessions().len(), 2);
    volumes.tear_down("p").unwrap();
    assert!(w.target.log().last().unwrap().contains(&format!("-m iface -I {interface} -o delete: 0")));
    volumes.tear_down("q").unwrap();
    w.is_clean();

    let w = World::new(false);
    set_up(&w.volumes(), "p", &source).unwrap();
    assert!(w.target.log().join("\n").ends_with("as iqn.2026-11.test:me"));
    w.volumes().tear_down("p").unwrap();
}

#[test]
fn a_silent_target_is_given_up_sooner_when_all_its_pods_end() {
    let w = World::new(false);
    let volumes = w.volumes();
    for pod in ["one", "two"] {
        set_up(&volumes, pod, &lun(1)).unwrap();
    }
    let stage = w.sys.tree("/kubelet/plugins/kubernetes.io/iscsi").into_iter().find(|p| p.ends_with(iscsi::EXPORT));
    let said = stage.unwrap().with_file_name(iscsi::ENDING);
    let ending = |pod: &str, seconds| volumes.ending(pod, Duration::from_secs(seconds)).unwrap();
    ending("one", 40);
    assert!(!w.sys.has(&said), "the other pod waits for it");
    ending("two", 40);
    assert_eq!(w.sys.content(&said), b"40");
    ending("two", 0);
    assert_eq!(w.sys.content(&said), b"5", "in more of a hurry, but not in none");
    set_up(&volumes, "three", &lun(1)).unwrap();
    assert!(!w.sys.has(&said), "this one waits for it");
    for pod in ["one", "two"] {
        volumes.tear_down(pod).unwrap();
        assert!(!w.sys.has(&said));
    }
    volumes.tear_down("three").unwrap();
    volumes.ending("three", Duration::ZERO).unwrap();
    w.is_clean();
}

#[test]
fn what_served_a_lun_may_die() {
    let w = World::new(false);
    let volumes = w.volumes();
    let first = set_up(&volumes, "p", &lun(1)).unwrap();
    w.sys.kill_attendants();
    let said = set_up(&volumes, "q", &lun(1)).unwrap_err().to_string();
    assert!(said.contains("has ended") && said.contains("end all pods of this node that use it"), "{said}");
    assert!(w.sys.open(&first.host_path).is_ok());
    volumes.tear_down("p").unwrap();
    set_up(&volumes, "q", &lun(1)).unwrap();
    w.sys.kill_attendants();
    volumes.tear_down("q").unwrap();
    w.is_clean();
}

#[test]
fn a_target_that_takes_no_writes_is_read() {
    let w = World::new(false);
    w.target.refuse_writes();
    set_up(&w.volumes(), "p", &IscsiSource { block: true, ..lun(1) }).unwrap();
    assert_eq!(w.sys.loops(), [("/dev/loop0".into(), true)]);
    w.volumes().tear_down("p").unwrap();
    w.is_clean();
}

#[test]
fn a_pod_that_ends_does_not_wait() {
    for by_kernel in [false, true] {
        let w = World::new(by_kernel);
        let cancel = Cancel::default();
        cancel.cancel();
        let refused = w.volumes().set_up_while("p", "v", &resolved(&lun(1)), &Ownership::default(), &cancel);
        assert!(matches!(refused, Err(VolumeError::Cancelled)), "{refused:?}");
        w.volumes().tear_down("p").unwrap();
        w.is_clean();
    }
}

#[test]
fn growing_asks_for_the_size_anew() {
    let w = World::new(true);
    let volumes = w.volumes();
    let expand = |bytes| volumes.expand("p", "v", &resolved(&lun(1)).source, bytes);
    assert_eq!(expand(2 << 20).unwrap(), Growth::NotSetUp);
    set_up(&volumes, "p", &lun(1)).unwrap();
    assert!(expand(2 << 20).unwrap_err().to_string().contains("which is less than"));
    w.sys.with_disk("/dev/sd3x1", 2 << 20, false);
    assert_eq!(expand(2 << 20).unwrap(), Growth::Done);
    assert_eq!(w.sys.content("/sys/block/sd3x1/device/rescan"), b"1");
    volumes.tear_down("p").unwrap();
    w.is_clean();
}

/// The suite has the other initiator.
#[test]
fn every_fault_of_the_kernels_initiator_is_survived() {
    for when in [When::Before, When::After] {
        for nth in 0.. {
            let w = World::new(true);
            let volumes = w.volumes();
            w.sys.fail(nth, when);
            let made = set_up(&volumes, "p", &lun(1)).or_else(|_| set_up(&volumes, "p", &lun(1)));
            let gone = volumes.tear_down("p").or_else(|_| w.volumes().tear_down("p"));
            let fired = w.sys.fault_fired();
            w.sys.heal();
            made.unwrap_or_else(|e| panic!("{when:?} call {nth}: {e:?}"));
            gone.unwrap_or_else(|e| panic!("{when:?} call {nth}: {e:?}"));
            w.is_clean();
            if !fired {
                assert!(nth > 50, "hardly a call was made");
                break;
            }
        }
    }
}
