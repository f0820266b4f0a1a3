//! Container images: pull, import, unpack to layers, garbage collection.
//!
//! In: registries, archives, names. Out: [`Image`] records and one unpacked directory per layer, ready to be an overlayfs
//! lower directory. Several processes may use one store at once.
//!
//! Invariants: a record exists only if all its layers are complete on stable storage; a layer directory appears by rename,
//! complete, or not at all; nothing that an image contains reaches outside its layer directory (`unpack` tests); every byte
//! that came over the network or from an archive with digests was checked against its digest; who pulled an image is recorded
//! with it (`access`).
//! Absent on purpose: mounting, running, pushing, building.
mod access;
mod archive;
mod error;
mod gc;
mod import;
mod layers;
mod manifest;
mod model;
mod progress;
mod pull;
mod reference;
mod registry;
mod store;
mod unpack;

pub use error::ImageError;
pub use gc::{GcPolicy, GcReport};
pub use model::{Image, ImageConfig, Layers};
pub use progress::{Progress, Sentences, Step};
pub use reference::{Reference, ReferenceError, normalize};
pub use registry::{Credentials, RegistryConfig};
pub use store::Images;
