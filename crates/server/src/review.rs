//! Questions about identities and tokens: answered, never stored.
use serde_json::{Value, json};

use crate::{
    Inner,
    identity::Identity,
    object,
    status::{ApiError, ApiResult, Subject},
    token::{ISSUER, Ref},
    write::At,
};

/// A resource that only answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Review {
    pub group: &'static str,
    pub plural: &'static str,
    pub kind: &'static str,
    /// Whether its path has a namespace.
    pub namespaced: bool,
    /// Whether every authenticated user may ask.
    pub open: bool,
}

const fn review(group: &'static str, plural: &'static str, kind: &'static str, open: bool) -> Review {
    Review { group, plural, kind, namespaced: false, open }
}

impl Review {
    /// OpenAPI name of the type, `io.k8s.api.authentication.v1.TokenReview`.
    pub fn schema(&self) -> String {
        format!("io.k8s.api.{}.v1.{}", self.group.split('.').next().unwrap_or_default(), self.kind)
    }
}

/// All of them, `v1` of their groups.
pub static REVIEWS: &[Review] = &[
    review("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview", true),
    review("authentication.k8s.io", "tokenreviews", "TokenReview", false),
    Review {
        namespaced: true,
        ..review("authorization.k8s.io", "localsubjectaccessreviews", "LocalSubjectAccessReview", false)
    },
    review("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview", true),
    review("authorization.k8s.io", "selfsubjectrulesreviews", "SelfSubjectRulesReview", true),
    review("authorization.k8s.io", "subjectaccessreviews", "SubjectAccessReview", false),
];

/// The review at a path.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Review> {
    REVIEWS.iter().find(|r| r.group == group && r.plural == plural && version == "v1")
}

impl Inner {
    /// Fills in the `status` of a review.
    pub(crate) fn review(&self, review: &Review, identity: &Identity, mut body: Value) -> ApiResult<Value> {
        if !body.is_object() {
            return Err(ApiError::bad_request("the body must be an object"));
        }
        body["kind"] = review.kind.into();
        body["apiVersion"] = format!("{}/v1", review.group).into();
        if !body["metadata"].is_object() {
            body["metadata"] = json!({});
        }
        body["status"] = match review.kind {
            "SelfSubjectReview" => json!({"userInfo": user_info(identity)}),
            "SelfSubjectAccessReview" => access(identity, &body["spec"]),
            "SubjectAccessReview" | "LocalSubjectAccessReview" => access(&named(&body["spec"]), &body["spec"]),
            "SelfSubjectRulesReview" => rules(identity),
            "TokenReview" => self.token_review(&body["spec"]),
            _ => return Err(ApiError::no_such_resource()),
        };
        Ok(body)
    }

    fn token_review(&self, spec: &Value) -> Value {
        let asked: Vec<String> =
            spec["audiences"].as_array().into_iter().flatten().filter_map(|a| Some(a.as_str()?.to_owned())).collect();
        let audiences = if asked.is_empty() { vec![ISSUER.to_owned()] } else { asked };
        match self.authenticate(spec["token"].as_str().unwrap_or_default(), &audiences) {
            Some((identity, audiences)) => {
                json!({"authenticated": true, "user": user_info(&identity), "audiences": audiences})
            }
            None => json!({"user": {}, "error": "invalid bearer token"}),
        }
    }

    /// Answers a `TokenRequest` for a service account.
    pub(crate) fn token_request(&self, at: &At<'_>, mut body: Value) -> ApiResult<Value> {
        let (_, account) = self.load(at)?;
        let texts = |list: &Value| -> Vec<String> {
            list.as_array().into_iter().flatten().filter_map(|a| Some(a.as_str()?.to_owned())).collect()
        };
        let spec = &body["spec"];
        let mut audiences = texts(&spec["audiences"]);
        if audiences.is_empty() {
            audiences.push(ISSUER.into());
        }
        let seconds = spec["expirationSeconds"].as_i64().unwrap_or(3600);
        check_seconds(seconds)?;
        let mut claims = Inner::claims(&account, audiences.clone(), seconds);
        self.bind_token(at, &spec["boundObjectRef"], &mut claims.kubernetes)?;
        let token = self.tokens.sign(&claims).map_err(|e| ApiError::internal(base::chain(&e)))?;
        let expires = jiff::Timestamp::from_second(claims.exp).map_err(ApiError::internal)?;
        if !body.is_object() {
            body = json!({});
        }
        body["kind"] = "TokenRequest".into();
        body["apiVersion"] = "authentication.k8s.io/v1".into();
        body["metadata"] = json!({
            "name": at.name, "namespace": at.namespace, "creationTimestamp": object::time_text(jiff::Timestamp::now()),
        });
        body["spec"]["audiences"] = audiences.into();
        body["spec"]["expirationSeconds"] = seconds.into();
        body["status"] = json!({"token": token, "expirationTimestamp": object::time_text(expires)});
        Ok(body)
    }

    /// Binds a token to the object that a request names.
    fn bind_token(&self, at: &At<'_>, bound: &Value, claims: &mut crate::token::Kubernetes) -> ApiResult<()> {
        if bound.is_null() {
            return Ok(());
        }
        let text = |f: &str| bound[f].as_str().unwrap_or_default();
        let (plural, namespace) = match text("kind") {
            "Pod" => ("pods", at.namespace),
            "Secret" => ("secrets", at.namespace),
            "Node" => ("nodes", ""),
            other => {
                let why = format!("cannot bind token to object of type /{}, Kind={other}", text("apiVersion"));
                return Err(ApiError::bad_request(why));
            }
        };
        let kind = api::find("", "v1", plural).ok_or_else(ApiError::no_such_resource)?;
        let target = At { kind, namespace, name: text("name") };
        let (_, object) = self.load(&target)?;
        let uid = object::meta(&object, "uid");
        if !text("uid").is_empty() && text("uid") != uid {
            let why = format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                text("uid")
            );
            return Err(ApiError::conflict(target.subject(), &why));
        }
        let found = Some(Ref { name: target.name.to_owned(), uid: uid.to_owned() });
        match plural {
            "pods" => {
                let account = object["spec"]["serviceAccountName"].as_str().unwrap_or_default();
                if account != at.name {
                    let why = format!(
                        "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                        at.name
                    );
                    return Err(ApiError::bad_request(why));
                }
                claims.pod = found;
                claims.node = self.node_of(&object);
            }
            "secrets" => claims.secret = found,
            _ => claims.node = found,
        }
        Ok(())
    }

    fn node_of(&self, pod: &Value) -> Option<Ref> {
        let name = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty())?;
        let node = self.store.get(&format!("/core/nodes/{name}"))?;
        Some(Ref { name: name.to_owned(), uid: node.facets.uid.to_string() })
    }
}

fn check_seconds(seconds: i64) -> ApiResult<()> {
    let why = match seconds {
        s if s < 600 => "may not specify a duration less than 10 minutes",
        s if s > 1 << 32 => "may not specify a duration larger than 2^32 seconds",
        _ => return Ok(()),
    };
    let error = api::FieldError {
        field: "spec.expirationSeconds".into(),
        reason: "FieldValueInvalid",
        message: format!("Invalid value: {seconds}: {why}"),
    };
    Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", "", &[error]))
}

fn user_info(identity: &Identity) -> Value {
    let mut info = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        info["uid"] = identity.uid.as_str().into();
    }
    if !identity.extra.is_empty() {
        info["extra"] = json!(identity.extra);
    }
    info
}

/// The identity that an access review is about.
fn named(spec: &Value) -> Identity {
    let groups = spec["groups"].as_array().into_iter().flatten().filter_map(|g| Some(g.as_str()?.to_owned()));
    Identity { user: spec["user"].as_str().unwrap_or_default().into(), groups: groups.collect(), ..Identity::default() }
}

fn access(identity: &Identity, spec: &Value) -> Value {
    if identity.may_everything() {
        return json!({"allowed": true});
    }
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let path = text(&spec["nonResourceAttributes"]["path"]);
    let verb = text(&spec["nonResourceAttributes"]["verb"]);
    let resource = &spec["resourceAttributes"];
    let open_review = text(&resource["verb"]) == "create"
        && REVIEWS
            .iter()
            .any(|r| r.open && text(&resource["group"]) == r.group && text(&resource["resource"]) == r.plural);
    let open_path = verb == "get" && !path.is_empty() && crate::identity::open_to_authenticated(&path);
    json!({"allowed": open_review || open_path})
}

fn rules(identity: &Identity) -> Value {
    if identity.may_everything() {
        return json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        });
    }
    let resources: Vec<Value> = REVIEWS
        .iter()
        .filter(|r| r.open)
        .map(|r| json!({"verbs": ["create"], "apiGroups": [r.group], "resources": [r.plural]}))
        .collect();
    json!({
        "resourceRules": resources,
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/openapi/*", "/version"]}],
        "incomplete": false,
    })
}

/// 403 for what an identity may not do.
pub fn forbidden(identity: &Identity, verb: &str, subject: Subject<'_>, namespace: &str) -> ApiError {
    let place = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    let why = format!(
        "User {:?} cannot {verb} resource {:?} in API group {:?} {place}",
        identity.user, subject.resource, subject.group
    );
    ApiError::forbidden(subject, &why)
}
