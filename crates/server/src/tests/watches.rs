use serde_json::{Value, json};

use super::{Client, MAPS, PODS, map, pod, revision};

async fn now(c: &Client) -> u64 {
    revision(&c.ok("GET", MAPS, Value::Null).await)
}

#[tokio::test]
async fn replays_in_order_and_goes_on() {
    let c = Client::new().await;
    let from = now(&c).await;
    for name in ["a", "b"] {
        c.ok("POST", MAPS, map(name)).await;
    }
    c.ok("DELETE", &format!("{MAPS}/a"), Value::Null).await;
    let mut w = c.watch(&format!("{MAPS}?watch=1&resourceVersion={from}")).await;
    let mut old = c.watch(&format!("/api/v1/watch/namespaces/default/configmaps?resourceVersion={from}")).await;
    for want in ["ADDED a", "ADDED b", "DELETED a"] {
        assert_eq!((w.line().await, old.line().await), (want.to_owned(), want.to_owned()));
    }
    c.ok("PATCH", &format!("{MAPS}/b"), json!({"data": {"x": "y"}})).await;
    assert_eq!(w.line().await, "MODIFIED b");
    // Without a version: the present state first.
    let mut w = c.watch(&format!("{MAPS}?watch=1")).await;
    assert_eq!(w.line().await, "ADDED b");
}

#[tokio::test]
async fn selections_turn_changes_into_additions_and_deletions() {
    let c = Client::new().await;
    let mut w = c.watch(&format!("{MAPS}?watch=1&labelSelector=l%3Dy&resourceVersion={}", now(&c).await)).await;
    c.ok("POST", MAPS, map("m")).await;
    let path = format!("{MAPS}/m");
    let label = |v: Value| json!({"metadata": {"labels": {"l": v}}});
    c.ok("PATCH", &path, label("y".into())).await;
    c.ok("PATCH", &path, json!({"data": {"x": "y"}})).await;
    let left = c.ok("PATCH", &path, label(Value::Null)).await;
    c.ok("DELETE", &path, Value::Null).await;
    c.ok("POST", MAPS, json!({"metadata": {"name": "n", "labels": {"l": "y"}}})).await;
    let last = c.ok("DELETE", &format!("{MAPS}/n"), Value::Null).await;
    assert_eq!(last["status"], "Success");
    for want in ["ADDED m", "MODIFIED m"] {
        assert_eq!(w.line().await, want);
    }
    // The state that matched, at the revision of the change.
    let deleted = w.next().await.unwrap();
    assert_eq!((&deleted["type"], &deleted["object"]["metadata"]["labels"]), (&json!("DELETED"), &json!({"l": "y"})));
    assert_eq!(revision(&deleted["object"]), revision(&left));
    let added = w.next().await.unwrap();
    let gone = w.next().await.unwrap();
    assert_eq!((&added["type"], &gone["type"]), (&json!("ADDED"), &json!("DELETED")));
    assert!(revision(&gone["object"]) > revision(&added["object"]));
}

#[tokio::test]
async fn binding_moves_a_pod_between_node_selectors() {
    let c = Client::new().await;
    c.ok("POST", PODS, pod("p")).await;
    let from = now(&c).await;
    let mut free = c.watch(&format!("{PODS}?watch=1&fieldSelector=spec.nodeName%3D&resourceVersion={from}")).await;
    let mut on = c.watch(&format!("{PODS}?watch=1&fieldSelector=spec.nodeName%3Dn&resourceVersion={from}")).await;
    c.ok("POST", &format!("{PODS}/p/binding"), json!({"target": {"kind": "Node", "name": "n"}})).await;
    assert_eq!((free.line().await.as_str(), on.line().await.as_str()), ("DELETED p", "ADDED p"));
}

#[tokio::test]
async fn streamed_lists_end_with_a_marked_bookmark() {
    let c = Client::new().await;
    c.ok("POST", MAPS, map("m")).await;
    let query =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=3";
    let mut w = c.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(w.line().await, "ADDED m");
    let mark = w.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(revision(&mark["object"]), now(&c).await);
    // Before its time is up a last bookmark, then the end. What happens elsewhere moves it on.
    let elsewhere = c.ok("POST", PODS, pod("p")).await;
    let last = w.next().await.unwrap();
    assert_eq!(revision(&last["object"]), revision(&elsewhere));
    assert_eq!((&last["type"], &last["object"]["metadata"]["annotations"]), (&json!("BOOKMARK"), &Value::Null));
    assert_eq!(w.next().await, None);
}

#[tokio::test]
async fn watches_have_forms_too_and_bad_ones_are_refused() {
    let c = Client::new().await;
    c.ok("POST", MAPS, map("m")).await;
    let request = http::Request::get(format!("{MAPS}?watch=1&timeoutSeconds=1"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
        .body(axum::body::Body::empty())
        .unwrap();
    let body = http_body_util::BodyExt::collect(c.send(request).await.into_body()).await.unwrap().to_bytes();
    let event: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&event["object"]["kind"], &event["object"]["rows"][0]["cells"][0]), (&json!("Table"), &json!("m")));
    assert!(c.fails("GET", &format!("{MAPS}?watch=1&sendInitialEvents=true"), Value::Null).await.starts_with("422"));
}

#[tokio::test]
async fn watches_end_with_the_server() {
    let c = Client::new().await;
    let mut w = c.watch(&format!("{MAPS}?watch=1")).await;
    c.server.close().await;
    assert_eq!(w.next().await, None);
}

#[tokio::test]
async fn what_history_no_longer_tells_is_told_in_the_stream() {
    let c = Client::new().await;
    let from = now(&c).await;
    let mut idle = c.watch(&format!("{MAPS}?watch=1&resourceVersion={from}")).await;
    let first = c.ok("GET", &format!("{MAPS}?limit=1"), Value::Null).await;
    for name in ["a", "b"] {
        c.ok("POST", MAPS, map(name)).await;
    }
    let first_page = c.ok("GET", &format!("{MAPS}?limit=1"), Value::Null).await;
    // More than the history holds.
    let filler = "x".repeat(900_000);
    for i in 0..20 {
        c.ok("PATCH", &format!("{MAPS}/b"), json!({"data": {"x": format!("{filler}{i}")}})).await;
    }
    for watch in [&mut c.watch(&format!("{MAPS}?watch=1&resourceVersion={from}")).await, &mut idle] {
        let last = watch.next().await.unwrap();
        assert_eq!(
            (&last["type"], &last["object"]["code"], &last["object"]["reason"]),
            (&json!("ERROR"), &json!(410), &json!("Expired"))
        );
        assert!(
            last["object"]["message"].as_str().unwrap().starts_with(&format!("too old resource version: {from} ("))
        );
        assert_eq!(watch.next().await, None);
    }
    // A list goes on with the rest as it is now, if the client wants that.
    let token = first_page["metadata"]["continue"].as_str().unwrap();
    let expired = c.call("GET", &format!("{MAPS}?limit=1&continue={token}"), Value::Null).await;
    assert_eq!((expired.code, expired.json["reason"].as_str()), (410, Some("Expired")));
    let token = expired.json["metadata"]["continue"].as_str().unwrap();
    let rest = c.ok("GET", &format!("{MAPS}?limit=1&continue={token}"), Value::Null).await;
    assert_eq!(rest["items"][0]["metadata"]["name"], "b");
    assert!(revision(&rest) > revision(&first));
    let exact = format!("{MAPS}?resourceVersion={from}&resourceVersionMatch=Exact");
    assert_eq!(
        c.fails("GET", &exact, Value::Null).await,
        "410 Expired: The resourceVersion for the provided list is too old."
    );
}

#[tokio::test]
async fn a_watch_from_the_future_begins_after_it() {
    let c = Client::new().await;
    let mut w = c.watch(&format!("{MAPS}?watch=1&resourceVersion={}", now(&c).await + 2)).await;
    for name in ["a", "b", "c"] {
        c.ok("POST", MAPS, map(name)).await;
    }
    assert_eq!(w.line().await, "ADDED c");
    let query =
        "watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=100000";
    let refused = c.fails("GET", &format!("{MAPS}?{query}"), Value::Null).await;
    assert!(refused.starts_with("504 Timeout: Timeout: Too large resource version: 100000, current: "), "{refused}");
}
