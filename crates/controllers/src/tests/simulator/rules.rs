//! What must hold: after every write, and at rest. Written against the objects as the server has them, sharing nothing
//! with the code under test.
use super::*;

const CLAIM: &str = "PersistentVolumeClaim";
const VOLUME: &str = "PersistentVolume";
/// A node that never is.
pub(super) const NOWHERE: &str = "nowhere";
/// By this a claim says for which node its volume is to be made.
pub(super) const SELECTED: &str = "volume.kubernetes.io/selected-node";
const LEGACY: &str = "volume.beta.kubernetes.io/storage-class";

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
fn size(value: &Value) -> usize {
    text(value).trim_end_matches("Gi").parse().unwrap()
}
fn note<'a>(object: &'a Value, name: &str) -> &'a Value {
    &object["metadata"]["annotations"][format!("pv.kubernetes.io/{name}")]
}
fn going(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}
pub(super) fn class_of(object: &Value) -> &str {
    let legacy = &object["metadata"]["annotations"][LEGACY];
    if legacy.is_null() { text(&object["spec"]["storageClassName"]) } else { text(legacy) }
}
/// Whether a claim is bound to its end, and to what.
fn bound_to(claim: &Value) -> Option<&str> {
    (!note(claim, "bind-completed").is_null()).then(|| text(&claim["spec"]["volumeName"]))
}

/// What a volume needs to serve a claim at all, reserved for it or not.
fn serves(claim: &Value, volume: &Value) -> Result<(), &'static str> {
    let (c, v) = (&claim["spec"], &volume["spec"]);
    let offered = v["accessModes"].as_array().unwrap();
    if size(&v["capacity"]["storage"]) < size(&c["resources"]["requests"]["storage"]) {
        return Err("too small");
    } else if c["volumeMode"] != v["volumeMode"] {
        return Err("of another mode");
    } else if c["volumeAttributesClassName"] != v["volumeAttributesClassName"] {
        return Err("of another attributes class");
    } else if !c["accessModes"].as_array().unwrap().iter().all(|m| offered.contains(m)) {
        return Err("without the access mode");
    }
    Ok(())
}

/// What a volume that is nobody's needs besides.
fn suits(claim: &Value, volume: &Value) -> Result<(), &'static str> {
    let wanted = &claim["spec"]["selector"]["matchLabels"]["tier"];
    if class_of(claim) != class_of(volume) {
        return Err("of another class");
    } else if !wanted.is_null() && *wanted != volume["metadata"]["labels"]["tier"] {
        return Err("not selected");
    }
    serves(claim, volume)
}

fn reaches(volume: &Value, node: &str) -> bool {
    let term = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0];
    term.is_null() || term["matchExpressions"][0]["values"][0] == node
}

fn of<'a>(sim: &'a Sim, kind: &'static str) -> impl Iterator<Item = (&'a Key, &'a Value)> {
    sim.api.objects.iter().filter(move |(k, _)| k.kind == kind)
}

fn volume<'a>(sim: &'a Sim, name: &str) -> &'a Value {
    sim.api.get(&Key::new(VOLUME, "", name))
}

/// A claim as one volume of a pod names it.
struct Named<'a> {
    claim: &'a Value,
    /// Made for the pod, as the pod says.
    ephemeral: bool,
}

fn claims_of_pod<'a>(sim: &'a Sim, pod: &Value) -> Vec<Named<'a>> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let named = volumes.map(|v| {
        let ephemeral = !v["ephemeral"].is_null();
        let name = match ephemeral {
            true => format!("{}-{}", text(&pod["metadata"]["name"]), text(&v["name"])),
            false => text(&v["persistentVolumeClaim"]["claimName"]).to_owned(),
        };
        Named { claim: sim.api.get(&Key::new(CLAIM, "ns", &name)), ephemeral }
    });
    named.collect()
}
/// The pod that a claim was made for.
fn owner(claim: &Value) -> &Value {
    &claim["metadata"]["ownerReferences"][0]["uid"]
}
impl Named<'_> {
    fn is_for(&self, pod: &Value) -> bool {
        !self.ephemeral || *owner(self.claim) == pod["metadata"]["uid"]
    }
}
/// Whether a pod that has a node counts on a claim.
fn uses(sim: &Sim, pod: &Value, claim: &Value) -> bool {
    !pod["spec"]["nodeName"].is_null()
        && claims_of_pod(sim, pod)
            .iter()
            .any(|n| n.claim["metadata"]["uid"] == claim["metadata"]["uid"] && n.is_for(pod))
}
fn ended(pod: &Value) -> bool {
    matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed")
}
/// Another pod that runs with a claim that is for one pod alone.
fn has_rival(sim: &Sim, pod: &Value, named: &Named) -> bool {
    let alone = named.claim["spec"]["accessModes"].as_array().unwrap().iter().any(|m| m == "ReadWriteOncePod");
    alone
        && of(sim, "Pod").any(|(_, other)| {
            other["metadata"]["uid"] != pod["metadata"]["uid"] && !ended(other) && uses(sim, other, named.claim)
        })
}

/// After a controller wrote an object.
pub(super) fn after_write(sim: &Sim, who: &str, key: &Key, before: &Value, deletes: bool) {
    let after = sim.api.get(key);
    match key.kind {
        CLAIM => claim_written(sim, key, before, after),
        VOLUME => {
            volume_written(sim, key, before, after, deletes);
            volume_reserved(sim, who, key, before, after);
        }
        "Pod" if !deletes => pod_written(sim, key, before, after),
        _ => {}
    }
    let mut holders = BTreeMap::new();
    for (key, claim) in of(sim, CLAIM) {
        let Some(name) = bound_to(claim).filter(|name| !sim.meddled.contains(*name)) else { continue };
        assert_eq!(holders.insert(name, key), None, "two claims have {name}");
        let holder = &volume(sim, name)["spec"]["claimRef"]["uid"];
        assert_eq!(*holder, claim["metadata"]["uid"], "{name} does not point back at {key}");
    }
}

fn claim_written(sim: &Sim, key: &Key, before: &Value, after: &Value) {
    let name = text(&before["spec"]["volumeName"]);
    if after.is_null() {
        let named = |p: &Value| {
            let volumes = p["spec"]["volumes"].as_array().into_iter().flatten();
            let direct = |v: &Value| v["persistentVolumeClaim"]["claimName"] == *key.name;
            !p["spec"]["nodeName"].is_null() && (volumes.clone().any(direct) || *owner(before) == p["metadata"]["uid"])
        };
        let user = of(sim, "Pod").find(|(_, p)| named(p));
        assert_eq!(user.map(|(k, _)| k), None, "{key} is gone though a pod uses it");
        assert!(going(before), "{key} is gone though nobody deleted it");
        return;
    }
    assert!(name.is_empty() || after["spec"]["volumeName"] == name, "{key} left {name}");
    class_given(sim, key, before, after);
    let phase = |object: &Value| text(&object["status"]["phase"]).to_owned();
    if phase(after) == "Bound" && phase(before) != "Bound" && !sim.meddled.contains(name) {
        let volume = volume(sim, name);
        // It may have been deleted while the claim was on its way; then that is told next.
        assert!(volume.is_null() || phase(volume) == "Bound", "{key} is Bound before {name} is");
    }
    if bound_to(before).is_some() || bound_to(after).is_none() {
        return;
    }
    let name = text(&after["spec"]["volumeName"]);
    let got = volume(sim, name);
    if sim.meddled.contains(name) || got.is_null() {
        return;
    }
    let chosen = !note(after, "bound-by-controller").is_null();
    let free = !note(got, "bound-by-controller").is_null();
    let why = match (chosen, free) {
        // The user named a free volume; the selector is for choosing only.
        (false, true) => {
            serves(after, got).and(if class_of(after) == class_of(got) { Ok(()) } else { Err("of another class") })
        }
        (true, true) => suits(after, got),
        (true, false) => serves(after, got),
        // Both were pointed at each other by people.
        (false, false) => Ok(()),
    };
    assert_eq!(why, Ok(()), "{key} got {name}: {after:#} {got:#}");
}

/// A class that a claim did not ask for is a default one, and is given once.
fn class_given(sim: &Sim, key: &Key, before: &Value, after: &Value) {
    let (old, new) = (&before["spec"]["storageClassName"], &after["spec"]["storageClassName"]);
    if before.is_null() || old == new {
        return;
    }
    let silent = old.is_null() && before["metadata"]["annotations"][LEGACY].is_null();
    assert!(silent, "{key} asked for a class and got another");
    assert!(bound_to(before).is_none(), "{key} is bound and changes its class");
    assert!(sim.defaults.contains(text(new)), "{key} got class {new}, which never was a default");
}

fn volume_written(sim: &Sim, key: &Key, before: &Value, after: &Value, deletes: bool) {
    assert!(!deletes || before["spec"]["persistentVolumeReclaimPolicy"] == "Delete", "{key} was to be retained");
    let uid = |v: &Value| text(&v["spec"]["claimRef"]["uid"]).to_owned();
    if after.is_null() {
        assert!(going(before), "{key} is gone though nobody deleted it");
        let used =
            of(sim, CLAIM).find(|(_, c)| bound_to(c) == Some(&*key.name) && text(&c["metadata"]["uid"]) == uid(before));
        assert_eq!(used.map(|(k, _)| k), None, "{key} is gone though a claim is bound to it");
        return;
    }
    assert!(uid(before).is_empty() || uid(after).is_empty() || uid(before) == uid(after), "{key} changed hands");
    if matches!(text(&before["status"]["phase"]), "Released" | "Failed") && !uid(before).is_empty() {
        let phase = text(&after["status"]["phase"]);
        assert!(matches!(phase, "Released" | "Failed"), "{key} was released and is {phase} again");
        assert_eq!(uid(before), uid(after), "{key} was released and forgot by whom");
    }
}

fn volume_reserved(sim: &Sim, who: &str, key: &Key, before: &Value, after: &Value) {
    let reference = &after["spec"]["claimRef"];
    if before["spec"]["claimRef"] == *reference || reference["uid"].is_null() {
        return;
    }
    let claim = sim.api.get(&Key::new(CLAIM, "ns", text(&reference["name"])));
    // One that is the claim's already, by both or by the claim's having been bound to it, stays so to its end.
    if bound_to(claim) != Some(&*key.name) && before["spec"]["claimRef"].is_null() {
        assert!(!going(before), "{key} was being deleted when it was reserved");
    }
    let affine = !after["spec"]["nodeAffinity"].is_null();
    assert!(who != "scheduler" || !affine || !reaches(after, NOWHERE), "{key} is out of reach of every node");
}

fn pod_written(sim: &Sim, key: &Key, before: &Value, after: &Value) {
    let node = text(&after["spec"]["nodeName"]);
    if node.is_empty() || before["spec"]["nodeName"] == node {
        return;
    }
    for named in claims_of_pod(sim, after) {
        let claim = named.claim;
        let name = bound_to(claim).unwrap_or_else(|| panic!("{key} runs with a claim that is not bound: {claim:#}"));
        let volume = volume(sim, name);
        assert!(volume.is_null() || reaches(volume, node), "{key} runs on {node}, which cannot reach {name}");
        assert!(!going(claim), "{key} runs with a claim that is being deleted: {claim:#}");
        assert!(named.is_for(after), "{key} runs with a claim that was made for another pod: {claim:#}");
        assert!(!has_rival(sim, after, &named), "{key} runs with a claim that another pod has for itself: {claim:#}");
    }
}

/// Once nothing is left to do.
pub(super) fn at_rest(sim: &Sim) {
    for (key, claim) in of(sim, CLAIM) {
        claim_at_rest(sim, key, claim);
    }
    for (key, volume) in of(sim, VOLUME) {
        volume_at_rest(sim, key, volume);
    }
    for (key, pod) in of(sim, "Pod") {
        // The first that somebody else has keeps the next from being made.
        let mut made = claims_of_pod(sim, pod).into_iter().filter(|n| n.ephemeral);
        let stopped = made.find(|n| n.claim.is_null() || !n.is_for(pod));
        assert!(stopped.is_none_or(|n| !n.claim.is_null()), "{key} has no claim for its ephemeral volume");
        let node = &pod["spec"]["nodeName"];
        match node.as_str() {
            None => pod_at_rest(sim, key, pod),
            Some(node) => {
                assert!(!sim.api.get(&Key::new("Node", "", node)).is_null(), "{key} outlives its node {node}");
            }
        }
    }
    for (key, quota) in of(sim, "ResourceQuota") {
        quota_at_rest(sim, key, quota);
    }
}

/// What a quota shows is what there is.
fn quota_at_rest(sim: &Sim, key: &Key, quota: &Value) {
    let sum = |class: Option<&str>| -> usize {
        let of_class = |c: &Value| class.is_none_or(|class| class_of(c) == class);
        let claims = of(sim, CLAIM).filter(|(_, c)| of_class(c));
        claims.map(|(_, c)| size(&c["spec"]["resources"]["requests"]["storage"])).sum()
    };
    let shown = |name: &str| text(&quota["status"]["used"][name]).trim_end_matches("Gi").parse::<usize>().ok();
    let there = [
        ("persistentvolumeclaims", of(sim, CLAIM).count()),
        ("count/pods", of(sim, "Pod").count()),
        ("requests.storage", sum(None)),
        ("k.storageclass.storage.k8s.io/requests.storage", sum(Some("k"))),
    ];
    for (name, there) in there {
        assert_eq!(shown(name), Some(there), "{key} shows something else of {name}: {quota:#}");
    }
    assert_eq!(quota["status"]["hard"], quota["spec"]["hard"], "{key}");
}

fn is_for(volume: &Value, claim: &Value) -> bool {
    let reference = &volume["spec"]["claimRef"];
    reference["name"] == claim["metadata"]["name"]
        && (reference["uid"].is_null() || reference["uid"] == claim["metadata"]["uid"])
}

fn claim_at_rest(sim: &Sim, key: &Key, claim: &Value) {
    let phase = sim.api.phase(key);
    let named = text(&claim["spec"]["volumeName"]);
    if let Some(name) = bound_to(claim) {
        let pair = volume(sim, name)["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"];
        assert_eq!(phase, if pair { "Bound" } else { "Lost" }, "{key} and {name}");
    } else if !named.is_empty() {
        assert_eq!(phase, "Pending", "{key}");
        let volume = volume(sim, named);
        let free = !volume.is_null()
            && volume["spec"]["claimRef"].is_null()
            && serves(claim, volume).is_ok()
            && class_of(claim) == class_of(volume)
            && !going(volume);
        assert!(!free && !is_for(volume, claim), "{key} waits for {named}, which it could have");
    } else {
        assert_eq!(phase, "Pending", "{key}");
        let says = !claim["spec"]["storageClassName"].is_null() || !claim["metadata"]["annotations"][LEGACY].is_null();
        let default = of(sim, "StorageClass")
            .find(|(_, c)| c["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true");
        assert!(says || default.is_none(), "{key} has no class though there is a default: {default:?}");
        let class = sim.api.get(&Key::new("StorageClass", "", class_of(claim)));
        let late = class["volumeBindingMode"] == "WaitForFirstConsumer";
        for (other, volume) in of(sim, VOLUME).filter(|(_, v)| !going(v)) {
            let reserved = is_for(volume, claim) && serves(claim, volume).is_ok();
            let free = !late && volume["spec"]["claimRef"].is_null() && suits(claim, volume).is_ok();
            assert!(!(reserved || free), "{key} waits, and {other} would do");
        }
    }
    let used = of(sim, "Pod").any(|(_, p)| uses(sim, p, claim));
    assert!(!going(claim) || used, "{key} was deleted, nobody uses it, and it is still there");
    let owner = owner(claim);
    let owned = owner.is_null() || of(sim, "Pod").any(|(_, p)| p["metadata"]["uid"] == *owner);
    assert!(owned || going(claim), "{key} outlives the pod that it was made for");
}

fn volume_at_rest(sim: &Sim, key: &Key, volume: &Value) {
    let phase = sim.api.phase(key);
    let reference = &volume["spec"]["claimRef"];
    if reference["uid"].is_null() {
        assert_eq!(phase, "Available", "{key}");
        assert!(!going(volume), "{key} was deleted, nobody uses it, and it is still there");
        return;
    }
    let claim = sim.api.get(&Key::new(CLAIM, "ns", text(&reference["name"])));
    if claim["metadata"]["uid"] != reference["uid"] {
        assert!(matches!(phase, "Released" | "Failed"), "{key} is {phase} after its claim went");
        assert!(!going(volume), "{key} was deleted, nobody uses it, and it is still there");
    } else if claim["spec"]["volumeName"] == *key.name {
        assert_eq!(phase, "Bound", "{key}");
    } else if claim["spec"]["volumeName"].is_null() {
        // Only somebody else may have written a UID into a volume that does not do.
        assert!(note(volume, "bound-by-controller").is_null(), "{key} is reserved for a claim that cannot have it");
    } else {
        let provisioned = !note(volume, "provisioned-by").is_null();
        assert!(provisioned && matches!(phase, "Released" | "Failed"), "{key} is kept from others by {claim:#}");
    }
}

fn pod_at_rest(sim: &Sim, key: &Key, pod: &Value) {
    let claims = claims_of_pod(sim, pod);
    let hopeless = |n: &Named| {
        n.claim.is_null()
            || going(n.claim)
            || !n.is_for(pod)
            || n.claim["status"]["phase"] == "Lost"
            || has_rival(sim, pod, n)
    };
    if going(pod) || ended(pod) || claims.iter().any(hopeless) {
        return;
    }
    // A claim may be named twice.
    let claims: BTreeMap<&str, &Value> = claims.iter().map(|n| (text(&n.claim["metadata"]["name"]), n.claim)).collect();
    let claims: Vec<&Value> = claims.into_values().collect();
    for (node, object) in of(sim, "Node").filter(|(_, n)| n["spec"]["unschedulable"] != true) {
        assert!(!could_run(sim, &claims, &node.name), "{key} waits though it could run on {node}: {object:#}");
    }
}

/// Whether nothing that is to be awaited keeps claims from all being had on a node.
fn could_run(sim: &Sim, claims: &[&Value], node: &str) -> bool {
    let (bound, waiting): (Vec<&Value>, Vec<&Value>) = claims.iter().partition(|c| bound_to(c).is_some());
    let in_reach = |c: &&Value| {
        let volume = volume(sim, bound_to(c).unwrap());
        text(&c["status"]["phase"]) == "Bound" && !volume.is_null() && reaches(volume, node)
    };
    if !bound.iter().all(in_reach) {
        return false;
    }
    let mut sizes = Vec::new();
    let mut to_make = 0;
    for claim in &waiting {
        let class = sim.api.get(&Key::new("StorageClass", "", class_of(claim)));
        let asked = !claim["metadata"]["annotations"][SELECTED].is_null();
        let reserved = of(sim, VOLUME).any(|(_, v)| is_for(v, claim));
        let late = class["volumeBindingMode"] == "WaitForFirstConsumer";
        // One that was asked for, or is reserved, is somebody else's move; where it ends is known then only.
        if !late || asked || reserved || !claim["spec"]["volumeName"].is_null() {
            return false;
        }
        match class["provisioner"] == "csi.example.com" {
            true => to_make += 1,
            false => sizes.push(size(&claim["spec"]["resources"]["requests"]["storage"])),
        }
    }
    let free = |claim: &Value| -> Vec<usize> {
        let free = of(sim, VOLUME).filter(|(_, v)| {
            v["spec"]["claimRef"].is_null() && !going(v) && suits(claim, v).is_ok() && reaches(v, node)
        });
        free.map(|(_, v)| size(&v["spec"]["capacity"]["storage"])).collect()
    };
    if to_make > 0 {
        // With others that take volumes it depends on which are left; alone they are asked for at once.
        return to_make == waiting.len();
    }
    // Which volume goes to which of several claims is known where the claims differ in nothing but size.
    let alike = |c: &&Value| {
        let mut spec = c["spec"].clone();
        spec["resources"] = Value::Null;
        (spec, class_of(c).to_owned())
    };
    match &waiting[..] {
        [] => true,
        [one] => !free(one).is_empty(),
        [first, rest @ ..] if rest.iter().all(|c| alike(c) == alike(first)) => {
            let mut least: Vec<&&Value> = waiting.iter().collect();
            least.sort_by_key(|c| size(&c["spec"]["resources"]["requests"]["storage"]));
            most_pairs(free(least[0]), sizes.clone()) == sizes.len()
        }
        _ => false,
    }
}

/// How many claims can have a volume of their own that is not smaller.
pub(super) fn most_pairs(mut volumes: Vec<usize>, mut claims: Vec<usize>) -> usize {
    volumes.sort_unstable();
    claims.sort_unstable();
    let mut volumes = volumes.into_iter();
    claims.into_iter().take_while(|claim| volumes.any(|v| v >= *claim)).count()
}
