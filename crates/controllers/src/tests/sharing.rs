//! Who is told of free volumes, and what of them is left out while it is being reserved.
use serde_json::json;

use super::*;
use crate::Decision;

/// Two free volumes of 1Gi and one of 5Gi; four claims of 1Gi.
fn crowd(late: bool) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.make(class("k", "kubernetes.io/no-provisioner", late));
    for (name, size) in [("a", "1Gi"), ("b", "1Gi"), ("c", "5Gi")] {
        let volume = cluster.make(pv(name, size, json!({})));
        cluster.edit(&volume, json!({ "status": { "phase": "Available" } }));
    }
    for name in ["w", "x", "y", "z"] {
        cluster.make(pvc(name, "1Gi", json!({})));
    }
    let objects = cluster.objects.clone();
    cluster.refresh(&objects);
    cluster
}

fn decide(cluster: &Cluster, key: &Key) -> Decision {
    let binder = CONTROLLERS.iter().find(|c| c.name == "binder").unwrap();
    (binder.decide)(key, &cluster.world, &Context { now: cluster.now, root_ca: None })
}

fn woken(cluster: &Cluster) -> Vec<String> {
    decide(cluster, &Key::new("StorageClass", "", "k")).wake.iter().map(|k| k.name.to_string()).collect()
}

#[test]
fn as_many_claims_are_woken_as_there_are_volumes_for_them() {
    assert_eq!(woken(&crowd(false)), ["w", "x", "y"]);
    assert!(woken(&crowd(true)).is_empty(), "the scheduler chooses");
}

#[test]
fn a_claim_that_has_a_volume_is_not_told_of_others() {
    let mut cluster = crowd(false);
    let mut reserve = |uid: Option<&str>| {
        let reference = json!({ "namespace": "ns", "name": "w", "uid": uid });
        cluster.edit(&Key::new("PersistentVolume", "", "a"), json!({ "spec": { "claimRef": reference } }));
        let objects = cluster.objects.clone();
        cluster.refresh(&objects);
        woken(&cluster)
    };
    assert_eq!(reserve(None), ["x", "y"]);
    assert_eq!(reserve(Some("of another claim of that name")), ["w", "x"]);
}

#[test]
fn a_held_volume_goes_to_nobody_until_it_is_released() {
    let mut cluster = crowd(false);
    let claim = Key::new("PersistentVolumeClaim", "ns", "w");
    let chosen = |cluster: &Cluster| decide(cluster, &claim).holds().map(|k| k.name.to_string());
    let (a, b) = (Key::new("PersistentVolume", "", "a"), Key::new("PersistentVolume", "", "b"));
    assert_eq!(chosen(&cluster).as_deref(), Some("a"));
    cluster.world.hold(a.clone());
    assert_eq!(chosen(&cluster).as_deref(), Some("b"));
    cluster.world.hold(b);
    assert_eq!(chosen(&cluster).as_deref(), Some("c"));
    assert_eq!(woken(&cluster), ["w"]);
    // Nothing came of the write: whoever waits is told again.
    let change = cluster.world.release(&a).expect("it is free still");
    let mut keys = Vec::new();
    let binder = CONTROLLERS.iter().find(|c| c.name == "binder").unwrap();
    (binder.wakes)(&cluster.world, &change, &mut |key| keys.push(key));
    assert!(keys.contains(&Key::new("StorageClass", "", "k")));
    assert_eq!(chosen(&cluster).as_deref(), Some("a"));
}
