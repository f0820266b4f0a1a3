//! Things that go wrong, one test each.
use serde_json::json;

use super::*;
use crate::Verdict::{Retrying, Stuck, Waiting};

const DYNAMIC: &str = "example.com/disks";

fn dynamic_claim(more: Value) -> Value {
    with(claim("c", json!({"spec": {"storageClassName": "fast"}})), more)
}

fn provisioner_pod(ready: bool) -> Value {
    let conditions = json!([{"type": "Ready", "status": if ready { "True" } else { "False" }}]);
    let crashed = json!([{"name": "main", "image": "x", "imageID": "", "ready": false, "restartCount": 7,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}]);
    json!({"kind": "Pod", "metadata": {"name": "disks-0", "namespace": "storage"},
        "spec": {"containers": [{"name": "main", "image": "example.com/provisioner:1", "args": [format!("--provisioner-name={DYNAMIC}")]}]},
        "status": {"phase": "Running", "conditions": conditions, "containerStatuses": crashed}})
}

#[test]
fn waits_for_first_consumer() {
    let objects = [dynamic_claim(json!({})), class("fast", DYNAMIC, true)];
    check("claim", "c", &objects, Waiting, "wait-for-first-consumer", &["This is normal", "claimName: c"]);
}

#[test]
fn provisioner_does_not_run() {
    let objects = [dynamic_claim(json!({})), class("fast", DYNAMIC, false), provisioner_pod(false)];
    let words = ["0 of 1 pod(s)", "CrashLoopBackOff", "OOMKilled", "kubectl logs -n storage disks-0"];
    check("claim", "c", &objects, Stuck, "provisioner-not-running", &words);
    check("class", "fast", &objects, Stuck, "provisioner-not-running", &["OOMKilled", "1 claim(s) of it are Pending"]);
    check("claim", "c", &objects[..2], Stuck, "provisioner-not-running", &["no pod here is told the name"]);
    let runs = [dynamic_claim(json!({})), class("fast", DYNAMIC, false), provisioner_pod(true)];
    check("claim", "c", &runs, Waiting, "external-provisioner", &["1 of 1 pod(s)"]);
    check("class", "fast", &runs, Verdict::Fine, "none", &["provisioner example.com/disks runs"]);
    // A driver that is no pod at all, such as the one that comes with holdfast.
    let node =
        json!({"kind": "CSINode", "metadata": {"name": "n"}, "spec": {"drivers": [{"name": DYNAMIC, "nodeID": "n"}]}});
    let served = [runs[0].clone(), runs[1].clone(), node];
    check("class", "fast", &served, Verdict::Fine, "none", &["runs in no pod here", "registered on node(s) n"]);
    check("claim", "c", &served, Waiting, "external-provisioner", &["registered on node(s) n"]);
}

#[test]
fn leader_of_a_provisioner_that_runs_elsewhere() {
    let lease = |age| {
        json!({"kind": "Lease", "metadata": {"name": "example-com-disks", "namespace": "storage"},
            "spec": {"holderIdentity": "host-7", "renewTime": (now() - SignedDuration::from_secs(age)).strftime("%Y-%m-%dT%H:%M:%S.000000Z").to_string()}})
    };
    let objects = |age| [dynamic_claim(json!({})), class("fast", DYNAMIC, false), lease(age)];
    check("claim", "c", &objects(5), Waiting, "external-provisioner", &["\"host-7\" leads"]);
    check("claim", "c", &objects(600), Stuck, "provisioner-not-running", &["last renewed"]);
}

#[test]
fn no_default_class() {
    let mut unset = claim("c", json!({}));
    unset["spec"].as_object_mut().unwrap().remove("storageClassName");
    let objects = [unset, class("fast", DYNAMIC, false)];
    check("claim", "c", &objects, Stuck, "no-default-class", &["classes fast", "kubectl annotate storageclass fast"]);
    let default = json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
    let objects = [objects[0].clone(), with(class("fast", DYNAMIC, false), default)];
    check("claim", "c", &objects, Stuck, "default-class-not-assigned", &["\"storageClassName\":\"fast\""]);
}

#[test]
fn class_name_is_wrong() {
    let objects = [dynamic_claim(json!({"spec": {"storageClassName": "fsat"}})), class("fast", DYNAMIC, false)];
    check("claim", "c", &objects, Stuck, "class-not-found", &["did you mean fast?", "kubectl delete pvc c -n ns"]);
}

#[test]
fn what_provisioners_say() {
    for (message, verdict, cause) in [
        ("Only support ReadWriteOnce access mode", Stuck, "access-mode-not-supported"),
        ("claim Selector is not supported", Stuck, "selector-not-supported"),
        ("rpc error: code = PermissionDenied desc = AccessDenied: not yours", Retrying, "permission"),
        ("googleapi: Error 403: QUOTA_EXCEEDED Quota 'SSD_TOTAL_GB' exceeded", Retrying, "quota"),
        ("rpc error: code = ResourceExhausted desc = not enough free storage", Retrying, "capacity"),
        ("failed to create volume: create process timeout after 120 seconds", Retrying, "helper-pod"),
        ("rpc error: code = Internal desc = oops", Retrying, "provisioning-failed"),
    ] {
        let message = format!("failed to provision volume with StorageClass \"fast\": {message}");
        let objects = [
            dynamic_claim(json!({})),
            class("fast", DYNAMIC, false),
            provisioner_pod(true),
            event("PersistentVolumeClaim", "c", "ProvisioningFailed", &message),
        ];
        check("claim", "c", &objects, verdict, cause, &[&message]);
    }
}

#[test]
fn helper_pod_cannot_run() {
    let helper = json!({"kind": "Pod", "metadata": {"name": "helper-pod-create-pvc-uid-of-the-claim", "namespace": "storage"},
        "spec": {"containers": [{"name": "helper", "image": "busybox"}]},
        "status": {"phase": "Pending", "containerStatuses": [{"name": "helper", "image": "busybox", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]}});
    let told = event("PersistentVolumeClaim", "c", "ProvisioningFailed", "create process timeout after 120 seconds");
    let objects = [dynamic_claim(json!({})), class("fast", DYNAMIC, false), provisioner_pod(true), told, helper];
    check("claim", "c", &objects, Retrying, "helper-pod", &["ImagePullBackOff: no such image"]);
}

#[test]
fn released_volume() {
    let earlier = json!({"spec": {"claimRef": {"namespace": "ns", "name": "c", "uid": "earlier"}}, "status": {"phase": "Released"}});
    let objects = [claim("c", json!({})), volume("v", earlier)];
    let words = ["an earlier claim ns/c", r#"{"spec":{"claimRef":{"uid":null,"resourceVersion":null}}}"#, "data"];
    check("claim", "c", &objects, Stuck, "volume-released", &words);
    check("volume", "v", &objects, Stuck, "volume-released", &["policy Retain", r#"{"spec":{"claimRef":null}}"#]);
    let other =
        json!({"spec": {"claimRef": {"namespace": "ns", "name": "gone", "uid": "x"}}, "status": {"phase": "Released"}});
    let objects = [claim("c", json!({})), volume("v", other)];
    check("claim", "c", &objects, Stuck, "volume-released", &["data of claim ns/gone", r#"{"claimRef":null}"#]);
}

#[test]
fn named_volume() {
    let named = claim("c", json!({"spec": {"volumeName": "disk-1"}}));
    check("claim", "c", &[named.clone(), volume("disk-2", json!({}))], Stuck, "named-volume-missing", &["disk-2"]);
    let objects = [named, volume("disk-1", json!({"spec": {"storageClassName": "fast"}}))];
    check("claim", "c", &objects, Stuck, "named-volume-differs", &[r#"its class is "fast", the claim's none"#]);
}

/// Each difference is told, the nearest volume comes first, and what is to be done mends it.
#[test]
fn table_of_candidates() {
    let wanted = json!({"spec": {"storageClassName": "manual", "selector": {"matchLabels": {"tier": "gold"}}}});
    let labels = json!({"metadata": {"labels": {"tier": "gold"}}, "spec": {"storageClassName": "manual"}});
    let like = |name: &str, change: Value| with(volume(name, labels.clone()), change);
    for (change, refused, mended) in [
        (
            json!({"spec": {"capacity": {"storage": "1Gi"}}}),
            "it has 1Gi, the claim requests 5Gi",
            r#"{"storage":"5Gi"}"#,
        ),
        (
            json!({"spec": {"accessModes": ["ReadOnlyMany"]}}),
            "it lacks ReadWriteOnce and has ReadOnlyMany",
            r#""accessModes":["ReadOnlyMany","ReadWriteOnce"]"#,
        ),
        (
            json!({"spec": {"volumeMode": "Block"}}),
            "its volumeMode is Block, the claim's Filesystem",
            "volumeMode: Block",
        ),
        (
            json!({"spec": {"storageClassName": "other"}}),
            r#"its class is "other", the claim's "manual""#,
            r#"{"storageClassName":"manual"}"#,
        ),
        (
            json!({"metadata": {"labels": null}}),
            "its labels do not match the claim's selector",
            "kubectl label pv near --overwrite tier=gold",
        ),
        (json!({"status": {"phase": "Failed"}}), "it is Failed", "create a PersistentVolume that fits"),
        (
            json!({"metadata": {"deletionTimestamp": "2026-01-01T11:59:00Z"}}),
            "it is being deleted",
            "create a PersistentVolume",
        ),
    ] {
        let far = json!({"spec": {"storageClassName": "x", "claimRef": {"namespace": "ns", "name": "c2", "uid": "u"}}, "status": {"phase": "Bound"}});
        let other = with(claim("c2", json!({})), json!({"metadata": {"uid": "u"}, "status": {"phase": "Bound"}}));
        let gone = json!({"metadata": {"labels": null, "deletionTimestamp": "2026-01-01T11:59:00Z"}, "spec": {"capacity": {"storage": "1"}}});
        let objects =
            [claim("c", wanted.clone()), other, volume("bound", far), like("gone", gone), like("near", change)];
        let answer =
            check("claim", "c", &objects, Stuck, "no-fitting-volume", &[refused, mended, "Nearest miss: near"]);
        assert_eq!(answer.candidates.len(), 3);
        assert_eq!(answer.candidates[0].refused, [refused]);
    }
    check("claim", "c", &[claim("c", wanted)], Stuck, "class-not-found", &["there are no classes"]);
    check("claim", "c", &[claim("c", json!({}))], Stuck, "no-volumes", &["there is no volume at all"]);
}

#[test]
fn binder_is_dead() {
    let objects = [claim("c", json!({})), volume("v", json!({}))];
    check("claim", "c", &objects, Stuck, "binder-not-running", &["although volume v fits"]);
    let fresh = claim("c", json!({"metadata": {"creationTimestamp": ago(1)}}));
    check("claim", "c", &[fresh, volume("v", json!({}))], Waiting, "binding", &[]);
}

#[test]
fn selector_on_a_dynamic_class() {
    let selects = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}});
    let objects = [dynamic_claim(selects), class("fast", DYNAMIC, false), provisioner_pod(true)];
    check("claim", "c", &objects, Stuck, "selector-not-supported", &["without spec.selector"]);
}

#[test]
fn scheduler_was_bypassed() {
    let direct = pod("web", json!({"spec": {"nodeName": "n1"}}));
    let objects = [dynamic_claim(json!({})), class("fast", DYNAMIC, true), direct.clone(), node("n1", true)];
    check("claim", "c", &objects, Stuck, "scheduler-bypassed", &["past the scheduler", "nodeSelector"]);
    check("pod", "web", &objects, Stuck, "scheduler-bypassed", &["volume \"data\""]);
    let mine = with(direct, json!({"spec": {"schedulerName": "mine"}}));
    let bound = event("Pod", "web", "Scheduled", "Successfully assigned ns/web to n1");
    let objects = [objects[0].clone(), objects[1].clone(), mine, node("n1", true), bound];
    check("claim", "c", &objects, Stuck, "custom-scheduler", &["scheduler mine put pod web"]);
}

#[test]
fn scheduler_is_silent() {
    let objects = [
        dynamic_claim(json!({})),
        class("fast", DYNAMIC, true),
        pod("web", json!({"spec": {"schedulerName": "mine"}})),
        node("n1", true),
    ];
    check("claim", "c", &objects, Stuck, "scheduler-not-running", &["\"mine\"", "spec.schedulerName"]);
    check("pod", "web", &objects, Stuck, "scheduler-not-running", &["\"mine\""]);
}

#[test]
fn provisioner_was_removed() {
    let objects = [dynamic_claim(json!({})), class("fast", "kubernetes.io/gce-pd", false)];
    check(
        "claim",
        "c",
        &objects,
        Stuck,
        "provisioner-removed",
        &["pd.csi.storage.gke.io", "no longer contains", "--stand-in gce-pd"],
    );
    check("class", "fast", &objects, Stuck, "provisioner-removed", &["pd.csi.storage.gke.io"]);
    let gone = class("fast", "kubernetes.io/glusterfs", false);
    check("class", "fast", &[gone], Stuck, "provisioner-removed", &["kubectl delete storageclass fast"]);
    let driver = json!({"kind": "CSIDriver", "metadata": {"name": "pd.csi.storage.gke.io"}, "spec": {}});
    let objects = [objects[0].clone(), objects[1].clone(), driver];
    check("claim", "c", &objects, Stuck, "provisioner-not-running", &["nothing runs that provisioner"]);
}

#[test]
fn pod_waits_for_its_claim() {
    let event = event(
        "Pod",
        "web",
        "FailedScheduling",
        "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
    );
    let objects = [pod("web", json!({})), claim("c", json!({})), node("n1", true), event];
    check("pod", "web", &objects, Stuck, "no-volumes", &["volume \"data\": claim ns/c is Pending"]);
    let other = claim("cc", json!({}));
    check("pod", "web", &[pod("web", json!({})), other], Stuck, "claim-not-found", &["similar name: cc"]);
}

#[test]
fn volume_is_on_another_node() {
    let objects = [pod("web", json!({})), bound_claim("v"), volume_on("v", "old-node"), node("n1", true)];
    let words = ["PersistentVolume v", "kubernetes.io/hostname In old-node", "the nodes n1"];
    check("pod", "web", &objects, Stuck, "volume-out-of-reach", &words);
    let lost = [pod("web", json!({})), bound_claim("v"), volume_on("v", "n1"), node("n1", false), node("n2", true)];
    check("pod", "web", &lost, Stuck, "volume-node-unavailable", &["only on node n1, which is not ready"]);
    let cordoned = with(node("n1", true), json!({"spec": {"unschedulable": true}}));
    let objects = [pod("web", json!({})), bound_claim("v"), volume_on("v", "n1"), cordoned, node("n2", true)];
    check("pod", "web", &objects, Stuck, "volume-node-unavailable", &["cordoned", "kubectl uncordon n1"]);
}

#[test]
fn volume_is_on_a_full_node() {
    let full = event(
        "Pod",
        "web",
        "FailedScheduling",
        "0/2 nodes are available: 1 Insufficient memory, 1 node(s) had volume affinity",
    );
    let objects =
        [pod("web", json!({})), bound_claim("v"), volume_on("v", "n1"), node("n1", true), node("n2", true), full];
    check("pod", "web", &objects, Retrying, "volume-node-full", &["on node n1 only", "Insufficient memory"]);
}

#[test]
fn what_the_scheduler_says() {
    for (message, cause) in [
        ("1 node(s) did not have enough free storage", "capacity"),
        ("1 Insufficient topolvm.io/capacity", "capacity"),
        ("1 node(s) exceed max volume count", "attach-limit"),
        ("1 node(s) had volume node affinity conflict", "volume-out-of-reach"),
        ("1 Insufficient cpu", "not-about-volumes"),
    ] {
        let told = event("Pod", "web", "FailedScheduling", &format!("0/1 nodes are available: {message}."));
        let objects = [pod("web", json!({})), bound_claim("v"), volume("v", json!({})), node("n1", true), told];
        check("pod", "web", &objects, Retrying, cause, &[message]);
    }
}

#[test]
fn claim_for_one_pod_alone() {
    let claim = with(bound_claim("v"), json!({"spec": {"accessModes": ["ReadWriteOncePod"]}}));
    let message = "0/1 nodes are available: 1 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod.";
    let told = event("Pod", "web", "FailedScheduling", message);
    let other = pod("first", json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}));
    let objects = [pod("web", json!({})), claim, volume("v", json!({})), node("n1", true), told, other];
    check("pod", "web", &objects, Stuck, "claim-exclusive", &["pod first has it", "kubectl delete pod first -n ns"]);
}

fn on_node(change: Value) -> Value {
    with(pod("web", json!({"spec": {"nodeName": "n2"}})), change)
}

#[test]
fn attached_elsewhere() {
    let told = event(
        "Pod",
        "web",
        "FailedAttachVolume",
        "Multi-Attach error for volume \"v\" Volume is already exclusively attached to one node and can't be attached to another",
    );
    let attachment = json!({"kind": "VolumeAttachment", "metadata": {"name": "csi-1"},
        "spec": {"attacher": "d", "nodeName": "n1", "source": {"persistentVolumeName": "v"}}});
    let base = [on_node(json!({})), bound_claim("v"), volume("v", json!({})), node("n2", true), told, attachment];
    let and = |more: &[Value]| [&base[..], more].concat();
    let dead = and(&[node("n1", false)]);
    check("pod", "web", &dead, Retrying, "multi-attach-dead-node", &["volume \"data\"", "csi-1", "out-of-service"]);
    check(
        "pod",
        "web",
        &and(&[node("n1", true)]),
        Stuck,
        "stale-attachment",
        &["kubectl delete volumeattachment csi-1"],
    );
    let user =
        pod("old", json!({"spec": {"nodeName": "n1"}, "metadata": {"deletionTimestamp": "2026-01-01T11:50:00Z"}}));
    check("pod", "web", &and(&[node("n1", true), user]), Retrying, "multi-attach", &["pod old, which is Terminating"]);
}

#[test]
fn driver_is_not_registered() {
    let told = event(
        "Pod",
        "web",
        "FailedMount",
        "MountVolume.MountDevice failed for volume \"v\" : kubernetes.io/csi: driver name disks.example.com not found in the list of registered CSI drivers",
    );
    let registered = json!({"kind": "CSINode", "metadata": {"name": "n2"}, "spec": {"drivers": [{"name": "other.example.com", "nodeID": "n2"}]}});
    let objects = [on_node(json!({})), bound_claim("v"), volume("v", json!({})), node("n2", true), told, registered];
    let words = ["no CSIDriver disks.example.com", "registered on node n2: other.example.com", "spec.nodeName=n2"];
    check("pod", "web", &objects, Retrying, "driver-not-registered", &words);
}

/// The summary that names every volume is not what is told if one volume has said more.
#[test]
fn what_the_node_says() {
    let summary = "Unable to attach or mount volumes: unmounted volumes=[data other], unattached volumes=[]: timed out waiting for the condition";
    for (message, cause) in [
        (
            "MountVolume.SetUp failed for volume \"data\" : hostPath type check failed: /x is not a directory",
            "host-path-type",
        ),
        (
            "MountVolume.SetUp failed for volume \"data\" : mount failed: exit status 32 wrong fs type, bad option, bad superblock",
            "mount-helper",
        ),
        ("MountVolume.SetUp failed for volume \"data\" : Volume is already used by pod(s) x", "used-by-other-pod"),
        (
            "MountVolume.SetUp failed for volume \"data\" : failed to sync configmap cache: timed out waiting for the condition",
            "mount-timeout",
        ),
        ("MountVolume.SetUp failed for volume \"data\" : object \"ns\"/\"x\" not registered", "node-cache"),
        (
            "MountVolume.SetUp failed for volume \"data\" : nfs s:/x cannot be mounted: the server has no such directory to \
             export; correct the volume's nfs.path, or export it: No such file or directory (os error 2)",
            "nfs-server",
        ),
        ("MountVolume.SetUp failed for volume \"data\" : mount.nfs: access denied by server", "mount-helper"),
        (
            "MountVolume.NewMounter initialization failed for volume \"data\" : path \"/x\" does not exist",
            "path-missing",
        ),
        ("MountVolume.SetUp failed for volume \"data\" : conflicting SELinux labels of volume", "selinux-conflict"),
        (
            "MountVolume.SetUp failed for volume \"data\" : mount failed: no server, or no brick of the volume, answers: \
             Transport endpoint is not connected (os error 107)",
            "storage-unreachable",
        ),
        (
            "MountVolume.SetUp failed for volume \"data\" : no volume plugin matched: this node has no program /f/d for driver",
            "mount-helper",
        ),
        (
            "MountVolume.SetUp failed for volume \"data\" : kubernetes.io/csi: volume mode \"Ephemeral\" not supported by driver x (no CSIDriver object)",
            "driver-not-installed",
        ),
        (
            "AttachVolume.Attach failed for volume \"ebs.csi.aws.com-1\" : timed out. There is no CSIDriver ebs.csi.aws.com; see that \
             the driver is installed (the pod's volume \"data\")",
            "driver-not-installed",
        ),
        (
            "MountVolume.SetUp failed for volume \"data\" : cannot find this node in Flocker: the certificate /c cannot be used: \
             No such file or directory",
            "flocker",
        ),
        ("MountVolume.SetUp failed for volume \"data\" : clone of h failed: Connection refused", "git-clone"),
        (
            "MountVolume.SetUp failed for volume \"data\" : endpoints \"e\" not found in namespace \"n\"",
            "endpoints-missing",
        ),
        (
            "MountVolume.SetUp failed for volume \"data\" : volume \"v\": couldn't get secret n/s error: x",
            "secret-missing",
        ),
        (
            "MountVolume.SetUp failed for volume \"data\" : combination of signerName and labelSelector matched zero ClusterTrustBundles",
            "trust-bundle-missing",
        ),
        ("MountVolume.SetUp failed for volume \"data\" : no fc disk found: x", "disk-missing"),
        (
            "FailedMount volume \"data\": volume data has volumeMode Block, but is specified in volumeMounts",
            "volume-mode",
        ),
        (
            "MountVolume.SetUp failed for volume \"data\" : Mount options are not supported for this type",
            "mount-options",
        ),
        (
            "MountVolume.SetUp failed for volume \"data\" : path \"a/b\" cannot be a file: \"a\" is one too, of the same volume; x",
            "paths-collide",
        ),
        (
            "MountVolume.SetUp failed for volume \"data\" : local volume path /x is not usable: only directory and block device",
            "path-unusable",
        ),
        ("MountVolume.SetUp failed for volume \"data\" : oops", "mount-failed"),
    ] {
        let mut vague = event("Pod", "web", "FailedMount", summary);
        vague["lastTimestamp"] = ago(1).into();
        let objects = [
            on_node(json!({})),
            bound_claim("v"),
            volume("v", json!({})),
            node("n2", true),
            vague,
            event("Pod", "web", "FailedMount", message),
        ];
        let answer = check("pod", "web", &objects, Retrying, cause, &["tried again by 2026-01-01T12:0"]);
        if cause != "mount-timeout" {
            assert!(answer.state.contains(message) && answer.state.contains("volume \"data\""), "{}", answer.state);
        }
    }
}

#[test]
fn what_is_wrong_in_the_pod_itself_never_ends() {
    for why in
        ["unknown storage medium \"x\"", "container c not found", "medium HugePages: hugePages storage requested, but"]
    {
        let message = format!("MountVolume.SetUp failed for volume \"data\" : {why}");
        let told = event("Pod", "web", "FailedMount", &message);
        let objects = [on_node(json!({})), bound_claim("v"), volume("v", json!({})), node("n2", true), told];
        check("pod", "web", &objects, Stuck, "pod-invalid", &[why, "in a new pod"]);
    }
}

#[test]
fn a_volume_whose_server_does_not_answer() {
    let told = event("Pod", "web", "SlowMount", "MountVolume.SetUp for volume \"data\" goes on for more than 20 s: x");
    let objects = [on_node(json!({})), bound_claim("v"), volume("v", json!({})), node("n2", true), told];
    check("pod", "web", &objects, Retrying, "mount-slow", &["volume \"data\"", "answers"]);
}

#[test]
fn what_a_container_wants_of_its_volumes() {
    let waits = |reason: &str, message: &str, spec: Value| {
        let state = json!({"waiting": {"reason": reason, "message": message}});
        let status = json!({"containerStatuses": [{"name": "main", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": state}]});
        [on_node(json!({"spec": spec, "status": status})), bound_claim("v"), volume("v", json!({})), node("n2", true)]
    };
    let image = json!({"volumes": [{"name": "model", "image": {"reference": "r/m:1"}}]});
    let cases = [
        (
            "CreateContainerConfigError",
            "failed to prepare subPath for volumeMount \"data\" of container \"main\": its subPath leads out of the volume",
            json!({}),
            ("sub-path", "in a new pod"),
        ),
        (
            "CreateContainerConfigError",
            "missing value for \"X\": subPathExpr of volumeMount \"data\"",
            json!({}),
            ("sub-path", "X"),
        ),
        (
            "ErrImagePull",
            "r/m:1: not found (volume \"model\")",
            image.clone(),
            ("image-volume", "holdfast image import"),
        ),
        ("ErrImagePull", "app: not found", image, ("not-about-volumes", "kubectl describe pod web")),
        (
            "CreateContainerConfigError",
            "secret \"s\" not found",
            json!({}),
            ("container-config", "kubectl describe pod web"),
        ),
    ];
    for (reason, message, spec, (cause, word)) in cases {
        check("pod", "web", &waits(reason, message, spec), Retrying, cause, &[message, word]);
    }
}

#[test]
fn a_disk_that_another_pod_has() {
    let disk = |name: &str, node: &str, read: bool| {
        let own = json!([{"name": "d", "iscsi": {"targetPortal": "p", "iqn": "iqn.a", "lun": 1, "readOnly": read}}]);
        pod(name, json!({"spec": {"nodeName": node, "volumes": own}}))
    };
    let said = "0/1 nodes are available: 1 node(s) had no available disk.";
    let told = event("Pod", "web", "FailedScheduling", said);
    let words = ["volume \"d\" is a disk that pod ns/other has", "kubectl delete pod other -n ns", "readOnly"];
    let objects = [disk("web", "", false), disk("reads", "", true), disk("other", "n2", true), node("n2", true), told];
    check("pod", "web", &objects, Retrying, "disk-taken", &words);
}

#[test]
fn owner_of_many_files() {
    let told = event(
        "Pod",
        "web",
        "FailedMount",
        "Unable to attach or mount volumes: unmounted volumes=[data]: timed out waiting for the condition",
    );
    let grouped = on_node(json!({"spec": {"securityContext": {"fsGroup": 7}}}));
    let rest = [bound_claim("v"), volume("v", json!({})), node("n2", true), told];
    check("pod", "web", &[&[grouped][..], &rest].concat(), Retrying, "ownership-change", &["OnRootMismatch"]);
    check("pod", "web", &[&[on_node(json!({}))][..], &rest].concat(), Retrying, "mount-timeout", &["describe node n2"]);
}

#[test]
fn config_is_missing() {
    let volumes = |v: Value| on_node(json!({"spec": {"volumes": [{"name": "fine", "emptyDir": {}}, v]}}));
    let map =
        json!({"kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "ns"}, "data": {"app.conf": "x"}});
    let wants = |name: &str, key: &str| json!({"name": "conf", "configMap": {"name": name, "items": [{"key": key, "path": "p"}]}});
    let objects = [volumes(wants("setings", "app.conf")), map.clone()];
    check(
        "pod",
        "web",
        &objects,
        Stuck,
        "config-missing",
        &["volume \"conf\"", "similar name: settings", "kubectl create configmap"],
    );
    let objects = [volumes(wants("settings", "app.cnf")), map.clone()];
    check(
        "pod",
        "web",
        &objects,
        Stuck,
        "config-key-missing",
        &["has only app.conf", r#"{"data":{"app.cnf":"VALUE"}}"#],
    );
    let objects = [volumes(wants("settings", "app.conf")), map];
    check("pod", "web", &objects, Waiting, "starting", &[]);
    let secret = volumes(json!({"name": "s", "projected": {"sources": [{"secret": {"name": "token"}}]}}));
    check(
        "pod",
        "web",
        &[secret],
        Stuck,
        "config-missing",
        &["Secret \"token\"", "kubectl create secret generic token"],
    );
    let optional = volumes(json!({"name": "s", "secret": {"secretName": "token", "optional": true}}));
    check("pod", "web", &[optional], Waiting, "starting", &[]);
}

#[test]
fn may_not_write() {
    let crashed = on_node(json!({"spec": {"securityContext": {"runAsUser": 1000}},
        "status": {"containerStatuses": [{"name": "main", "image": "x", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}, "lastState": {"terminated": {"exitCode": 1}}}]}}));
    let mut facts = facts(&[crashed, bound_claim("v"), volume("v", json!({})), node("n2", true)]);
    assert_eq!(ask("pod", "web", &facts).cause, "not-about-volumes");
    facts.logs = vec![("main".into(), "starting\nmkdir /data/x: Permission denied\n".into())];
    let answer = ask("pod", "web", &facts);
    assert_eq!((answer.verdict, answer.cause), (Retrying, "permission-denied"));
    assert!(answer.state.contains("mkdir /data/x") && answer.details[0].contains("user 1000"), "{answer:?}");
}

#[test]
fn storage_that_ended() {
    let own = json!({"spec": {"nodeName": "n", "volumes": [{"name": "data", "storageos": {"volumeName": "v"}}]}});
    let words = ["of type storageos", "Akamai", "kubectl get storageclass"];
    check("pod", "web", &[pod("web", own), node("n", true)], Stuck, "storage-ended", &words);
    let old =
        with(volume_on("old", "n"), json!({"spec": {"hostPath": null, "quobyte": {"registry": "r:1", "volume": "v"}}}));
    let claimed = pod("web", json!({"spec": {"nodeName": "n"}}));
    let words = ["of type quobyte", "csi.quobyte.com", "v1.25"];
    check("pod", "web", &[claimed, old.clone(), bound_claim("old"), node("n", true)], Stuck, "storage-ended", &words);
    check("volume", "old", &[old], Stuck, "storage-ended", &["no pod can use it", "csi.quobyte.com"]);
    let objects = [dynamic_claim(json!({})), class("fast", "kubernetes.io/scaleio", false)];
    check("claim", "c", &objects, Stuck, "provisioner-removed", &["PowerFlex", "csi-vxflexos.dellemc.com"]);
}
