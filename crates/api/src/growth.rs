//! Growing a bound claim: who does it, the next step, and what the claim's status says on the way. One rule for the
//! controller that asks for it and the node that does it.
//!
//! The status tells the step: nothing, `NodeResizePending` (the node has been asked, for `allocatedResources`),
//! `NodeResizeInProgress`, then nothing again with the new `capacity`; or `NodeResizeInfeasible`, when it failed and the
//! claim meanwhile asks for another size. Then the controller asks again, for that one.
//! Source: Kubernetes 1.36, `pkg/volume/util/resize_util.go` and `operationexecutor/node_expander.go`.
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition},
    apimachinery::pkg::{api::resource::Quantity as Text, apis::meta::v1::Time},
};
use serde_json::{Value, json};

use crate::Quantity;

/// On a volume that grew before its file system did: the size that the file system has.
pub const PRE_RESIZE_CAPACITY: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";

const DRIVING: &str = "ControllerResizeInProgress";
const DRIVER_INFEASIBLE: &str = "ControllerResizeInfeasible";
const PENDING: &str = "NodeResizePending";
const IN_PROGRESS: &str = "NodeResizeInProgress";
const INFEASIBLE: &str = "NodeResizeInfeasible";

const RESIZING: &str = "Resizing";
const FILE_SYSTEM_PENDING: &str = "FileSystemResizePending";
const DRIVER_ERROR: &str = "ControllerResizeError";
const NODE_ERROR: &str = "NodeResizeError";
/// The conditions that growing sets and takes away; others are other people's.
const CONDITIONS: [&str; 4] = [RESIZING, FILE_SYSTEM_PENDING, DRIVER_ERROR, NODE_ERROR];

/// Who lets a claim have more of its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grower {
    /// The node that a pod uses it on, as soon as the volume object says that there is more.
    Node,
    /// A driver first, then, where the driver says so, the node that a pod uses it on.
    Driver,
    /// Someone outside this program, or nobody.
    Elsewhere,
}

/// Reads who grows volumes of this kind.
pub fn grower(volume: &PersistentVolume) -> Grower {
    let spec = volume.spec.as_ref();
    let has_files = spec.is_some_and(|s| s.volume_mode.as_deref().unwrap_or("Filesystem") == "Filesystem");
    match spec {
        Some(spec) if spec.csi.is_some() || in_tree::plugin_of_volume(spec).is_some() => Grower::Driver,
        Some(spec) if (spec.local.is_some() || spec.flex_volume.is_some()) && has_files => Grower::Node,
        // A raw one too: its node has to ask for the size anew. Upstream grows neither.
        Some(spec) if spec.iscsi.is_some() || spec.fc.is_some() => Grower::Node,
        _ => Grower::Elsewhere,
    }
}

/// What is next for a claim that is bound to a volume.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Nothing is asked for, or a node is at it.
    Settled,
    /// The claim has all that the volume has: [`PRE_RESIZE_CAPACITY`] means nothing any more.
    Complete,
    /// Somebody else has to enlarge the volume first.
    External,
    /// Its driver has to enlarge the volume to this size, or at least to say whether the node has something to do.
    Drive { to: Text },
    /// The node may be asked; the claim has this much now.
    Ask { has: Text },
}

/// The controller's next step.
pub fn step(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Step {
    let (wants, has, offered) = (number(request(claim)), number(has(claim)), number(capacity(volume)));
    if wants <= has {
        return if has >= offered { Step::Complete } else { Step::Settled };
    }
    match state(claim) {
        PENDING | IN_PROGRESS => Step::Settled,
        // What was begun for a size is ended for it, whatever the claim asks for meanwhile.
        DRIVING if grower(volume) == Grower::Driver => match allocated(claim) {
            Some(to) => Step::Drive { to: to.clone() },
            None => Step::Settled,
        },
        _ if grower(volume) == Grower::Driver => {
            request(claim).map_or(Step::Settled, |to| Step::Drive { to: to.clone() })
        }
        _ if grower(volume) == Grower::Elsewhere || offered < wants => Step::External,
        _ => Step::Ask { has: self::has(claim).cloned().unwrap_or_else(|| Text("0".into())) },
    }
}

/// What a node does for a claim of a pod that it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeStep {
    /// The size to be had.
    pub to: Text,
    /// The same in bytes, rounded up.
    pub bytes: u64,
    /// It is to be marked that the node begins.
    pub mark: bool,
    /// The claim's status tells of the steps; without, the volume object alone asked for it.
    pub told: bool,
}

/// The node's next step; `None` if there is nothing for it to do.
pub fn node_step(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<NodeStep> {
    let holder = volume.spec.as_ref()?.claim_ref.as_ref()?.uid.as_ref()?;
    let bound = claim.metadata.uid.as_ref() == Some(holder);
    let more = number(capacity(volume)) > number(has(claim));
    if !bound || !more || has(claim).is_none() || grower(volume) == Grower::Elsewhere {
        return None;
    }
    let (to, mark, told) = match (state(claim), allocated(claim)) {
        (PENDING, Some(size)) => (size, true, true),
        (IN_PROGRESS, Some(size)) => (size, false, true),
        ("", None) => (capacity(volume)?, false, false),
        _ => return None,
    };
    let bytes = u64::try_from(number(Some(to)).value()).ok()?;
    Some(NodeStep { to: to.clone(), bytes, mark, told })
}

/// The patch of `status` by which the controller says that the driver is about to be asked for `to`; `None` where it says so.
pub fn driving(claim: &PersistentVolumeClaim, to: &Text, now: Timestamp) -> Option<Value> {
    // What failed for good is tried again, more and more seldom, without a word.
    if [DRIVING, DRIVER_INFEASIBLE].contains(&state(claim)) && allocated(claim) == Some(to) {
        return None;
    }
    Some(json!({
        "allocatedResources": { "storage": to },
        "allocatedResourceStatuses": { "storage": DRIVING },
        "conditions": conditions(claim, &[condition(RESIZING, None, now)], true),
    }))
}

/// The patch of `status` when the driver did not enlarge the volume. `never`: it will not, however often it is asked.
pub fn not_driven(claim: &PersistentVolumeClaim, why: &str, never: bool, now: Timestamp) -> Value {
    let set = [condition(DRIVER_ERROR, Some(why.to_owned()), now)];
    let mut patch = json!({ "conditions": conditions(claim, &set, true) });
    if never {
        patch["allocatedResourceStatuses"] = json!({ "storage": DRIVER_INFEASIBLE });
    }
    patch
}

/// The patch of `status` by which the controller asks the node for what the driver made room for.
pub fn asked_of_node(claim: &PersistentVolumeClaim, now: Timestamp) -> Value {
    let message = "Waiting for user to (re-)start a pod to finish file system resize of volume on node.";
    let set = [condition(RESIZING, None, now), condition(FILE_SYSTEM_PENDING, Some(message.into()), now)];
    json!({
        "allocatedResourceStatuses": { "storage": PENDING },
        "conditions": conditions(claim, &set, false),
    })
}

/// The patch of `status` by which the controller asks for what the claim requests.
pub fn asked(claim: &PersistentVolumeClaim, now: Timestamp) -> Value {
    let mut patch = asked_of_node(claim, now);
    patch["allocatedResources"] = json!({ "storage": request(claim) });
    patch
}

/// The patch of `status` by which a node says that it begins.
pub fn begun() -> Value {
    json!({ "allocatedResourceStatuses": { "storage": IN_PROGRESS } })
}

/// The patch of `status` when the claim has a size.
pub fn finished(claim: &PersistentVolumeClaim, size: &Text) -> Value {
    let status = claim.status.as_ref();
    let states = status.and_then(|s| s.allocated_resource_statuses.as_ref());
    let only = states.is_none_or(|s| s.keys().all(|k| k == "storage"));
    let conditions = conditions(claim, &[], false);
    json!({
        "capacity": { "storage": size },
        "allocatedResourceStatuses": if only { Value::Null } else { json!({ "storage": null }) },
        "conditions": if conditions.is_empty() { Value::Null } else { json!(conditions) },
    })
}

/// The patch of `status` when growing to a size failed. A second failure, while the claim asks for another size than this,
/// leaves it to the controller which size is tried next.
pub fn failed(claim: &PersistentVolumeClaim, to: &Text, why: &str, now: Timestamp) -> Value {
    let again = current(claim).iter().any(|c| c.type_ == NODE_ERROR && c.status == "True");
    let set = [condition(NODE_ERROR, Some(format!("failed to expand pvc with {why}")), now)];
    let mut patch = json!({ "conditions": conditions(claim, &set, true) });
    if again && number(request(claim)) != number(Some(to)) {
        patch["allocatedResourceStatuses"] = json!({ "storage": INFEASIBLE });
    }
    patch
}

/// Whether a patch of `status` would change nothing.
pub fn is_said(claim: &PersistentVolumeClaim, patch: &Value) -> bool {
    let status = serde_json::to_value(&claim.status).unwrap_or_default();
    let same = |field: &str, new: &Value| match new.as_object() {
        Some(entries) => entries.iter().all(|(key, value)| status[field][key] == *value),
        None => status[field] == *new,
    };
    patch.as_object().is_some_and(|fields| fields.iter().all(|(field, new)| same(field, new)))
}

fn request(claim: &PersistentVolumeClaim) -> Option<&Text> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")
}

fn has(claim: &PersistentVolumeClaim) -> Option<&Text> {
    claim.status.as_ref()?.capacity.as_ref()?.get("storage")
}

fn allocated(claim: &PersistentVolumeClaim) -> Option<&Text> {
    claim.status.as_ref()?.allocated_resources.as_ref()?.get("storage")
}

fn capacity(volume: &PersistentVolume) -> Option<&Text> {
    volume.spec.as_ref()?.capacity.as_ref()?.get("storage")
}

fn state(claim: &PersistentVolumeClaim) -> &str {
    let states = claim.status.as_ref().and_then(|s| s.allocated_resource_statuses.as_ref());
    states.and_then(|s| s.get("storage")).map_or("", String::as_str)
}

fn number(text: Option<&Text>) -> Quantity {
    text.and_then(|t| Quantity::try_from(t).ok()).unwrap_or(Quantity::ZERO)
}

fn current(claim: &PersistentVolumeClaim) -> &[PersistentVolumeClaimCondition] {
    claim.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default()
}

fn condition(kind: &str, message: Option<String>, now: Timestamp) -> PersistentVolumeClaimCondition {
    PersistentVolumeClaimCondition {
        type_: kind.into(),
        status: "True".into(),
        last_transition_time: Some(Time(now)),
        message,
        ..PersistentVolumeClaimCondition::default()
    }
}

/// The claim's conditions with these: one that is true already stays as it is, those of other people too; other
/// conditions of growing stay if `keep`.
fn conditions(
    claim: &PersistentVolumeClaim,
    set: &[PersistentVolumeClaimCondition],
    keep: bool,
) -> Vec<PersistentVolumeClaimCondition> {
    let named = |kind: &str| set.iter().find(|c| c.type_ == kind);
    let mut all: Vec<_> = current(claim)
        .iter()
        .filter_map(|old| match named(&old.type_) {
            Some(new) if new.status != old.status => Some(new.clone()),
            None if !keep && CONDITIONS.contains(&old.type_.as_str()) => None,
            _ => Some(old.clone()),
        })
        .collect();
    let missing: Vec<_> = set.iter().filter(|new| all.iter().all(|old| old.type_ != new.type_)).cloned().collect();
    all.extend(missing);
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::from_value;

    use super::*;

    fn claim(wants: &str, status: Value) -> PersistentVolumeClaim {
        let spec = json!({ "resources": { "requests": { "storage": wants } } });
        from_value(json!({ "metadata": { "uid": "u" }, "spec": spec, "status": status })).unwrap()
    }

    fn volume(size: &str, spec: Value) -> PersistentVolume {
        let mut object =
            json!({ "metadata": {}, "spec": { "capacity": { "storage": size }, "claimRef": { "uid": "u" } } });
        json_patch::merge(&mut object["spec"], &spec);
        from_value(object).unwrap()
    }

    fn local(size: &str) -> PersistentVolume {
        volume(size, json!({ "local": { "path": "/dev/d" } }))
    }

    fn at(has: &str, state: Option<&str>, allocated: Option<&str>) -> Value {
        let states = state.map(|s| json!({ "storage": s }));
        let sizes = allocated.map(|a| json!({ "storage": a }));
        json!({ "capacity": { "storage": has }, "allocatedResourceStatuses": states, "allocatedResources": sizes })
    }

    #[test]
    fn sizes_and_state_say_what_is_next() {
        let ask = Step::Ask { has: Text("1Gi".into()) };
        let node =
            |to: &str, gib: u64, mark, told| Some(NodeStep { to: Text(to.into()), bytes: gib << 30, mark, told });
        let (pending, going, never) = (Some(PENDING), Some(IN_PROGRESS), Some(INFEASIBLE));
        let elsewhere = [
            volume("2Gi", json!({ "hostPath": { "path": "/d" } })),
            volume("2Gi", json!({ "local": { "path": "/dev/d" }, "volumeMode": "Block" })),
        ];
        for volume in elsewhere {
            assert_eq!(step(&claim("2Gi", at("1Gi", None, None)), &volume), Step::External);
            assert_eq!(node_step(&claim("2Gi", at("1Gi", None, None)), &volume), None);
        }
        let table = [
            ("1Gi", at("1Gi", None, None), "1Gi", Step::Complete, None),
            ("1Gi", at("1Gi", None, None), "2Gi", Step::Settled, node("2Gi", 2, false, false)),
            ("2Gi", at("1Gi", None, None), "1Gi", Step::External, None),
            ("2Gi", at("1Gi", None, None), "2Gi", ask.clone(), node("2Gi", 2, false, false)),
            ("2Gi", at("1Gi", pending, Some("2Gi")), "2Gi", Step::Settled, node("2Gi", 2, true, true)),
            ("2Gi", at("1Gi", going, Some("2Gi")), "3Gi", Step::Settled, node("2Gi", 2, false, true)),
            // Asked for less while the node is at it: the node ends what it began.
            ("2Gi", at("1Gi", going, Some("3Gi")), "3Gi", Step::Settled, node("3Gi", 3, false, true)),
            ("2Gi", at("1Gi", never, Some("3Gi")), "3Gi", ask.clone(), None),
            // Back to what was given up: somebody may have made room.
            ("3Gi", at("1Gi", never, Some("3Gi")), "3Gi", ask.clone(), None),
            ("2Gi", at("2Gi", None, Some("2Gi")), "3Gi", Step::Settled, None),
            ("3Gi", at("2Gi", None, Some("2Gi")), "3Gi", Step::Ask { has: Text("2Gi".into()) }, None),
            ("2Gi", at("1Gi", Some("ControllerResizeInProgress"), Some("2Gi")), "2Gi", ask, None),
        ];
        for (wants, status, size, controller, at_node) in table {
            let context = format!("wants {wants} of {size}, {status}");
            let claim = claim(wants, status);
            assert_eq!(step(&claim, &local(size)), controller, "{context}");
            assert_eq!(node_step(&claim, &local(size)), at_node, "{context}");
        }
        let csi = volume("1Gi", json!({ "csi": { "driver": "d", "volumeHandle": "h" } }));
        let drive = |to: &str| Step::Drive { to: Text(to.into()) };
        for (wants, status, next) in [
            ("2Gi", at("1Gi", None, None), drive("2Gi")),
            ("2Gi", at("1Gi", Some(DRIVING), Some("3Gi")), drive("3Gi")),
            ("2Gi", at("1Gi", Some(DRIVER_INFEASIBLE), Some("3Gi")), drive("2Gi")),
            ("2Gi", at("1Gi", pending, Some("2Gi")), Step::Settled),
            ("1Gi", at("1Gi", None, None), Step::Complete),
        ] {
            assert_eq!(step(&claim(wants, status.clone()), &csi), next, "wants {wants}, {status}");
        }
        let lun = json!({ "iscsi": { "targetPortal": "p", "iqn": "i", "lun": 1 } });
        let raw_disk = json!({ "fc": { "wwids": ["1"] }, "volumeMode": "Block" });
        for disk in [lun, raw_disk] {
            let (small, large) = (volume("1Gi", disk.clone()), volume("2Gi", disk));
            let claim = claim("2Gi", at("1Gi", None, None));
            assert_eq!(step(&claim, &small), Step::External, "somebody has to enlarge the disk");
            assert_eq!(step(&claim, &large), Step::Ask { has: Text("1Gi".into()) });
            assert_eq!(node_step(&claim, &large), node("2Gi", 2, false, false));
        }
        let mut stranger = claim("2Gi", at("1Gi", None, None));
        stranger.metadata.uid = Some("other".into());
        assert_eq!(node_step(&stranger, &local("2Gi")), None, "of another claim");
    }

    #[test]
    fn the_status_tells_each_step_and_keeps_what_others_say() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let mut object = json!({
            "metadata": { "uid": "u" }, "spec": { "resources": { "requests": { "storage": "3Gi" } } },
            "status": { "capacity": { "storage": "1Gi" }, "conditions": [{ "type": "Other", "status": "False" }] },
        });
        let read = |object: &Value| -> PersistentVolumeClaim { from_value(object.clone()).unwrap() };
        let apply = |object: &mut Value, patch: Value| json_patch::merge(object, &json!({ "status": patch }));
        let kinds = |object: &Value| -> Vec<String> {
            let list = object["status"]["conditions"].as_array().unwrap();
            list.iter().map(|c| c["type"].as_str().unwrap().to_owned()).collect()
        };
        let text = |size: &str| Text(size.into());
        let ask = asked(&read(&object), now);
        apply(&mut object, ask);
        assert_eq!(kinds(&object), ["Other", RESIZING, FILE_SYSTEM_PENDING]);
        assert_eq!(object["status"]["allocatedResources"], json!({ "storage": "3Gi" }));
        apply(&mut object, begun());
        assert!(is_said(&read(&object), &begun()));

        let first = failed(&read(&object), &text("3Gi"), "e1", now);
        assert!(!is_said(&read(&object), &first));
        apply(&mut object, first);
        assert_eq!(object["status"]["conditions"][3]["message"], "failed to expand pvc with e1");
        let second = failed(&read(&object), &text("3Gi"), "e2", now);
        assert!(is_said(&read(&object), &second), "a condition that is true already stays: {second}");
        object["spec"]["resources"]["requests"]["storage"] = json!("2Gi");
        let third = failed(&read(&object), &text("3Gi"), "e3", now);
        apply(&mut object, third);
        assert_eq!(object["status"]["allocatedResourceStatuses"]["storage"], INFEASIBLE);
        let ask = asked(&read(&object), now);
        apply(&mut object, ask);
        assert_eq!(kinds(&object), ["Other", RESIZING, FILE_SYSTEM_PENDING], "the error is of the past");
        let done = finished(&read(&object), &text("2Gi"));
        apply(&mut object, done);
        let status = &object["status"];
        assert_eq!((kinds(&object), &status["capacity"]), (vec!["Other".into()], &json!({ "storage": "2Gi" })));
        assert_eq!(
            (&status["allocatedResources"], &status["allocatedResourceStatuses"]),
            (&json!({"storage": "2Gi"}), &Value::Null)
        );
    }

    /// What people, the controller and the node may do in any order; sizes in MiB.
    #[derive(Debug, Clone)]
    enum Act {
        Ask(u64),
        Offer(u64),
        Enlarge(u64),
        Controller,
        Node,
    }

    struct Model {
        claim: Value,
        volume: Value,
        device: u64,
    }

    impl Model {
        fn new() -> Self {
            let claim = serde_json::to_value(claim("10Mi", at("10Mi", None, None))).unwrap();
            Self { claim, volume: serde_json::to_value(local("10Mi")).unwrap(), device: 10 }
        }

        fn read(&self) -> (PersistentVolumeClaim, PersistentVolume) {
            (from_value(self.claim.clone()).unwrap(), from_value(self.volume.clone()).unwrap())
        }

        fn mib(text: Option<&Text>) -> u64 {
            u64::try_from(number(text).value()).unwrap() >> 20
        }

        fn say(&mut self, patch: Value) {
            json_patch::merge(&mut self.claim, &json!({ "status": patch }));
        }

        fn act(&mut self, act: &Act) {
            let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
            let (claim, volume) = self.read();
            match act {
                // As validation lets it.
                Act::Ask(size) if *size > Self::mib(has(&claim)) => {
                    self.claim["spec"]["resources"]["requests"]["storage"] = json!(format!("{size}Mi"));
                }
                Act::Ask(_) => {}
                Act::Offer(size) => self.volume["spec"]["capacity"]["storage"] = json!(format!("{size}Mi")),
                Act::Enlarge(size) => self.device = self.device.max(*size),
                Act::Controller => {
                    if let Step::Ask { .. } = step(&claim, &volume) {
                        self.say(asked(&claim, now));
                    }
                }
                Act::Node => {
                    let Some(step) = node_step(&claim, &volume) else { return };
                    if step.mark {
                        self.say(begun());
                    }
                    let claim = self.read().0;
                    if self.device >= step.bytes >> 20 {
                        self.say(finished(&claim, &step.to));
                    } else if step.told {
                        self.say(failed(&claim, &step.to, "small", now));
                    }
                }
            }
        }
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let size = 1..30_u64;
        let act = prop_oneof![
            size.clone().prop_map(Act::Ask),
            size.clone().prop_map(Act::Offer),
            size.prop_map(Act::Enlarge),
            Just(Act::Controller),
            Just(Act::Node),
            Just(Act::Node),
        ];
        proptest::collection::vec(act, 0..40)
    }

    proptest! {
        #[test]
        fn a_claim_is_told_what_it_has_and_gets_what_it_asks_for(acts in acts()) {
            let mut model = Model::new();
            let mut before = 10;
            for act in &acts {
                model.act(act);
                let claim = model.read().0;
                let now = Model::mib(has(&claim));
                prop_assert!(now >= before, "it lost some after {act:?}");
                prop_assert!(now <= model.device, "it was told of more than there is, after {act:?}");
                let more = state(&claim).is_empty() || Model::mib(allocated(&claim)) > now;
                prop_assert!(more, "{} for nothing after {act:?}", state(&claim));
                before = now;
            }
            // The device is large enough at last, and the volume says so.
            let wanted = Model::mib(request(&model.read().0));
            let offered = Model::mib(capacity(&model.read().1)).max(wanted);
            for act in [Act::Enlarge(30), Act::Offer(offered)] {
                model.act(&act);
            }
            for _ in 0..4 {
                model.act(&Act::Controller);
                model.act(&Act::Node);
            }
            let (claim, volume) = model.read();
            prop_assert!(Model::mib(has(&claim)) >= wanted, "{:?}", claim.status);
            prop_assert_eq!(state(&claim), "");
            prop_assert!(current(&claim).is_empty(), "{:?}", claim.status);
            prop_assert!(matches!(step(&claim, &volume), Step::Settled | Step::Complete));
        }
    }
}
