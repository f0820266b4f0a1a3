//! `holdfast why` against the real program: every cause is set up for real, the answer has to name it, and where a command
//! mends it, that command is run and the thing goes on. What another system's component leaves in the API (a CSI
//! driver's attachment, a kubelet's Event) is made through the API.
//!
//! `HOLDFAST_WHY_KUBECONFIG=FILE` runs the part without containers against another Kubernetes.
#![allow(clippy::unwrap_used, reason = "a step that fails here fails the test")]
mod common;

use std::{
    path::Path,
    process::{Command, Output},
};

use common::{Instance, kubectl, run_with, text, until};
use serde_json::{Value, json};

/// One namespace of a cluster, named after the cause that is set up in it; all of it without a name.
#[derive(Clone)]
struct Place {
    kubeconfig: String,
    name: &'static str,
}

impl Place {
    fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(["--kubeconfig", &self.kubeconfig]).args(args);
        if !self.name.is_empty() {
            command.args(["-n", self.name]);
        }
        command.env("HOME", "/nonexistent").env("NO_PROXY", "*").env_remove("KUBECONFIG");
        command
    }

    #[track_caller]
    fn kubectl(&self, args: &[&str]) -> String {
        let out = self.command(&kubectl(), args).output().expect("run kubectl");
        assert!(out.status.success(), "kubectl {args:?}: {}", text(&out.stderr));
        text(&out.stdout)
    }

    #[track_caller]
    fn apply(&self, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        // A service account that pods need may come a moment after its namespace.
        until(&format!("the objects of {} are made", self.name), || {
            let out = run_with(self.command(&kubectl(), &["apply", "-f", "-"]), &list);
            let early = text(&out.stderr).contains("error looking up service account");
            assert!(out.status.success() || early, "{}", text(&out.stderr));
            out.status.success().then_some(())
        });
    }

    #[track_caller]
    fn status(&self, object: &str, status: Value) {
        let patch = json!({ "status": status }).to_string();
        self.kubectl(&["patch", object, "--subresource=status", "--type=merge", "-p", &patch]);
    }

    fn why(&self, object: &str) -> Output {
        let program = Path::new(env!("CARGO_BIN_EXE_holdfast"));
        Command::new(program)
            .args(["why", object, "-o", "json", "-n", self.name, "--kubeconfig", &self.kubeconfig])
            .output()
            .expect("run holdfast")
    }

    /// The answer, once it names the cause: with this verdict, the exit status that goes with it, and the words.
    #[track_caller]
    fn says(&self, object: &str, cause: &str, verdict: &str, words: &[&str]) -> Value {
        let (answer, code) = until_said(|| {
            let out = self.why(object);
            let (said, error) = (text(&out.stdout), text(&out.stderr));
            let answer: Value = serde_json::from_str(&said).unwrap_or_default();
            let all = words.iter().all(|w| answer.to_string().contains(w));
            match answer["cause"] == cause && all {
                true => Ok((answer, out.status.code())),
                false => Err(format!("why {object} -n {}: not {cause} with {words:?}, but {said}{error}", self.name)),
            }
        });
        assert_eq!(answer["verdict"], verdict, "{answer:#}");
        let normal = ["fine", "waiting"].contains(&verdict);
        assert_eq!(code, Some(if normal { 0 } else { 3 }), "{answer:#}");
        assert!(normal || !answer["fix"].as_array().unwrap().is_empty(), "nothing is said to mend it: {answer:#}");
        answer
    }

    /// Runs the commands that an answer gives, `more` being added to the kubectl ones.
    #[track_caller]
    fn fix(&self, answer: &Value, more: &str) {
        let lines = answer["fix"].as_array().unwrap().iter().map(|l| l.as_str().unwrap());
        let commands: Vec<&str> = lines.filter(|l| !l.starts_with('#')).collect();
        assert!(!commands.is_empty(), "no command: {answer:#}");
        for line in commands {
            let kubectl = format!("{} --kubeconfig {}", kubectl().display(), self.kubeconfig);
            let line = line.strip_prefix("kubectl").map_or(line.to_owned(), |rest| format!("{kubectl}{rest} {more}"));
            let out = Command::new("sh").args(["-c", &line]).env("NO_PROXY", "*").output().expect("run sh");
            assert!(out.status.success(), "{line}: {}", text(&out.stderr));
        }
    }

    #[track_caller]
    fn bound(&self, claim: &str) {
        self.says(&format!("pvc/{claim}"), "none", "fine", &["is Bound"]);
    }

    /// What its claim's status keeps of a claim's reason, without any Event.
    fn forget_events(&self) {
        self.kubectl(&["delete", "events", "--all"]);
    }

    #[track_caller]
    fn scheduled(&self, pod: &str) {
        until(&format!("{pod} in {} has a node", self.name), || {
            let node = self.kubectl(&["get", "pod", pod, "-o", "jsonpath={.spec.nodeName}"]);
            (!node.is_empty()).then_some(())
        });
    }
}

/// Asks again until there is an answer; fails the test with what was said last.
#[track_caller]
fn until_said<T>(mut ask: impl FnMut() -> Result<T, String>) -> T {
    let started = std::time::Instant::now();
    loop {
        let said = match ask() {
            Ok(value) => return value,
            Err(said) => said,
        };
        assert!(started.elapsed() < common::PATIENCE, "{said}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

fn merged(mut object: Value, more: Value) -> Value {
    fn merge(into: &mut Value, from: Value) {
        match from {
            Value::Object(fields) if into.is_object() => {
                fields.into_iter().for_each(|(key, value)| merge(&mut into[&key], value));
            }
            other => *into = other,
        }
    }
    merge(&mut object, more);
    object
}

fn claim(name: &str, class: &str, more: Value) -> Value {
    let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}, "storageClassName": class});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec});
    merged(claim, json!({ "spec": more }))
}

fn volume(name: &str, class: &str, more: Value) -> Value {
    let spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "5Gi"}, "storageClassName": class,
        "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": format!("/srv/{name}")}});
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec});
    merged(volume, json!({ "spec": more }))
}

fn on_node(node: &str) -> Value {
    let only = json!([{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]);
    json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{ "matchExpressions": only }]}}})
}

fn by_driver(driver: &str) -> Value {
    json!({"hostPath": null, "csi": {"driver": driver, "volumeHandle": "h"}})
}

fn class(name: &str, provisioner: &str, late: bool) -> Value {
    json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name}, "provisioner": provisioner,
        "volumeBindingMode": if late { "WaitForFirstConsumer" } else { "Immediate" }})
}

/// A pod that uses claim `c`; on another cluster too, no container of it has to run.
fn pod(name: &str, more: Value) -> Value {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "containers": [{"name": "main", "image": "none.invalid/none"}], "terminationGracePeriodSeconds": 0,
        "tolerations": [{"operator": "Exists"}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]}});
    merged(pod, json!({ "spec": more }))
}

fn node(name: &str, ready: bool) -> Value {
    let conditions = json!([{"type": "Ready", "status": if ready { "True" } else { "Unknown" }, "reason": "Test",
        "lastHeartbeatTime": jiff::Timestamp::now(), "lastTransitionTime": jiff::Timestamp::now()}]);
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "50"}, "capacity": {"cpu": "1", "memory": "1Gi", "pods": "50"},
            "conditions": conditions}})
}

/// What a component said about an object, `seconds` ago.
fn event(place: &str, about: (&str, &str), reason: &str, message: &str, seconds: i64) -> Value {
    let (kind, name) = about;
    let then = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() - seconds).unwrap();
    json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": format!("{name}.{}", reason.to_lowercase()), "namespace": place},
        "involvedObject": {"kind": kind, "name": name, "namespace": place, "apiVersion": "v1"}, "reason": reason, "message": message,
        "type": "Warning", "count": 1, "firstTimestamp": then, "lastTimestamp": then, "source": {"component": "test"}})
}

fn attachment(name: &str, driver: &str, volume: &str, node: &str) -> Value {
    json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": name, "finalizers": ["test.example.com/driver"]},
        "spec": {"attacher": driver, "nodeName": node, "source": {"persistentVolumeName": volume}}})
}

fn csi_node(name: &str, driver: &str, count: i32) -> Value {
    json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": name},
        "spec": {"drivers": [{"name": driver, "nodeID": name, "topologyKeys": [], "allocatable": {"count": count}}]}})
}

/// A pod that is told a provisioner's name; nothing schedules it.
fn provisioner(name: &str, provisioner: &str) -> Value {
    pod(
        name,
        json!({"schedulerName": "nobody", "volumes": [],
        "containers": [{"name": "main", "image": "example.com/csi-provisioner", "args": [format!("--provisioner-name={provisioner}")]}]}),
    )
}

fn ready() -> Value {
    json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
}

const FORCE: &str = "--force --grace-period=0";

/// A cause: its namespace, the objects, and what is to be said.
type Cause = (&'static str, Vec<Value>, fn(&Place));

const CAUSES: &[fn() -> Cause] = &[
    first_consumer,
    provisioner_down,
    no_default_class,
    class_typo,
    access_mode,
    pods_repeat_claims,
    released,
    named_volume,
    no_class_or_none,
    nothing_fits,
    selector,
    bypassed,
    custom_scheduler,
    lost_node,
    full_node,
    helper_pod,
    capacity,
    permission,
    removed,
    dead_node,
    stale_attachment,
    driver_gone,
    attach_limit,
    slow_node,
    mount_helper,
    given_up,
    volume_lost,
    resize_pending,
    terminating,
    quota,
    one_pod_alone,
];

fn first_consumer() -> Cause {
    ("w01", vec![class("w01", "kubernetes.io/no-provisioner", true), claim("c", "w01", json!({}))], |p| {
        p.says("pvc/c", "wait-for-first-consumer", "waiting", &["claimName: c"]);
        p.says("sc/w01", "none", "fine", &["people make its volumes"]);
        p.apply(&[volume("w01", "w01", json!({})), pod("web", json!({}))]);
        p.bound("c");
    })
}

fn provisioner_down() -> Cause {
    const NAME: &str = "w02.example.com";
    ("w02", vec![class("w02", NAME, false), claim("c", "w02", json!({})), provisioner("maker", NAME)], |p| {
        let crashed = json!([{"name": "main", "image": "x", "imageID": "", "ready": false, "restartCount": 7,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}]);
        p.status("pod/maker", json!({"phase": "Running", "containerStatuses": crashed}));
        let words = ["0 of 1 pod(s)", "OOMKilled", "kubectl logs -n w02 maker"];
        p.says("pvc/c", "provisioner-not-running", "stuck", &words);
        p.says("sc/w02", "provisioner-not-running", "stuck", &["OOMKilled", "1 claim(s) of it are Pending"]);
        p.status("pod/maker", ready());
        p.says("pvc/c", "external-provisioner", "waiting", &["1 of 1 pod(s)"]);
        p.says("sc/w02", "none", "fine", &[]);
    })
}

fn no_default_class() -> Cause {
    // No volume of another cause may fit.
    let mut unset = claim("c", "", json!({"resources": {"requests": {"storage": "7777Gi"}}}));
    unset["spec"].as_object_mut().unwrap().remove("storageClassName");
    ("w03", vec![class("w03", "kubernetes.io/no-provisioner", false), unset], |p| {
        let answer = p.says("pvc/c", "no-default-class", "stuck", &["there are the classes", "w03"]);
        // The further commands are for those who want to change a volume in place of the classes.
        p.fix(&json!({ "fix": [answer["fix"][1]] }), "");
        until("the claim has a class", || {
            let class = p.kubectl(&["get", "pvc", "c", "-o", "jsonpath={.spec.storageClassName}"]);
            (!class.is_empty()).then_some(())
        });
    })
}

fn class_typo() -> Cause {
    let objects = vec![
        class("w04-fast", "kubernetes.io/no-provisioner", false),
        claim("c", "w04-fsat", json!({})),
        volume("w04", "w04-fast", json!({})),
    ];
    ("w04", objects, |p| {
        let answer =
            p.says("pvc/c", "class-not-found", "stuck", &["did you mean w04-fast", "storageClassName: w04-fast"]);
        p.fix(&answer, "");
        p.apply(&[claim("c", "w04-fast", json!({}))]);
        p.bound("c");
    })
}

fn failing(place: &'static str, message: &str, seconds: i64) -> Vec<Value> {
    let name = format!("{place}.example.com");
    let message = format!("failed to provision volume with StorageClass \"{place}\": {message}");
    vec![
        class(place, &name, false),
        claim("c", place, json!({})),
        provisioner("maker", &name),
        event(place, ("PersistentVolumeClaim", "c"), "ProvisioningFailed", &message, seconds),
    ]
}

fn access_mode() -> Cause {
    ("w05", failing("w05", "Only support ReadWriteOnce access mode", 5), |p| {
        p.status("pod/maker", ready());
        let answer = p.says("pvc/c", "access-mode-not-supported", "stuck", &["accessModes: [ReadWriteOnce]"]);
        p.fix(&answer, "");
        p.apply(&[claim("c", "w05", json!({}))]);
    })
}

fn pods_repeat_claims() -> Cause {
    let small = volume("w06-small", "w06", json!({"capacity": {"storage": "1Gi"}}));
    ("w06", vec![small, node("w06", true), claim("c", "w06", json!({})), pod("web", json!({}))], |p| {
        let answer = p.says(
            "pod/web",
            "no-fitting-volume",
            "stuck",
            &["volume \\\"data\\\": claim w06/c is Pending", "w06-small"],
        );
        until_said(|| {
            let said = p.kubectl(&[
                "get",
                "pod",
                "web",
                "-o",
                "jsonpath={.status.conditions[?(@.type==\"PodScheduled\")].message}",
            ]);
            let plain = said.contains("nodes are available: pod has unbound immediate PersistentVolumeClaims");
            let ours = said.contains("nearest miss w06-small: it has 1Gi, the claim requests 5Gi");
            if plain && (ours || outside()) { Ok(()) } else { Err(said) }
        });
        if !outside() {
            let kept = p.kubectl(&[
                "get",
                "pvc",
                "c",
                "-o",
                "jsonpath={.status.conditions[?(@.type==\"holdfast.dev/Waiting\")].reason}",
            ]);
            assert_eq!(kept, "NoFittingVolume");
        }
        p.fix(&answer, "");
        p.bound("c");
        p.scheduled("web");
        let left = p.kubectl(&["get", "pvc", "c", "-o", "jsonpath={.status.conditions}"]);
        until("the reason is taken back", || {
            (left.is_empty()
                || !p.kubectl(&["get", "pvc", "c", "-o", "jsonpath={.status.conditions}"]).contains("Waiting"))
            .then_some(())
        });
    })
}

fn released() -> Cause {
    ("w07", vec![volume("w07", "w07", json!({})), claim("c", "w07", json!({}))], |p| {
        p.bound("c");
        p.kubectl(&["delete", "pvc", "c"]);
        p.apply(&[claim("c", "w07", json!({}))]);
        let answer = p.says("pvc/c", "volume-released", "stuck", &["data of the earlier one", "\\\"uid\\\":null"]);
        p.says("pv/w07", "volume-released", "stuck", &["policy Retain"]);
        p.fix(&answer, "");
        p.bound("c");
    })
}

fn named_volume() -> Cause {
    let objects = vec![
        claim("missing", "w08", json!({"volumeName": "w08-missing"})),
        claim("c", "w08", json!({"volumeName": "w08-differs"})),
        volume("w08-differs", "w08-other", json!({})),
    ];
    ("w08", objects, |p| {
        p.says("pvc/missing", "named-volume-missing", "stuck", &["which does not exist"]);
        let answer = p.says(
            "pvc/c",
            "named-volume-differs",
            "stuck",
            &["its class is \\\"w08-other\\\", the claim's \\\"w08\\\""],
        );
        p.fix(&answer, "");
        p.bound("c");
    })
}

fn no_class_or_none() -> Cause {
    let odd = || json!({"capacity": {"storage": "909Gi"}});
    let wants = claim("c", "", json!({"resources": {"requests": {"storage": "909Gi"}}}));
    ("w09", vec![volume("w09", "w09-class", odd()), wants], |p| {
        let answer =
            p.says("pvc/c", "no-fitting-volume", "stuck", &["its class is \\\"w09-class\\\", the claim's none"]);
        p.fix(&answer, "");
        p.bound("c");
    })
}

fn nothing_fits() -> Cause {
    let wants = claim("c", "w10", json!({"selector": {"matchLabels": {"tier": "w10"}}}));
    let objects = vec![
        wants,
        volume("w10-small", "w10", json!({"capacity": {"storage": "1Gi"}})),
        volume("w10-block", "w10", json!({"volumeMode": "Block"})),
        volume("w10-near", "w10", json!({})),
    ];
    ("w10", objects, |p| {
        let answer = p.says(
            "pvc/c",
            "no-fitting-volume",
            "stuck",
            &["its volumeMode is Block", "it has 1Gi, the claim requests 5Gi"],
        );
        assert_eq!(answer["candidates"][0]["volume"], "w10-near", "{answer:#}");
        p.fix(&answer, "");
        p.bound("c");
    })
}

fn selector() -> Cause {
    let picky = claim("c", "w11", json!({"selector": {"matchLabels": {"tier": "gold"}}}));
    ("w11", vec![class("w11", "w11.example.com", false), provisioner("maker", "w11.example.com"), picky], |p| {
        p.status("pod/maker", ready());
        let answer = p.says("pvc/c", "selector-not-supported", "stuck", &["without spec.selector"]);
        p.fix(&answer, "");
        p.apply(&[claim("c", "w11", json!({}))]);
        p.says("pvc/c", "external-provisioner", "waiting", &[]);
    })
}

fn late(place: &str) -> Vec<Value> {
    vec![
        class(place, "kubernetes.io/no-provisioner", true),
        node(place, true),
        volume(place, place, on_node(place)),
        claim("c", place, json!({})),
    ]
}

fn bypassed() -> Cause {
    let objects = [late("w12"), vec![pod("web", json!({"nodeName": "w12"}))]].concat();
    ("w12", objects, |p| {
        let answer = p.says(
            "pvc/c",
            "scheduler-bypassed",
            "stuck",
            &["past the scheduler", "nodeSelector: {kubernetes.io/hostname: w12}"],
        );
        p.says("pod/web", "scheduler-bypassed", "stuck", &["volume \\\"data\\\""]);
        p.fix(&answer, FORCE);
        p.apply(&[pod("web", json!({"nodeSelector": {"kubernetes.io/hostname": "w12"}}))]);
        p.bound("c");
    })
}

fn custom_scheduler() -> Cause {
    let objects = [late("w13"), vec![pod("web", json!({"schedulerName": "mine"}))]].concat();
    ("w13", objects, |p| {
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "web", "namespace": "w13"},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "w13"}});
        let out = run_with(
            p.command(&kubectl(), &["create", "--raw", "/api/v1/namespaces/w13/pods/web/binding", "-f", "-"]),
            &binding.to_string(),
        );
        assert!(out.status.success(), "{}", text(&out.stderr));
        p.apply(&[event("w13", ("Pod", "web"), "Scheduled", "Successfully assigned w13/web to w13", 1)]);
        let answer = p.says("pvc/c", "custom-scheduler", "stuck", &["scheduler mine put pod web on node w13"]);
        p.fix(&answer, FORCE);
        p.apply(&[pod("web", json!({"nodeSelector": {"kubernetes.io/hostname": "w13"}}))]);
        p.bound("c");
    })
}

fn lost_node() -> Cause {
    let second = |mut object: Value| {
        object["metadata"]["name"] = json!("second");
        object["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "d"}}]);
        object
    };
    let objects = vec![
        volume("w14", "w14", on_node("w14-gone")),
        claim("c", "w14", json!({})),
        pod("web", json!({})),
        volume("w14-d", "w14-d", on_node("w14-shut")),
        claim("d", "w14-d", json!({})),
        merged(node("w14-shut", true), json!({"spec": {"unschedulable": true}})),
        second(pod("web", json!({"tolerations": null}))),
    ];
    ("w14", objects, |p| {
        let words = ["can be reached from no node", "kubernetes.io/hostname In w14-gone"];
        p.says("pod/web", "volume-out-of-reach", "stuck", &words);
        let shut =
            p.says("pod/second", "volume-node-unavailable", "stuck", &["only on node w14-shut, which is cordoned"]);
        p.fix(&shut, "");
        p.scheduled("second");
        p.apply(&[node("w14-gone", true)]);
        p.scheduled("web");
    })
}

fn full_node() -> Cause {
    let greedy = json!({"containers": [{"name": "main", "image": "none.invalid/none", "resources": {"requests": {"cpu": "2"}}}]});
    let objects =
        vec![node("w15", true), volume("w15", "w15", on_node("w15")), claim("c", "w15", json!({})), pod("web", greedy)];
    ("w15", objects, |p| {
        p.says("pod/web", "volume-node-full", "retrying", &["on node w15 only", "Insufficient cpu"]);
        // The condition stays when the Events have expired.
        p.forget_events();
        p.says("pod/web", "volume-node-full", "retrying", &["Insufficient cpu"]);
    })
}

fn helper_pod() -> Cause {
    ("w16", failing("w16", "failed to create volume: create process timeout after 120 seconds", 5), |p| {
        p.status("pod/maker", ready());
        let uid = p.kubectl(&["get", "pvc", "c", "-o", "jsonpath={.metadata.uid}"]);
        let name = format!("helper-pod-create-pvc-{uid}");
        p.apply(&[pod(&name, json!({"schedulerName": "nobody", "volumes": []}))]);
        let waiting = json!([{"name": "main", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]);
        p.status(&format!("pod/{name}"), json!({"phase": "Pending", "containerStatuses": waiting}));
        let answer = p.says(
            "pvc/c",
            "helper-pod",
            "retrying",
            &["ImagePullBackOff: no such image", "kubectl describe pod helper-pod"],
        );
        p.fix(&answer, "");
    })
}

fn capacity() -> Cause {
    let short = json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIStorageCapacity", "metadata": {"name": "w17"},
        "storageClassName": "w17", "capacity": "1Gi", "nodeTopology": {"matchLabels": {"zone": "w17"}}});
    let told = event(
        "w17",
        ("Pod", "web"),
        "FailedScheduling",
        "0/1 nodes are available: 1 node(s) did not have enough free storage.",
        3,
    );
    let objects = vec![
        class("w17", "w17.example.com", true),
        claim("c", "w17", json!({})),
        short,
        told,
        pod("web", json!({"schedulerName": "csi-aware"})),
    ];
    ("w17", objects, |p| {
        p.says("pod/web", "capacity", "retrying", &["zone=w17: 1Gi free, too little for 5Gi, as said at "]);
        p.says("pvc/c", "capacity", "retrying", &["1Gi free"]);
    })
}

fn permission() -> Cause {
    ("w18", failing("w18", "rpc error: code = PermissionDenied desc = AccessDenied: not yours", 5), |p| {
        p.status("pod/maker", ready());
        p.says("pvc/c", "permission", "retrying", &["lacks a permission", "AccessDenied: not yours"]);
        p.apply(&[pod("web", json!({}))]);
        p.says("pod/web", "permission", "retrying", &["volume \\\"data\\\": claim w18/c", "AccessDenied: not yours"]);
    })
}

fn removed() -> Cause {
    ("w19", vec![class("w19", "kubernetes.io/glusterfs", false), claim("c", "w19", json!({}))], |p| {
        p.says("pvc/c", "provisioner-removed", "stuck", &["no longer contains"]);
        let answer = p.says("sc/w19", "provisioner-removed", "stuck", &[]);
        p.fix(&answer, "");
        p.says("pvc/c", "class-not-found", "stuck", &[]);
    })
}

/// A pod on one node whose volume is attached to another.
fn attached(place: &'static str, other: bool) -> Vec<Value> {
    let (here, there, driver) = (format!("{place}-here"), format!("{place}-there"), format!("{place}.example.com"));
    let message = format!(
        "Multi-Attach error for volume \"{place}\" Volume is already exclusively attached to one node and can't be attached to another"
    );
    vec![
        node(&here, true),
        node(&there, other),
        volume(place, place, by_driver(&driver)),
        claim("c", place, json!({})),
        attachment(place, &driver, place, &there),
        pod("web", json!({ "nodeName": here })),
        event(place, ("Pod", "web"), "FailedAttachVolume", &message, 5),
    ]
}

fn dead_node() -> Cause {
    ("w20", attached("w20", false), |p| {
        let words = ["attached to node w20-there (VolumeAttachment w20)", "does not answer since", "6 minutes after"];
        let answer = p.says("pod/web", "multi-attach-dead-node", "retrying", &words);
        p.fix(&answer, "");
        assert!(p.kubectl(&["get", "node", "w20-there", "-o", "jsonpath={.spec.taints}"]).contains("out-of-service"));
    })
}

fn stale_attachment() -> Cause {
    ("w21", attached("w21", true), |p| {
        let answer = p.says(
            "pod/web",
            "stale-attachment",
            "stuck",
            &["no pod uses it there", "w21.example.com does not detach"],
        );
        p.fix(&answer, "--wait=false");
        let answer = p.says("pod/web", "stale-attachment", "stuck", &["finalizer \\\"test.example.com/driver\\\""]);
        p.fix(&answer, "");
        assert!(!p.kubectl(&["get", "volumeattachments", "-o", "name"]).contains("/w21"));
    })
}

/// A pod on a node that never mounts its volume, and what the node said.
fn on_a_node(place: &'static str, reason: &str, message: &str) -> Vec<Value> {
    vec![
        node(place, true),
        volume(place, place, by_driver(&format!("{place}.example.com"))),
        claim("c", place, json!({})),
        pod("web", json!({ "nodeName": place })),
        event(place, ("Pod", "web"), reason, message, 5),
    ]
}

fn driver_gone() -> Cause {
    let message = "MountVolume.MountDevice failed for volume \"w23\" : kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: driver name w23.example.com not found in the list of registered CSI drivers";
    let objects = [on_a_node("w23", "FailedMount", message), vec![csi_node("w23", "other.example.com", 5)]].concat();
    ("w23", objects, |p| {
        let words =
            ["volume \\\"data\\\"", "no CSIDriver w23.example.com", "registered on node w23: other.example.com"];
        let answer = p.says("pod/web", "driver-not-registered", "retrying", &words);
        p.fix(&answer, "");
    })
}

fn attach_limit() -> Cause {
    let message = "AttachVolume.Attach failed for volume \"w24\" : rpc error: code = ResourceExhausted desc = too many volumes attached";
    let more = vec![csi_node("w24", "w24.example.com", 1), attachment("w24", "w24.example.com", "w24-other", "w24")];
    ("w24", [on_a_node("w24", "FailedAttachVolume", message), more].concat(), |p| {
        p.says(
            "pod/web",
            "attach-limit",
            "retrying",
            // Where an attach controller runs, it asks for this volume too.
            &["node w24: ", " of at most 1 volumes of w24.example.com attached"],
        );
        // The driver's own word stays in the attachment.
        p.forget_events();
        p.apply(&[attachment("w24-own", "w24.example.com", "w24", "w24")]);
        p.status(
            "volumeattachment/w24-own",
            json!({"attached": false, "attachError": {"message": "too many volumes attached"}}),
        );
        p.says("pod/web", "attach-limit", "retrying", &["too many volumes attached"]);
    })
}

fn slow_node() -> Cause {
    let message = "Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process volumes=[]: timed out waiting for the condition";
    ("w26", on_a_node("w26", "FailedMount", message), |p| {
        let words = ["the node is slow", "1 pod(s) with", "volume(s) wait on node w26", "kubectl describe node w26"];
        let answer = p.says("pod/web", "mount-timeout", "retrying", &words);
        p.fix(&answer, "");
    })
}

fn mount_helper() -> Cause {
    let message = "MountVolume.SetUp failed for volume \"w29\" : mount failed: exit status 32 Mounting command: mount Output: mount: wrong fs type, bad option, bad superblock";
    ("w29", on_a_node("w29", "FailedMount", message), |p| {
        p.says("pod/web", "mount-helper", "retrying", &["nfs-common, cifs-utils"]);
    })
}

fn given_up() -> Cause {
    ("x01", failing("x01", "rpc error: code = Internal desc = oops", 3600), |p| {
        p.status("pod/maker", ready());
        let answer = p.says(
            "pvc/c",
            "provisioning-not-retried",
            "stuck",
            &["not tried again since", "kubectl delete pod maker"],
        );
        p.fix(&answer, FORCE);
        p.says("pvc/c", "provisioning-not-retried", "stuck", &["start provisioner x01.example.com anew"]);
    })
}

fn volume_lost() -> Cause {
    ("x02", vec![volume("x02", "x02", json!({})), claim("c", "x02", json!({})), node("x02", true)], |p| {
        p.bound("c");
        p.kubectl(&["delete", "pv", "x02", "--wait=false"]);
        p.kubectl(&["patch", "pv", "x02", "--type=merge", "-p", "{\"metadata\":{\"finalizers\":null}}"]);
        let answer = p.says("pvc/c", "volume-lost", "stuck", &["a claim never leaves Lost"]);
        p.apply(&[pod("web", json!({}))]);
        p.says("pod/web", "volume-lost", "stuck", &["volume \\\"data\\\""]);
        p.fix(&answer, "--wait=false");
    })
}

fn resize_pending() -> Cause {
    ("x03", vec![volume("x03", "x03", by_driver("x03.example.com")), claim("c", "x03", json!({}))], |p| {
        p.bound("c");
        p.status("pvc/c", json!({"conditions": [{"type": "FileSystemResizePending", "status": "True", "lastTransitionTime": jiff::Timestamp::now()}]}));
        p.says("pvc/c", "file-system-resize", "waiting", &["a pod that mounts the claim"]);
    })
}

fn terminating() -> Cause {
    let objects = vec![
        node("x04", true),
        volume("x04", "x04", json!({})),
        claim("c", "x04", json!({})),
        pod("web", json!({"nodeName": "x04"})),
    ];
    ("x04", objects, |p| {
        p.bound("c");
        p.kubectl(&["delete", "pvc", "c", "--wait=false"]);
        p.kubectl(&["delete", "pv", "x04", "--wait=false"]);
        p.says("pv/x04", "volume-in-use", "stuck", &["claim x04/c is bound to it"]);
        let answer = p.says("pvc/c", "claim-in-use", "stuck", &["pod(s) web use it"]);
        p.fix(&answer, FORCE);
        until("the claim is gone", || (p.why("pvc/c").status.code() == Some(1)).then_some(()));
    })
}

fn quota() -> Cause {
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"persistentvolumeclaims": "1"}}});
    let told = event(
        "x05",
        ("StatefulSet", "db"),
        "FailedCreate",
        "create Claim data-db-1 for Pod db-1 in StatefulSet db failed error: exceeded quota",
        5,
    );
    ("x05", vec![quota, claim("c", "x05", json!({})), told], |p| {
        until("the quota is said to refuse it", || {
            let out = p.why("pvc/data-db-1");
            let error = text(&out.stderr);
            assert_eq!(out.status.code(), Some(1), "{error}");
            let all = [
                "\"data-db-1\" not found",
                "StatefulSet db could not make it",
                "persistentvolumeclaims 1 of 1 are used",
            ];
            all.iter().all(|w| error.contains(w)).then_some(())
        });
        let out = p.why("vs/s");
        assert_eq!(out.status.code(), Some(1));
        let error = text(&out.stderr);
        let unknown = outside() && error.contains("this cluster does not know VolumeSnapshots");
        assert!(unknown || error.contains("volumesnapshots.snapshot.storage.k8s.io \"s\" not found"), "{error}");
    })
}

fn one_pod_alone() -> Cause {
    let modes = json!({"accessModes": ["ReadWriteOncePod"]});
    let objects = vec![
        node("x06", true),
        volume("x06", "x06", merged(modes.clone(), by_driver("x06.example.com"))),
        claim("c", "x06", modes),
        pod("first", json!({"nodeName": "x06"})),
        pod("web", json!({})),
    ];
    ("x06", objects, |p| {
        let answer = p.says("pod/web", "claim-exclusive", "stuck", &["for one pod alone", "pod first has it"]);
        p.forget_events();
        p.says("pod/web", "claim-exclusive", "stuck", &["pod first has it"]);
        p.fix(&answer, FORCE);
        p.scheduled("web");
    })
}

fn outside() -> bool {
    std::env::var_os("HOLDFAST_WHY_KUBECONFIG").is_some()
}

/// Whether objects of a kind are in no namespace.
fn is_wide(object: &Value) -> bool {
    let kind = object["kind"].as_str().unwrap();
    ["PersistentVolume", "StorageClass", "Node", "CSINode", "CSIDriver", "VolumeAttachment"].contains(&kind)
}

#[test]
fn causes_of_the_control_plane() {
    let instance = (!outside()).then(|| Instance::empty(&["--no-node"]));
    let kubeconfig = match &instance {
        Some(instance) => instance.kubeconfig(),
        None => std::env::var("HOLDFAST_WHY_KUBECONFIG").unwrap(),
    };
    let causes: Vec<Cause> = CAUSES.iter().map(|make| make()).collect();
    let wide = Place { kubeconfig: kubeconfig.clone(), name: "" };
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    wide.apply(&causes.iter().map(|c| namespace(c.0)).collect::<Vec<_>>());
    // All at once: kubectl takes longer to start than to do its work.
    let objects = causes.iter().flat_map(|(name, objects, _)| {
        objects.iter().map(move |o| {
            if is_wide(o) { o.clone() } else { merged(o.clone(), json!({"metadata": {"namespace": name}})) }
        })
    });
    wide.apply(&objects.collect::<Vec<_>>());
    let failed: Vec<&str> = std::thread::scope(|scope| {
        let run = |(name, _, check): &Cause| {
            let place = Place { kubeconfig: kubeconfig.clone(), name };
            let check = *check;
            (*name, scope.spawn(move || check(&place)))
        };
        let running: Vec<_> = causes.iter().map(run).collect();
        running.into_iter().filter_map(|(name, thread)| thread.join().is_err().then_some(name)).collect()
    });
    // Nothing ends pods on nodes that are only objects.
    let all = ["delete", "pods", "--all", "-A", "--force", "--grace-period=0"];
    match outside() {
        true => clean(&wide, &causes),
        false => drop(wide.command(&kubectl(), &all).output()),
    }
    assert!(failed.is_empty(), "causes that failed: {failed:?}");
}

/// Takes away what was made in a cluster that stays.
fn clean(wide: &Place, causes: &[Cause]) {
    let quietly = |args: &[&str]| drop(wide.command(&kubectl(), args).output());
    for (name, objects, _) in causes {
        quietly(&["delete", "pods", "--all", "--force", "--grace-period=0", "-n", name]);
        quietly(&["delete", "namespace", name, "--wait=false"]);
        for object in objects.iter().filter(|o| is_wide(o)) {
            let object =
                format!("{}/{}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
            quietly(&["patch", &object, "--type=merge", "-p", "{\"metadata\":{\"finalizers\":null}}"]);
            quietly(&["delete", &object, "--wait=false"]);
        }
    }
    quietly(&["delete", "node/w14-gone", "volumeattachment/w24-own", "pv/w01"]);
}

/// A pod on the one node, of an image that is there.
fn runs(name: &str, command: &str, more: Value) -> Value {
    let container = json!({"name": "main", "image": "hfbox:1", "command": ["sh", "-c", command]});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container], "terminationGracePeriodSeconds": 1}});
    merged(pod, json!({ "spec": more }))
}

fn with_volume(name: &str, command: &str, source: Value, more: Value) -> Value {
    let mut object = runs(name, command, more);
    object["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    object["spec"]["volumes"] = json!([merged(json!({"name": "data"}), source)]);
    object
}

fn is_ready(p: &Place, pod: &str) {
    p.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
}

/// Two files and a group: what a pod may need that is not there.
fn missing_config(p: &Place) {
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"app.conf": "x"}});
    let key = json!({"configMap": {"name": "settings", "items": [{"key": "app.cnf", "path": "p"}]}});
    let secret = json!({"secret": {"secretName": "token", "items": [{"key": "t", "path": "p"}]}});
    p.apply(&[
        map,
        with_volume("key", "sleep 999", key, json!({})),
        with_volume("secret", "sleep 999", secret, json!({})),
    ]);
    let answer = p.says(
        "pod/key",
        "config-key-missing",
        "stuck",
        &["key \\\"app.cnf\\\" of ConfigMap settings, which has only app.conf"],
    );
    p.fix(&answer, "");
    let answer = p.says("pod/secret", "config-missing", "stuck", &["Secret \\\"token\\\""]);
    p.fix(&answer, "");
    is_ready(p, "key");
    is_ready(p, "secret");
}

fn wrong_type(p: &Place, dir: &Path) {
    let path = dir.join("made-later");
    std::fs::write(&path, "").unwrap();
    p.apply(&[with_volume("path", "sleep 999", json!({"hostPath": {"path": path, "type": "Directory"}}), json!({}))]);
    p.says("pod/path", "host-path-type", "retrying", &["volume \\\"data\\\"", "is not a directory"]);
    // What keeps the pod stays in its status when the Events have expired.
    until("the condition names the volume", || {
        let said = p.kubectl(&[
            "get",
            "pod",
            "path",
            "-o",
            "jsonpath={.status.conditions[?(@.type==\"PodReadyToStartContainers\")].message}",
        ]);
        said.starts_with("MountVolume.SetUp failed for volume \"data\" : hostPath type check failed").then_some(())
    });
    p.forget_events();
    p.says("pod/path", "host-path-type", "retrying", &["volume \\\"data\\\""]);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    is_ready(p, "path");
}

fn may_not_write(p: &Place, dir: &Path) {
    let path = dir.join("roots-own");
    std::fs::create_dir(&path).unwrap();
    let user = json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000}});
    p.apply(&[with_volume("write", "touch /data/x && sleep 999", json!({"hostPath": {"path": path}}), user)]);
    let words = [
        "belongs to user 0 and group 0 and has mode 0755",
        "runs as user 1000",
        "fsGroup changes no hostPath volume",
        "chown 1000",
    ];
    let answer = p.says("pod/write", "permission-denied", "retrying", &words);
    p.fix(&answer, "");
    is_ready(p, "write");
}

fn two_pods(p: &Place, dir: &Path) {
    let modes = json!({"accessModes": ["ReadWriteOncePod"]});
    let here = p.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let source = || json!({"persistentVolumeClaim": {"claimName": "c"}});
    let own = merged(volume("alone", "alone", json!({"hostPath": {"path": dir}})), json!({ "spec": modes }));
    p.apply(&[own, claim("c", "alone", modes), with_volume("first", "sleep 999", source(), json!({"nodeName": here}))]);
    is_ready(p, "first");
    p.apply(&[with_volume("second", "sleep 999", source(), json!({"nodeName": here}))]);
    let answer =
        p.says("pod/second", "used-by-other-pod", "retrying", &["in use by another pod: n/first", "pod n/first runs"]);
    let delete = answer["fix"][0].as_str().unwrap().to_owned();
    p.fix(&json!({ "fix": [delete] }), "");
    is_ready(p, "second");
}

/// A filesystem in a file that takes no change while this is held: who changes one waits.
struct Frozen {
    dir: tempfile::TempDir,
}

impl Frozen {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("holdfast-test-").tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let frozen = Self { dir };
        std::fs::create_dir(frozen.top()).unwrap();
        frozen.tool("mkfs.ext4", &["-q", "-F", &image.to_string_lossy()]);
        frozen.tool("mount", &["-o", "loop", &image.to_string_lossy(), &frozen.top().to_string_lossy()]);
        std::fs::write(frozen.top().join("f"), "").unwrap();
        frozen.tool("fsfreeze", &["--freeze", &frozen.top().to_string_lossy()]);
        frozen
    }

    fn top(&self) -> std::path::PathBuf {
        self.dir.path().join("top")
    }

    fn tool(&self, program: &str, args: &[&str]) {
        let ran = std::process::Command::new(program).args(args).output().unwrap();
        assert!(ran.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&ran.stderr));
    }

    fn thaw(&self) {
        self.tool("fsfreeze", &["--unfreeze", &self.top().to_string_lossy()]);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Thawed already, unless the test failed.
        for (program, args) in [("fsfreeze", &["--unfreeze"][..]), ("umount", &["--lazy"])] {
            let _ = std::process::Command::new(program).args(args).arg(self.top()).output();
        }
    }
}

/// Files whose change of group takes as long as the test wants.
fn slow_files(p: &Place) {
    let frozen = Frozen::new();
    let here = p.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let local = merged(on_node(&here), json!({"hostPath": null, "local": {"path": frozen.top()}}));
    let source = json!({"persistentVolumeClaim": {"claimName": "many"}});
    let group = json!({"securityContext": {"fsGroup": 2000}});
    p.apply(&[
        volume("many", "many", local),
        claim("many", "many", json!({})),
        with_volume("many", "sleep 999", source, group),
    ]);
    p.says("pod/many", "ownership-change", "waiting", &["Setting volume ownership", "files.", "OnRootMismatch"]);
    frozen.thaw();
    is_ready(p, "many");
    p.kubectl(&["delete", "pod", "many"]);
}

fn crashing_provisioner(p: &Place) {
    const NAME: &str = "crashing.example.com";
    let mut maker = runs("maker", "echo no credentials > /dev/termination-log; exit 3", json!({}));
    maker["spec"]["containers"][0]["env"] = json!([{"name": "PROVISIONER_NAME", "value": NAME}]);
    p.apply(&[class("crashing", NAME, false), claim("crashing", "crashing", json!({})), maker]);
    let words = ["exit code 3", "no credentials", "kubectl logs -n n maker"];
    let answer = p.says("pvc/crashing", "provisioner-not-running", "stuck", &words);
    assert!(answer["details"][0].as_str().unwrap().contains("0 of 1 pod(s)"), "{answer:#}");
}

#[test]
fn causes_on_a_node() {
    if outside() {
        return;
    }
    let instance = Instance::empty(&[]);
    let image = common::images().join("hfbox.tar");
    let out = instance.ours(&["image", "import", &image.to_string_lossy(), "--data-dir", &instance.data_dir()]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let place = Place { kubeconfig: instance.kubeconfig(), name: "n" };
    place.kubectl(&["create", "namespace", "n"]);
    let dir = tempfile::Builder::new().prefix("holdfast-test-").tempdir().unwrap();
    std::thread::scope(|scope| {
        let (place, dir) = (&place, dir.path());
        scope.spawn(move || slow_files(place));
        scope.spawn(move || wrong_type(place, dir));
        scope.spawn(move || may_not_write(place, dir));
        scope.spawn(move || two_pods(place, dir));
        scope.spawn(move || crashing_provisioner(place));
        scope.spawn(move || missing_config(place));
    });
    drop(instance);
}
