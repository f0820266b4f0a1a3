//! The messages of the Container Storage Interface 1.12, field numbers and types as in its specification.
//! Written out instead of generated: they change about once a year, and this way neither a protobuf compiler nor a
//! build script stands between a reader and what goes over the wire. Maps are ordered, so that equal messages are equal bytes.
//! What a message says is described in the specification under the same name; only what Rust does not show is added here.

/// `Debug` of a message that carries secrets: every field but these, so that no log line can hold one.
macro_rules! no_secrets {
    ($name:ident { $($field:ident),* $(,)? }) => {
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name))$(.field(stringify!($field), &self.$field))*.finish_non_exhaustive()
            }
        }
    };
}

mod controller;
mod identity;
mod node;
mod volume;

pub use controller::*;
pub use identity::*;
pub use node::*;
pub use volume::*;
