//! Who asks, and what they may do.
//!
//! Authorization for now: `system:masters` may do everything; every other identity may read discovery, version and
//! OpenAPI, and ask about itself. Roles come later.
use std::collections::BTreeMap;

use http::HeaderMap;

use crate::{
    path::unescape,
    review,
    status::{ApiError, ApiResult, Subject},
};

const AUTHENTICATED: &str = "system:authenticated";
const IMPERSONATE_EXTRA: &str = "impersonate-extra-";

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
        let groups = vec![Self::MASTERS.into(), AUTHENTICATED.into()];
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

impl Identity {
    /// Whom a request is to be answered as instead (`kubectl --as`): `None` without such headers. Only who may do
    /// everything may ask for that.
    pub fn impersonated(&self, headers: &HeaderMap) -> ApiResult<Option<Self>> {
        let all = |name: &str| -> Vec<String> {
            headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect()
        };
        let first = |name: &str| all(name).into_iter().next().unwrap_or_default();
        let mut wanted = Self {
            user: first("impersonate-user"),
            uid: first("impersonate-uid"),
            groups: all("impersonate-group"),
            extra: headers
                .keys()
                .filter_map(|name| Some((unescape(name.as_str().strip_prefix(IMPERSONATE_EXTRA)?), all(name.as_str()))))
                .collect(),
        };
        if wanted.user.is_empty() {
            if wanted == Self::default() {
                return Ok(None);
            }
            return Err(ApiError::bad_request(
                "requested a group, uid or extra of a user without impersonating a user",
            ));
        }
        let account = wanted.user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
        let account = account.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        if !self.may_everything() {
            let (resource, namespace, name) = match &account {
                Some((namespace, name)) => ("serviceaccounts", namespace.as_str(), name.as_str()),
                None => ("users", "", wanted.user.as_str()),
            };
            let subject = Subject { group: "", resource, name };
            return Err(review::forbidden(self, "impersonate", subject, namespace));
        }
        if let Some((namespace, _)) = account
            && wanted.groups.is_empty()
        {
            wanted.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
        }
        let anonymous = wanted.user == "system:anonymous" || wanted.is_in("system:unauthenticated");
        if !anonymous && !wanted.is_in(AUTHENTICATED) {
            wanted.groups.push(AUTHENTICATED.into());
        }
        Ok(Some(wanted))
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
