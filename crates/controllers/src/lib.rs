//! Pure decisions of every controller, and the one list of them.
//!
//! In: a key, the [`World`] as it was seen, the time. Out: a [`Decision`]: at most one conditional write, or call of a
//! driver, and what to tell about the object. The write's own echo brings the next decision, so that a crash between two steps is nothing
//! special. A controller is added by its module and its row in [`CONTROLLERS`].
//!
//! Absent on purpose: clock, I/O, async, logging, randomness.
mod account;
mod amount;
pub mod attach;
mod attach_own;
mod binder;
mod call;
mod candidate;
mod capacity;
mod claim;
mod cold;
mod content_source;
mod decision;
mod ephemeral;
mod expand;
mod free;
mod garbage;
mod modify;
mod namespace;
mod pod_gc;
pub mod protection;
mod provision;
mod publish;
mod quota;
mod reason;
mod reclaim;
mod resize;
mod scheduler;
mod snapshot;
mod snapshotter;
#[cfg(test)]
mod tests;
mod volume;
mod waiting;
mod world;

use api::select;

pub use account::is_root_ca;
pub use call::{Answer, Call, Failure, Request};
pub use cold::Cold;
pub use decision::{Action, Context, Decision, Key, Meta, Note, Target, Unless};
pub use namespace::namespaced_kinds;
pub use world::{Change, Entry, Object, World};

/// The rules of claims and volumes, for those who explain what the controllers do.
pub mod rules {
    pub use crate::{
        candidate::{Difference, Weighed, differences, weigh},
        claim::{
            NO_PROVISIONER, SELECTED_NODE, binds_late, claim_phase, claims_of, class_of, class_of_volume, is_bound,
            is_default, is_terminated, mismatch, node_of, reserved_for, runs_with, says_class, source_of, volume_of,
            volume_phase,
        },
        reason::{Reason, Seen, against_named, reason, selects, successor},
        scheduler::attach::clash,
        select::{in_zone, reaches},
        waiting::{WAITING, kept},
    };
}

/// One row per controller.
pub struct Controller {
    pub name: &'static str,
    /// `source.component` of its Events, as upstream names it.
    pub component: &'static str,
    /// Names the keys that a change concerns; `world` has the change in it.
    pub wakes: fn(&World, &Change, &mut dyn FnMut(Key)),
    /// The next step for a key. Equal input, equal output.
    pub decide: fn(&Key, &World, &Context) -> Decision,
    /// What follows from a driver's answer to a call that `decide` asked for; another call may. Where the answer is a failure,
    /// the call is made again later, unless `decide` asks for something else then.
    pub heard: Heard,
}

/// See [`Controller::heard`].
pub type Heard = fn(&Key, &World, &Context, &Call, &Result<Answer, Failure>) -> Decision;

/// Of a controller that calls no driver.
fn hears_nothing(_: &Key, _: &World, _: &Context, _: &Call, _: &Result<Answer, Failure>) -> Decision {
    Decision::settled()
}

/// Every controller.
pub static CONTROLLERS: &[Controller] = &[
    Controller {
        name: "account",
        component: "serviceaccount-controller",
        wakes: account::wakes,
        decide: account::decide,
        heard: hears_nothing,
    },
    Controller {
        name: "attach",
        component: "attachdetach-controller",
        wakes: attach::wakes,
        decide: attach::decide,
        heard: hears_nothing,
    },
    Controller {
        name: "attach-own",
        component: "attachdetach-controller",
        wakes: attach_own::wakes,
        decide: attach_own::decide,
        heard: hears_nothing,
    },
    Controller {
        name: "binder",
        component: "persistentvolume-controller",
        wakes: binder::wakes,
        decide: binder::decide,
        heard: hears_nothing,
    },
    Controller {
        name: "content-source",
        component: "csi-provisioner",
        wakes: content_source::wakes,
        decide: content_source::decide,
        heard: hears_nothing,
    },
    Controller {
        name: "ephemeral",
        component: "ephemeral_volume",
        wakes: ephemeral::wakes,
        decide: ephemeral::decide,
        heard: hears_nothing,
    },
    Controller {
        name: "expand",
        component: "volume_expand",
        wakes: expand::wakes,
        decide: expand::decide,
        heard: expand::heard,
    },
    Controller {
        name: "garbage",
        component: "garbage-collector-controller",
        wakes: garbage::wakes,
        decide: garbage::decide,
        heard: hears_nothing,
    },
    Controller {
        name: "modify",
        component: "csi-resizer",
        wakes: modify::wakes,
        decide: modify::decide,
        heard: modify::heard,
    },
    Controller {
        name: "capacity",
        component: "csi-provisioner",
        wakes: capacity::wakes,
        decide: capacity::decide,
        heard: capacity::heard,
    },
    Controller {
        name: "namespace",
        component: "namespace-controller",
        wakes: namespace::wakes,
        decide: namespace::decide,
        heard: hears_nothing,
    },
    Controller {
        name: "pod-gc",
        component: "pod-garbage-collector",
        wakes: pod_gc::wakes,
        decide: pod_gc::decide,
        heard: hears_nothing,
    },
    Controller {
        name: "protection",
        component: "pvc-protection-controller",
        wakes: protection::wakes,
        decide: protection::decide,
        heard: hears_nothing,
    },
    Controller {
        name: "provision",
        component: "csi-provisioner",
        wakes: provision::wakes,
        decide: provision::decide,
        heard: provision::heard,
    },
    Controller {
        name: "publish",
        component: "csi-attacher",
        wakes: publish::wakes,
        decide: publish::decide,
        heard: publish::heard,
    },
    Controller {
        name: "reclaim",
        component: "csi-provisioner",
        wakes: reclaim::wakes,
        decide: reclaim::decide,
        heard: reclaim::heard,
    },
    Controller {
        name: "quota",
        component: "resource-quota-controller",
        wakes: quota::wakes,
        decide: quota::decide,
        heard: hears_nothing,
    },
    Controller {
        name: "scheduler",
        component: "default-scheduler",
        wakes: scheduler::wakes,
        decide: scheduler::decide,
        heard: hears_nothing,
    },
    Controller {
        name: "snapshot",
        component: "snapshot-controller",
        wakes: snapshot::wakes,
        decide: snapshot::decide,
        heard: hears_nothing,
    },
    Controller {
        name: "snapshotter",
        component: "csi-snapshotter",
        wakes: snapshotter::wakes,
        decide: snapshotter::decide,
        heard: snapshotter::heard,
    },
    Controller {
        name: "waiting",
        component: "persistentvolume-controller",
        wakes: waiting::wakes,
        decide: waiting::decide,
        heard: hears_nothing,
    },
];
