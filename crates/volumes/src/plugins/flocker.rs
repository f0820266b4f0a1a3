//! `flocker`: datasets that ClusterHQ's Flocker moves to this node and mounts here. The node asks the control service for
//! that, and shows the pod what is mounted.
//! Source: Kubernetes 1.24, `pkg/volume/flocker`.
use std::{
    ffi::OsStr,
    path::{Component, Path},
    time::{Duration, Instant},
};

use flocker::{Error, NewDataset};
use k8s_openapi::api::core::v1::FlockerVolumeSource;
use sys::{Bind, Handle, Propagation, Reach, ReadOnly};

use crate::{
    contract::{Machine, Ownership, Ready, Reclaiming, Source, VolumePlugin},
    error::VolumeError,
    place::{PRIVATE, ensure_dir, failed},
    plugins::{DATA, is_marked, mark, mismatch, own, ready, tear_down_dir},
};

/// A dataset of Flocker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlockerVolume {
    pub dataset: Named,
    pub read_only: bool,
}

/// How a dataset is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    Uuid(String),
    /// By the `name` among its metadata.
    Name(String),
}

impl FlockerVolume {
    /// What the API says of it.
    pub(crate) fn of(s: &FlockerVolumeSource, read_only: bool) -> Source {
        let uuid = s.dataset_uuid.clone().filter(|id| !id.is_empty());
        let named = || Named::Name(s.dataset_name.clone().unwrap_or_default());
        Source::Flocker(Self { dataset: uuid.map_or_else(named, Named::Uuid), read_only })
    }
}

/// A dataset that takes longer to come than this is told about, and waited for again. Upstream waits for 2 minutes in silence.
const WAIT: Duration = Duration::from_secs(10);
/// Between looks at whether it has come.
const ASK: Duration = Duration::from_millis(250);
const LOOK: Duration = Duration::from_millis(20);

pub(super) struct Flocker;

impl VolumePlugin for Flocker {
    fn name(&self) -> &'static str {
        "kubernetes.io~flocker"
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Flocker(_))
    }

    fn set_up(&self, source: &Source, owner: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
        let Source::Flocker(source) = source else { return Err(mismatch(self)) };
        let (sys, path) = (on.sys, dir.join(DATA));
        let top = sys.open(dir).map_err(failed("open", dir))?;
        let data = ensure_dir(sys, &top, OsStr::new(DATA), PRIVATE).map_err(failed("create", &path))?;
        // A second mount over that of an earlier try would never be undone. After a reboot there is none.
        if !sys.stat(&data).map_err(failed("read", &path))?.mount_root {
            let dataset = Asked { source, on }.here()?;
            let read_only = if source.read_only { ReadOnly::Top } else { ReadOnly::No };
            let bind = Bind { read_only, propagation: Propagation::Slave, ..Bind::default() };
            sys.bind(&dataset, &data, &bind).map_err(|errno| VolumeError::Mount { target: path.clone(), errno })?;
        }
        if !is_marked(sys, &top, dir)? {
            if !source.read_only {
                let data = sys.open_at(&top, Path::new(DATA), Reach::Plain).map_err(failed("open", &path))?;
                own(sys, &data, &path, owner, false)?;
            }
            mark(sys, &top, dir)?;
        }
        Ok(ready(dir, &path, source.read_only))
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        tear_down_dir(dir, on.sys)
    }

    fn reclaim(&self, source: &Source, how: Reclaiming, on: &Machine<'_>) -> Result<(), VolumeError> {
        let Source::Flocker(source) = source else { return Err(mismatch(self)) };
        match how {
            Reclaiming::Delete => Asked { source, on }.delete(),
            Reclaiming::Recycle => {
                Err(VolumeError::Unsupported { kind: format!("{} with reclaim policy {how:?}", self.name()) })
            }
        }
    }
}

/// What the control service is asked for one volume.
struct Asked<'a> {
    source: &'a FlockerVolume,
    on: &'a Machine<'a>,
}

fn refused(why: impl Into<String>) -> impl FnOnce(Error) -> VolumeError {
    let why = why.into();
    move |cause| match cause {
        Error::Cancelled => VolumeError::Cancelled,
        cause => VolumeError::Flocker { why, cause: Some(Box::new(cause)) },
    }
}

fn wrong(why: String) -> VolumeError {
    VolumeError::Flocker { why, cause: None }
}

impl Asked<'_> {
    fn cancelled(&self) -> impl Fn() -> bool + '_ {
        || self.on.cancel.is_cancelled()
    }

    /// The dataset, moved to this node and mounted here.
    fn here(&self) -> Result<Handle, VolumeError> {
        let node = self.node()?;
        let (dataset, primary) = self.dataset(&node)?;
        if primary.as_deref() != Some(&node) {
            let why = format!("the dataset {dataset} cannot be moved to this node");
            self.on.flocker.move_to(&dataset, &node, &self.cancelled()).map_err(refused(why))?;
        }
        let path = self.wait(&dataset, &node)?;
        self.open(&dataset, &path)
    }

    /// What the service calls this node.
    fn node(&self) -> Result<String, VolumeError> {
        let nodes = self.on.flocker.nodes(&self.cancelled()).map_err(refused("cannot find this node in Flocker"))?;
        let ours = &self.on.settings.addresses;
        if let Some(found) = nodes.iter().find(|n| ours.contains(&n.host)) {
            return Ok(found.uuid.clone());
        }
        let all: Vec<&str> = nodes.iter().map(|n| n.host.as_str()).collect();
        Err(wrong(format!(
            "No node found with IP '{}', available nodes [{}]: Flocker's agent has to run on this node, and to be known by \
             this address",
            ours.join("', '"),
            all.join(" ")
        )))
    }

    /// What the events about this dataset begin with.
    fn label(&self) -> String {
        match &self.source.dataset {
            Named::Uuid(id) => format!("the volume with datasetUUID='{id}' can not be found using flocker"),
            Named::Name(name) => {
                format!("the datasetUUID for volume with datasetName='{name}' can not be found using flocker")
            }
        }
    }

    /// The dataset as it is to be, if there is one.
    fn find(&self) -> Result<Option<flocker::Dataset>, VolumeError> {
        let all = self.on.flocker.datasets(&self.cancelled()).map_err(refused(self.label()))?;
        let wanted = |d: &flocker::Dataset| match &self.source.dataset {
            Named::Uuid(id) => d.dataset_id == *id,
            Named::Name(name) => d.name() == Some(name),
        };
        Ok(all.into_iter().find(|d| !d.deleted && wanted(d)))
    }

    /// The dataset's UUID, and the node that it is to be on. It is made if that is wished.
    fn dataset(&self, node: &str) -> Result<(String, Option<String>), VolumeError> {
        if let Some(found) = self.find()? {
            return Ok((found.dataset_id, found.primary));
        }
        let label = self.label();
        match (&self.source.dataset, self.on.settings.flocker_create_bytes) {
            (Named::Name(name), Some(maximum_bytes)) => {
                let new = NewDataset { name: name.clone(), primary: node.to_owned(), maximum_bytes };
                let why = format!("the dataset {name} cannot be created");
                let made = self.on.flocker.create(&new, &self.cancelled()).map_err(refused(why))?;
                Ok((made.dataset_id, Some(node.to_owned())))
            }
            (Named::Name(name), None) => Err(wrong(format!(
                "{label}: there is no such dataset; create it (flockerctl create -m name={name} -s 10G -n NODE), or let \
                 holdfast do so (--flocker-create-size)"
            ))),
            (Named::Uuid(_), _) => Err(wrong(format!("{label}: there is no such dataset; correct the volume"))),
        }
    }

    /// Has the dataset deleted, with all that is in it.
    fn delete(&self) -> Result<(), VolumeError> {
        let Some(found) = self.find()? else { return Ok(()) };
        let why = format!("the dataset {} cannot be deleted", found.dataset_id);
        self.on.flocker.delete(&found.dataset_id, &self.cancelled()).map_err(refused(why))
    }

    /// Waits until the dataset is here, and says where.
    fn wait(&self, dataset: &str, node: &str) -> Result<String, VolumeError> {
        let begun = Instant::now();
        loop {
            let why = format!("the state of the dataset {dataset} could not be determined using flocker");
            let states = self.on.flocker.states(&self.cancelled()).map_err(refused(why))?;
            let state = states.into_iter().find(|s| s.dataset_id == dataset);
            let primary = state.as_ref().and_then(|s| s.primary.clone());
            if let Some(path) = state.and_then(|s| s.path).filter(|_| primary.as_deref() == Some(node)) {
                return Ok(path);
            }
            if begun.elapsed() >= WAIT {
                let now = primary.map_or("on no node".to_owned(), |p| format!("on node {p}"));
                return Err(wrong(format!(
                    "Timed out waiting for the datasetUUID: '{dataset}' to be moved to the primary: '{node}'; it is {now} \
                     now, and is waited for again"
                )));
            }
            let until = Instant::now() + ASK;
            while Instant::now() < until {
                self.on.wanted()?;
                std::thread::sleep(LOOK);
            }
        }
    }

    /// What is mounted where the service says: nothing else is shown to a pod, whatever the service says.
    fn open(&self, dataset: &str, path: &str) -> Result<Handle, VolumeError> {
        let sys = self.on.sys;
        let place = Path::new(path);
        let strange = place.components().any(|part| !matches!(part, Component::Normal(_) | Component::RootDir));
        if !place.is_absolute() || strange || place.parent().is_none() {
            return Err(wrong(format!("Flocker says that the dataset {dataset} is at {path:?}, where none can be")));
        }
        let opened = sys.open(place).map_err(failed("open", place))?;
        let stat = sys.stat(&opened).map_err(failed("read", place))?;
        match stat.mount_root && stat.is_dir() {
            true => Ok(opened),
            false => Err(wrong(format!(
                "Flocker says that the dataset {dataset} is mounted at {path} of this node, and nothing is mounted there"
            ))),
        }
    }
}
