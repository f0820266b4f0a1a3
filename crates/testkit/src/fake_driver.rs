//! A CSI driver without a process: it keeps CSI's rules about its callers, and can fail one call.
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use csi::{
    AccessType, Facts, NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodeRpcType, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, Status, UsageUnit, VolumeCapability, VolumeUsage,
};
use sys::{Bind, FakeSys, Reach, Sys, Tmpfs, Unmount, When};
use volumes::{DriverError, Drivers, PodOf, SecretRef, TokenWish};

/// The name of the fake driver.
pub const DRIVER: &str = "fake.example.com";

/// One driver, its volumes being memory filesystems, or the device at `device`.
pub struct FakeDriver {
    sys: Arc<dyn Sys>,
    /// The same kernel, whose faults are not for the driver's own calls.
    fake: Option<Arc<FakeSys>>,
    device: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    absent: bool,
    without_stage: bool,
    calls: usize,
    fault: Option<(usize, When)>,
    fired: bool,
    staged: BTreeMap<String, PathBuf>,
    published: BTreeSet<(String, PathBuf)>,
    log: Vec<String>,
    secrets: BTreeMap<String, BTreeMap<String, String>>,
}

fn refuse(status: Status) -> DriverError {
    DriverError::Failed(status)
}

fn internal(error: std::io::Error) -> Status {
    Status::internal(error.to_string())
}

impl FakeDriver {
    /// A driver that mounts in `sys`; `fake` is the same, if it is a fake kernel.
    pub fn new(sys: Arc<dyn Sys>, fake: Option<Arc<FakeSys>>, device: PathBuf) -> Arc<Self> {
        Arc::new(Self { sys, fake, device, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the call number `nth` from now fail.
    pub fn fail(&self, nth: usize, when: When) {
        let mut state = self.state();
        (state.fault, state.fired) = (Some((state.calls + nth, when)), false);
    }

    /// What is in the Secret of that name, of any namespace.
    pub fn have_secret(&self, name: &str, values: BTreeMap<String, String>) {
        self.state().secrets.insert(name.to_owned(), values);
    }

    /// Whether the fault has happened.
    pub fn fault_fired(&self) -> bool {
        self.state().fired
    }

    /// Whether the driver is there.
    pub fn be_there(&self, there: bool) {
        self.state().absent = !there;
    }

    /// From now on it has no stages.
    pub fn without_stage(&self) {
        self.state().without_stage = true;
    }

    /// What it was asked so far, a line for each call.
    pub fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    /// What is staged and published.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let state = self.state();
        state.staged.values().cloned().chain(state.published.iter().map(|(_, path)| path.clone())).collect()
    }

    fn call(&self, what: String, act: impl FnOnce(&mut State) -> Result<(), Status>) -> Result<(), DriverError> {
        let mut state = self.state();
        if state.absent {
            return Err(DriverError::Absent);
        }
        let fault = state.fault.filter(|(nth, _)| *nth == state.calls).map(|f| f.1);
        state.calls += 1;
        state.fired |= fault.is_some();
        state.log.push(what);
        if fault == Some(When::Before) {
            return Err(refuse(Status::unavailable("the driver died before")));
        }
        if let Some(fake) = &self.fake {
            fake.pause();
        }
        let done = act(&mut state);
        if let Some(fake) = &self.fake {
            fake.resume();
        }
        if fault == Some(When::After) {
            return Err(refuse(Status::deadline_exceeded("the driver died after")));
        }
        done.map_err(refuse)
    }

    fn is_mounted(&self, path: &Path) -> bool {
        self.sys.open(path).and_then(|at| self.sys.stat(&at)).is_ok_and(|stat| stat.mount_root)
    }

    fn show(&self, from: &Path, at: &Path, directory: bool) -> std::io::Result<()> {
        let (Some(above), Some(name)) = (at.parent(), at.file_name()) else {
            return Err(std::io::ErrorKind::InvalidInput.into());
        };
        let above = self.sys.open(above)?;
        let made = match directory {
            true => self.sys.make_dir(&above, name, 0o755),
            false => self.sys.write_new(&above, name, b"", 0o600),
        };
        match made {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        let target = self.sys.open_at(&above, Path::new(name), Reach::Plain)?;
        self.sys.bind(&self.sys.open(from)?, &target, &Bind::default())
    }

    fn hide(&self, at: &Path) -> std::io::Result<()> {
        let (Some(above), Some(name)) = (at.parent(), at.file_name()) else { return Ok(()) };
        let Ok(above) = self.sys.open(above) else { return Ok(()) };
        if self.is_mounted(at) {
            self.sys.unmount(&above, name, Unmount::Strict)?;
        }
        self.remove(&above, name)
    }

    fn remove(&self, above: &sys::Handle, name: &OsStr) -> std::io::Result<()> {
        match self.sys.stat_at(above, name) {
            Err(_) => Ok(()),
            Ok(stat) if stat.is_dir() => self.sys.remove_dir(above, name),
            Ok(_) => self.sys.remove_file(above, name),
        }
    }
}

fn is_block(capability: Option<&VolumeCapability>) -> bool {
    matches!(capability.and_then(|c| c.access_type.as_ref()), Some(AccessType::Block(_)))
}

impl Drivers for FakeDriver {
    fn facts(&self, driver: &str) -> Option<Facts> {
        let state = self.state();
        if state.absent || driver != DRIVER {
            return None;
        }
        let mut node = BTreeSet::from([
            NodeRpcType::StageUnstageVolume,
            NodeRpcType::ExpandVolume,
            NodeRpcType::GetVolumeStats,
            NodeRpcType::SingleNodeMultiWriter,
        ]);
        if state.without_stage {
            node.remove(&NodeRpcType::StageUnstageVolume);
        }
        Some(Facts { name: DRIVER.into(), node, ..Facts::default() })
    }

    fn stage(&self, _: &str, r: NodeStageVolumeRequest) -> Result<(), DriverError> {
        let at = PathBuf::from(&r.staging_target_path);
        self.call(format!("stage {}", r.volume_id), |state| {
            let top = self.sys.open(&at).map_err(|_| Status::invalid_argument("the stage is not there"))?;
            if !is_block(r.volume_capability.as_ref()) && !self.is_mounted(&at) {
                let kept = Tmpfs { size_bytes: Some(1 << 20), mode: 0o755 };
                self.sys.mount_tmpfs(&top, &kept).map_err(internal)?;
            }
            state.staged.insert(r.volume_id.clone(), at.clone());
            Ok(())
        })
    }

    fn unstage(&self, _: &str, r: NodeUnstageVolumeRequest) -> Result<(), DriverError> {
        let at = PathBuf::from(&r.staging_target_path);
        self.call(format!("unstage {}", r.volume_id), |state| {
            if state.published.iter().any(|(id, _)| *id == r.volume_id) {
                return Err(Status::failed_precondition("it is still published"));
            }
            if self.is_mounted(&at) {
                let above = self.sys.open(at.parent().expect("a parent")).map_err(internal)?;
                self.sys.unmount(&above, at.file_name().expect("a name"), Unmount::Strict).map_err(internal)?;
            }
            state.staged.remove(&r.volume_id);
            Ok(())
        })
    }

    fn publish(&self, _: &str, r: NodePublishVolumeRequest) -> Result<(), DriverError> {
        let target = PathBuf::from(&r.target_path);
        self.call(format!("publish {}", r.volume_id), |state| {
            let stages = !state.without_stage && r.volume_context.get("own") != Some(&"true".to_owned());
            if stages && state.staged.get(&r.volume_id).is_none_or(|at| *at != Path::new(&r.staging_target_path)) {
                return Err(Status::failed_precondition("it is not staged"));
            }
            if !self.is_mounted(&target) {
                let (from, directory) = match is_block(r.volume_capability.as_ref()) {
                    true => (self.device.clone(), false),
                    // Without a stage, something of the machine.
                    false if !stages => (self.device.with_file_name("dir"), true),
                    false => (PathBuf::from(&r.staging_target_path), true),
                };
                self.show(&from, &target, directory).map_err(internal)?;
            }
            state.published.insert((r.volume_id.clone(), target.clone()));
            Ok(())
        })
    }

    fn unpublish(&self, _: &str, r: NodeUnpublishVolumeRequest) -> Result<(), DriverError> {
        let target = PathBuf::from(&r.target_path);
        self.call(format!("unpublish {}", r.volume_id), |state| {
            self.hide(&target).map_err(internal)?;
            state.published.remove(&(r.volume_id.clone(), target.clone()));
            Ok(())
        })
    }

    fn expand(&self, _: &str, r: NodeExpandVolumeRequest) -> Result<(), DriverError> {
        let bytes = r.capacity_range.map(|c| c.required_bytes).unwrap_or_default();
        self.call(format!("expand {} to {bytes}", r.volume_id), |state| {
            let target = (r.volume_id.clone(), PathBuf::from(&r.volume_path));
            if state.published.contains(&target) { Ok(()) } else { Err(Status::not_found("not published there")) }
        })
    }

    fn stats(&self, _: &str, r: NodeGetVolumeStatsRequest) -> Result<NodeGetVolumeStatsResponse, DriverError> {
        let unit = UsageUnit::Bytes.into();
        self.call(format!("stats {}", r.volume_id), |_| Ok(()))?;
        let usage = vec![VolumeUsage { total: 1 << 20, used: 1 << 10, available: (1 << 20) - (1 << 10), unit }];
        Ok(NodeGetVolumeStatsResponse { usage, volume_condition: None })
    }

    fn secret(&self, secret: &SecretRef) -> Result<BTreeMap<String, String>, String> {
        if let Some(known) = self.state().secrets.get(&secret.name) {
            return Ok(known.clone());
        }
        match secret.name.as_str() {
            "missing" => Err("secrets \"missing\" not found".into()),
            name => Ok(BTreeMap::from([("key".into(), format!("of {}/{name}", secret.namespace))])),
        }
    }

    fn secret_of_type(&self, secret: &SecretRef, kind: &str) -> Result<BTreeMap<String, Vec<u8>>, String> {
        match secret.name.as_str() {
            "of-another-type" => Err(format!("cannot get secret of type {kind}")),
            _ => Ok(self.secret(secret)?.into_iter().map(|(key, value)| (key, value.into_bytes())).collect()),
        }
    }

    fn tokens(&self, _: &PodOf, wishes: &[TokenWish]) -> Result<String, String> {
        Ok(format!("{} tokens", wishes.len()))
    }
}
