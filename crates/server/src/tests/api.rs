use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use super::{Client, MAPS, PODS, map, pod, revision};

#[tokio::test]
async fn errors_are_worded_as_upstream() {
    let c = Client::new().await;
    c.ok("POST", MAPS, map("m")).await;
    let one = format!("{MAPS}/m");
    let stale = json!({"metadata": {"name": "m", "resourceVersion": "1"}});
    let versioned = json!({"metadata": {"name": "n", "resourceVersion": "5"}});
    const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    for (method, path, body, want) in [
        ("GET", format!("{MAPS}/no"), Value::Null, "404 NotFound: configmaps \"no\" not found"),
        (
            "GET",
            "/apis/storage.k8s.io/v1/storageclasses/no".into(),
            Value::Null,
            "404 NotFound: storageclasses.storage.k8s.io \"no\" not found",
        ),
        (
            "GET",
            "/api/v1/nonsense".into(),
            Value::Null,
            "404 NotFound: the server could not find the requested resource",
        ),
        ("POST", MAPS.into(), map("m"), "409 AlreadyExists: configmaps \"m\" already exists"),
        ("POST", MAPS.into(), versioned, "400 BadRequest: resourceVersion should not be set on objects to be created"),
        ("POST", "/api/v1/namespaces/no/configmaps".into(), map("m"), "404 NotFound: namespaces \"no\" not found"),
        (
            "POST",
            "/api/v1/namespaces/kube-system/configmaps".into(),
            json!({"metadata": {"name": "m", "namespace": "default"}}),
            "400 BadRequest: the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            "PUT",
            one.clone(),
            stale,
            "409 Conflict: Operation cannot be fulfilled on configmaps \"m\": the object has been modified; please apply your changes to the latest version and try again",
        ),
        (
            "PUT",
            one.clone(),
            json!({"metadata": {"name": "x"}}),
            "400 BadRequest: the name of the object (x) does not match the name on the URL (m)",
        ),
        (
            "PUT",
            one.clone(),
            json!({"metadata": {}}),
            "400 BadRequest: the name of the object (m based on URL) was undeterminable: name must be provided",
        ),
        (
            "PUT",
            one.clone(),
            json!({"metadata": {"name": "m", "namespace": "x"}}),
            "400 BadRequest: the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            "GET",
            "/api/v1/persistentvolumes?fieldSelector=name%3Dx".to_owned(),
            Value::Null,
            "400 BadRequest: \"name\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        ),
        ("PUT", format!("{MAPS}/no"), json!({"metadata": {"name": "no"}}), "404 NotFound: configmaps \"no\" not found"),
        (
            "POST",
            one.clone(),
            map("m"),
            "405 MethodNotAllowed: the server does not allow this method on the requested resource",
        ),
        (
            "PUT",
            MAPS.into(),
            map("m"),
            "405 MethodNotAllowed: the server does not allow this method on the requested resource",
        ),
        (
            "POST",
            MAPS.into(),
            json!({"metadata": {}}),
            "422 Invalid: ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required",
        ),
        (
            "PATCH",
            one.clone(),
            json!([{"op": "test", "path": "/data/a", "value": "2"}]),
            "422 Invalid: the server rejected our request due to an error in our request: operation '/0' failed at path '/data/a': value did not match",
        ),
        (
            "DELETE",
            "/api/v1/namespaces/default".into(),
            Value::Null,
            "403 Forbidden: namespaces \"default\" is forbidden: this namespace may not be deleted",
        ),
        (
            "GET",
            format!("{MAPS}?labelSelector=a%20b"),
            Value::Null,
            "400 BadRequest: unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
        ),
        (
            "GET",
            format!("{MAPS}?continue=nonsense&limit=1"),
            Value::Null,
            "400 BadRequest: continue key is not valid: invalid character '\\u009e' looking for beginning of value",
        ),
        (
            "GET",
            format!("{MAPS}?fieldSelector=spec.x%3D1"),
            Value::Null,
            "400 BadRequest: \"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        ),
        (
            "GET",
            format!("{PODS}?fieldSelector=spec.x%3D1"),
            Value::Null,
            "400 BadRequest: field label not supported: spec.x",
        ),
        (
            "POST",
            MAPS.into(),
            json!({"metadata": {"generateName": "x_"}, "data": {}}),
            "422 Invalid: ConfigMap \"NAME\" is invalid: [metadata.generateName: Invalid value: \"x_\": SUBDOMAIN, metadata.name: Invalid value: \"NAME\": SUBDOMAIN]",
        ),
    ] {
        let got = c.fails(method, &path, body).await.replace(SUBDOMAIN, "SUBDOMAIN");
        // A generated name ends in characters of chance.
        let name = got.split('"').find(|w| w.starts_with("x_") && w.len() > 2).unwrap_or("NAME").to_owned();
        assert_eq!(got.replace(&name, "NAME"), want);
    }
}

#[tokio::test]
async fn media_types_are_ones_that_clients_can_read() {
    let c = Client::new().await;
    let accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let response = c.send(Request::get("/openapi/v2").header("accept", accept).body(Body::empty()).unwrap()).await;
    assert_eq!(response.headers()["content-type"], "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
}

#[tokio::test]
async fn documents_are_named_compressed_and_sent_once() {
    use std::io::Read;
    let c = Client::new().await;
    let get = async |path: &str, name: &'static str, value: &str| {
        let response = c.send(Request::get(path).header(name, value).body(Body::empty()).unwrap()).await;
        let (parts, body) = response.into_parts();
        (parts, http_body_util::BodyExt::collect(body).await.unwrap().to_bytes())
    };
    let index = c.ok("GET", "/openapi/v3", Value::Null).await;
    let url = index["paths"]["apis/storage.k8s.io/v1"]["serverRelativeURL"].as_str().unwrap();
    let (head, plain) = get(url, "accept", "application/json").await;
    assert_eq!(head.headers["cache-control"], "public, immutable, max-age=31536000");
    assert!(serde_json::from_slice::<Value>(&plain).unwrap()["components"].is_object());
    let tag = head.headers["etag"].to_str().unwrap();
    assert_eq!(url, format!("/openapi/v3/apis/storage.k8s.io/v1?hash={}", tag.trim_matches('"')));
    let (head, packed) = get(url, "accept-encoding", "gzip").await;
    assert_eq!((&head.headers["content-encoding"], packed.len() < plain.len() / 2), (&"gzip".parse().unwrap(), true));
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut text).unwrap();
    assert!(text == plain);
    assert!(!get(url, "accept-encoding", "gzip;q=0").await.0.headers.contains_key("content-encoding"));
    for path in ["/openapi/v2", "/openapi/v3", url] {
        let tag = get(path, "accept", "application/json").await.0.headers["etag"].to_str().unwrap().to_owned();
        let (head, body) = get(path, "if-none-match", &format!("\"other\", W/{tag}")).await;
        assert_eq!((head.status.as_u16(), body.len()), (304, 0), "{path}");
        assert_eq!(get(path, "if-none-match", "\"other\"").await.0.status, 200, "{path}");
    }
    let (old, _) = get("/openapi/v3/api/v1?hash=OLD", "accept", "*/*").await;
    assert_eq!(old.status, 301);
    let to = old.headers["location"].to_str().unwrap();
    assert!(to.starts_with("/openapi/v3/api/v1?hash=") && !to.ends_with("OLD"), "{to}");
}

#[tokio::test]
async fn health_is_checked_part_by_part() {
    let c = Client::new().await;
    let get = async |path: &str| {
        let reply = c.call("GET", path, Value::Null).await;
        (reply.code, reply.text)
    };
    for (path, want) in [
        ("/livez?verbose", "[+]ping ok\n[+]store ok\nlivez check passed\n"),
        ("/readyz?verbose", "[+]ping ok\n[+]store ok\n[+]shutdown ok\nreadyz check passed\n"),
        ("/healthz", "ok"),
        ("/readyz/store", "ok"),
        (
            "/livez?verbose&exclude=store&exclude=x",
            "[+]ping ok\n[+]store excluded: ok\nwarn: some health checks cannot be excluded: no matches for \"x\"\nlivez check passed\n",
        ),
    ] {
        assert_eq!(get(path).await, (200, want.to_owned()), "{path}");
    }
    assert_eq!(get("/livez/shutdown").await.0, 404);
    assert_eq!(get("/readyz/nonsense").await.0, 404);
    c.server.close().await;
    let failed =
        "[+]ping ok\n[-]store failed: reason withheld\n[-]shutdown failed: reason withheld\nreadyz check failed\n";
    assert_eq!(get("/readyz").await, (500, failed.to_owned()));
    assert_eq!(get("/readyz?exclude=store&exclude=shutdown").await, (200, "ok".to_owned()));
    assert_eq!(get("/readyz/shutdown").await, (500, "internal server error: process is shutting down\n".to_owned()));
}

#[tokio::test]
async fn metrics_count_requests_watches_and_objects() {
    let c = Client::new().await;
    c.ok("POST", MAPS, map("m")).await;
    c.call("POST", MAPS, map("m")).await;
    let watch = c.watch(&format!("{MAPS}?watch=1")).await;
    let metrics = async || c.call("GET", "/metrics", Value::Null).await.text;
    let page = metrics().await;
    let about = "group=\"\",version=\"v1\",resource=\"configmaps\",subresource=\"\"";
    let running = "apiserver_longrunning_requests{verb=\"WATCH\",group=\"\",resource=\"configmaps\"}";
    for line in [
        format!("apiserver_request_total{{{about},verb=\"POST\",code=\"201\"}} 1"),
        format!("apiserver_request_total{{{about},verb=\"POST\",code=\"409\"}} 1"),
        format!("apiserver_request_total{{{about},verb=\"WATCH\",code=\"200\"}} 1"),
        format!("apiserver_request_duration_seconds_count{{{about},verb=\"POST\"}} 2"),
        format!("apiserver_request_duration_seconds_bucket{{{about},verb=\"POST\",le=\"+Inf\"}} 2"),
        format!("{running} 1"),
        "apiserver_storage_objects{resource=\"configmaps\"} 1".to_owned(),
        format!("holdfast_store_revision {}", c.server.inner().store.revision()),
    ] {
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }
    assert!(!page.contains("verb=\"WATCH\",le="), "a watch's time says nothing");
    drop(watch);
    assert!(metrics().await.contains(&format!("{running} 0")));
    // Every row belongs to a family that was described.
    let mut family = "";
    for line in page.lines() {
        match line.strip_prefix("# TYPE ") {
            Some(described) => family = described.split(' ').next().unwrap(),
            None => assert!(line.starts_with('#') || line.starts_with(family), "{line}"),
        }
    }
    let stranger = c.as_identity(Some(crate::Identity { user: "u".into(), ..Default::default() }));
    assert_eq!(stranger.call("GET", "/metrics", Value::Null).await.code, 403);
}

#[tokio::test]
async fn copies_of_copies_are_bounded() {
    let c = Client::new().await;
    c.ok("POST", MAPS, json!({"metadata": {"name": "m"}, "data": {"a": "x".repeat(1 << 20 >> 1)}})).await;
    let path = format!("{MAPS}/m");
    // Half a MiB, doubled each time: the third copy would pass the limit.
    let copy = |i: u32| json!({"op": "copy", "from": "/data", "path": format!("/data/x{i}")});
    let refused = c.fails("PATCH", &path, (0..5).map(copy).collect()).await;
    assert!(refused.starts_with("422 Invalid: ") && refused.contains("exceeding the limit 3145728"), "{refused}");
    let failing = json!([{"op": "test", "path": "/metadata/name", "value": "m"}, {"op": "remove", "path": "/data/no"}]);
    let which = c.fails("PATCH", &path, failing).await;
    assert!(which.contains("operation '/1' failed at path '/data/no'"), "{which}");
}

#[tokio::test]
async fn ephemeral_containers_are_only_added() {
    let c = Client::new().await;
    c.ok("POST", PODS, pod("p")).await;
    let path = format!("{PODS}/p/ephemeralcontainers");
    let with = |list: Value| json!({"spec": {"ephemeralContainers": list}});
    c.ok("PATCH", &path, with(json!([{"name": "d", "image": "i"}]))).await;
    let removed = c.fails("PATCH", &path, with(json!([]))).await;
    assert!(removed.contains("existing ephemeral containers \"d\" may not be removed"), "{removed}");
    let changed = c.fails("PATCH", &path, with(json!([{"name": "d", "image": "other"}]))).await;
    assert!(changed.contains("existing ephemeral containers \"d\" may not be changed"), "{changed}");
    let taken = c.fails("PATCH", &path, with(json!([{"name": "d", "image": "i"}, {"name": "c", "image": "i"}]))).await;
    assert!(taken.starts_with("422 Invalid: "), "{taken}");
}

#[tokio::test]
async fn unreadable_bodies_are_refused_in_upstreams_words() {
    let c = Client::new().await;
    c.ok("POST", MAPS, map("m")).await;
    let unrecognized = "the object provided is unrecognized (must be of type ConfigMap): ";
    let head = "couldn't get version/kind; json parse error: ";
    let none = r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
    let handled = "cannot be handled as a ConfigMap: ";
    for (content_type, body, want) in [
        (
            "json",
            "{\"a\":}",
            format!("{unrecognized}{head}invalid character '}}' looking for beginning of value ({{\"a\":}})"),
        ),
        ("json", "{", format!("{unrecognized}{head}unexpected end of JSON input ({{)")),
        ("json", "[]", format!("{unrecognized}{head}json: cannot unmarshal array into Go value of type {none} (5b5d)")),
        (
            "json",
            "{\"kind\":5}",
            format!(
                "{unrecognized}{head}json: cannot unmarshal number into Go struct field .kind of type string ({{\"kind\":5}})"
            ),
        ),
        (
            "json",
            "{\"data\":{\"a\":1}}",
            format!(
                "ConfigMap in version \"v1\" {handled}json: cannot unmarshal number into Go struct field ConfigMap.data of type string"
            ),
        ),
        // What it claims to be counts first.
        (
            "json",
            "{\"kind\":\"Pod\",\"data\":{\"a\":1}}",
            format!("Pod in version \"v1\" {handled}converting (v1.Pod) to (core.ConfigMap): unknown conversion"),
        ),
        (
            "json",
            "{\"kind\":\"Map\"}",
            format!(
                "Map in version \"v1\" {handled}no kind \"Map\" is registered for version \"v1\" in scheme \"pkg/api/legacyscheme/scheme.go:30\""
            ),
        ),
        ("yaml", "a: [", format!("{unrecognized}yaml: line 1: unclosed bracket '[' (613a205b)")),
        (
            "yaml",
            "a:\n\t- b",
            format!(
                "{unrecognized}yaml: line 2: tabs disallowed within this context (block indentation) (613a0a092d2062)"
            ),
        ),
        (
            "yaml",
            "- a",
            format!("{unrecognized}{head}json: cannot unmarshal array into Go value of type {none} (2d2061)"),
        ),
    ] {
        let reply = c.raw("POST", MAPS, &format!("application/{content_type}"), "*/*", body).await;
        assert_eq!((reply.code, reply.json["message"].as_str()), (400, Some(want.as_str())), "{body}");
    }
    let twice =
        c.raw("POST", MAPS, "application/yaml", "*/*", "metadata: {name: twice}\ndata: {a: b}\ndata: {a: c}\n").await;
    assert_eq!((twice.code, &twice.json["data"]), (201, &json!({"a": "c"})));
    assert_eq!(
        twice.headers["warning"],
        "299 - \"yaml: unmarshal errors:  line 3: key \\\"data\\\" already set in map\""
    );
    for (media, patch, want) in [
        ("merge-patch", "{\"a\":}", "400 error decoding patch: invalid character '}' looking for beginning of value"),
        (
            "merge-patch",
            "[]",
            "400 error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        (
            "json-patch",
            "{}",
            "400 error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
        ),
        (
            "json-patch",
            r#"[{"op":"jump","path":"/a"}]"#,
            "422 the server rejected our request due to an error in our request: Unexpected kind: jump",
        ),
        (
            "json-patch",
            r#"[{"op":"replace","path":"","value":{}}]"#,
            "422 ConfigMap \"m\" is invalid: patch: Invalid value: \"{}\": Object 'Kind' is missing in '{}'",
        ),
        (
            "json-patch",
            r#"[{"op":"replace","path":"","value":7}]"#,
            "422 ConfigMap \"m\" is invalid: patch: Invalid value: \"7\": a patch must leave an object",
        ),
        (
            "merge-patch",
            r#"{"kind":"Pod"}"#,
            "400 Pod in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Pod) to (core.ConfigMap): unknown conversion",
        ),
    ] {
        let reply = c.raw("PATCH", &format!("{MAPS}/m"), &format!("application/{media}+json"), "*/*", patch).await;
        assert_eq!(format!("{} {}", reply.code, reply.json["message"].as_str().unwrap()), want, "{patch}");
    }
}

#[tokio::test]
async fn options_of_a_wrong_type_delete_nothing() {
    let c = Client::new().await;
    c.ok("POST", MAPS, map("m")).await;
    let path = format!("{MAPS}/m");
    for (body, want) in [
        (
            json!({"dryRun": "All"}),
            "json: cannot unmarshal string into Go struct field DeleteOptions.dryRun of type []string",
        ),
        (
            json!({"preconditions": {"uid": 5}}),
            "json: cannot unmarshal number into Go struct field Preconditions.preconditions.uid of type string",
        ),
        (
            json!({"gracePeriodSeconds": "0"}),
            "json: cannot unmarshal string into Go struct field DeleteOptions.gracePeriodSeconds of type int64",
        ),
        (json!({"kind": "Pod"}), "the body of a delete request must be DeleteOptions, not Pod"),
        (json!([]), "cannot unmarshal array into Go value of type v1.DeleteOptions"),
    ] {
        let refused = c.fails("DELETE", &path, body).await;
        assert!(refused.starts_with("400 BadRequest: ") && refused.ends_with(want), "{refused}");
    }
    c.ok("POST", PODS, pod("p")).await;
    let eviction = json!({"metadata": {"name": "p"}, "deleteOptions": {"dryRun": "All"}});
    let refused = c.fails("POST", &format!("{PODS}/p/eviction"), eviction).await;
    assert!(refused.starts_with("400 BadRequest: Eviction in version"), "{refused}");
    c.ok("GET", &path, Value::Null).await;
    c.ok("GET", &format!("{PODS}/p"), Value::Null).await;
}

#[tokio::test]
async fn collections_are_deleted_whole_once_each() {
    let c = Client::new().await;
    for i in 0..150 {
        c.ok("POST", MAPS, map(&format!("m{i:03}"))).await;
    }
    let mut held = map("z");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    c.ok("POST", MAPS, held).await;
    let deleted = c.ok("DELETE", MAPS, Value::Null).await;
    let names = |list: &Value| -> Vec<String> {
        list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap().into()).collect()
    };
    let all: Vec<String> = (0..150).map(|i| format!("m{i:03}")).chain(["z".into()]).collect();
    assert_eq!(names(&deleted), all);
    assert_eq!(names(&c.ok("GET", MAPS, Value::Null).await), ["z"]);
}

#[tokio::test]
async fn changes_at_once_are_all_kept() {
    let c = Client::new().await;
    c.ok("POST", MAPS, map("m")).await;
    let path = format!("{MAPS}/m");
    let patches = (0..100).map(|i| c.ok("PATCH", &path, json!({"data": {format!("k{i}"): "v"}})));
    futures::future::join_all(patches).await;
    let last = c.ok("GET", &path, Value::Null).await;
    assert_eq!(last["data"].as_object().unwrap().len(), 101);
    // At one version there is one winner.
    let puts = (0..10).map(|i| {
        let mut new = last.clone();
        new["data"] = json!({"winner": i.to_string()});
        c.call("PUT", &path, new)
    });
    let codes: Vec<u16> = futures::future::join_all(puts).await.iter().map(|r| r.code).collect();
    assert_eq!((codes.iter().filter(|c| **c == 200).count(), codes.iter().filter(|c| **c == 409).count()), (1, 9));
    let deletions = futures::future::join_all((0..10).map(|_| c.call("DELETE", &path, Value::Null))).await;
    assert_eq!(deletions.iter().filter(|r| r.code == 200).count(), 1);
    let named = (0..100).map(|_| c.ok("POST", MAPS, json!({"metadata": {"generateName": "g-"}})));
    let named = futures::future::join_all(named).await;
    let names: std::collections::HashSet<_> = named.iter().map(|o| o["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 100);
}

#[tokio::test]
async fn some_kinds_are_only_updated_at_a_version() {
    let c = Client::new().await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}});
    let made = c.ok("POST", leases, lease.clone()).await;
    assert_eq!(
        c.fails("PUT", &format!("{leases}/l"), lease).await,
        "422 Invalid: Lease.coordination.k8s.io \"l\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update"
    );
    c.ok("PUT", &format!("{leases}/l"), made).await;
}

/// Elsewhere these are custom resources, and clients count on what those have in common.
#[tokio::test]
async fn snapshots_are_served_as_custom_resources_are() {
    let c = Client::new().await;
    let group = "/apis/snapshot.storage.k8s.io/v1";
    let names = c.ok("GET", group, Value::Null).await;
    let short = |plural: &str| {
        let all = names["resources"].as_array().unwrap();
        all.iter().find(|r| r["name"] == plural).map_or(Value::Null, |r| r["shortNames"].clone())
    };
    assert_eq!(short("volumesnapshots"), json!(["vs"]));
    assert_eq!(short("volumesnapshotcontents"), json!(["vsc", "vscs"]));
    assert_eq!(short("volumesnapshotclasses"), json!(["vsclass", "vsclasses"]));

    let path = format!("{group}/namespaces/default/volumesnapshots");
    let claim = json!({"persistentVolumeClaimName": "c"});
    let snapshot = json!({"metadata": {"name": "s"}, "spec": {"source": claim}, "status": {"readyToUse": true}});
    let made = c.ok("POST", &path, snapshot.clone()).await;
    assert_eq!((&made["metadata"]["generation"], &made["status"]), (&json!(1), &Value::Null));
    let one = format!("{path}/s");
    let refused = c.fails("PUT", &one, snapshot).await;
    assert!(
        refused.contains("metadata.resourceVersion: Invalid value: 0: must be specified for an update"),
        "{refused}"
    );
    let both = json!({"spec": {"volumeSnapshotClassName": "k"}, "status": {"readyToUse": true}});
    let told = c.ok("PATCH", &format!("{one}/status"), both.clone()).await;
    assert_eq!((&told["metadata"]["generation"], &told["status"]["readyToUse"]), (&json!(1), &json!(true)));
    assert_eq!(told["spec"], json!({"source": claim}));
    let changed = c.ok("PATCH", &one, both).await;
    assert_eq!(
        (&changed["metadata"]["generation"], &changed["spec"]["volumeSnapshotClassName"]),
        (&json!(2), &json!("k"))
    );
    let deleted = c.ok("DELETE", &one, Value::Null).await;
    assert_eq!((&deleted["kind"], &deleted["details"]["kind"]), (&json!("Status"), &json!("volumesnapshots")));

    let classes = format!("{group}/volumesnapshotclasses");
    let class = json!({"metadata": {"name": "k"}, "driver": "d.e", "deletionPolicy": "Delete"});
    c.ok("POST", &classes, class).await;
    let changed = c.ok("PATCH", &format!("{classes}/k"), json!({"parameters": {"a": "b"}})).await;
    assert_eq!(changed["metadata"]["generation"], 2);
}

#[tokio::test]
async fn a_namespace_goes_with_its_last_finalizer() {
    let c = Client::new().await;
    let path = "/api/v1/namespaces/n";
    c.ok("POST", "/api/v1/namespaces", json!({"metadata": {"name": "n", "finalizers": ["example.com/hold"]}})).await;
    c.ok("DELETE", path, Value::Null).await;
    // Without those of its metadata it still has one in its spec.
    let kept = c.ok("PATCH", path, json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(
        (&kept["status"]["phase"], &kept["spec"]["finalizers"]),
        (&json!("Terminating"), &json!(["kubernetes"]))
    );
    let mut last = c.ok("GET", path, Value::Null).await;
    last["spec"]["finalizers"] = json!([]);
    last["metadata"]["labels"] = json!({"other": "change"});
    let done = c.ok("PUT", &format!("{path}/finalize"), last).await;
    assert_eq!(done["metadata"]["labels"], kept["metadata"]["labels"], "only finalizers change");
    assert!(c.fails("GET", path, Value::Null).await.starts_with("404"));
}

#[tokio::test]
async fn continue_tokens_are_checked() {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let c = Client::new().await;
    for (token, want) in [
        (r#"{"v":"x","rv":1,"start":"a"}"#, "server does not recognize this encoded version x"),
        (
            r#"{"v":"meta.k8s.io/v1","rv":0,"start":"a"}"#,
            "incorrect encoded start resourceVersion (version meta.k8s.io/v1)",
        ),
        (r#"{"v":"meta.k8s.io/v1","rv":1}"#, "encoded start key empty (version meta.k8s.io/v1)"),
        (r#"{"v":"meta.k8s.io/v1","rv":1,"start":"../../secrets/a"}"#, "../../secrets/a"),
        ("{", "unexpected end of JSON input"),
    ] {
        let path = format!("{MAPS}?limit=1&continue={}", URL_SAFE_NO_PAD.encode(token));
        let want = format!("400 BadRequest: continue key is not valid: {want}");
        assert_eq!(c.fails("GET", &path, Value::Null).await, want, "{token}");
    }
}

#[tokio::test]
async fn bodies_in_unknown_forms_are_refused() {
    let c = Client::new().await;
    for (content_type, accept, body, want) in [
        ("application/json", "application/json", "{\"kind\": ", 400),
        ("application/json", "application/json", "[]", 400),
        ("application/xml", "application/json", "<a/>", 415),
        ("application/json", "text/html", "{\"metadata\":{\"name\":\"a\"}}", 406),
        ("application/yaml", "application/json", "metadata: {name: yam}\ndata: {a: \"1\"}\n", 201),
        ("application/yaml", "application/json", "a: [", 400),
        ("application/yaml", "application/json", "- a\n", 400),
    ] {
        let reply = c.raw("POST", MAPS, content_type, accept, body).await;
        assert_eq!(reply.code, want, "{content_type} {body}: {}", reply.text);
    }
    let long = format!("{{\"metadata\":{{\"name\":\"l\"}},\"data\":{{\"a\":\"{}\"}}}}", "x".repeat(3 << 20));
    assert_eq!(c.raw("POST", MAPS, "application/json", "application/json", &long).await.code, 413);
    assert_eq!(c.raw("PATCH", &format!("{MAPS}/yam"), "application/apply-patch+yaml", "*/*", "{}").await.code, 415);
    let yaml = c.raw("GET", &format!("{MAPS}/yam"), "", "application/yaml", "").await;
    assert!(yaml.text.contains("kind: ConfigMap"), "{}", yaml.text);
}

#[tokio::test]
async fn the_server_owns_its_part_of_metadata() {
    let c = Client::new().await;
    let mut sent = map("m");
    sent["metadata"]["uid"] = "u".into();
    sent["metadata"]["creationTimestamp"] = "2001-01-01T00:00:00Z".into();
    sent["metadata"]["deletionTimestamp"] = "2001-01-01T00:00:00Z".into();
    let made = c.ok("POST", MAPS, sent).await;
    let m = &made["metadata"];
    assert!(m["uid"] != "u" && m["creationTimestamp"].as_str().unwrap() > "2020" && m["deletionTimestamp"].is_null());
    let generated = c.ok("POST", MAPS, json!({"metadata": {"generateName": "g-"}})).await;
    assert_eq!(generated["metadata"]["name"].as_str().unwrap().len(), 7);
    // Same state, same revision; other state, newer revision; identity stays.
    let path = format!("{MAPS}/m");
    let same = c.ok("PUT", &path, made.clone()).await;
    assert_eq!(same, made);
    let patch = json!({"data": {"b": "2"}, "metadata": {"creationTimestamp": "2001-01-01T00:00:00Z"}});
    let changed = c.ok("PATCH", &path, patch).await;
    assert!(revision(&changed) > revision(&made));
    assert_eq!(changed["metadata"]["uid"], m["uid"]);
    assert_eq!(changed["metadata"]["creationTimestamp"], m["creationTimestamp"]);
    assert_eq!(changed["data"], json!({"a": "1", "b": "2"}));
    let stranger = json!({"metadata": {"uid": "other"}});
    let refused = c.fails("PATCH", &path, stranger).await;
    assert_eq!(
        refused,
        "422 Invalid: ConfigMap \"m\" is invalid: metadata.uid: Invalid value: \"other\": field is immutable"
    );
    let mut stranger = made.clone();
    stranger["metadata"]["uid"] = json!("other");
    assert!(c.fails("PUT", &path, stranger).await.starts_with("409 Conflict: "));
}

#[tokio::test]
async fn unknown_fields_warn_fail_or_pass() {
    let c = Client::new().await;
    let mut odd = map("m");
    odd["datum"] = json!(1);
    let strict = c.call("POST", &format!("{MAPS}?fieldValidation=Strict"), odd.clone()).await;
    assert_eq!(
        strict.json["message"],
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"datum\""
    );
    let off = c.call("POST", &format!("{MAPS}?fieldValidation=Ignore&dryRun=All"), odd.clone()).await;
    assert!(off.code == 201 && !off.headers.contains_key("warning") && off.json.get("datum").is_none());
    let warn = c.call("POST", MAPS, odd).await;
    assert_eq!(warn.headers["warning"], "299 - \"unknown field \\\"datum\\\"\"");
    let patch = c.call("PATCH", &format!("{MAPS}/m?fieldValidation=Strict"), json!({"x": 1})).await;
    assert_eq!((patch.code, patch.json["details"]["causes"][0]["field"].as_str()), (422, Some("patch")));
}

#[tokio::test]
async fn dry_runs_store_nothing() {
    let c = Client::new().await;
    let dry = |path: &str| format!("{path}?dryRun=All");
    assert_eq!(c.ok("POST", &dry(MAPS), map("m")).await["metadata"]["name"], "m");
    assert!(c.fails("GET", &format!("{MAPS}/m"), Value::Null).await.starts_with("404"));
    let made = c.ok("POST", MAPS, map("m")).await;
    let path = format!("{MAPS}/m");
    assert_eq!(c.ok("PATCH", &dry(&path), json!({"data": {"a": "9"}})).await["data"]["a"], "9");
    assert_eq!(c.call("DELETE", &dry(&path), Value::Null).await.code, 200);
    assert_eq!(c.ok("GET", &path, Value::Null).await, made);
    assert!(c.fails("POST", &dry(MAPS), map("m")).await.starts_with("409"));
}

#[tokio::test]
async fn deletion_respects_finalizers_and_preconditions() {
    let c = Client::new().await;
    let made = c.ok("POST", MAPS, map("m")).await;
    let path = format!("{MAPS}/m");
    let when = |p: Value| json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": p});
    assert!(c.fails("DELETE", &path, when(json!({"uid": "x"}))).await.starts_with("409 Conflict"));
    assert!(c.fails("DELETE", &path, when(json!({"resourceVersion": "1"}))).await.starts_with("409 Conflict"));
    let gone = c.ok("DELETE", &path, when(json!({"uid": made["metadata"]["uid"]}))).await;
    assert_eq!(
        (&gone["status"], &gone["details"]["name"], &gone["details"]["uid"]),
        (&json!("Success"), &json!("m"), &made["metadata"]["uid"])
    );
    let mut held = map("held");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    c.ok("POST", MAPS, held).await;
    let path = format!("{MAPS}/held");
    let marked = c.ok("DELETE", &path, Value::Null).await;
    assert!(marked["kind"] == "ConfigMap" && marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(c.ok("DELETE", &path, Value::Null).await["metadata"], marked["metadata"]);
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}});
    assert!(c.fails("PATCH", &path, more).await.contains("no new finalizers can be added"));
    c.ok("PATCH", &path, json!({"metadata": {"finalizers": null}})).await;
    assert!(c.fails("GET", &path, Value::Null).await.starts_with("404"));
    // Orphaning is left to the garbage collector.
    c.ok("POST", MAPS, map("o")).await;
    let orphan = c.ok("DELETE", &format!("{MAPS}/o?propagationPolicy=Orphan"), Value::Null).await;
    assert_eq!(orphan["metadata"]["finalizers"], json!(["orphan"]));
}

#[tokio::test]
async fn pods_are_given_time_to_end() {
    let c = Client::new().await;
    let path = format!("{PODS}/p");
    c.ok("POST", PODS, pod("p")).await;
    assert!(
        c.fails("GET", &format!("{path}/exec?command=x"), Value::Null).await.contains("does not have a host assigned")
    );
    c.ok(
        "POST",
        &format!("{path}/binding"),
        json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}}),
    )
    .await;
    let again = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "other"}});
    assert_eq!(
        c.fails("POST", &format!("{path}/binding"), again).await,
        "409 Conflict: Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n\""
    );
    let running = json!({"status": {"phase": "Running"}});
    c.ok("PATCH", &format!("{path}/status"), running).await;
    let marked = c.ok("DELETE", &path, Value::Null).await;
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    let shorter = c.ok("DELETE", &format!("{path}?gracePeriodSeconds=5"), Value::Null).await;
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    let longer = c.ok("DELETE", &format!("{path}?gracePeriodSeconds=50"), Value::Null).await;
    assert_eq!(longer["metadata"], shorter["metadata"]);
    let gone = c.ok("DELETE", &format!("{path}?gracePeriodSeconds=0"), Value::Null).await;
    assert_eq!(gone["kind"], "Pod");
    assert!(c.fails("GET", &path, Value::Null).await.starts_with("404"));
    // Nobody runs it: nothing to wait for. An eviction is a deletion.
    c.ok("POST", PODS, pod("q")).await;
    assert_eq!(
        c.fails("POST", &format!("{PODS}/q/eviction"), json!({"metadata": {"name": "other"}})).await,
        "400 BadRequest: name in URL does not match name in Eviction object"
    );
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "q"}});
    let evicted = c.call("POST", &format!("{PODS}/q/eviction"), eviction).await;
    assert_eq!((evicted.code, evicted.json["status"].as_str()), (201, Some("Success")));
    assert!(c.fails("GET", &format!("{PODS}/q"), Value::Null).await.starts_with("404"));
}

#[tokio::test]
async fn pages_are_of_one_moment() {
    let c = Client::new().await;
    for i in 0..5 {
        c.ok("POST", MAPS, map(&format!("m{i}"))).await;
    }
    let names = |list: &Value| -> Vec<String> {
        list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap().into()).collect()
    };
    let first = c.ok("GET", &format!("{MAPS}?limit=2"), Value::Null).await;
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["m0".into(), "m1".into()], &json!(3)));
    // How many of the rest a selector leaves is not known without reading them.
    let selected = c.ok("GET", &format!("{MAPS}?limit=2&fieldSelector=metadata.name!%3Dm0"), Value::Null).await;
    let metadata = &selected["metadata"];
    assert!(metadata["continue"].is_string() && metadata.get("remainingItemCount").is_none(), "{metadata}");
    c.ok("DELETE", &format!("{MAPS}/m2"), Value::Null).await;
    c.ok("POST", MAPS, map("m9")).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = c.ok("GET", &format!("{MAPS}?limit=2&continue={token}"), Value::Null).await;
    assert_eq!(names(&second), ["m2", "m3"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap();
    let third = c.ok("GET", &format!("{MAPS}?limit=2&continue={token}"), Value::Null).await;
    assert_eq!(names(&third), ["m4"]);
    assert!(third["metadata"].get("continue").is_none());
    // Exactly at a version, as asked for or because there is a limit; the present state otherwise.
    let at = |more: &str| format!("{MAPS}?resourceVersion={}{more}", revision(&first));
    for (more, want) in [
        ("&resourceVersionMatch=Exact", &["m0", "m1", "m2", "m3", "m4"][..]),
        ("&limit=3", &["m0", "m1", "m2"]),
        ("&limit=3&resourceVersionMatch=NotOlderThan", &["m0", "m1", "m3"]),
        ("", &["m0", "m1", "m3", "m4", "m9"]),
    ] {
        assert_eq!(names(&c.ok("GET", &at(more), Value::Null).await), want, "{more}");
    }
    for path in [MAPS.to_owned(), format!("{MAPS}/m0")] {
        let future = c.call("GET", &format!("{path}?resourceVersion=100000"), Value::Null).await;
        assert_eq!(
            (future.code, future.json["details"]["causes"][0]["reason"].as_str(), &future.headers["retry-after"]),
            (504, Some("ResourceVersionTooLarge"), &"1".parse().unwrap())
        );
    }
    let all = c
        .ok("GET", "/api/v1/configmaps?fieldSelector=metadata.name%3Dm3,metadata.namespace%3Ddefault", Value::Null)
        .await;
    assert_eq!(names(&all), ["m3"]);
    c.ok("DELETE", &format!("{MAPS}?fieldSelector=metadata.name!%3Dm0"), Value::Null).await;
    assert_eq!(names(&c.ok("GET", MAPS, Value::Null).await), ["m0"]);
}

#[tokio::test]
async fn other_forms() {
    let c = Client::new().await;
    c.ok("POST", MAPS, map("m")).await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let t = c.raw("GET", MAPS, "", table, "").await.json;
    assert_eq!((&t["kind"], &t["columnDefinitions"][0]["name"]), (&json!("Table"), &json!("Name")));
    assert_eq!(
        (&t["rows"][0]["cells"][0], &t["rows"][0]["object"]["kind"]),
        (&json!("m"), &json!("PartialObjectMetadata"))
    );
    let none = c.raw("GET", &format!("{MAPS}/m?includeObject=None"), "", table, "").await.json;
    assert!(none["rows"][0].get("object").is_none());
    let partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let p = c.raw("GET", MAPS, "", partial, "").await.json;
    assert_eq!(p["kind"], "PartialObjectMetadataList");
    assert!(p["items"][0].get("data").is_none());
}

#[tokio::test]
async fn events_have_two_faces() {
    let c = Client::new().await;
    let core = "/api/v1/namespaces/default/events";
    let face = "/apis/events.k8s.io/v1/namespaces/default/events";
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "reason": "R", "message": "M", "type": "Normal",
        "source": {"component": "c"},
    });
    c.ok("POST", core, event).await;
    let seen = c.ok("GET", &format!("{face}/e"), Value::Null).await;
    assert_eq!(
        (&seen["apiVersion"], &seen["note"], &seen["regarding"]["name"]),
        (&json!("events.k8s.io/v1"), &json!("M"), &json!("p"))
    );
    let list = c.ok("GET", face, Value::Null).await;
    assert_eq!((&list["apiVersion"], &list["items"][0]["note"]), (&json!("events.k8s.io/v1"), &json!("M")));
    let said = c.fails("PATCH", &format!("{face}/e"), json!({"note": "N"})).await;
    assert!(said.contains("message: Invalid value: \"N\": field is immutable"), "{said}");
    c.ok("PATCH", &format!("{face}/e"), json!({"metadata": {"labels": {"a": "b"}}})).await;
    let seen = c.ok("PATCH", &format!("{core}/e"), json!({"message": "N"})).await;
    assert_eq!((&seen["message"], &seen["metadata"]["labels"]["a"]), (&json!("N"), &json!("b")));
    let selected = c.ok("GET", &format!("{core}?fieldSelector=involvedObject.name%3Dp"), Value::Null).await;
    assert_eq!(selected["items"].as_array().unwrap().len(), 1);
    // Forgotten an hour after they were last seen.
    let hours = |h| jiff::Timestamp::now() + jiff::SignedDuration::from_hours(h);
    crate::sweep::once(c.server.inner(), hours(0)).await;
    assert_eq!(c.call("GET", &format!("{core}/e"), Value::Null).await.code, 200);
    crate::sweep::once(c.server.inner(), hours(2)).await;
    assert_eq!(c.call("GET", &format!("{core}/e"), Value::Null).await.code, 404);
}

#[tokio::test]
async fn discovery_and_health() {
    let c = Client::new().await;
    let v1 = c.ok("GET", "/api/v1", Value::Null).await;
    let pods = v1["resources"].as_array().unwrap().iter().find(|r| r["name"] == "pods").unwrap();
    assert_eq!(
        (&pods["kind"], &pods["namespaced"], &pods["shortNames"]),
        (&json!("Pod"), &json!(true), &json!(["po"]))
    );
    for path in [
        "/api",
        "/apis",
        "/apis/storage.k8s.io",
        "/apis/storage.k8s.io/v1",
        "/version",
        "/openapi/v3",
        "/openapi/v3/api/v1",
    ] {
        assert_eq!(c.call("GET", path, Value::Null).await.code, 200, "{path}");
    }
    // Clients look again and again at a version without resources.
    for group in c.ok("GET", "/apis", Value::Null).await["groups"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            let path = format!("/apis/{}", version["groupVersion"].as_str().unwrap());
            let resources = c.ok("GET", &path, Value::Null).await;
            assert!(!resources["resources"].as_array().unwrap().is_empty(), "{path}");
        }
    }
    for path in ["/apis/nonsense", "/apis/storage.k8s.io/v9", "/nowhere", "/openapi/v3/api/v7"] {
        assert_eq!(c.call("GET", path, Value::Null).await.code, 404, "{path}");
    }
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let all = c.raw("GET", "/api", "", accept, "").await;
    assert_eq!(all.json["apiVersion"], "apidiscovery.k8s.io/v2");
    assert!(all.headers["content-type"].to_str().unwrap().contains("as=APIGroupDiscoveryList"));
    assert_eq!(c.call("GET", "/readyz", Value::Null).await.text, "ok");
    assert!(c.call("GET", "/livez?verbose", Value::Null).await.text.ends_with("livez check passed\n"));
}

#[tokio::test]
async fn a_missing_kind_is_told_from_a_missing_answer() {
    let c = Client::new().await;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(c.ok("GET", definitions, Value::Null).await["items"], json!([]));
    assert!(c.fails("POST", definitions, json!({"metadata": {"name": "x"}})).await.starts_with("404"));
}

#[tokio::test]
async fn owners_are_kept_once_and_strategic_patches_shown_as_sent() {
    let c = Client::new().await;
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "u"});
    let mut twice = map("m");
    twice["metadata"]["ownerReferences"] = json!([owner, owner]);
    let reply = c.call("POST", MAPS, twice).await;
    assert_eq!(reply.json["metadata"]["ownerReferences"], json!([owner]));
    let warning = reply.headers["warning"].to_str().unwrap();
    assert!(warning.contains("duplicate UID(s) observed: u"), "{warning}");
    let patch = r#"{"data":{"b":1,"a":"x"}}"#;
    let kind = "application/strategic-merge-patch+json";
    let said = c.raw("PATCH", &format!("{MAPS}/m"), kind, "application/json", patch).await.text;
    assert!(said.contains("map[data:map[a:x b:1]]"), "{said}");
}
