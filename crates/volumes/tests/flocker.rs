//! `flocker`: what the control service is asked, and what of its answers is believed.
#![allow(clippy::unwrap_used)]

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
};

use flocker::Control;
use sys::{FakeSys, Sys, Tmpfs};
use testkit::flocker::FakeFlocker;
use volumes::{
    Cancel, FlockerVolume, Named, Ownership, PodVolumes, Ready, Reclaiming, Resolved, Settings, Source, VolumeError,
};

struct World {
    sys: Arc<FakeSys>,
    service: Arc<FakeFlocker>,
    settings: Settings,
}

impl World {
    /// `mounts`: Flocker's agent does what its service says.
    fn new(mounts: bool, place: &'static str) -> Self {
        let sys = Arc::new(FakeSys::default());
        let kernel = Arc::downgrade(&sys);
        let mount = move |id: &str, there: bool| {
            let path = PathBuf::from(place).join(id);
            if let Some(sys) = kernel.upgrade().filter(|_| there) {
                sys.with_dir(&path);
                if mounts {
                    let at = sys.open(&path).unwrap();
                    sys.mount_tmpfs(&at, &Tmpfs { size_bytes: None, mode: 0o755 }).unwrap();
                }
            }
            path
        };
        let service = FakeFlocker::new("192.0.2.7", Box::new(mount));
        let settings = Settings { addresses: vec!["192.0.2.7".into()], ..Settings::default() };
        Self { sys, service, settings }
    }

    fn volumes(&self) -> PodVolumes {
        let volumes = PodVolumes::new("/pods".into(), self.sys.clone()).with_flocker(self.service.clone());
        volumes.with_settings(self.settings.clone())
    }

    fn set_up(&self, dataset: Named, read_only: bool) -> Result<Ready, VolumeError> {
        self.volumes().set_up("p", "v", &resolved(dataset, read_only), &Ownership::default())
    }

    fn refused(&self, dataset: Named, words: &str) {
        let error = self.set_up(dataset, false).unwrap_err();
        assert!(matches!(error, VolumeError::Flocker { .. } | VolumeError::Files { .. }), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
        self.volumes().tear_down("p").unwrap();
        assert!(self.sys.tree("/pods").is_empty() && self.sys.mounts().iter().all(|m| !m.path.starts_with("/pods")));
    }
}

fn resolved(dataset: Named, read_only: bool) -> Resolved {
    let source = Source::Flocker(FlockerVolume { dataset, read_only });
    Resolved { source, read_only, mount_options: Vec::new() }
}

fn name(name: &str) -> Named {
    Named::Name(name.into())
}

#[test]
fn a_dataset_comes_by_name_or_uuid_and_stays_when_the_pod_goes() {
    let w = World::new(true, "/flocker");
    let id = w.service.add("db");
    let ready = w.set_up(name("db"), false).unwrap();
    assert!(!ready.read_only);
    let data = w.sys.open(&ready.host_path).unwrap();
    w.sys.write_new(&data, OsStr::new("f"), b"kept", 0o600).unwrap();
    drop(data);
    // Again, as after a restart: it is there.
    assert_eq!(w.set_up(name("db"), false).unwrap(), ready);
    assert_eq!(w.sys.mounts().len(), 2, "the dataset and the pod's");
    w.volumes().tear_down("p").unwrap();
    let ready = w.set_up(Named::Uuid(id.clone()), true).unwrap();
    assert!(ready.read_only && w.sys.mounts().iter().any(|m| m.path == ready.host_path && m.read_only));
    let file = w.sys.open(&ready.host_path.join("f")).unwrap();
    assert_eq!(w.sys.read_file(&file).unwrap(), b"kept");
    w.volumes().tear_down("p").unwrap();
    assert!(w.sys.open(&Path::new("/flocker").join(id).join("f")).is_ok());
    assert!(w.sys.tree("/pods").is_empty());
}

#[test]
fn one_that_does_not_exist_is_made_if_that_is_wished() {
    let mut w = World::new(true, "/flocker");
    w.refused(name("new"), "datasetName='new' can not be found using flocker: there is no such dataset; create it");
    w.settings.flocker_create_bytes = Some(1 << 30);
    w.set_up(name("new"), false).unwrap();
    w.volumes().tear_down("p").unwrap();
    w.set_up(name("new"), false).unwrap();
    assert_eq!(w.sys.mounts().iter().filter(|m| m.path.starts_with("/flocker")).count(), 1, "made once");
    w.volumes().tear_down("p").unwrap();
    // Nobody makes one of a UUID.
    w.refused(Named::Uuid("d5a2".into()), "datasetUUID='d5a2' can not be found");
}

#[test]
fn a_released_one_is_deleted_if_its_volume_says_so() {
    let w = World::new(true, "/flocker");
    let (id, other) = (w.service.add("db"), w.service.add("other"));
    let source = |dataset| Source::Flocker(FlockerVolume { dataset, read_only: false });
    for _ in 0..2 {
        w.volumes().reclaim(&source(Named::Uuid(id.clone())), Reclaiming::Delete).unwrap();
    }
    assert!(w.volumes().reclaim(&source(Named::Uuid(other.clone())), Reclaiming::Recycle).is_err());
    let all = w.service.datasets(&|| false).unwrap();
    let left: Vec<&str> = all.iter().filter(|d| !d.deleted).map(|d| d.dataset_id.as_str()).collect();
    assert_eq!(left, [other]);
}

#[test]
fn only_what_is_mounted_is_shown() {
    let w = World::new(false, "/flocker");
    w.service.add("db");
    w.refused(name("db"), "and nothing is mounted there");
    let w = World::new(false, "/flocker/../etc");
    w.service.add("db");
    w.refused(name("db"), "where none can be");
    let mut w = World::new(true, "/flocker");
    w.settings.addresses = vec!["198.51.100.1".into()];
    w.service.add("db");
    w.refused(name("db"), "No node found with IP '198.51.100.1', available nodes [192.0.2.7 203.0.113.9]");
}

#[test]
fn one_that_does_not_come_is_given_up_with_its_pod() {
    let w = World::new(true, "/flocker");
    w.service.add("db");
    w.service.stick(true);
    let cancel = Cancel::default();
    let volumes = w.volumes();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let own = Ownership::default();
            volumes.set_up_while("p", "v", &resolved(name("db"), false), &own, &cancel)
        });
        cancel.cancel();
        assert!(matches!(waiting.join().unwrap(), Err(VolumeError::Cancelled)));
    });
    w.volumes().tear_down("p").unwrap();
    assert!(w.sys.mounts().is_empty() && w.sys.tree("/pods").is_empty());
}
