//! What a request's path and method ask for.
//!
//! In: method and path. Out: [`Target`]. Absent on purpose: the table of kinds, query parameters.
use http::Method;

/// A resource path below `/api/v1` or `/apis/GROUP/VERSION`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resource {
    /// Empty for core.
    pub group: String,
    /// API version, `v1`.
    pub version: String,
    /// Empty: cluster-scoped, or all namespaces.
    pub namespace: String,
    /// Plural.
    pub resource: String,
    /// Object's name; empty for a collection.
    pub name: String,
    /// Subresource; empty for the object itself.
    pub subresource: String,
    /// A legacy `/watch/` path.
    pub legacy_watch: bool,
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/GROUP`
    Group(String),
    /// `/api/v1`, `/apis/GROUP/VERSION`: (group, version)
    Resources(String, String),
    /// A resource of an API.
    Resource(Resource),
    /// Everything else: health, version, OpenAPI.
    Other,
}

/// Reads a path; percent escapes are resolved segment by segment.
pub fn parse(path: &str) -> Target {
    let decoded: Vec<String> = path.split('/').filter(|s| !s.is_empty()).map(unescape).collect();
    let parts: Vec<&str> = decoded.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api"] => return Target::CoreVersions,
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis"] => return Target::Groups,
        ["apis", group] => return Target::Group((*group).to_owned()),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Target::Other,
    };
    let (legacy_watch, rest) = match rest {
        ["watch", tail @ ..] if !tail.is_empty() => (true, tail),
        other => (false, other),
    };
    let (namespace, rest) = match rest {
        [] => return Target::Resources(group.to_owned(), version.to_owned()),
        // `/namespaces/x/status` and `/finalize` are subresources of the namespace, not resources in it.
        ["namespaces", ns, sub] if group.is_empty() && matches!(*sub, "status" | "finalize") => {
            return Target::Resource(Resource {
                version: version.to_owned(),
                resource: "namespaces".into(),
                name: (*ns).to_owned(),
                subresource: (*sub).to_owned(),
                legacy_watch,
                ..Resource::default()
            });
        }
        ["namespaces", ns, resource, tail @ ..] => (*ns, [&[*resource][..], tail].concat()),
        all => ("", all.to_vec()),
    };
    let at = |i: usize| rest.get(i).map_or_else(String::new, |s| (*s).to_owned());
    Target::Resource(Resource {
        group: group.to_owned(),
        version: version.to_owned(),
        namespace: namespace.to_owned(),
        resource: at(0),
        name: at(1),
        subresource: rest.get(2..).map_or_else(String::new, |sub| sub.join("/")),
        legacy_watch,
    })
}

/// Resolves percent escapes; invalid ones stay as they are.
pub fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |b: u8| char::from(b).to_digit(16);
        match (bytes[i], bytes.get(i + 1), bytes.get(i + 2)) {
            (b'%', Some(&a), Some(&b)) if hex(a).is_some() && hex(b).is_some() => {
                let digit = |b| hex(b).unwrap_or_default() as u8;
                out.push(digit(a) * 16 + digit(b));
                i += 3;
            }
            (b, _, _) => {
                out.push(b);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What is to be done with a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
    /// A stream through a node (`exec`, `attach`, `portforward`).
    Connect,
}

impl Verb {
    /// As in discovery and in authorization.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
            Verb::Connect => "connect",
        }
    }
}

/// The verb of a method on a resource; `watch` is the query parameter's value. `None`: no such method.
pub fn verb(method: &Method, resource: &Resource, watch: bool) -> Option<Verb> {
    if matches!(resource.subresource.as_str(), "exec" | "attach" | "portforward") {
        return matches!(*method, Method::GET | Method::POST).then_some(Verb::Connect);
    }
    let collection = resource.name.is_empty();
    Some(match *method {
        Method::GET | Method::HEAD if watch || resource.legacy_watch => Verb::Watch,
        Method::GET | Method::HEAD if collection => Verb::List,
        Method::GET | Method::HEAD => Verb::Get,
        Method::POST if collection || !resource.subresource.is_empty() => Verb::Create,
        Method::PUT if !collection => Verb::Update,
        Method::PATCH if !collection => Verb::Patch,
        Method::DELETE if collection => Verb::DeleteCollection,
        Method::DELETE => Verb::Delete,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_resources() {
        for (path, want) in [
            ("/api/v1/pods", "|v1||pods|||false"),
            ("/api/v1/namespaces", "|v1||namespaces|||false"),
            ("/api/v1/namespaces/a", "|v1||namespaces|a||false"),
            ("/api/v1/namespaces/a/status", "|v1||namespaces|a|status|false"),
            ("/api/v1/namespaces/a/finalize", "|v1||namespaces|a|finalize|false"),
            ("/api/v1/namespaces/a/pods", "|v1|a|pods|||false"),
            ("/api/v1/namespaces/a/pods/p/log", "|v1|a|pods|p|log|false"),
            ("/api/v1/namespaces/a/pods/p/proxy/x/y", "|v1|a|pods|p|proxy/x/y|false"),
            ("/apis/storage.k8s.io/v1/storageclasses/s", "storage.k8s.io|v1||storageclasses|s||false"),
            ("/api/v1/watch/namespaces/a/configmaps", "|v1|a|configmaps|||true"),
            ("/api/v1/watch/nodes/n", "|v1||nodes|n||true"),
            ("/api/v1/nodes/a%2Fb", "|v1||nodes|a/b||false"),
        ] {
            let Target::Resource(r) = parse(path) else { panic!("{path}") };
            let got = [r.group, r.version, r.namespace, r.resource, r.name, r.subresource, r.legacy_watch.to_string()];
            assert_eq!(got.join("|"), want, "{path}");
        }
        assert_eq!(parse("/api/"), Target::CoreVersions);
        assert_eq!(parse("/apis/x"), Target::Group("x".into()));
        assert_eq!(parse("/apis/x/v1"), Target::Resources("x".into(), "v1".into()));
        assert_eq!(parse("/nowhere"), Target::Other);
    }

    #[test]
    fn verbs_follow_method_and_path() {
        let of = |method: Method, path: &str, watch| match parse(path) {
            Target::Resource(r) => verb(&method, &r, watch),
            _ => None,
        };
        let all = "/api/v1/namespaces/a/pods";
        let one = "/api/v1/namespaces/a/pods/p";
        assert_eq!(of(Method::GET, all, false), Some(Verb::List));
        assert_eq!(of(Method::GET, all, true), Some(Verb::Watch));
        assert_eq!(of(Method::POST, one, false), None);
        assert_eq!(of(Method::PUT, all, false), None);
        assert_eq!(of(Method::POST, &format!("{one}/eviction"), false), Some(Verb::Create));
        assert_eq!(of(Method::GET, &format!("{one}/exec"), false), Some(Verb::Connect));
        assert_eq!(of(Method::DELETE, all, false), Some(Verb::DeleteCollection));
    }
}
