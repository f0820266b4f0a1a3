use serde_json::{Value, json};

use super::{Client, PODS, pod};

#[tokio::test]
async fn pods_get_account_token_tolerations_and_priority() {
    let c = Client::new().await;
    let made = c.ok("POST", PODS, pod("p")).await;
    let spec = &made["spec"];
    assert_eq!((&spec["serviceAccountName"], &spec["priority"]), (&json!("default"), &json!(0)));
    let volume = &spec["volumes"][0];
    assert!(volume["name"].as_str().unwrap().starts_with("kube-api-access-"));
    assert_eq!(volume["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"], 3607);
    assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], volume["name"]);
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    let mut plain = pod("q");
    plain["spec"]["automountServiceAccountToken"] = false.into();
    assert!(c.ok("POST", PODS, plain).await["spec"]["volumes"].is_null());
    let mut other = pod("r");
    other["spec"]["serviceAccountName"] = "no".into();
    assert_eq!(
        c.fails("POST", PODS, other).await,
        "403 Forbidden: pods \"r\" is forbidden: error looking up service account default/no: serviceaccount \"no\" not found"
    );
    let mut important = pod("s");
    important["spec"]["priorityClassName"] = "no".into();
    assert!(c.fails("POST", PODS, important).await.contains("no PriorityClass with name no was found"));
}

#[tokio::test]
async fn claims_get_the_newest_default_class_and_protection() {
    let c = Client::new().await;
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = |name: &str| json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let before = c.ok("POST", claims, claim("a")).await;
    assert_eq!(before["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    assert!(before["spec"]["storageClassName"].is_null());
    let attributes = json!({"metadata": {"name": "gold"}, "driverName": "d", "parameters": {"a": "b"}});
    let attributes = c.ok("POST", "/apis/storage.k8s.io/v1/volumeattributesclasses", attributes).await;
    assert_eq!(attributes["metadata"]["finalizers"], json!(["kubernetes.io/vac-protection"]));
    for name in ["one", "two"] {
        let annotations =
            json!({"storageclass.kubernetes.io/is-default-class": if name == "one" { "true" } else { "false" }});
        let class = json!({"metadata": {"name": name, "annotations": annotations}, "provisioner": "example.com/p"});
        c.ok("POST", "/apis/storage.k8s.io/v1/storageclasses", class).await;
    }
    assert_eq!(c.ok("POST", claims, claim("b")).await["spec"]["storageClassName"], "one");
    let mut none = claim("c");
    none["spec"]["storageClassName"] = "".into();
    assert_eq!(c.ok("POST", claims, none).await["spec"]["storageClassName"], "");
}

#[tokio::test]
async fn namespaces_end_only_when_finalized() {
    let c = Client::new().await;
    c.ok("POST", "/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    let marked = c.ok("DELETE", "/api/v1/namespaces/n", Value::Null).await;
    assert_eq!(marked["status"]["phase"], "Terminating");
    let reply = c.call("POST", "/api/v1/namespaces/n/configmaps", json!({"metadata": {"name": "m"}})).await;
    assert_eq!(
        reply.json["message"],
        "configmaps \"m\" is forbidden: unable to create new content in namespace n because it is being terminated"
    );
    assert_eq!(reply.json["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut done = marked.clone();
    done["spec"]["finalizers"] = json!([]);
    c.ok("PUT", "/api/v1/namespaces/n/finalize", done).await;
    assert_eq!(c.call("GET", "/api/v1/namespaces/n", Value::Null).await.code, 404);
}

#[tokio::test]
async fn only_claims_of_growing_classes_grow() {
    let c = Client::new().await;
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    for (name, expands) in [("fixed", false), ("growing", true)] {
        let class = json!({"metadata": {"name": name}, "provisioner": "a.b", "allowVolumeExpansion": expands});
        c.ok("POST", "/apis/storage.k8s.io/v1/storageclasses", class).await;
        let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": name, "resources": {"requests": {"storage": "1Gi"}}});
        c.ok("POST", claims, json!({"metadata": {"name": name}, "spec": spec})).await;
    }
    let grow = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
    for name in ["fixed", "growing"] {
        let said = c.fails("PATCH", &format!("{claims}/{name}"), grow("2Gi")).await;
        assert!(said.starts_with("422"), "a claim that is not bound: {said}");
        let bound = json!({"spec": {"volumeName": "v"}});
        c.ok("PATCH", &format!("{claims}/{name}"), bound).await;
        let status = json!({"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}});
        c.ok("PATCH", &format!("{claims}/{name}/status"), status).await;
    }
    assert_eq!(
        c.fails("PATCH", &format!("{claims}/fixed"), grow("2Gi")).await,
        "403 Forbidden: persistentvolumeclaims \"fixed\" is forbidden: only dynamically provisioned pvc can be resized \
         and the storageclass that provisions the pvc must support resize"
    );
    c.ok("PATCH", &format!("{claims}/growing"), grow("2Gi")).await;
}

#[tokio::test]
async fn limit_ranges_fill_in_and_bound() {
    let c = Client::new().await;
    let limits = json!([
        {"type": "Container", "max": {"memory": "1Gi"}, "default": {"memory": "64Mi"}},
        {"type": "PersistentVolumeClaim", "max": {"storage": "2Gi"}},
    ]);
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = |name: &str, size: &str| json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}});
    c.ok("POST", claims, claim("early", "3Gi")).await;
    let range = json!({"metadata": {"name": "l"}, "spec": {"limits": limits}});
    c.ok("POST", "/api/v1/namespaces/default/limitranges", range).await;
    let filled = c.ok("POST", PODS, pod("p")).await;
    assert_eq!(filled["spec"]["containers"][0]["resources"]["requests"]["memory"], "64Mi");
    assert_eq!(
        filled["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: memory request for container c; memory limit for container c"
    );
    let mut greedy = pod("q");
    greedy["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "2Gi"}});
    assert_eq!(
        c.fails("POST", PODS, greedy).await,
        "403 Forbidden: pods \"q\" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi"
    );
    assert_eq!(
        c.fails("POST", claims, claim("big", "3Gi")).await,
        "403 Forbidden: persistentvolumeclaims \"big\" is forbidden: maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"
    );
    c.ok("PATCH", &format!("{claims}/early"), json!({"metadata": {"labels": {"a": "b"}}})).await;
}

#[tokio::test]
async fn quotas_hold_against_simultaneous_requests() {
    let c = Client::new().await;
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = |name: &str, size: &str| json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}});
    let hard = json!({"requests.storage": "5Gi", "count/configmaps": "1"});
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
    c.ok("POST", "/api/v1/namespaces/default/resourcequotas", quota).await;
    c.ok("POST", claims, claim("a", "2Gi")).await;
    assert_eq!(
        c.fails("POST", claims, claim("big", "4Gi")).await,
        "403 Forbidden: persistentvolumeclaims \"big\" is forbidden: exceeded quota: q, requested: requests.storage=4Gi, used: requests.storage=2Gi, limited: requests.storage=5Gi"
    );
    let all = (0..8).map(|i| c.call("POST", claims, claim(&format!("c{i}"), "1Gi"))).collect::<Vec<_>>();
    let made = futures::future::join_all(all).await.iter().filter(|reply| reply.code == 201).count();
    assert_eq!(made, 3);
    c.ok("DELETE", &format!("{claims}/a"), Value::Null).await;
    let said = c.fails("POST", claims, claim("d", "1Gi")).await;
    assert!(said.contains("used: requests.storage=5Gi"), "a protected claim counts until it is gone: {said}");
    c.ok("POST", super::MAPS, super::map("m")).await;
    assert!(
        c.fails("POST", super::MAPS, super::map("n"))
            .await
            .contains("requested: count/configmaps=1, used: count/configmaps=1")
    );
    assert_eq!(
        c.call("POST", "/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "s"}})).await.code,
        201
    );
}

#[tokio::test]
async fn pods_say_what_quotas_bound() {
    let c = Client::new().await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"limits.cpu": "1"}}});
    c.ok("POST", "/api/v1/namespaces/default/resourcequotas", quota).await;
    assert_eq!(
        c.fails("POST", PODS, pod("p")).await,
        "403 Forbidden: pods \"p\" is forbidden: failed quota: q: must specify limits.cpu for: c"
    );
    let mut small = pod("p");
    small["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "600m"}});
    c.ok("POST", PODS, small.clone()).await;
    small["metadata"]["name"] = "q".into();
    assert!(
        c.fails("POST", PODS, small)
            .await
            .contains("exceeded quota: q, requested: limits.cpu=600m, used: limits.cpu=600m, limited: limits.cpu=1")
    );
}

#[tokio::test]
async fn what_comes_into_a_quotas_scope_is_new_to_it() {
    let c = Client::new().await;
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let scope =
        json!({"matchExpressions": [{"scopeName": "VolumeAttributesClass", "operator": "In", "values": ["gold"]}]});
    let quota =
        json!({"metadata": {"name": "gold"}, "spec": {"hard": {"requests.storage": "3Gi"}, "scopeSelector": scope}});
    c.ok("POST", "/api/v1/namespaces/default/resourcequotas", quota).await;
    let claim = |name: &str, size: &str, class: &str| {
        json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": size}}, "volumeAttributesClassName": class, "storageClassName": "k"}})
    };
    c.ok("POST", claims, claim("a", "2Gi", "gold")).await;
    c.ok("POST", claims, claim("b", "2Gi", "silver")).await;
    let said = c.fails("POST", claims, claim("c", "2Gi", "gold")).await;
    assert!(
        said.contains("exceeded quota: gold, requested: requests.storage=2Gi, used: requests.storage=2Gi"),
        "{said}"
    );
    let pointed =
        json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": "v"}});
    c.ok("PATCH", &format!("{claims}/b"), pointed).await;
    c.ok("PATCH", &format!("{claims}/b/status"), json!({"status": {"phase": "Bound"}})).await;
    let said = c.fails("PATCH", &format!("{claims}/b"), json!({"spec": {"volumeAttributesClassName": "gold"}})).await;
    assert!(
        said.contains("exceeded quota: gold, requested: requests.storage=2Gi, used: requests.storage=2Gi"),
        "{said}"
    );
}

#[tokio::test]
async fn services_are_bounded_by_what_they_take_outside() {
    let c = Client::new().await;
    let services = "/api/v1/namespaces/default/services";
    let hard = json!({"services.nodeports": "2", "services.loadbalancers": "0"});
    c.ok(
        "POST",
        "/api/v1/namespaces/default/resourcequotas",
        json!({"metadata": {"name": "q"}, "spec": {"hard": hard}}),
    )
    .await;
    let service = |name: &str, kind: &str, ports: &[i64]| {
        let ports: Vec<_> = ports.iter().map(|p| json!({"name": format!("p{p}"), "port": p})).collect();
        json!({"metadata": {"name": name}, "spec": {"type": kind, "ports": ports}})
    };
    c.ok("POST", services, service("a", "NodePort", &[80])).await;
    let said = c.fails("POST", services, service("b", "NodePort", &[80, 81])).await;
    assert!(said.contains("exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=1, limited: services.nodeports=2"), "{said}");
    let said = c.fails("POST", services, service("b", "LoadBalancer", &[80])).await;
    assert!(
        said.contains(
            "requested: services.loadbalancers=1, used: services.loadbalancers=0, limited: services.loadbalancers=0"
        ),
        "{said}"
    );
    c.ok("POST", services, service("b", "ClusterIP", &[80, 81])).await;
    let said = c.fails("PATCH", &format!("{services}/b"), json!({"spec": {"type": "NodePort"}})).await;
    assert!(said.contains("requested: services.nodeports=2, used: services.nodeports=1"), "{said}");
}
