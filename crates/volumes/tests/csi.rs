//! Volumes of a CSI driver: staged once for all pods of a machine, and given back whatever happens in between.
#![allow(clippy::unwrap_used)]

use std::{path::Path, sync::Arc};

use sys::{FakeSys, Sys};
use testkit::{DRIVER, FakeDriver, plugin_suite::driven};
use volumes::{CsiSource, Growth, Medium, Ownership, PodVolumes, Ready, Resolved, SecretRef, Source, VolumeError};

struct World {
    sys: Arc<FakeSys>,
    driver: Arc<FakeDriver>,
}

impl World {
    fn new() -> Self {
        let sys = Arc::new(FakeSys::default());
        let kernel: Arc<dyn Sys> = sys.clone();
        Self { driver: FakeDriver::new(kernel, Some(sys.clone()), "/host/device".into()), sys }
    }

    /// As a process that has just started has them.
    fn volumes(&self) -> PodVolumes {
        PodVolumes::new("/kubelet/pods".into(), self.sys.clone()).with_drivers(self.driver.clone())
    }

    /// What the driver was asked since the last look.
    fn asked(&self, seen: &mut usize) -> Vec<String> {
        let log = self.driver.log();
        let new = log[*seen..].to_vec();
        *seen = log.len();
        new
    }

    fn is_clean(&self) -> bool {
        self.driver.leftovers().is_empty() && self.sys.mounts().is_empty() && self.sys.tree("/kubelet/pods").is_empty()
    }
}

fn set_up(volumes: &PodVolumes, pod: &str, source: CsiSource) -> Result<Ready, VolumeError> {
    let source = Source::Csi(Box::new(source));
    let resolved = Resolved { source, read_only: false, mount_options: Vec::new() };
    volumes.set_up(pod, "v", &resolved, &Ownership::default())
}

#[test]
fn one_stage_serves_all_pods_and_goes_with_the_last() {
    let (w, mut seen) = (World::new(), 0);
    let volumes = w.volumes();
    let ready = set_up(&volumes, "a", driven("h")).unwrap();
    assert_eq!(ready.host_path, Path::new("/kubelet/pods/a/volumes/kubernetes.io~csi/pv-h/mount"));
    assert_eq!(ready.volume, "v", "the pod's name for it");
    // Another object for the same volume.
    set_up(&volumes, "b", CsiSource { name: "copy".into(), ..driven("h") }).unwrap();
    assert_eq!(w.asked(&mut seen), ["stage h", "publish h", "publish h"]);
    assert_eq!(volumes.attached().unwrap().len(), 2);
    // A process that starts asks once more, and finds who has it on the disk.
    let volumes = w.volumes();
    set_up(&volumes, "a", driven("h")).unwrap();
    assert_eq!(w.asked(&mut seen), ["stage h", "publish h"]);
    volumes.tear_down("a").unwrap();
    assert_eq!(w.asked(&mut seen), ["unpublish h"]);
    volumes.tear_down("b").unwrap();
    assert_eq!(w.asked(&mut seen), ["unpublish h", "unstage h"]);
    assert!(w.is_clean() && volumes.attached().unwrap().is_empty());
}

#[test]
fn a_driver_that_is_away_keeps_its_own_volumes_only() {
    let w = World::new();
    let volumes = w.volumes();
    w.driver.be_there(false);
    let absent = format!("driver name {DRIVER} not found in the list of registered CSI drivers");
    let refused = set_up(&volumes, "a", driven("h")).unwrap_err();
    let VolumeError::Csi { operation, volume, why } = &refused else { panic!("{refused:?}") };
    assert_eq!((*operation, volume.as_str()), ("MountVolume.MountDevice", "pv-h"));
    assert_eq!(*why, format!("kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: {absent}"));
    volumes.tear_down("a").unwrap();
    assert!(w.is_clean(), "nothing was asked of it");

    w.driver.be_there(true);
    set_up(&volumes, "a", driven("h")).unwrap();
    let memory = Source::EmptyDir { medium: Medium::Memory, limit_bytes: None };
    let resolved = Resolved { source: memory, read_only: false, mount_options: Vec::new() };
    let other = volumes.set_up("a", "m", &resolved, &Ownership::default()).unwrap();
    w.driver.be_there(false);
    // What is there from before goes on being there.
    set_up(&w.volumes(), "a", driven("h")).unwrap();
    let refused = volumes.tear_down("a").unwrap_err().to_string();
    assert!(refused.starts_with("UnmountVolume.TearDown failed for volume \"pv-h\"") && refused.ends_with(&absent));
    assert!(w.sys.open(&other.host_path).is_err(), "the other volume waits too");
    w.driver.be_there(true);
    volumes.tear_down("a").unwrap();
    assert!(w.is_clean());
}

#[test]
fn drivers_without_stages_and_volumes_that_are_pods_own_are_only_published() {
    let (w, mut seen) = (World::new(), 0);
    w.sys.with_dir("/host/dir");
    w.driver.without_stage();
    let volumes = w.volumes();
    set_up(&volumes, "a", driven("h")).unwrap();
    volumes.tear_down("a").unwrap();
    assert_eq!(w.asked(&mut seen), ["publish h", "unpublish h"]);
    assert!(w.is_clean());
}

#[test]
fn a_volume_grows_where_it_is_published_and_says_how_full_it_is() {
    let (w, mut seen) = (World::new(), 0);
    let volumes = w.volumes();
    let source = Source::Csi(Box::new(driven("h")));
    assert_eq!(volumes.expand("a", "v", &source, 7).unwrap(), Growth::NotSetUp);
    set_up(&volumes, "a", driven("h")).unwrap();
    w.asked(&mut seen);
    assert_eq!(volumes.expand("a", "v", &source, 7).unwrap(), Growth::Done);
    assert_eq!(w.asked(&mut seen), ["expand h to 7"]);
    let stats = volumes.stats("a", "v", &source).unwrap().unwrap();
    assert_eq!((stats.total_bytes, stats.used_bytes, stats.healthy), (1 << 20, 1 << 10, None));
    volumes.tear_down("a").unwrap();
}

#[test]
fn without_its_secret_a_driver_is_not_asked() {
    let (w, mut seen) = (World::new(), 0);
    let missing = Some(SecretRef { namespace: "ns".into(), name: "missing".into() });
    let volumes = w.volumes();
    let refused = set_up(&volumes, "a", CsiSource { stage_secret: missing, ..driven("h") }).unwrap_err().to_string();
    assert_eq!(refused, "fetching NodeStageSecretRef ns/missing failed: secrets \"missing\" not found");
    assert_eq!(w.asked(&mut seen), [""; 0]);
    volumes.tear_down("a").unwrap();
    assert!(w.is_clean());
}
