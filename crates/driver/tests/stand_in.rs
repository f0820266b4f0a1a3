//! Stand-ins for clouds' drivers, over the socket. Needs root.
mod common;

use std::{collections::BTreeMap, fs};

use common::{Rig, block, mounted};
use csi::*;
use driver::stand_in::{BY_NAME, FACES, Face, LABEL, StandIn};

const GIB: i64 = 1 << 30;

async fn rig(word: &str) -> (Rig, &'static Face) {
    let face = Face::of(word).expect("a cloud");
    let rig = Rig::serving(None, |pool| StandIn::new(face, face.default_zone, pool, "n1").routes()).await;
    (rig, face)
}

fn wanted(name: &str, parameters: &[(&str, &str)]) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        volume_capabilities: vec![mounted(Mode::SingleNodeWriter)],
        parameters: parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..Default::default()
    }
}

fn zoned(request: CreateVolumeRequest, face: &Face, zone: &str) -> CreateVolumeRequest {
    let place = Topology { segments: BTreeMap::from([(face.zone_key.to_owned(), zone.to_owned())]) };
    let requirement = TopologyRequirement { requisite: vec![place], preferred: vec![] };
    CreateVolumeRequest { accessibility_requirements: Some(requirement), ..request }
}

async fn made(rig: &Rig, request: CreateVolumeRequest) -> Volume {
    rig.controller.create_volume(request).await.expect("made").volume.expect("a volume")
}

async fn gone(rig: &Rig, id: &str) {
    let request = DeleteVolumeRequest { volume_id: id.into(), ..Default::default() };
    rig.controller.delete_volume(request).await.expect("deleted");
}

#[tokio::test]
async fn every_stand_in_makes_disks_as_its_cloud_names_them() {
    for face in &FACES {
        let (rig, face) = rig(face.word).await;
        let info = rig.node.node_get_info(NodeGetInfoRequest {}).await.expect("info");
        assert_eq!(info.max_volumes_per_node, i64::from(face.most_volumes));
        let here = info.accessible_topology.expect("a place");
        assert_eq!(here.segments[face.zone_key], face.default_zone);

        let disk = made(&rig, wanted("pvc-1", &[])).await;
        assert_eq!(disk.volume_id, (face.handle)("pvc-1", face.default_zone, false));
        assert_eq!(disk.accessible_topology, [here]);
        assert_eq!(disk.volume_context[LABEL], face.word);
        assert_eq!(disk.capacity_bytes % i64::try_from(face.step_bytes).expect("small"), 0);
        assert_eq!(made(&rig, wanted("pvc-1", &[])).await, disk, "asking again gives the same");

        let attach = ControllerPublishVolumeRequest {
            volume_id: disk.volume_id.clone(),
            node_id: info.node_id,
            volume_capability: Some(mounted(Mode::SingleNodeWriter)),
            ..Default::default()
        };
        rig.controller.controller_publish_volume(attach.clone()).await.expect("attached");
        let elsewhere = ControllerPublishVolumeRequest { node_id: "other".into(), ..attach };
        let refused = rig.controller.controller_publish_volume(elsewhere).await.expect_err("no such node");
        assert_eq!(refused.code(), Code::NotFound);

        let many = CreateVolumeRequest {
            volume_capabilities: vec![mounted(Mode::MultiNodeMultiWriter)],
            ..wanted("pvc-2", &[])
        };
        let refused = rig.controller.create_volume(many).await.expect_err("for one node");
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains("ReadWriteOnce"), "{refused}");
        let elsewhere = zoned(wanted("pvc-3", &[]), face, "the-moon");
        let refused = rig.controller.create_volume(elsewhere).await.expect_err("not there");
        assert!(refused.message().contains(&format!("--stand-in {}=the-moon", face.word)), "{refused}");
        gone(&rig, &disk.volume_id).await;
        gone(&rig, &disk.volume_id).await;
        let all = rig.controller.list_volumes(ListVolumesRequest::default()).await.expect("a list");
        assert_eq!(all.entries, []);
    }
}

#[tokio::test]
async fn a_disk_that_was_made_by_hand_becomes_what_it_is_used_as() {
    let (rig, face) = rig("gce-pd").await;
    let disk = made(&rig, wanted("data-1", &[(BY_NAME, "")])).await;
    assert_eq!(disk.volume_id, "projects/holdfast/zones/europe-west1-b/disks/data-1");
    assert_eq!(disk.capacity_bytes, 10 * GIB);
    // As volumes are translated that name the disk and nothing else.
    let id = "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/data-1";
    rig.stage(id, block(Mode::SingleNodeWriter)).await.expect("staged as a device");
    rig.unstage(id).await.expect("unstaged");
    rig.stage(id, mounted(Mode::SingleNodeWriter)).await.expect("staged as a filesystem");
    let at = rig.publish(id, "a", mounted(Mode::SingleNodeWriter)).await.expect("published");
    fs::write(at.join("file"), "kept").expect("written");
    rig.unpublish(id, "a").await.expect("unpublished");
    rig.unstage(id).await.expect("unstaged");
    let reader = mounted(Mode::MultiNodeReaderOnly);
    rig.stage(id, reader.clone()).await.expect("staged again");
    let at = rig.publish(id, "b", reader).await.expect("published to read");
    assert_eq!(fs::read_to_string(at.join("file")).expect("read"), "kept");
    fs::write(at.join("file"), "lost").expect_err("nobody may write");
    rig.unpublish(id, "b").await.expect("unpublished");
    let used = rig.controller.delete_volume(DeleteVolumeRequest { volume_id: id.into(), ..Default::default() }).await;
    assert_eq!(used.expect_err("it is in use").code(), Code::FailedPrecondition);
    rig.unstage(id).await.expect("unstaged");

    let take =
        |name: &str| CreateSnapshotRequest { source_volume_id: id.into(), name: name.into(), ..Default::default() };
    let taken = rig.controller.create_snapshot(take("s")).await.expect("taken").snapshot.expect("a snapshot");
    assert_eq!(taken.source_volume_id, id, "as it was asked for");

    // One in another zone is there, and cannot be had here.
    let far = made(&rig, zoned(wanted("data-2", &[(BY_NAME, "")]), face, "us-east1-c")).await;
    assert_eq!(far.volume_id, "projects/holdfast/zones/us-east1-c/disks/data-2");
    let refused = rig.stage(&far.volume_id, mounted(Mode::SingleNodeWriter)).await.expect_err("elsewhere");
    assert!(refused.message().contains("zone us-east1-c"), "{refused}");
    let refused = rig.stage("projects/p/zones/z/disks/data-3", mounted(Mode::SingleNodeWriter)).await;
    let refused = refused.expect_err("there is none");
    assert!(refused.message().contains("holdfast disk create --stand-in gce-pd"), "{refused}");
    let wrong = rig.controller.create_volume(wanted("Data_3", &[(BY_NAME, "")])).await.expect_err("no such name");
    assert!(wrong.message().contains("disks/NAME"), "{wrong}");
}

#[tokio::test]
async fn copies_snapshots_and_growth_are_the_clouds_too() {
    let (rig, _) = rig("aws-ebs").await;
    let disk = made(&rig, wanted("pvc-1", &[("type", "gp3"), ("encrypted", "true")])).await;
    assert_eq!(disk.capacity_bytes, GIB);
    let grown = ControllerExpandVolumeRequest {
        volume_id: disk.volume_id.clone(),
        capacity_range: Some(CapacityRange { required_bytes: GIB + 1, limit_bytes: 0 }),
        ..Default::default()
    };
    assert_eq!(rig.controller.controller_expand_volume(grown).await.expect("grown").capacity_bytes, 2 * GIB);
    let take = CreateSnapshotRequest {
        source_volume_id: disk.volume_id.clone(),
        name: "s".into(),
        parameters: BTreeMap::from([("tagSpecification_1".into(), "a=b".into())]),
        ..Default::default()
    };
    let snapshot = rig.controller.create_snapshot(take).await.expect("taken").snapshot.expect("a snapshot");
    assert_eq!(snapshot.source_volume_id, disk.volume_id);
    let list = ListSnapshotsRequest { source_volume_id: disk.volume_id.clone(), ..Default::default() };
    let listed = rig.controller.list_snapshots(list).await.expect("a list").entries;
    assert_eq!(listed[0].snapshot, Some(snapshot.clone()));
    let source = |r#type| Some(VolumeContentSource { r#type: Some(r#type) });
    let of_volume = ContentSource::Volume(VolumeSource { volume_id: disk.volume_id.clone() });
    let of_snapshot = ContentSource::Snapshot(SnapshotSource { snapshot_id: snapshot.snapshot_id });
    for (name, from) in [("pvc-2", of_volume), ("pvc-3", of_snapshot)] {
        let request = CreateVolumeRequest { volume_content_source: source(from.clone()), ..wanted(name, &[]) };
        let copy = made(&rig, request).await;
        assert_eq!((copy.capacity_bytes, copy.content_source), (2 * GIB, source(from)));
    }
}

#[tokio::test]
async fn a_class_of_the_old_plugin_gets_a_path() {
    let (rig, _) = rig("vsphere").await;
    let disk = made(&rig, wanted("pvc-1", &[("csimigration", "true"), ("diskformat-migrationparam", "thin")])).await;
    let path = disk.volume_context["initialvolumefilepath"].clone();
    assert_eq!(path, "[holdfast] volumes/pvc-1.vmdk");
    rig.stage(&path, mounted(Mode::SingleNodeWriter)).await.expect("by its path");
    rig.unstage(&path).await.expect("unstaged");
}
