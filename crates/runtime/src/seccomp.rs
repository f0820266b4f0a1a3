//! System-call filters.
use std::path::Path;

use crate::{contract::Seccomp, kernel::SockFilter};

/// The filter for a container, `None` for no filter.
pub(crate) fn filter(wish: &Seccomp, capabilities: u64) -> Result<Option<Vec<SockFilter>>, String> {
    match wish {
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => Ok(default_filter(capabilities)),
        Seccomp::Localhost(path) => Err(unsupported(path)),
    }
}

fn unsupported(path: &Path) -> String {
    format!("seccomp profile {} cannot be loaded: only RuntimeDefault and Unconfined are supported", path.display())
}

fn default_filter(_capabilities: u64) -> Option<Vec<SockFilter>> {
    None
}
