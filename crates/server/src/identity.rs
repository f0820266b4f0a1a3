//! Who asks, and what they may do.
//!
//! Authorization for now: `system:masters` may do everything; every other identity may read discovery, version and
//! OpenAPI, and ask about itself. Roles come later.
use std::collections::BTreeMap;

/// An authenticated user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    pub user: String,
    /// Unique id of the user; empty where there is none.
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// The group whose members may do everything.
    pub const MASTERS: &'static str = "system:masters";

    /// An identity of a component in this process (`system:kube-scheduler`), allowed everything.
    pub fn component(user: &str) -> Self {
        let groups = vec![Self::MASTERS.into(), "system:authenticated".into()];
        Self { user: user.into(), groups, ..Self::default() }
    }

    /// Whether it is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// Whether it may act on resources (beyond asking about itself).
    pub fn may_everything(&self) -> bool {
        self.is_in(Self::MASTERS)
    }
}

/// Whether a path that is no resource may be read by every authenticated user.
pub fn open_to_authenticated(path: &str) -> bool {
    let under = |root: &str| path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
    ["/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz", "/.well-known", "/openid"]
        .iter()
        .any(|root| under(root))
}

/// Whether a path may be read without credentials.
pub fn open_to_all(path: &str) -> bool {
    ["/healthz", "/livez", "/readyz", "/version"].contains(&path.trim_end_matches('/'))
        || ["/healthz/", "/livez/", "/readyz/"].iter().any(|root| path.starts_with(root))
}
