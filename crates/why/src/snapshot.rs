//! VolumeSnapshots.
use api::snapshot::{VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent};
use controllers::rules::{claim_phase, volume_of};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use crate::{
    answer::Answer,
    facts::{Facts, created, deleting, name_of, namespace_of},
    provisioner::Health,
};

/// A controller that runs makes a content sooner than this.
const PATIENCE: SignedDuration = SignedDuration::from_secs(10);

/// A snapshot, and how it is called in sentences.
struct Asked<'a> {
    facts: &'a Facts,
    snapshot: &'a VolumeSnapshot,
    label: String,
    now: Timestamp,
}

pub(crate) fn explain(facts: &Facts, snapshot: &VolumeSnapshot, now: Timestamp) -> Answer {
    let meta = &snapshot.metadata;
    let (namespace, name) = (namespace_of(meta), name_of(meta));
    let asked = Asked { facts, snapshot, label: format!("snapshot {namespace}/{name}"), now };
    let label = &asked.label;
    if let Some(since) = deleting(meta) {
        return asked.going().since(Some(since));
    }
    if snapshot.is_ready() {
        return Answer::fine(format!("{label} is ready to use"));
    }
    let content = asked.content();
    // Once there is a content, neither the claim nor the class is looked at again.
    let early = || match snapshot.content_name() {
        Some(wanted) => asked.named(wanted),
        None => asked.source().or_else(|| asked.class()),
    };
    if content.is_none()
        && let Some(answer) = early()
    {
        return answer.since(created(meta));
    }
    let error = snapshot.status.as_ref().and_then(|s| s.error.as_ref());
    if let Some(message) = error.and_then(|e| e.message.as_ref()) {
        let failed = error.and_then(|e| e.time.as_ref()).map(|t| t.0).or(created(meta));
        return Answer::retrying("snapshot-failed", format!("{label} is not ready: {message}"))
            .since(failed)
            .fix(format!("kubectl describe volumesnapshot {name} -n {namespace}"));
    }
    asked.driver(content).since(created(meta))
}

impl<'a> Asked<'a> {
    fn content_of(&self, name: &str) -> Option<&'a VolumeSnapshotContent> {
        self.facts.snapshot_contents.iter().find(|c| name_of(&c.metadata) == name)
    }

    /// The content that is bound to it.
    fn content(&self) -> Option<&'a VolumeSnapshotContent> {
        self.content_of(self.snapshot.bound_content()?)
    }

    fn claim(&self, name: &str) -> Option<&'a PersistentVolumeClaim> {
        self.facts.claim(namespace_of(&self.snapshot.metadata), name)
    }

    fn volume(&self) -> Option<&'a PersistentVolume> {
        self.facts.volume(volume_of(self.claim(self.snapshot.claim_name()?)?))
    }

    /// What is wrong with the claim that it is of.
    fn source(&self) -> Option<Answer> {
        let (label, name) = (&self.label, self.snapshot.claim_name()?);
        let Some(claim) = self.claim(name) else {
            let state = format!("{label} is not ready: it is of claim {name:?}, which does not exist");
            let fix = "# make the snapshot again, of a claim that exists";
            return Some(Answer::stuck("claim-not-found", state).fix(fix));
        };
        if claim_phase(claim) != "Bound" {
            let state = format!("{label} is not ready: its claim {name} is not Bound");
            let fix = format!("holdfast why pvc/{name} -n {}", namespace_of(&claim.metadata));
            return Some(Answer::waiting("claim-not-bound", state, format!("claim {name} to be bound")).fix(fix));
        }
        let volume = self.volume()?;
        volume.spec.as_ref().is_some_and(|s| s.csi.is_none()).then(|| {
            let volume = name_of(&volume.metadata);
            let state = format!("{label} is not ready: volume {volume} of claim {name} is not of a CSI driver");
            Answer::stuck("not-a-csi-volume", state)
                .detail("only CSI drivers make snapshots")
                .fix("# copy the data to a claim of a class whose CSI driver makes snapshots")
        })
    }

    /// What is wrong with its class.
    fn class(&self) -> Option<Answer> {
        let label = &self.label;
        let classes = &self.facts.snapshot_classes;
        let names =
            |of: &[&VolumeSnapshotClass]| of.iter().map(|c| name_of(&c.metadata)).collect::<Vec<_>>().join(", ");
        let all: Vec<&VolumeSnapshotClass> = classes.iter().collect();
        let all = if all.is_empty() { "there are none".to_owned() } else { format!("there are {}", names(&all)) };
        let driver = self.volume().and_then(|v| v.spec.as_ref()?.csi.as_ref()).map_or("", |csi| &csi.driver);
        let Some(wanted) = &self.snapshot.spec.volume_snapshot_class_name else {
            let default: Vec<_> = classes.iter().filter(|c| c.is_default() && c.driver == driver).collect();
            return match default[..] {
                [_] => None,
                [] => {
                    let state = format!(
                        "{label} is not ready: it names no class, and no VolumeSnapshotClass is the default of driver {driver}"
                    );
                    let fix = "# make the snapshot again with volumeSnapshotClassName";
                    Some(Answer::stuck("no-default-class", state).detail(all).fix(fix))
                }
                _ => {
                    let state = format!(
                        "{label} is not ready: it names no class, and several are the default of driver {driver}: {}",
                        names(&default)
                    );
                    let annotation = "snapshot.storage.kubernetes.io/is-default-class-";
                    let last = default.last().map_or("", |c| name_of(&c.metadata));
                    let fix = format!("kubectl annotate volumesnapshotclass {last} {annotation}");
                    Some(Answer::stuck("several-default-classes", state).fix(fix))
                }
            };
        };
        let Some(class) = classes.iter().find(|c| name_of(&c.metadata) == wanted) else {
            let state = format!("{label} is not ready: VolumeSnapshotClass {wanted:?} does not exist");
            let fix = "# make the snapshot again with a class that exists";
            return Some(Answer::stuck("class-not-found", state).detail(all).fix(fix));
        };
        (!driver.is_empty() && class.driver != driver).then(|| {
            let state = format!(
                "{label} is not ready: VolumeSnapshotClass {wanted} is of driver {}, its volume of driver {driver}",
                class.driver
            );
            let fix = "# make the snapshot again with a class of the volume's driver";
            Answer::stuck("class-of-another-driver", state).detail(all).fix(fix)
        })
    }

    /// What is wrong with the content that it names.
    fn named(&self, wanted: &str) -> Option<Answer> {
        let (label, meta) = (&self.label, &self.snapshot.metadata);
        let Some(content) = self.content_of(wanted) else {
            let state = format!("{label} is not ready: VolumeSnapshotContent {wanted:?} does not exist");
            let fix = "# make that VolumeSnapshotContent, or the snapshot again";
            return Some(Answer::stuck("snapshot-content-not-found", state).fix(fix));
        };
        let reference = &content.spec.volume_snapshot_ref;
        let text = |field: &'a Option<String>| field.as_deref().unwrap_or_default();
        let whose = (text(&reference.namespace), text(&reference.name));
        let other = !text(&reference.uid).is_empty() && reference.uid != meta.uid;
        (whose != (namespace_of(meta), name_of(meta)) || other).then(|| {
            let (namespace, name) = whose;
            let state =
                format!("{label} is not ready: VolumeSnapshotContent {wanted} is for snapshot {namespace}/{name}");
            let detail =
                if other { "that one was there before, with another UID" } else { "it does not name this one" };
            let fix = format!("# name this snapshot in spec.volumeSnapshotRef of {wanted}, without a UID");
            Answer::stuck("snapshot-content-of-another", state).detail(detail).fix(fix)
        })
    }

    /// Whether the controller and the driver do their part.
    fn driver(&self, content: Option<&VolumeSnapshotContent>) -> Answer {
        let (facts, label) = (self.facts, &self.label);
        let Some(content) = content else {
            return match self.snapshot.bound_content() {
                Some(lost) => {
                    let state = format!("{label} is not ready: its VolumeSnapshotContent {lost:?} does not exist");
                    Answer::stuck("snapshot-content-lost", state).fix("# make the snapshot again")
                }
                None => self.controller(),
            };
        };
        let (name, driver) = (name_of(&content.metadata), &content.spec.driver);
        let error = content.status.as_ref().and_then(|s| s.error.as_ref());
        if let Some(message) = error.and_then(|e| e.message.as_ref()) {
            return Answer::retrying("snapshot-failed", format!("{label} is not ready: driver {driver}: {message}"))
                .fix(format!("kubectl describe volumesnapshotcontent {name}"));
        }
        self.waits_for(facts, driver, format!("{label} is not ready: driver {driver} has not finished it"))
    }

    fn waits_for(&self, facts: &Facts, driver: &str, state: String) -> Answer {
        let health = Health::of(facts, driver, self.now);
        let mut answer = if health.serves() {
            Answer::waiting("snapshot-in-progress", state, format!("driver {driver}"))
        } else {
            Answer::stuck("provisioner-not-running", state).fix(format!("# start driver {driver}"))
        };
        answer.details.extend(health.said(driver));
        answer
    }

    /// Nobody has begun with it.
    fn controller(&self) -> Answer {
        let state = format!("{} is not ready: no VolumeSnapshotContent was made for it", self.label);
        let young = created(&self.snapshot.metadata).is_some_and(|made| self.now.duration_since(made) < PATIENCE);
        if young {
            return Answer::waiting("snapshot-in-progress", state, "the snapshot controller");
        }
        Answer::stuck("snapshot-controller-not-running", state)
            .detail("the snapshot controller makes it; where it is no part of the cluster, it is installed apart from the CRDs")
            .fix("kubectl get pods -A -l app.kubernetes.io/name=snapshot-controller")
    }

    /// Why one that was deleted is still there.
    fn going(&self) -> Answer {
        let (label, meta) = (&self.label, &self.snapshot.metadata);
        let restores = |claim: &&PersistentVolumeClaim| {
            let source = claim.spec.as_ref().and_then(|s| s.data_source.as_ref());
            let same = source.is_some_and(|s| s.kind == "VolumeSnapshot" && s.name == name_of(meta));
            same && namespace_of(&claim.metadata) == namespace_of(meta) && claim_phase(claim) == "Pending"
        };
        if let Some(claim) = self.facts.claims.iter().find(restores) {
            let (namespace, name) = (namespace_of(&claim.metadata), name_of(&claim.metadata));
            let state =
                format!("{label} is being deleted, but claim {namespace}/{name} waits for a volume made from it");
            return Answer::waiting("snapshot-in-use", state, format!("claim {name} to be bound, or deleted"))
                .fix(format!("holdfast why pvc/{name} -n {namespace}"));
        }
        let content = self.content().filter(|c| deleting(&c.metadata).is_some());
        if let Some(content) = content {
            let driver = &content.spec.driver;
            let state = format!("{label} is being deleted: driver {driver} has yet to delete what is behind it");
            let name = name_of(&content.metadata);
            let answer = self.waits_for(self.facts, driver, state);
            return answer.fix(format!("kubectl describe volumesnapshotcontent {name}"));
        }
        let finalizers = meta.finalizers.clone().unwrap_or_default().join(", ");
        let state = format!("{label} is being deleted, and waits for finalizers: {finalizers}");
        Answer::waiting("finalizers", state, "those who put the finalizers there")
    }
}
