//! From a pod's specification to what the runtime is asked for. Pure: every file read and every API object looked up
//! comes in as an argument.
pub mod container;
pub mod credentials;
pub mod dns;
pub mod env;
pub mod expand;
pub mod hosts;
pub mod resources;
pub mod security;
