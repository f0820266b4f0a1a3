//! CSI drivers on this node: how they are found, what the API is told of them, how volumes call them.
pub mod calls;
pub mod in_use;
mod plugin_info;
pub mod report;
pub mod watch;

/// What the parts of this share.
#[derive(Default)]
pub struct State {
    pub reporter: report::Reporter,
    pub in_use: in_use::InUse,
}
