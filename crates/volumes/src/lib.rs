//! Pod volumes: the plugin contract, one file per volume type, resolving API objects to sources, safe sub-paths.
//!
//! In: a pod, the objects it names ([`needs`], [`resolve`]). Out: a host path to bind into its containers ([`PodVolumes`]).
//! - V1: of a pod, nothing outside its directory is removed, whatever the pod left in it. (plugin suite, strange-files test)
//! - V2: a sub-path never leads out of its volume. (exchange race test)
//! - V3: set-up and tear-down finish what an earlier, failed call began, and leave nothing. (fault sweep)
//! - V4: a reader never sees keys of two versions side by side. (atomic-writer property)
//! - V5: reclaiming removes nothing outside the volume, follows no link and crosses no mount. (exchange race test)
//! - V6: a device with anything on it is never formatted, unless that was begun here and cut off. (device tests)
//! - V8: a driver is asked to undo whatever it was asked for, after any death of this process; a volume is unstaged with
//!   the last pod that has it. (fault sweep with a driver)
//! - V7: growing finishes what an earlier, failed call began, and claims no more than there is. (fault sweep)
//!
//! Absent on purpose: async, the Kubernetes client, direct kernel calls (everything goes through `sys::Sys`).
//! Source: Kubernetes reference, "Volumes", "Persistent Volumes", "Downward API", "Projected Volumes".
mod claim;
pub mod contract;
mod csi_source;
mod drivers;
pub mod error;
mod fc_source;
mod flex_source;
mod holds;
mod huge_pages;
mod iscsi_source;
mod machine;
mod payload;
mod pins;
mod place;
mod plugins;
mod pod_volumes;
mod resolve;
mod settings;
mod sub_path;

pub use claim::source_of;
pub use contract::*;
pub use csi_source::{attach_required, attachment_name};
pub use error::VolumeError;
pub use holds::Hold;
pub use pins::Pinned;
pub use plugins::{PLUGINS, csi::AttachedVolume, plugin_for};
pub use pod_volumes::PodVolumes;
pub use resolve::{follows_sub_paths, needs, resolve};
