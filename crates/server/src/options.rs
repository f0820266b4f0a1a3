//! Query parameters: what they mean and which values are refused.
use api::FieldError;
use serde_json::Value;

use crate::{
    path::unescape,
    status::{ApiError, ApiResult},
};

/// The parameters of a query string, in order.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Splits and unescapes a query string.
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (unescape(&name.replace('+', " ")), unescape(&value.replace('+', " ")))
        });
        Self(pairs.collect())
    }

    /// The first value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The first value that is not empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|v| !v.is_empty())
    }

    /// Every value of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A boolean as upstream reads it: present and neither `false` nor `0`.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    /// A whole number.
    pub fn number(&self, name: &str) -> ApiResult<Option<i64>> {
        self.text(name)
            .map(|v| {
                v.parse().map_err(|e: std::num::ParseIntError| {
                    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
                    let why = match e.kind() {
                        PosOverflow | NegOverflow => "value out of range",
                        _ => "invalid syntax",
                    };
                    ApiError::bad_request(format!("strconv.ParseInt: parsing {v:?}: {why} (parameter {name})"))
                })
            })
            .transpose()
    }
}

/// What becomes of unknown and repeated fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validation {
    Strict,
    Warn,
    Ignore,
}

/// Options of writes.
#[derive(Debug, Clone, Copy)]
pub struct WriteOptions {
    /// Do everything but store.
    pub dry_run: bool,
    pub validation: Validation,
}

impl WriteOptions {
    /// Reads them; `kind` is what errors are about (`CreateOptions`).
    pub fn parse(query: &Query, kind: &str) -> ApiResult<Self> {
        let mut errors = Vec::new();
        let dry_run: Vec<&str> = query.all("dryRun").filter(|v| !v.is_empty()).collect();
        dry_run_errors(&dry_run, &mut errors);
        let validation = match query.get("fieldValidation").unwrap_or_default() {
            "Strict" => Validation::Strict,
            "" | "Warn" => Validation::Warn,
            "Ignore" => Validation::Ignore,
            other => {
                errors.push(FieldError {
                    field: "fieldValidation".into(),
                    reason: "FieldValueNotSupported",
                    message: format!(
                        "Unsupported value: {other:?}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\""
                    ),
                });
                Validation::Warn
            }
        };
        refuse(kind, &errors)?;
        Ok(Self { dry_run: !dry_run.is_empty(), validation })
    }
}

fn dry_run_errors(values: &[&str], errors: &mut Vec<FieldError>) {
    if values.iter().any(|v| *v != "All") {
        let list: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
        errors.push(FieldError {
            field: "dryRun".into(),
            reason: "FieldValueNotSupported",
            message: format!("Unsupported value: [{}]: supported values: \"All\"", list.join(", ")),
        });
    }
}

fn refuse(kind: &str, errors: &[FieldError]) -> ApiResult<()> {
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid("meta.k8s.io", kind, "", errors)) }
}

/// What becomes of dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// Options of a deletion, from body and query.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    pub dry_run: bool,
    /// Seconds; negative ones count as 1.
    pub grace_s: Option<i64>,
    pub propagation: Option<Propagation>,
    /// Preconditions: uid and resourceVersion.
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// Reads the body if there is one, the query otherwise.
    pub fn parse(query: &Query, body: Option<&Value>) -> ApiResult<Self> {
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let mut errors = Vec::new();
        let (dry_run, grace_s, policy, orphan) = match body {
            Some(b) => {
                let dry: Vec<String> = b["dryRun"].as_array().into_iter().flatten().filter_map(text).collect();
                (dry, b["gracePeriodSeconds"].as_i64(), text(&b["propagationPolicy"]), b["orphanDependents"].as_bool())
            }
            None => (
                query.all("dryRun").filter(|v| !v.is_empty()).map(str::to_owned).collect(),
                query.number("gracePeriodSeconds")?,
                query.text("propagationPolicy").map(str::to_owned),
                query.get("orphanDependents").map(|_| query.flag("orphanDependents")),
            ),
        };
        dry_run_errors(&dry_run.iter().map(String::as_str).collect::<Vec<_>>(), &mut errors);
        if policy.is_some() && orphan.is_some() {
            errors.push(FieldError {
                field: "propagationPolicy".into(),
                reason: "FieldValueInvalid",
                message: format!(
                    "Invalid value: {:?}: orphanDependents and deletionPropagation cannot be both set",
                    policy.as_deref().unwrap_or_default()
                ),
            });
        }
        let propagation = match policy.as_deref() {
            None | Some("") => match orphan {
                Some(true) => Some(Propagation::Orphan),
                Some(false) => Some(Propagation::Background),
                None => None,
            },
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                errors.push(FieldError {
                    field: "propagationPolicy".into(),
                    reason: "FieldValueNotSupported",
                    message: format!(
                        "Unsupported value: {other:?}: supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
                    ),
                });
                None
            }
        };
        refuse("DeleteOptions", &errors)?;
        let precondition = |f: &str| body.and_then(|b| text(&b["preconditions"][f]));
        Ok(Self {
            dry_run: !dry_run.is_empty(),
            grace_s: grace_s.map(|s| if s < 0 { 1 } else { s }),
            propagation,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
        })
    }
}

/// How a list's or watch's `resourceVersion` is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    Exact,
    NotOlderThan,
}

/// Options of lists and watches.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    pub limit: Option<usize>,
    pub continue_token: Option<String>,
    /// `None`: not given. `Some(0)`: any state will do.
    pub resource_version: Option<u64>,
    pub version_match: Option<Match>,
    pub send_initial_events: Option<bool>,
    pub bookmarks: bool,
    pub timeout_s: Option<u64>,
}

impl ListOptions {
    /// Reads and checks them.
    pub fn parse(query: &Query, watch: bool) -> ApiResult<Self> {
        let resource_version = query
            .text("resourceVersion")
            .map(|v| {
                v.parse::<u64>().map_err(|_| {
                    let message = format!("Invalid value: {v:?}: strconv.ParseUint: parsing {v:?}: invalid syntax");
                    let error = FieldError { field: "resourceVersion".into(), reason: "FieldValueInvalid", message };
                    ApiError::invalid("", "ListOptions", "", &[error])
                })
            })
            .transpose()?;
        let mut errors = Vec::new();
        let mut forbid = |field: &str, why: &str| {
            let message = format!("Forbidden: {why}");
            errors.push(FieldError { field: field.into(), reason: "FieldValueForbidden", message });
        };
        let send = query.text("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        let how = query.text("resourceVersionMatch");
        let field = "resourceVersionMatch";
        if watch {
            if send.is_some() && how != Some("NotOlderThan") {
                forbid(field, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
            }
            if how.is_some() && send.is_none() {
                forbid(field, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
            }
        } else {
            if send.is_some() {
                forbid("sendInitialEvents", "sendInitialEvents is forbidden for list");
            }
            if how.is_some() && resource_version.is_none() {
                forbid(field, "resourceVersionMatch is forbidden unless resourceVersion is provided");
            }
            if how == Some("Exact") && resource_version == Some(0) {
                forbid(field, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
            }
        }
        if how.is_some() && query.text("continue").is_some() {
            forbid(field, "resourceVersionMatch is forbidden when continue is provided");
        }
        let version_match = match how {
            None => None,
            Some("NotOlderThan") => Some(Match::NotOlderThan),
            Some("Exact") if !watch => Some(Match::Exact),
            Some(other) => {
                let supported = if watch { "\"NotOlderThan\"" } else { "\"Exact\", \"NotOlderThan\", \"\"" };
                let message = format!("Unsupported value: {other:?}: supported values: {supported}");
                errors.push(FieldError { field: field.into(), reason: "FieldValueNotSupported", message });
                None
            }
        };
        refuse("ListOptions", &errors)?;
        let positive = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
        Ok(Self {
            limit: positive(query.number("limit")?).and_then(|n| usize::try_from(n).ok()),
            continue_token: query.text("continue").map(str::to_owned),
            resource_version,
            version_match,
            send_initial_events: send,
            bookmarks: query.flag("allowWatchBookmarks"),
            timeout_s: positive(query.number("timeoutSeconds")?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn causes(e: &ApiError) -> Vec<String> {
        let body = e.to_value();
        body["details"]["causes"].as_array().unwrap().iter().map(|c| c["field"].as_str().unwrap().into()).collect()
    }

    #[test]
    fn bad_values_name_their_parameter() {
        let write = |q: &str| WriteOptions::parse(&Query::parse(q), "CreateOptions").map(|_| ());
        let list = |q: &str| ListOptions::parse(&Query::parse(q), false).map(|_| ());
        let watch = |q: &str| ListOptions::parse(&Query::parse(q), true).map(|_| ());
        let delete = |q: &str| DeleteOptions::parse(&Query::parse(q), None).map(|_| ());
        for (result, field) in [
            (write("dryRun=Some"), "dryRun"),
            (write("fieldValidation=Sometimes"), "fieldValidation"),
            (list("resourceVersion=x"), "resourceVersion"),
            (list("resourceVersionMatch=Exact"), "resourceVersionMatch"),
            (list("resourceVersion=1&resourceVersionMatch=Older"), "resourceVersionMatch"),
            (list("sendInitialEvents=true"), "sendInitialEvents"),
            (watch("sendInitialEvents=true"), "resourceVersionMatch"),
            (delete("propagationPolicy=Sideways"), "propagationPolicy"),
            (delete("propagationPolicy=Orphan&orphanDependents=true"), "propagationPolicy"),
        ] {
            let e = result.unwrap_err();
            assert_eq!((e.code, causes(&e)), (422, vec![field.to_owned()]));
        }
        assert!(write("dryRun=All&fieldValidation=Strict").is_ok());
        assert!(watch("sendInitialEvents=true&resourceVersionMatch=NotOlderThan").is_ok());
        assert_eq!(list("limit=x").unwrap_err().code, 400);
    }

    #[test]
    fn delete_options_come_from_the_body() {
        let body = serde_json::json!({"gracePeriodSeconds": -3, "preconditions": {"uid": "u"}, "propagationPolicy": "Foreground"});
        let o = DeleteOptions::parse(&Query::parse("gracePeriodSeconds=9"), Some(&body)).unwrap();
        assert_eq!((o.grace_s, o.uid.as_deref(), o.propagation), (Some(1), Some("u"), Some(Propagation::Foreground)));
        let o = DeleteOptions::parse(&Query::parse("gracePeriodSeconds=9&orphanDependents=true"), None).unwrap();
        assert_eq!((o.grace_s, o.propagation), (Some(9), Some(Propagation::Orphan)));
    }

    #[test]
    fn queries_are_unescaped() {
        let q = Query::parse("a=1%2C2&b=x+y&c&watch=false&d=0");
        assert_eq!((q.get("a"), q.get("b"), q.get("c")), (Some("1,2"), Some("x y"), Some("")));
        assert_eq!((q.flag("c"), q.flag("watch"), q.flag("d"), q.flag("e")), (true, false, false, false));
    }
}
