//! What is told about a volume and what the binder does with it are the same.
use jiff::Timestamp;
use serde_json::{Value, json};

use super::entry;
use crate::{Key, Object, World, candidate::differences, claim, claim::Place};

/// Each change makes the volume differ from what the claim wants; every set of them is tried.
#[test]
fn a_volume_is_taken_if_and_only_if_nothing_speaks_against_it() {
    let changes: [fn(&mut Value); 9] = [
        |v| v["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z"),
        |v| v["spec"]["capacity"]["storage"] = json!("1Gi"),
        |v| v["spec"]["storageClassName"] = json!("other"),
        |v| v["spec"]["accessModes"] = json!(["ReadOnlyMany"]),
        |v| v["spec"]["volumeMode"] = json!("Block"),
        |v| v["metadata"]["labels"] = json!({}),
        |v| v["status"]["phase"] = json!("Released"),
        |v| v["spec"]["claimRef"] = json!({"namespace": "ns", "name": "c", "uid": "earlier"}),
        |v| v["spec"]["claimRef"] = json!({"namespace": "ns", "name": "c"}),
    ];
    let wanted = entry(
        &json!({"kind": "PersistentVolumeClaim", "metadata": {"namespace": "ns", "name": "c", "uid": "u"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}, "storageClassName": "",
            "selector": {"matchLabels": {"a": "b"}}}, "status": {"phase": "Pending"}}),
    );
    let Object::Claim(of) = &wanted.object else { panic!("a claim") };
    let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
    let mut taken = 0;
    for set in 0..1_u32 << changes.len() {
        let mut volume = json!({"kind": "PersistentVolume", "metadata": {"name": "v", "labels": {"a": "b"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "5Gi"}}, "status": {"phase": "Available"}});
        changes.iter().enumerate().filter(|(i, _)| set & (1 << i) != 0).for_each(|(_, change)| change(&mut volume));
        let mut world = World::default();
        let volume_entry = entry(&volume);
        let Object::Volume(v) = volume_entry.object.clone() else { panic!("a volume") };
        world.apply(Key::new("PersistentVolume", "", "v"), Some(volume_entry), now);
        let best = claim::best_volume(&world, (&wanted.meta, of), Place::Anywhere, &[]).is_some();
        let against = differences(&wanted.meta, of, &v);
        assert_eq!(best, against.is_empty(), "{against:?} {volume}");
        taken += u32::from(best);
    }
    // The one that fits, and those reserved by hand whatever their class, labels, phase and earlier reservation.
    assert_eq!(taken, 17);
}
