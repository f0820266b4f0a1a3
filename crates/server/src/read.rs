//! Lists: selection, paging, consistency.
use std::sync::Arc;

use api::{
    Kind, Scope,
    selector::{Fields, Labels},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde::{Deserialize, Serialize};
use store::{Record, StoreError};

use crate::{
    Inner,
    facets::{Facets, Selection},
    object,
    options::{ListOptions, Match, Query},
    status::{ApiError, ApiResult},
    write::store_error,
};

/// A page of a listing.
#[derive(Debug)]
pub struct Found {
    /// Revision that the page shows.
    pub revision: u64,
    pub records: Vec<Arc<Record<Facets>>>,
    /// For the next page; `None` on the last one.
    pub continue_token: Option<String>,
    /// How many objects follow; `None` where a selector makes that unknown to clients.
    pub remaining: Option<usize>,
}

/// Where the next page starts.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Token {
    v: String,
    /// Revision of the first page; negative: the newest one.
    rv: i64,
    /// Last key of the previous page, below the prefix.
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

/// Reads the selectors of a request and refuses fields that the kind does not offer.
pub fn selection(kind: &Kind, query: &Query) -> ApiResult<Selection> {
    let unreadable = |e: api::selector::SelectorError| ApiError::bad_request(e.to_string());
    let labels = Labels::parse(query.get("labelSelector").unwrap_or_default()).map_err(unreadable)?;
    let fields = Fields::parse(query.get("fieldSelector").unwrap_or_default()).map_err(unreadable)?;
    let known = |f: &str| {
        f == "metadata.name"
            // Kinds without fields of their own know it in any scope.
            || (f == "metadata.namespace"
                && (kind.scope == Scope::Namespace || kind.strategy.selectable_names().is_empty()))
            || kind.strategy.selectable_names().contains(&f)
    };
    if let Some(field) = fields.0.iter().map(|r| r.field.as_str()).find(|f| !known(f)) {
        return Err(ApiError::bad_request(if kind.strategy.selectable_names().is_empty() {
            let known = r#"only "metadata.name", "metadata.namespace""#;
            format!("{field:?} is not a known field selector: {known}")
        } else if kind.kind == "Job" {
            format!("field label {field:?} not supported for Job")
        } else {
            format!("field label not supported: {field}")
        }));
    }
    Ok(Selection { labels, fields })
}

/// The shortest storage prefix that holds all that is selected.
pub fn prefix(kind: &Kind, namespace: &str, selection: &Selection) -> String {
    let namespace = match (namespace, kind.scope) {
        ("", Scope::Namespace) => selection.fields.exact("metadata.namespace").unwrap_or_default(),
        (given, _) => given,
    };
    let mut prefix = object::prefix(kind, namespace);
    // A name alone narrows only where the key up to it is known.
    if kind.scope == Scope::Cluster || !namespace.is_empty() {
        prefix.push_str(selection.fields.exact("metadata.name").unwrap_or_default());
    }
    prefix
}

impl Inner {
    /// Lists a kind's objects, in one namespace or, where that is empty, in all.
    pub(crate) fn list(
        &self,
        kind: &Kind,
        namespace: &str,
        selection: &Selection,
        options: &ListOptions,
    ) -> ApiResult<Found> {
        let root = object::prefix(kind, namespace);
        let prefix = prefix(kind, namespace, selection);
        let keep = |record: &Record<Facets>| selection.matches(&record.facets);
        let (at, after) = match &options.continue_token {
            Some(token) => start(token, &root, options)?,
            None => (self.wanted(options)?, None),
        };
        let after = after.as_deref();
        let page = match at {
            None => self.store.list(&prefix, after, options.limit, &keep),
            Some(revision) => match self.store.list_at(revision, &prefix, after, options.limit, &keep) {
                Ok(page) => page,
                Err(StoreError::Expired { .. }) => return Err(expired(after, &root)),
                Err(other) => return Err(store_error(other)),
            },
        };
        let more = (page.remaining > 0).then(|| page.records.last()).flatten();
        let continue_token = more.map(|last| token(page.revision as i64, &last.key, &root));
        let remaining = (continue_token.is_some() && selection.is_empty()).then_some(page.remaining);
        Ok(Found { revision: page.revision, records: page.records, continue_token, remaining })
    }

    /// The revision to read a first page at; `None`: the newest.
    fn wanted(&self, options: &ListOptions) -> ApiResult<Option<u64>> {
        let Some(asked) = options.resource_version.filter(|r| *r > 0) else { return Ok(None) };
        let current = self.store.revision();
        if asked > current {
            return Err(ApiError::too_large_resource_version(asked, current));
        }
        // With a limit and no match rule upstream reads exactly at the version asked for.
        let exact = match options.version_match {
            Some(rule) => rule == Match::Exact,
            None => options.limit.is_some(),
        };
        Ok(exact.then_some(asked))
    }
}

fn token(revision: i64, key: &str, root: &str) -> String {
    let start = key.strip_prefix(root).unwrap_or(key).to_owned();
    let token = Token { v: TOKEN_VERSION.into(), rv: revision, start };
    BASE64.encode(serde_json::to_vec(&token).unwrap_or_default())
}

/// Reads a continue token: the revision to go on at and the key to start after.
fn start(text: &str, root: &str, options: &ListOptions) -> ApiResult<(Option<u64>, Option<String>)> {
    let bad = |why: String| ApiError::bad_request(format!("continue key is not valid: {why}"));
    if options.resource_version.is_some_and(|r| r > 0) {
        return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
    }
    let json = BASE64.decode(text.trim_end_matches('=')).map_err(|e| bad(e.to_string()))?;
    let token: Token = serde_json::from_slice(&json)
        .map_err(|e| bad(api::schema::syntax_error(&json).unwrap_or_else(|| e.to_string())))?;
    if token.v != TOKEN_VERSION {
        return Err(bad(format!("server does not recognize this encoded version {}", token.v)));
    }
    if token.rv == 0 {
        return Err(bad(format!("incorrect encoded start resourceVersion (version {TOKEN_VERSION})")));
    }
    if token.start.is_empty() {
        return Err(bad(format!("encoded start key empty (version {TOKEN_VERSION})")));
    }
    if token.start.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(bad(token.start));
    }
    Ok((u64::try_from(token.rv).ok().filter(|r| *r > 0), Some(format!("{root}{}", token.start))))
}

fn expired(after: Option<&str>, root: &str) -> ApiError {
    let Some(after) = after else {
        return ApiError::expired("The resourceVersion for the provided list is too old.");
    };
    let mut error = ApiError::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    error.fresh_continue = Some(token(-1, after, root));
    error
}
