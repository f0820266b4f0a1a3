//! What must hold: after every write, and at rest. Written against the objects as the server has them, sharing nothing
//! with the code under test.
use super::*;

const CLAIM: &str = "PersistentVolumeClaim";
const VOLUME: &str = "PersistentVolume";
/// A node that never is.
pub(super) const NOWHERE: &str = "nowhere";
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

fn claims_of_pod<'a>(sim: &'a Sim, pod: &Value) -> &'a Value {
    sim.api.get(&Key::new(CLAIM, "ns", text(&pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"])))
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
        "Pod" if !deletes => pod_written(sim, before, after),
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
        let uses = |p: &Value| p["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == *key.name;
        let user = of(sim, "Pod").find(|(_, p)| !p["spec"]["nodeName"].is_null() && uses(p));
        assert_eq!(user.map(|(k, _)| k), None, "{key} is gone though a pod uses it");
        assert!(going(before), "{key} is gone though nobody deleted it");
        return;
    }
    assert!(name.is_empty() || after["spec"]["volumeName"] == name, "{key} left {name}");
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

fn pod_written(sim: &Sim, before: &Value, after: &Value) {
    let node = text(&after["spec"]["nodeName"]);
    if node.is_empty() || before["spec"]["nodeName"] == node {
        return;
    }
    let claim = claims_of_pod(sim, after);
    let name = bound_to(claim).unwrap_or_else(|| panic!("a pod runs whose claim is not bound: {claim:#}"));
    let volume = volume(sim, name);
    assert!(volume.is_null() || reaches(volume, node), "a pod runs on {node}, which cannot reach {name}");
}

/// Once nothing is left to do.
pub(super) fn at_rest(sim: &Sim) {
    for (key, claim) in of(sim, CLAIM) {
        claim_at_rest(sim, key, claim);
    }
    for (key, volume) in of(sim, VOLUME) {
        volume_at_rest(sim, key, volume);
    }
    for (key, pod) in of(sim, "Pod").filter(|(_, p)| p["spec"]["nodeName"].is_null()) {
        pod_at_rest(sim, key, pod);
    }
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
        let class = sim.api.get(&Key::new("StorageClass", "", class_of(claim)));
        let late = class["volumeBindingMode"] == "WaitForFirstConsumer";
        for (other, volume) in of(sim, VOLUME).filter(|(_, v)| !going(v)) {
            let reserved = is_for(volume, claim) && serves(claim, volume).is_ok();
            let free = !late && volume["spec"]["claimRef"].is_null() && suits(claim, volume).is_ok();
            assert!(!(reserved || free), "{key} waits, and {other} would do");
        }
    }
    let used = of(sim, "Pod").any(|(_, p)| {
        !p["spec"]["nodeName"].is_null() && p["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == *key.name
    });
    assert!(!going(claim) || used, "{key} was deleted, nobody uses it, and it is still there");
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
    let claim = claims_of_pod(sim, pod);
    let alone = claim["spec"]["accessModes"][0] == "ReadWriteOncePod";
    if claim.is_null() || going(claim) || going(pod) || alone || sim.api.phase(&key.clone()) == "Succeeded" {
        return;
    }
    let class = sim.api.get(&Key::new("StorageClass", "", class_of(claim)));
    let late = class["volumeBindingMode"] == "WaitForFirstConsumer";
    let asked = !claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"].is_null();
    for (node, _) in of(sim, "Node") {
        let runs = match bound_to(claim) {
            Some(name) => text(&claim["status"]["phase"]) == "Bound" && reaches(volume(sim, name), &node.name),
            None => {
                late && !asked
                    && claim["spec"]["volumeName"].is_null()
                    && of(sim, VOLUME).any(|(_, v)| {
                        let free = v["spec"]["claimRef"].is_null() && !going(v);
                        free && suits(claim, v).is_ok() && reaches(v, &node.name)
                    })
            }
        };
        assert!(!runs, "{key} waits though it could run on {node}");
    }
}

/// How many claims can have a volume of their own that is not smaller.
pub(super) fn most_pairs(mut volumes: Vec<usize>, mut claims: Vec<usize>) -> usize {
    volumes.sort_unstable();
    claims.sort_unstable();
    let mut volumes = volumes.into_iter();
    claims.into_iter().take_while(|claim| volumes.any(|v| v >= *claim)).count()
}
