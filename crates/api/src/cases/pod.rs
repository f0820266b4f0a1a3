//! Pods, without their volumes.
use serde_json::{Value, json};

use super::*;

/// The body of a pod: a valid one with fields of its spec replaced.
pub(super) fn pod(spec: Value) -> Value {
    let mut all = json!({"containers": [{"name": "c", "image": "i"}]});
    for (key, value) in spec.as_object().expect("an object") {
        all[key] = value.clone();
    }
    json!({"spec": all})
}

/// A pod with one container that has these fields beside its name and image.
pub(super) fn one(fields: Value) -> Value {
    let mut c = json!({"name": "c", "image": "i"});
    for (key, value) in fields.as_object().expect("an object") {
        c[key] = value.clone();
    }
    pod(json!({"containers": [c]}))
}

#[track_caller]
fn spec(fields: Value, want: &[(&str, &'static str)]) {
    check("Pod", pod(fields), want);
}

/// Mistakes of the first container, without its path.
#[track_caller]
fn container(fields: Value, want: &[(&str, &'static str)]) {
    let full: Vec<(String, &'static str)> = want.iter().map(|(f, r)| (format!("spec.containers[0].{f}"), *r)).collect();
    let want: Vec<(&str, &'static str)> = full.iter().map(|(f, r)| (f.as_str(), *r)).collect();
    check("Pod", one(fields), &want);
}

#[test]
fn names_and_images() {
    container(json!({}), &[]);
    container(json!({"name": ""}), &[("name", REQUIRED)]);
    container(json!({"name": "A"}), &[("name", INVALID)]);
    container(json!({"name": "a.b"}), &[("name", INVALID)]);
    container(json!({"image": ""}), &[("image", REQUIRED)]);
    container(json!({"image": " i"}), &[("image", INVALID)]);
    container(json!({"imagePullPolicy": "Sometimes"}), &[("imagePullPolicy", UNSUPPORTED)]);
    container(json!({"terminationMessagePolicy": "Shout"}), &[("terminationMessagePolicy", UNSUPPORTED)]);
    spec(json!({"containers": []}), &[("spec.containers", REQUIRED)]);
    let two = json!([{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]);
    spec(json!({"containers": two}), &[("spec.containers[1].name", DUPLICATE)]);
}

#[test]
fn ports() {
    let ports = |list: Value, want: &[(&str, &'static str)]| container(json!({"ports": list}), want);
    ports(json!([{"containerPort": 80, "name": "http"}]), &[]);
    ports(json!([{"containerPort": 0}]), &[("ports[0].containerPort", REQUIRED)]);
    ports(json!([{"containerPort": 70000}]), &[("ports[0].containerPort", INVALID)]);
    ports(json!([{"containerPort": 80, "hostPort": -1}]), &[("ports[0].hostPort", INVALID)]);
    ports(json!([{"containerPort": 80, "protocol": "ICMP"}]), &[("ports[0].protocol", UNSUPPORTED)]);
    ports(json!([{"containerPort": 80, "name": "no_good"}]), &[("ports[0].name", INVALID)]);
    ports(
        json!([{"containerPort": 80, "name": "a"}, {"containerPort": 81, "name": "a"}]),
        &[("ports[1].name", DUPLICATE)],
    );
    let host = json!([{"containerPort": 80, "hostPort": 80}, {"containerPort": 81, "hostPort": 80}]);
    ports(host, &[("ports[1].hostPort", DUPLICATE)]);
    let apart =
        json!([{"containerPort": 80, "hostPort": 80}, {"containerPort": 81, "hostPort": 80, "protocol": "UDP"}]);
    ports(apart, &[]);
    let c = json!([{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 81}]}]);
    spec(json!({"hostNetwork": true, "containers": c}), &[("spec.containers[0].ports[0].hostPort", INVALID)]);
}

#[test]
fn environment() {
    let env = |list: Value, want: &[(&str, &'static str)]| container(json!({"env": list}), want);
    env(json!([{"name": "A", "value": "b"}, {"name": "a.b-c d"}]), &[]);
    env(json!([{"name": ""}]), &[("env[0].name", REQUIRED)]);
    env(json!([{"name": "a=b"}]), &[("env[0].name", INVALID)]);
    env(json!([{"name": "a", "valueFrom": {}}]), &[("env[0].valueFrom", INVALID)]);
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let from = |v: Value, want: &[(&str, &'static str)]| env(json!([{"name": "a", "valueFrom": v}]), want);
    from(field("metadata.name"), &[]);
    from(field("metadata.labels['not ok']"), &[("env[0].valueFrom.fieldRef", INVALID)]);
    from(field("metadata.labels['x']"), &[]);
    from(field("metadata.labels"), &[("env[0].valueFrom.fieldRef.fieldPath", UNSUPPORTED)]);
    from(field("spec.shoeSize"), &[("env[0].valueFrom.fieldRef.fieldPath", INVALID)]);
    from(field(""), &[("env[0].valueFrom.fieldRef.fieldPath", REQUIRED)]);
    from(
        json!({"fieldRef": {"apiVersion": "v2", "fieldPath": "metadata.name"}}),
        &[("env[0].valueFrom.fieldRef.fieldPath", INVALID)],
    );
    from(json!({"resourceFieldRef": {"resource": "limits.cpu"}}), &[]);
    from(
        json!({"resourceFieldRef": {"resource": "limits.shoes"}}),
        &[("env[0].valueFrom.resourceFieldRef.resource", UNSUPPORTED)],
    );
    from(
        json!({"resourceFieldRef": {"resource": "limits.cpu", "divisor": "2"}}),
        &[("env[0].valueFrom.resourceFieldRef.divisor", INVALID)],
    );
    from(json!({"configMapKeyRef": {"name": "m", "key": "k"}}), &[]);
    from(json!({"configMapKeyRef": {"name": "m", "key": ""}}), &[("env[0].valueFrom.configMapKeyRef.key", REQUIRED)]);
    from(json!({"secretKeyRef": {"name": "M", "key": "k"}}), &[("env[0].valueFrom.secretKeyRef.name", INVALID)]);
    let both = json!({"configMapKeyRef": {"name": "m", "key": "k"}, "secretKeyRef": {"name": "m", "key": "k"}});
    from(both, &[("env[0].valueFrom", INVALID)]);
    let valued = json!([{"name": "a", "value": "x", "valueFrom": field("metadata.name")}]);
    env(valued, &[("env[0].valueFrom", INVALID)]);
    container(json!({"envFrom": [{"configMapRef": {"name": "m"}, "prefix": "P_"}]}), &[]);
    container(json!({"envFrom": [{}]}), &[("envFrom", INVALID)]);
    container(json!({"envFrom": [{"secretRef": {"name": ""}}]}), &[("envFrom[0].secretRef.name", REQUIRED)]);
    container(json!({"envFrom": [{"configMapRef": {"name": "m"}, "prefix": "a="}]}), &[("envFrom[0].prefix", INVALID)]);
}

#[test]
fn probes_and_hooks() {
    let probe = |p: Value, want: &[(&str, &'static str)]| container(json!({"livenessProbe": p}), want);
    probe(json!({"exec": {"command": ["true"]}}), &[]);
    probe(json!({}), &[("livenessProbe", REQUIRED)]);
    probe(json!({"exec": {}}), &[("livenessProbe.exec.command", REQUIRED)]);
    probe(json!({"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}}), &[("livenessProbe.tcpSocket", FORBIDDEN)]);
    probe(json!({"tcpSocket": {"port": 0}}), &[("livenessProbe.tcpSocket.port", INVALID)]);
    probe(json!({"httpGet": {"port": "no good"}}), &[("livenessProbe.httpGet.port", INVALID)]);
    probe(json!({"httpGet": {"port": 80, "scheme": "FTP"}}), &[("livenessProbe.httpGet.scheme", UNSUPPORTED)]);
    let header = json!({"httpGet": {"port": 80, "httpHeaders": [{"name": "a b", "value": ""}]}});
    probe(header, &[("livenessProbe.httpGet.httpHeaders", INVALID)]);
    probe(json!({"tcpSocket": {"port": 1}, "periodSeconds": -1}), &[("livenessProbe.periodSeconds", INVALID)]);
    probe(json!({"tcpSocket": {"port": 1}, "successThreshold": 2}), &[("livenessProbe.successThreshold", INVALID)]);
    probe(
        json!({"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 0}),
        &[("livenessProbe.terminationGracePeriodSeconds", INVALID)],
    );
    let ready = json!({"tcpSocket": {"port": 1}, "successThreshold": 2});
    container(json!({"readinessProbe": ready}), &[]);
    let grace = json!({"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 5});
    container(json!({"readinessProbe": grace}), &[("readinessProbe.terminationGracePeriodSeconds", INVALID)]);
    container(json!({"startupProbe": {"grpc": {"port": 70000}}}), &[("startupProbe.grpc.port", INVALID)]);
    container(json!({"lifecycle": {"preStop": {"exec": {"command": ["true"]}}}}), &[]);
    container(json!({"lifecycle": {"postStart": {}}}), &[("lifecycle.postStart", REQUIRED)]);
    container(json!({"lifecycle": {"preStop": {"sleep": {"seconds": 31}}}}), &[("lifecycle.preStop.sleep", INVALID)]);
}

#[test]
fn resources() {
    let r = |v: Value, want: &[(&str, &'static str)]| container(json!({"resources": v}), want);
    r(json!({"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": 1}}), &[]);
    r(json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}), &[("resources.requests", INVALID)]);
    r(json!({"requests": {"cpu": "-1"}}), &[("resources.requests[cpu]", INVALID)]);
    r(json!({"requests": {"cpu": "lots"}}), &[("resources.requests[cpu]", INVALID)]);
    r(
        json!({"requests": {"shoes": "1"}}),
        &[("resources.requests[shoes]", INVALID), ("resources.requests[shoes]", INVALID)],
    );
    r(json!({"requests": {"storage": "1"}}), &[("resources.requests[storage]", INVALID)]);
    r(json!({"limits": {"example.com/gpu": "1"}}), &[]);
    r(json!({"requests": {"example.com/gpu": "1"}}), &[("resources.limits", REQUIRED)]);
    r(
        json!({"limits": {"example.com/gpu": "1500m"}}),
        &[("resources.limits[example.com/gpu]", INVALID), ("resources.requests[example.com/gpu]", INVALID)],
    );
    r(json!({"limits": {"hugepages-2Mi": "2Mi"}}), &[("resources", FORBIDDEN)]);
}

#[test]
fn security_contexts() {
    let s = |v: Value, want: &[(&str, &'static str)]| container(json!({"securityContext": v}), want);
    s(json!({"privileged": true, "runAsUser": 0}), &[]);
    s(json!({"runAsUser": -1}), &[("securityContext.runAsUser", INVALID)]);
    s(json!({"runAsGroup": 4294967296_i64}), &[("securityContext.runAsGroup", INVALID)]);
    s(json!({"procMount": "Open"}), &[("securityContext.procMount", UNSUPPORTED)]);
    s(json!({"procMount": "Unmasked"}), &[("securityContext.procMount", INVALID)]);
    s(json!({"allowPrivilegeEscalation": false, "privileged": true}), &[("securityContext", INVALID)]);
    s(
        json!({"allowPrivilegeEscalation": false, "capabilities": {"add": ["CAP_SYS_ADMIN"]}}),
        &[("securityContext", INVALID)],
    );
    s(
        json!({"seccompProfile": {"type": "Localhost"}}),
        &[("securityContext.seccompProfile.localhostProfile", REQUIRED)],
    );
    s(json!({"seccompProfile": {"type": "Odd"}}), &[("securityContext.seccompProfile.type", UNSUPPORTED)]);
    s(
        json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "/etc"}}),
        &[("securityContext.seccompProfile.localhostProfile", INVALID)],
    );
    let p = |v: Value, want: &[(&str, &'static str)]| spec(json!({"securityContext": v}), want);
    p(json!({"fsGroup": 1000, "fsGroupChangePolicy": "OnRootMismatch"}), &[]);
    p(json!({"fsGroup": -1}), &[("spec.securityContext.fsGroup", INVALID)]);
    p(json!({"supplementalGroups": [1, -2]}), &[("spec.securityContext.supplementalGroups[1]", INVALID)]);
    p(json!({"fsGroupChangePolicy": "Never"}), &[("spec.securityContext.fsGroupChangePolicy", UNSUPPORTED)]);
    p(json!({"sysctls": [{"name": "net.core.somaxconn", "value": "1"}]}), &[]);
    p(json!({"sysctls": [{"name": "a..b", "value": "1"}]}), &[("spec.securityContext.sysctls[0].name", INVALID)]);
    p(
        json!({"sysctls": [{"name": "a.b", "value": "1"}, {"name": "a.b", "value": "2"}]}),
        &[("spec.securityContext.sysctls[1].name", DUPLICATE)],
    );
}

#[test]
fn the_pod_itself() {
    spec(json!({"restartPolicy": "Perhaps"}), &[("spec.restartPolicy", UNSUPPORTED)]);
    spec(json!({"dnsPolicy": "Mine"}), &[("spec.dnsPolicy", UNSUPPORTED)]);
    spec(json!({"dnsPolicy": "None"}), &[("spec.dnsConfig", REQUIRED)]);
    spec(json!({"dnsPolicy": "None", "dnsConfig": {}}), &[("spec.dnsConfig.nameservers", REQUIRED)]);
    spec(json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.0.0.1"]}}), &[]);
    spec(json!({"dnsConfig": {"nameservers": ["x"]}}), &[("spec.dnsConfig.nameservers[0]", INVALID)]);
    spec(
        json!({"dnsConfig": {"nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]}}),
        &[("spec.dnsConfig.nameservers", INVALID)],
    );
    spec(json!({"dnsConfig": {"searches": ["a.b.", "_x.y", "."]}}), &[]);
    spec(json!({"dnsConfig": {"searches": ["a b"]}}), &[("spec.dnsConfig.searches[0]", INVALID)]);
    spec(json!({"dnsConfig": {"options": [{"value": "x"}]}}), &[("spec.dnsConfig.options[0]", REQUIRED)]);
    spec(json!({"nodeSelector": {"not ok": "x"}}), &[("spec.nodeSelector", INVALID)]);
    spec(json!({"nodeName": "A"}), &[("spec.nodeName", INVALID)]);
    spec(json!({"serviceAccountName": "A"}), &[("spec.serviceAccountName", INVALID)]);
    spec(json!({"hostname": "a.b"}), &[("spec.hostname", INVALID)]);
    spec(json!({"subdomain": "-"}), &[("spec.subdomain", INVALID)]);
    spec(json!({"activeDeadlineSeconds": 0}), &[("spec.activeDeadlineSeconds", INVALID)]);
    spec(json!({"hostAliases": [{"ip": "x", "hostnames": ["a"]}]}), &[("spec.hostAliases[0].ip", INVALID)]);
    spec(
        json!({"hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a b"]}]}),
        &[("spec.hostAliases[0].hostnames[0]", INVALID)],
    );
    spec(
        json!({"hostPID": true, "shareProcessNamespace": true}),
        &[("spec.securityContext.shareProcessNamespace", INVALID)],
    );
    spec(json!({"hostUsers": false, "hostPID": true}), &[("spec.HostPID", FORBIDDEN)]);
    spec(json!({"preemptionPolicy": "Maybe"}), &[("spec.preemptionPolicy", UNSUPPORTED)]);
    spec(json!({"readinessGates": [{"conditionType": "a b"}]}), &[("spec.readinessGates[0].conditionType", INVALID)]);
    spec(json!({"schedulingGates": [{"name": "a"}, {"name": "a"}]}), &[("spec.schedulingGates[1]", DUPLICATE)]);
    spec(json!({"nodeName": "a", "schedulingGates": [{"name": "g"}]}), &[("spec.nodeName", FORBIDDEN)]);
    let ephemeral = json!({"ephemeralContainers": [{"name": "e", "image": "i"}]});
    spec(ephemeral, &[("spec.ephemeralContainers", FORBIDDEN)]);
    spec(json!({"os": {"name": "beos"}}), &[("spec.os", UNSUPPORTED)]);
}

#[test]
fn tolerations_and_affinity() {
    let t = |v: Value, want: &[(&str, &'static str)]| spec(json!({"tolerations": [v]}), want);
    t(json!({"operator": "Exists"}), &[]);
    t(json!({"key": "a", "value": "b", "effect": "NoSchedule"}), &[]);
    t(json!({"value": "b"}), &[("spec.tolerations[0].operator", INVALID)]);
    t(json!({"key": "a", "operator": "Near"}), &[("spec.tolerations[0].operator", UNSUPPORTED)]);
    t(json!({"key": "a", "operator": "Exists", "value": "b"}), &[("spec.tolerations[0].operator", INVALID)]);
    t(json!({"key": "a", "effect": "NoLunch"}), &[("spec.tolerations[0].effect", UNSUPPORTED)]);
    t(json!({"key": "a", "effect": "NoSchedule", "tolerationSeconds": 1}), &[("spec.tolerations[0].effect", INVALID)]);
    t(json!({"key": "not ok", "operator": "Exists"}), &[("spec.tolerations[0].key", INVALID)]);
    let node = |terms: Value, want: &[(&str, &'static str)]| {
        spec(
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}),
            want,
        );
    };
    const AT: &str = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    node(json!([]), &[(AT, REQUIRED)]);
    node(json!([{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}]), &[]);
    node(
        json!([{"matchExpressions": [{"key": "a", "operator": "Near"}]}]),
        &[(&format!("{AT}[0].matchExpressions[0].operator"), INVALID)],
    );
    node(
        json!([{"matchExpressions": [{"key": "a", "operator": "Gt"}]}]),
        &[(&format!("{AT}[0].matchExpressions[0].values"), REQUIRED)],
    );
    node(
        json!([{"matchFields": [{"key": "spec.x", "operator": "In", "values": ["b"]}]}]),
        &[(&format!("{AT}[0].matchFields[0].key"), INVALID)],
    );
    let apart = json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0, "podAffinityTerm": {"topologyKey": "k"}}]}}});
    spec(
        apart,
        &[("spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight", INVALID)],
    );
    let spread = json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "Cry"}]});
    spec(
        spread,
        &[
            ("spec.topologySpreadConstraints[0].maxSkew", INVALID),
            ("spec.topologySpreadConstraints[0].whenUnsatisfiable", UNSUPPORTED),
        ],
    );
}

#[test]
fn init_containers() {
    let init = |fields: Value, want: &[(&str, &'static str)]| {
        let mut c = json!({"name": "i", "image": "i"});
        merge(&mut c, &fields);
        spec(json!({"initContainers": [c]}), want);
    };
    init(json!({}), &[]);
    init(json!({"name": "c"}), &[("spec.initContainers[0].name", DUPLICATE)]);
    init(json!({"restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 1}}}), &[]);
    init(json!({"restartPolicy": "Odd"}), &[("spec.initContainers[0].restartPolicy", UNSUPPORTED)]);
    init(json!({"livenessProbe": {"tcpSocket": {"port": 1}}}), &[("spec.initContainers[0].livenessProbe", FORBIDDEN)]);
    init(json!({"lifecycle": {}}), &[("spec.initContainers[0].lifecycle", FORBIDDEN)]);
}

#[test]
fn ephemeral_containers_are_only_added() {
    let pod_with = |list: Value| {
        let mut p = created("Pod", pod(json!({})));
        p["spec"]["ephemeralContainers"] = list;
        kind("Pod").strategy.default(&mut p);
        p
    };
    let check = |new: Value, old: Value, want: &[(&str, &'static str)]| {
        let errors = crate::pod::validate_ephemeral_change(&pod_with(new), &pod_with(old));
        let got: Vec<(&str, &'static str)> = errors.iter().map(|e| (e.field.as_str(), e.reason)).collect();
        assert_eq!(got, want, "{errors:#?}");
    };
    const LIST: &str = "spec.ephemeralContainers";
    let e = |name: &str, image: &str| json!({"name": name, "image": image});
    check(json!([e("e", "i")]), json!([]), &[]);
    check(json!([e("e", "i"), e("f", "i")]), json!([e("e", "i")]), &[]);
    check(json!([]), json!([e("e", "i")]), &[(LIST, FORBIDDEN)]);
    check(json!([e("e", "j")]), json!([e("e", "i")]), &[(LIST, FORBIDDEN)]);
    check(json!([e("c", "i")]), json!([]), &[("spec.ephemeralContainers[0].name", DUPLICATE)]);
    check(json!([e("e", "")]), json!([]), &[("spec.ephemeralContainers[0].image", REQUIRED)]);
    let target = json!([{"name": "e", "image": "i", "targetContainerName": "nobody"}]);
    check(target, json!([]), &[("spec.ephemeralContainers[0].targetContainerName", NOT_FOUND)]);
    let ports = json!([{"name": "e", "image": "i", "ports": [{"containerPort": 80}]}]);
    check(ports, json!([]), &[("spec.ephemeralContainers[0].ports", FORBIDDEN)]);
}

#[test]
fn messages_are_upstreams() {
    let message = |name: &str, body: Value| kind(name).strategy.validate(&created(name, body))[0].message.clone();
    for (name, body, want) in [
        (
            "Pod",
            pod(json!({"restartPolicy": "X"})),
            "Unsupported value: \"X\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ),
        ("Pod", pod(json!({"containers": []})), "Required value"),
        ("Pod", one(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]})), "Not found: \"v\""),
        (
            "Pod",
            one(json!({"ports": [{"containerPort": 70000}]})),
            "Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            "Pod",
            one(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})),
            "Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            "Pod",
            pod(json!({"volumes": [{"name": "v", "hostPath": {"path": "/a/../b"}}]})),
            "Invalid value: \"/a/../b\": must not contain '..'",
        ),
        (
            "Pod",
            pod(json!({"volumes": [{"name": "v", "emptyDir": {}, "nfs": {"server": "s", "path": "/"}}]})),
            "Forbidden: may not specify more than 1 volume type",
        ),
        (
            "PersistentVolume",
            super::volumes::pv(json!({"accessModes": ["X"]})),
            "Unsupported value: \"X\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
        ),
        (
            "PersistentVolumeClaim",
            super::volumes::pvc(json!({"resources": {"requests": {"storage": "0"}}})),
            "Invalid value: \"0\": must be greater than zero",
        ),
        (
            "PersistentVolumeClaim",
            super::volumes::pvc(json!({"accessModes": null})),
            "Required value: at least 1 access mode is required",
        ),
        (
            "StorageClass",
            json!({"provisioner": "a", "reclaimPolicy": "Recycle"}),
            "Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\"",
        ),
        (
            "ConfigMap",
            json!({"data": {"a/b": ""}}),
            "Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        ),
    ] {
        assert_eq!(message(name, body), want);
    }
}
