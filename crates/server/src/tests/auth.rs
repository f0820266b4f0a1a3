use std::sync::Arc;

use axum::{body::Body, response::Response};
use http::Request;
use serde_json::{Value, json};

use super::{Client, MAPS, PODS, pod};
use crate::{Identity, nodes::NodeConnector, token::ISSUER};

async fn token(c: &Client, body: Value) -> String {
    let reply = c.ok("POST", "/api/v1/namespaces/default/serviceaccounts/default/token", body).await;
    reply["status"]["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn accounts_prove_who_they_are_and_may_do_little() {
    let c = Client::new().await;
    let made = c.ok("POST", PODS, pod("p")).await;
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": made["metadata"]["uid"]});
    let jwt = token(&c, json!({"spec": {"boundObjectRef": bound, "expirationSeconds": 600}})).await;
    let audiences = [ISSUER.to_owned()];
    let (identity, _) = c.server.inner().authenticate(&jwt, &audiences).unwrap();
    assert_eq!(identity.user, "system:serviceaccount:default:default");
    assert_eq!(identity.extra["authentication.kubernetes.io/pod-name"], ["p"]);
    let review = |token: &str| json!({"spec": {"token": token}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    assert_eq!(c.ok("POST", reviews, review(&jwt)).await["status"]["authenticated"], true);
    assert!(c.ok("POST", reviews, review("x")).await["status"].get("authenticated").is_none());

    let account = c.as_identity(Some(identity));
    assert_eq!(account.call("GET", "/api/v1", Value::Null).await.code, 200);
    assert_eq!(
        account.fails("GET", MAPS, Value::Null).await,
        "403 Forbidden: configmaps is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    let me = account.ok("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})).await;
    assert_eq!(me["status"]["userInfo"]["username"], "system:serviceaccount:default:default");
    let ask = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let access = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(account.ok("POST", access, ask.clone()).await["status"]["allowed"], false);
    assert_eq!(c.ok("POST", access, ask).await["status"]["allowed"], true);
    assert_eq!(account.call("POST", reviews, review(&jwt)).await.code, 403);

    // Other audiences are for others; a token dies with its pod.
    let foreign = token(&c, json!({"spec": {"audiences": ["vault"]}})).await;
    assert!(c.server.inner().authenticate(&foreign, &audiences).is_none());
    assert!(c.server.inner().authenticate(&foreign, &["vault".to_owned()]).is_some());
    c.ok("DELETE", &format!("{PODS}/p?gracePeriodSeconds=0"), Value::Null).await;
    assert!(c.server.inner().authenticate(&jwt, &audiences).is_none());
}

#[tokio::test]
async fn tokens_are_refused_for_what_does_not_fit() {
    let c = Client::new().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let short = json!({"spec": {"expirationSeconds": 10}});
    assert!(c.fails("POST", path, short).await.contains("may not specify a duration less than 10 minutes"));
    let other = json!({"spec": {"boundObjectRef": {"kind": "Pod", "name": "no"}}});
    assert!(c.fails("POST", path, other).await.starts_with("404"));
    assert!(c.fails("POST", "/api/v1/namespaces/default/serviceaccounts/no/token", json!({})).await.starts_with("404"));
}

#[tokio::test]
async fn strangers_see_health_only() {
    let c = Client::new().await.as_identity(None);
    assert_eq!(c.fails("GET", MAPS, Value::Null).await, "401 Unauthorized: Unauthorized");
    assert_eq!(c.call("GET", "/api", Value::Null).await.code, 401);
    assert_eq!(c.call("GET", "/healthz", Value::Null).await.code, 200);
    let nobody = c.as_identity(Some(Identity { user: "nobody".into(), ..Identity::default() }));
    assert_eq!(nobody.call("GET", "/version", Value::Null).await.code, 200);
    assert_eq!(nobody.call("GET", "/api/v1/nodes", Value::Null).await.code, 403);
}

struct Echo;

#[async_trait::async_trait]
impl NodeConnector for Echo {
    async fn call(&self, node: &str, request: Request<Body>) -> Response {
        Response::new(Body::from(format!("{node} {} {}", request.method(), request.uri())))
    }
}

#[tokio::test]
async fn streams_go_to_the_pods_node() {
    let c = Client::new().await;
    let mut two = pod("p");
    two["spec"]["containers"] = json!([{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]);
    c.ok("POST", PODS, two).await;
    assert_eq!(c.call("GET", &format!("{PODS}/p/log?container=a"), Value::Null).await.text, "");
    c.ok("POST", &format!("{PODS}/p/binding"), json!({"target": {"kind": "Node", "name": "n"}})).await;
    assert_eq!(c.call("GET", &format!("{PODS}/p/log?container=a"), Value::Null).await.code, 500);
    c.server.set_connector(Arc::new(Echo));
    for (method, path, want) in [
        ("GET", "log?container=a&follow=true", "n GET /containerLogs/default/p/a?container=a&follow=true"),
        ("POST", "exec?container=b&command=x&stdin=true", "n POST /exec/default/p/b?container=b&command=x&stdin=true"),
        ("GET", "attach?container=b", "n GET /attach/default/p/b?container=b"),
        ("POST", "portforward?ports=80", "n POST /portForward/default/p?ports=80"),
    ] {
        assert_eq!(c.call(method, &format!("{PODS}/p/{path}"), Value::Null).await.text, want);
    }
    c.ok("POST", "/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    let summary = "/api/v1/nodes/n/proxy/stats/summary?only_cpu_and_memory=true";
    assert_eq!(c.call("GET", summary, Value::Null).await.text, "n GET /stats/summary?only_cpu_and_memory=true");
    for (path, code) in [("n/proxy/exec/default/p/a", 404), ("n/proxy/metrics/../pods", 404), ("m/proxy/metrics", 404)]
    {
        assert_eq!(c.call("GET", &format!("/api/v1/nodes/{path}"), Value::Null).await.code, code, "{path}");
    }
    assert_eq!(
        c.fails("GET", &format!("{PODS}/p/log"), Value::Null).await,
        "400 BadRequest: a container name must be specified for pod p, choose one of: [a b]"
    );
    assert!(c.fails("GET", &format!("{PODS}/p/log?container=a&tailLines=-1"), Value::Null).await.starts_with("422"));
}

#[tokio::test]
async fn administrators_may_ask_as_others_who_may_no_more_than_usual() {
    let c = Client::new().await;
    let ask = async |c: &Client, path: &str, headers: &[(&str, &str)]| {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = c.send(request.body(Body::empty()).unwrap()).await;
        let code = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (code, String::from_utf8_lossy(&bytes).into_owned())
    };
    let bob = ("impersonate-user", "bob");
    let (code, said) = ask(&c, PODS, &[bob]).await;
    assert_eq!(code, 403, "{said}");
    assert!(said.contains("User \\\"bob\\\" cannot list resource \\\"pods\\\""), "{said}");
    assert_eq!(ask(&c, "/version", &[bob]).await.0, 200);
    assert_eq!(ask(&c, PODS, &[bob, ("impersonate-group", Identity::MASTERS)]).await.0, 200);
    assert_eq!(ask(&c, PODS, &[("impersonate-user", "system:serviceaccount:default:default")]).await.0, 403);
    assert_eq!(ask(&c, PODS, &[("impersonate-group", Identity::MASTERS)]).await.0, 400);
    let nobody = c.as_identity(Some(Identity { user: "nobody".into(), ..Identity::default() }));
    let (code, said) = ask(&nobody, PODS, &[bob, ("impersonate-group", Identity::MASTERS)]).await;
    assert_eq!(code, 403);
    assert!(said.contains("cannot impersonate resource \\\"users\\\""), "{said}");
}
