//! From a request to an answer: routing, authorization, verbs.
use std::time::Instant;

use api::{Kind, Scope, selector::FieldRequirement};
use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderValue, Method, Request, header};
use serde_json::Value;

use crate::{
    ApiServer, body, discovery, health,
    identity::{Identity, open_to_all, open_to_authenticated},
    metrics,
    negotiate::{self, Form, Shape},
    object, openapi,
    options::{DeleteOptions, ListOptions, Query, WriteOptions},
    patch::Patch,
    path::{self, Resource, Target, Verb},
    read, render, review,
    status::{self, ApiError, ApiResult, Subject},
    token::Tokens,
    watch,
    write::{At, Outcome, Part},
};

/// Kinds whose deletion answers with the object rather than with a Status.
const ANSWER_WITH_OBJECT: &[&str] = &[
    "Namespace",
    "Pod",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "ServiceAccount",
    "ResourceQuota",
    "Service",
    "StorageClass",
    "CSIDriver",
    "CSINode",
    "VolumeAttachment",
    "VolumeAttributesClass",
];
/// Kinds that are only updated at a resourceVersion.
const CONDITIONAL_UPDATE: &[&str] = &[
    "Lease",
    "ClusterTrustBundle",
    "CSIDriver",
    "CSINode",
    "CSIStorageCapacity",
    "VolumeAttachment",
    "VolumeAttributesClass",
    "VolumeSnapshot",
    "VolumeSnapshotClass",
    "VolumeSnapshotContent",
];

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
/// What `/` lists.
const PATHS: &[&str] =
    &["/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"];

/// Answers any request. `None`: no credentials.
pub async fn handle(server: &ApiServer, identity: Option<&Identity>, request: Request<Body>) -> Response {
    let form = Form::of(request.headers());
    let shown = form.as_ref().map_or(Form::JSON, |f| *f);
    match route(server, identity, request, form).await {
        Ok(response) => response,
        Err(error) => negotiate::error(&error, shown),
    }
}

async fn route(
    server: &ApiServer,
    identity: Option<&Identity>,
    request: Request<Body>,
    form: ApiResult<Form>,
) -> ApiResult<Response> {
    let path = request.uri().path().to_owned();
    let readable = matches!(*request.method(), Method::GET | Method::HEAD);
    let identity = match identity {
        Some(identity) => identity,
        None if open_to_all(&path) && readable => return plain(server, &path, request).await,
        None => return Err(ApiError::unauthorized()),
    };
    let other = identity.impersonated(request.headers())?;
    let identity = other.as_ref().unwrap_or(identity);
    let target = path::parse(&path);
    if let Target::Resource(resource) = target {
        return Call::route(server, identity, resource, request, form).await;
    }
    if !readable {
        return Err(ApiError::method_not_allowed());
    }
    if !identity.may_everything() && !open_to_authenticated(&path) {
        let why = format!("User {:?} cannot get path {path:?}", identity.user);
        return Err(ApiError::forbidden(Subject { group: "", resource: "", name: "" }, &why));
    }
    if target == Target::Other {
        return plain(server, &path, request).await;
    }
    let form = form?;
    let value = match (&target, form.shape) {
        (Target::CoreVersions, Shape::Discovery(version)) => discovery::aggregated(true, version),
        (Target::Groups, Shape::Discovery(version)) => discovery::aggregated(false, version),
        (Target::CoreVersions, _) => discovery::core_versions(),
        (Target::Groups, _) => discovery::group_list(),
        (Target::Group(name), _) => discovery::group(name)?,
        (Target::Resources(group, version), _) => discovery::resources(group, version)?,
        (Target::Resource(_) | Target::Other, _) => return Err(ApiError::no_such_resource()),
    };
    // Only the two roots have an aggregated form.
    let form = match (&target, form.shape) {
        (Target::CoreVersions | Target::Groups, Shape::Discovery(_)) => form,
        _ => Form { shape: Shape::Object, ..form },
    };
    Ok(negotiate::value(200, form, &value))
}

/// Paths that are no resources.
async fn plain(server: &ApiServer, path: &str, request: Request<Body>) -> ApiResult<Response> {
    let inner = server.inner();
    let (head, _) = request.into_parts();
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let json = |value: &Value| Ok(negotiate::value(200, Form::JSON, value));
    match path.trim_end_matches('/') {
        "/version" => json(&discovery::version()),
        "/.well-known/openid-configuration" => json(&Tokens::configuration()),
        "/openid/v1/jwks" => json(&inner.tokens.jwks()),
        "/metrics" => {
            let mut response = health::text(200, metrics::page(inner));
            let media = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, media);
            Ok(response)
        }
        "" => json(&serde_json::json!({"paths": PATHS})),
        path if path.starts_with("/openapi/") => openapi::answer(&inner.documents, path, &query, &head.headers).await,
        path => {
            Ok(health::answer(inner, path, &query).unwrap_or_else(|| health::text(404, "404 page not found\n".into())))
        }
    }
}

/// One request about a resource.
struct Call<'a> {
    server: &'a ApiServer,
    kind: &'static Kind,
    resource: &'a Resource,
    verb: Verb,
    query: Query,
    form: Form,
}

impl<'a> Call<'a> {
    async fn route(
        server: &ApiServer,
        identity: &Identity,
        resource: Resource,
        request: Request<Body>,
        form: ApiResult<Form>,
    ) -> ApiResult<Response> {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let watching = query.flag("watch") && resource.subresource.is_empty();
        let Some(verb) = path::verb(request.method(), &resource, watching) else {
            return Err(ApiError::method_not_allowed());
        };
        if let Some(review) = review::find(&resource.group, &resource.version, &resource.resource) {
            return answer_review(server, identity, review, &resource, verb, request).await;
        }
        if discovery::is_custom_definitions(&resource) && verb == Verb::List {
            return Ok(negotiate::value(
                200,
                Form { shape: Shape::Object, ..form? },
                &discovery::no_custom_definitions(),
            ));
        }
        let legacy_binding = resource.group.is_empty() && resource.resource == "bindings";
        let plural = if legacy_binding { "pods" } else { resource.resource.as_str() };
        let kind = api::find(&resource.group, &resource.version, plural).ok_or_else(ApiError::no_such_resource)?;
        check_scope(kind, &resource, verb)?;
        if !identity.may_everything() {
            let full = match resource.subresource.as_str() {
                "" => resource.resource.clone(),
                sub => format!("{}/{sub}", resource.resource),
            };
            let subject = Subject { group: kind.group, resource: &full, name: &resource.name };
            return Err(review::forbidden(identity, verb.name(), subject, &resource.namespace));
        }
        let streams = verb == Verb::Connect || resource.subresource == "log";
        let form = if streams { form.unwrap_or(Form::JSON) } else { form? };
        let call = Call { server, kind, resource: &resource, verb, query, form };
        let begun = Instant::now();
        let result = if legacy_binding {
            call.legacy_binding(request).await
        } else if resource.subresource.is_empty() {
            call.main(request).await
        } else {
            call.subresource(request).await
        };
        let code = result.as_ref().map_or_else(|error| error.code, |response| response.status().as_u16());
        server.inner().metrics.request(kind, &resource.subresource, verb, code, begun.elapsed());
        result
    }

    fn at(&self) -> At<'a> {
        At { kind: self.kind, namespace: &self.resource.namespace, name: &self.resource.name }
    }

    async fn main(&self, request: Request<Body>) -> ApiResult<Response> {
        match self.verb {
            Verb::Get => self.get(),
            Verb::List => self.list(),
            Verb::Watch => self.watch(),
            Verb::Create => self.create(request).await,
            Verb::Update => self.put(request, Part::Main).await,
            Verb::Patch => self.patch(request, Part::Main).await,
            Verb::Delete => self.delete(request).await,
            Verb::DeleteCollection if self.kind.kind == "Namespace" => Err(ApiError::method_not_allowed()),
            Verb::DeleteCollection => self.delete_collection(request).await,
            Verb::Connect => Err(ApiError::method_not_allowed()),
        }
    }

    async fn subresource(&self, request: Request<Body>) -> ApiResult<Response> {
        let name = self.resource.subresource.as_str();
        if self.kind.kind == "Node"
            && self.verb == Verb::Get
            && let Some(path) = name.strip_prefix("proxy/")
        {
            return self.server.inner().ask_node(&self.at(), path, request).await;
        }
        let found = self.kind.subresources.iter().find(|s| s.name == name).ok_or_else(ApiError::no_such_resource)?;
        let verb = match self.verb {
            Verb::Connect if *request.method() == Method::POST => "create",
            Verb::Connect => "get",
            other => other.name(),
        };
        if !found.verbs.contains(&verb) {
            return Err(ApiError::method_not_allowed());
        }
        let at = self.at();
        let inner = self.server.inner();
        match (name, self.verb) {
            ("log", Verb::Get) | (_, Verb::Connect) => inner.connect(&at, name, &self.query, request).await,
            (_, Verb::Get) => self.get(),
            ("status", Verb::Update) => self.put(request, Part::Status).await,
            ("status", Verb::Patch) => self.patch(request, Part::Status).await,
            ("finalize", Verb::Update) => self.put(request, Part::Finalize).await,
            ("ephemeralcontainers", Verb::Update) => self.put(request, Part::Ephemeral).await,
            ("ephemeralcontainers", Verb::Patch) => self.patch(request, Part::Ephemeral).await,
            ("binding", Verb::Create) => self.bind(&at, request).await,
            ("eviction", Verb::Create) => {
                let body = self.plain_body("io.k8s.api.policy.v1.Eviction", request).await?;
                let status = inner.evict(&at, &body, &self.query).await?;
                Ok(negotiate::value(201, self.plain_form(), &status))
            }
            ("token", Verb::Create) => {
                let body = self.plain_body("io.k8s.api.authentication.v1.TokenRequest", request).await?;
                Ok(negotiate::value(201, self.plain_form(), &inner.token_request(&at, body)?))
            }
            _ => Err(ApiError::no_such_resource()),
        }
    }

    fn plain_form(&self) -> Form {
        Form { shape: Shape::Object, ..self.form }
    }

    /// The body of a request, of a type.
    async fn plain_body(&self, schema: &str, request: Request<Body>) -> ApiResult<Value> {
        let (parts, body) = request.into_parts();
        body::plain(schema, &parts.headers, &body::read(body).await?)
    }

    async fn bind(&self, at: &At<'_>, request: Request<Body>) -> ApiResult<Response> {
        let mut binding = self.plain_body("io.k8s.api.core.v1.Binding", request).await?;
        if object::meta(&binding, "name").is_empty() {
            object::set_meta(&mut binding, "name", at.name);
        }
        self.finish_bind(at, &binding).await
    }

    async fn legacy_binding(&self, request: Request<Body>) -> ApiResult<Response> {
        if self.verb != Verb::Create || !self.resource.name.is_empty() {
            return Err(ApiError::method_not_allowed());
        }
        let binding = self.plain_body("io.k8s.api.core.v1.Binding", request).await?;
        let name = object::meta(&binding, "name").to_owned();
        let at = At { name: &name, ..self.at() };
        self.finish_bind(&at, &binding).await
    }

    async fn finish_bind(&self, at: &At<'_>, binding: &Value) -> ApiResult<Response> {
        let options = WriteOptions::parse(&self.query, "CreateOptions")?;
        self.server.inner().bind(at, binding, options.dry_run).await?;
        let status = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
        });
        Ok(negotiate::value(201, self.plain_form(), &status))
    }

    fn get(&self) -> ApiResult<Response> {
        let record = self.server.inner().find(&self.at())?;
        let asked = ListOptions::parse(&self.query, false)?.resource_version;
        let current = self.server.inner().store.revision();
        if let Some(asked) = asked.filter(|asked| *asked > current) {
            return Err(ApiError::too_large_resource_version(asked, current));
        }
        render::object(self.kind, self.form, render::include(&self.query)?, 200, &record.value)
    }

    fn list(&self) -> ApiResult<Response> {
        let options = ListOptions::parse(&self.query, false)?;
        let selection = read::selection(self.kind, &self.query)?;
        let found = self.server.inner().list(self.kind, &self.resource.namespace, &selection, &options)?;
        render::list(self.kind, self.form, render::include(&self.query)?, &found)
    }

    fn watch(&self) -> ApiResult<Response> {
        let options = ListOptions::parse(&self.query, true)?;
        let mut selection = read::selection(self.kind, &self.query)?;
        if !self.resource.name.is_empty() {
            let value = self.resource.name.clone();
            selection.fields.0 = vec![FieldRequirement { field: "metadata.name".to_owned(), value, equals: true }];
        }
        watch::start(
            self.server,
            watch::Request {
                kind: self.kind,
                namespace: self.resource.namespace.clone(),
                selection,
                options,
                form: self.form,
                include: render::include(&self.query)?,
            },
        )
    }

    fn written(&self, code: u16, (written, warnings): Outcome) -> ApiResult<Response> {
        let mut response = render::object(self.kind, self.form, render::include(&self.query)?, code, written.bytes())?;
        negotiate::warn(&mut response, &warnings);
        Ok(response)
    }

    async fn create(&self, request: Request<Body>) -> ApiResult<Response> {
        let options = WriteOptions::parse(&self.query, "CreateOptions")?;
        let (object, problems) = self.typed_body(request, options).await?;
        let namespace = &self.resource.namespace;
        let (written, warnings) = self.server.inner().create(self.kind, namespace, object, options.dry_run).await?;
        self.written(201, (written, [problems, warnings].concat()))
    }

    async fn typed_body(&self, request: Request<Body>, options: WriteOptions) -> ApiResult<(Value, Vec<String>)> {
        let (parts, body) = request.into_parts();
        let bytes = body::read(body).await?;
        let decoded = body::typed(self.kind, &parts.headers, &bytes)?;
        let kind = self.kind;
        let problems = body::judge(decoded.problems, options.validation, |why| {
            body::cannot_handle(kind.kind, kind.version, kind, &why)
        })?;
        Ok((decoded.object, problems))
    }

    async fn put(&self, request: Request<Body>, part: Part) -> ApiResult<Response> {
        let options = WriteOptions::parse(&self.query, "UpdateOptions")?;
        let (object, problems) = self.typed_body(request, options).await?;
        let at = self.at();
        if CONDITIONAL_UPDATE.contains(&self.kind.kind) && object::meta(&object, "resourceVersion").is_empty() {
            self.server.inner().find(&at)?;
            return Err(at.invalid(&[api::FieldError {
                field: "metadata.resourceVersion".into(),
                reason: "FieldValueInvalid",
                message: "Invalid value: 0: must be specified for an update".into(),
            }]));
        }
        let mut change = |_: &Value| Ok(object.clone());
        let (written, warnings) = self.server.inner().update(&at, part, options.dry_run, &mut change).await?;
        self.written(200, (written, [problems, warnings].concat()))
    }

    async fn patch(&self, request: Request<Body>, part: Part) -> ApiResult<Response> {
        let options = WriteOptions::parse(&self.query, "PatchOptions")?;
        let (parts, body) = request.into_parts();
        let media_type = body::media_type(&parts.headers).to_owned();
        let bytes = body::read(body).await?;
        let patch = Patch::parse(&media_type, &bytes)?;
        let at = self.at();
        let mut problems = Vec::new();
        let mut change = |old: &Value| {
            let (object, found) = patch.apply(&at, old, options.validation)?;
            problems = found;
            // In a whole object a UID is a condition, in a patch it is a change.
            let uid = object::meta(&object, "uid");
            if !uid.is_empty() && uid != object::meta(old, "uid") {
                let message = format!("Invalid value: {uid:?}: field is immutable");
                let field = "metadata.uid".to_owned();
                return Err(at.invalid(&[api::FieldError { field, reason: "FieldValueInvalid", message }]));
            }
            Ok(object)
        };
        let (written, warnings) = self.server.inner().update(&at, part, options.dry_run, &mut change).await?;
        self.written(200, (written, [problems, warnings].concat()))
    }

    async fn delete_options(&self, request: Request<Body>) -> ApiResult<DeleteOptions> {
        let (parts, body) = request.into_parts();
        let bytes = body::read(body).await?;
        // Options of a wrong type must not pass for absent ones: a dry run would become a deletion.
        let body = match bytes.is_empty() {
            true => None,
            false => Some(body::plain(DELETE_OPTIONS, &parts.headers, &bytes)?),
        };
        if let Some(kind) = body.as_ref().and_then(|b| b["kind"].as_str()).filter(|k| *k != "DeleteOptions") {
            return Err(ApiError::bad_request(format!(
                "the body of a delete request must be DeleteOptions, not {kind}"
            )));
        }
        DeleteOptions::parse(&self.query, body.as_ref())
    }

    async fn delete(&self, request: Request<Body>) -> ApiResult<Response> {
        let options = self.delete_options(request).await?;
        let at = self.at();
        let deleted = self.server.inner().delete(&at, &options).await?;
        if deleted.gone && !ANSWER_WITH_OBJECT.contains(&self.kind.kind) {
            let last: Value = serde_json::from_slice(deleted.object.bytes()).map_err(ApiError::internal)?;
            let uid = object::meta(&last, "uid");
            let status = status::success(self.kind.group, self.kind.plural, at.name, uid);
            return Ok(negotiate::value(200, self.plain_form(), &status));
        }
        self.written(200, (deleted.object, Vec::new()))
    }

    async fn delete_collection(&self, request: Request<Body>) -> ApiResult<Response> {
        let list = ListOptions::parse(&self.query, false)?;
        let selection = read::selection(self.kind, &self.query)?;
        let options = self.delete_options(request).await?;
        let inner = self.server.inner();
        let found = inner.list(self.kind, &self.resource.namespace, &selection, &list)?;
        let revision = found.revision;
        let deleted = inner.delete_collection(found, self.at(), &selection, &options).await?;
        let records = deleted.into_iter().filter_map(|w| match w {
            crate::write::Written::Stored(record) => Some(record),
            crate::write::Written::Shown(_) => None,
        });
        let shown = read::Found { revision, records: records.collect(), continue_token: None, remaining: None };
        render::list(self.kind, self.form, render::include(&self.query)?, &shown)
    }
}

/// Whether a path's namespace fits the kind.
fn check_scope(kind: &Kind, resource: &Resource, verb: Verb) -> ApiResult<()> {
    match (kind.scope, resource.namespace.is_empty(), verb) {
        (Scope::Cluster, true, _) | (Scope::Namespace, false, _) => Ok(()),
        (Scope::Namespace, true, Verb::List | Verb::Watch) if resource.name.is_empty() => Ok(()),
        (Scope::Namespace, true, _) if resource.name.is_empty() => Err(ApiError::method_not_allowed()),
        _ => Err(ApiError::no_such_resource()),
    }
}

async fn answer_review(
    server: &ApiServer,
    identity: &Identity,
    review: &review::Review,
    resource: &Resource,
    verb: Verb,
    request: Request<Body>,
) -> ApiResult<Response> {
    if verb != Verb::Create || !resource.name.is_empty() {
        return Err(ApiError::method_not_allowed());
    }
    if review.namespaced == resource.namespace.is_empty() {
        return Err(ApiError::no_such_resource());
    }
    if !review.open && !identity.may_everything() {
        let subject = Subject { group: review.group, resource: review.plural, name: "" };
        return Err(review::forbidden(identity, verb.name(), subject, &resource.namespace));
    }
    let form = Form { shape: Shape::Object, ..Form::of(request.headers()).unwrap_or(Form::JSON) };
    let (parts, body) = request.into_parts();
    let bytes = body::read(body).await?;
    let body = body::plain(&review.schema(), &parts.headers, &bytes)?;
    Ok(negotiate::value(201, form, &server.inner().review(review, identity, body)?))
}

/// The bearer token of a request.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
