//! What the Container Storage Interface 1.12 asks of every driver, checked over the socket. Runs against our own driver, or
//! against the one at `CSI_SOCKET`. Needs root.
mod common;

use std::{collections::BTreeMap, fs};

use common::{Rig, block, mounted};
use csi::*;

const MIB: i64 = 1 << 20;

/// Our driver on a pool of its own, or the one at `CSI_SOCKET`.
async fn start() -> Rig {
    Rig::serving(std::env::var_os("CSI_SOCKET"), |pool| driver::Driver::new(pool, "n1").routes()).await
}

fn wanted(name: &str, bytes: i64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
        volume_capabilities: vec![mounted(Mode::SingleNodeWriter)],
        ..Default::default()
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(code: Code, result: Result<T, Status>) {
    let status = result.expect_err("to be refused");
    assert_eq!(status.code(), code, "{status}");
    assert!(!status.message().is_empty(), "a refusal says why");
}

#[tokio::test]
async fn what_is_missing_is_an_invalid_argument() {
    let rig = start().await;
    let (c, n) = (&rig.controller, &rig.node);
    let id = || "no-such-volume".to_owned();
    let bad = Code::InvalidArgument;
    refused(bad, c.create_volume(CreateVolumeRequest { name: String::new(), ..wanted("", MIB) }).await);
    refused(bad, c.create_volume(CreateVolumeRequest { volume_capabilities: vec![], ..wanted("a", MIB) }).await);
    let no_mode = VolumeCapability { access_mode: None, ..mounted(Mode::SingleNodeWriter) };
    refused(bad, c.create_volume(CreateVolumeRequest { volume_capabilities: vec![no_mode], ..wanted("a", MIB) }).await);
    let no_type = VolumeCapability { access_type: None, ..mounted(Mode::SingleNodeWriter) };
    refused(bad, c.create_volume(CreateVolumeRequest { volume_capabilities: vec![no_type], ..wanted("a", MIB) }).await);
    refused(bad, c.create_volume(wanted("a", -1)).await);
    refused(bad, c.delete_volume(DeleteVolumeRequest::default()).await);
    refused(bad, c.validate_volume_capabilities(ValidateVolumeCapabilitiesRequest::default()).await);
    let only_id = ValidateVolumeCapabilitiesRequest { volume_id: id(), ..Default::default() };
    refused(bad, c.validate_volume_capabilities(only_id).await);
    refused(bad, c.create_snapshot(CreateSnapshotRequest { name: "s".into(), ..Default::default() }).await);
    refused(bad, c.create_snapshot(CreateSnapshotRequest { source_volume_id: id(), ..Default::default() }).await);
    refused(bad, c.delete_snapshot(DeleteSnapshotRequest::default()).await);
    refused(bad, c.controller_expand_volume(ControllerExpandVolumeRequest::default()).await);
    let no_range = ControllerExpandVolumeRequest { volume_id: id(), ..Default::default() };
    refused(bad, c.controller_expand_volume(no_range).await);
    refused(bad, c.list_volumes(ListVolumesRequest { max_entries: -1, ..Default::default() }).await);

    let capability = || Some(mounted(Mode::SingleNodeWriter));
    let stage = NodeStageVolumeRequest {
        volume_id: id(),
        staging_target_path: "/s".into(),
        volume_capability: capability(),
        ..Default::default()
    };
    refused(bad, n.node_stage_volume(NodeStageVolumeRequest { volume_id: String::new(), ..stage.clone() }).await);
    let no_path = NodeStageVolumeRequest { staging_target_path: String::new(), ..stage.clone() };
    refused(bad, n.node_stage_volume(no_path).await);
    refused(bad, n.node_stage_volume(NodeStageVolumeRequest { volume_capability: None, ..stage }).await);
    refused(bad, n.node_unstage_volume(NodeUnstageVolumeRequest::default()).await);
    refused(bad, n.node_unstage_volume(NodeUnstageVolumeRequest { volume_id: id(), ..Default::default() }).await);
    let publish = NodePublishVolumeRequest {
        volume_id: id(),
        staging_target_path: "/s".into(),
        target_path: "/t".into(),
        volume_capability: capability(),
        ..Default::default()
    };
    refused(bad, n.node_publish_volume(NodePublishVolumeRequest { volume_id: String::new(), ..publish.clone() }).await);
    refused(
        bad,
        n.node_publish_volume(NodePublishVolumeRequest { target_path: String::new(), ..publish.clone() }).await,
    );
    refused(bad, n.node_publish_volume(NodePublishVolumeRequest { volume_capability: None, ..publish }).await);
    refused(bad, n.node_unpublish_volume(NodeUnpublishVolumeRequest { volume_id: id(), ..Default::default() }).await);
    refused(bad, n.node_get_volume_stats(NodeGetVolumeStatsRequest { volume_id: id(), ..Default::default() }).await);
    refused(bad, n.node_expand_volume(NodeExpandVolumeRequest { volume_id: id(), ..Default::default() }).await);
}

#[tokio::test]
async fn what_is_not_there_is_not_found_or_gone_already() {
    let rig = start().await;
    let (c, n) = (&rig.controller, &rig.node);
    for id in ["no-such-volume", "../etc", "No Such Volume"] {
        let volume_id = || id.to_owned();
        c.delete_volume(DeleteVolumeRequest { volume_id: volume_id(), ..Default::default() }).await.expect("gone");
        c.delete_snapshot(DeleteSnapshotRequest { snapshot_id: id.into(), ..Default::default() }).await.expect("gone");
        let none = Code::NotFound;
        let validate = ValidateVolumeCapabilitiesRequest {
            volume_id: volume_id(),
            volume_capabilities: vec![mounted(Mode::SingleNodeWriter)],
            ..Default::default()
        };
        refused(none, c.validate_volume_capabilities(validate).await);
        refused(none, c.controller_get_volume(ControllerGetVolumeRequest { volume_id: volume_id() }).await);
        let snapshot = CreateSnapshotRequest { source_volume_id: volume_id(), name: "s".into(), ..Default::default() };
        refused(none, c.create_snapshot(snapshot).await);
        let expand = ControllerExpandVolumeRequest {
            volume_id: volume_id(),
            capacity_range: Some(CapacityRange { required_bytes: MIB, limit_bytes: 0 }),
            ..Default::default()
        };
        refused(none, c.controller_expand_volume(expand).await);
        let source = |r#type| CreateVolumeRequest {
            volume_content_source: Some(VolumeContentSource { r#type: Some(r#type) }),
            ..wanted("copy", MIB)
        };
        refused(none, c.create_volume(source(ContentSource::Volume(VolumeSource { volume_id: volume_id() }))).await);
        let snapshot = SnapshotSource { snapshot_id: volume_id() };
        refused(none, c.create_volume(source(ContentSource::Snapshot(snapshot))).await);
        let stats =
            NodeGetVolumeStatsRequest { volume_id: volume_id(), volume_path: "/nowhere".into(), ..Default::default() };
        refused(none, n.node_get_volume_stats(stats).await);
        let expand =
            NodeExpandVolumeRequest { volume_id: volume_id(), volume_path: "/nowhere".into(), ..Default::default() };
        refused(none, n.node_expand_volume(expand).await);
        let listed = ListSnapshotsRequest { snapshot_id: volume_id(), ..Default::default() };
        assert!(c.list_snapshots(listed).await.expect("an empty list").entries.is_empty());
    }
}

#[tokio::test]
async fn names_are_kept_and_differences_refused() {
    let rig = start().await;
    let c = &rig.controller;
    let long = "n".repeat(128);
    for name in ["pvc-1", "With Space", &long] {
        let first = c.create_volume(wanted(name, 8 * MIB)).await.expect("made").volume.expect("a volume");
        let again = c.create_volume(wanted(name, 8 * MIB)).await.expect("found").volume.expect("a volume");
        assert_eq!(first, again);
        assert!(first.capacity_bytes >= 8 * MIB && !first.volume_id.is_empty());
        refused(Code::AlreadyExists, c.create_volume(wanted(name, 16 * MIB)).await);
        c.delete_volume(DeleteVolumeRequest { volume_id: first.volume_id, ..Default::default() }).await.expect("gone");
    }
    let one = c.create_volume(wanted("one", 8 * MIB)).await.expect("made").volume.expect("a volume").volume_id;
    let two = c.create_volume(wanted("two", 8 * MIB)).await.expect("made").volume.expect("a volume").volume_id;
    let take = |volume: &str| CreateSnapshotRequest {
        source_volume_id: volume.into(),
        name: "s".into(),
        ..Default::default()
    };
    let first = c.create_snapshot(take(&one)).await.expect("taken").snapshot.expect("a snapshot");
    assert!(first.ready_to_use && first.source_volume_id == one && first.creation_time.is_some());
    assert_eq!(c.create_snapshot(take(&one)).await.expect("found").snapshot, Some(first.clone()));
    refused(Code::AlreadyExists, c.create_snapshot(take(&two)).await);
    let impossible = CapacityRange { required_bytes: 8 * MIB, limit_bytes: 4 * MIB };
    let result = c.create_volume(CreateVolumeRequest { capacity_range: Some(impossible), ..wanted("no", 0) }).await;
    assert!(matches!(result.expect_err("impossible").code(), Code::InvalidArgument | Code::OutOfRange));
    let unknown = BTreeMap::from([("backed".to_owned(), "image".to_owned())]);
    refused(
        Code::InvalidArgument,
        c.create_volume(CreateVolumeRequest { parameters: unknown, ..wanted("no", MIB) }).await,
    );
}

#[tokio::test]
async fn lists_come_in_pages() {
    let rig = start().await;
    let c = &rig.controller;
    let mut made = Vec::new();
    for n in 0..5 {
        made.push(c.create_volume(wanted(&format!("v{n}"), MIB)).await.expect("made").volume.expect("one").volume_id);
    }
    let (mut seen, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = ListVolumesRequest { max_entries: 2, starting_token: token };
        let page = c.list_volumes(request).await.expect("a page");
        assert!(page.entries.len() <= 2);
        seen.extend(page.entries.into_iter().filter_map(|e| e.volume).map(|v| v.volume_id));
        (token, pages) = (page.next_token, pages + 1);
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((seen, pages), (made, 3));
    let all = c.list_volumes(ListVolumesRequest::default()).await.expect("all");
    assert_eq!((all.entries.len(), all.next_token.as_str()), (5, ""));
    let strange = ListVolumesRequest { max_entries: 1, starting_token: "strange".into() };
    refused(Code::Aborted, c.list_volumes(strange).await);
}

#[tokio::test]
async fn a_volume_lives_from_create_to_delete() {
    let rig = start().await;
    let (c, n) = (&rig.controller, &rig.node);
    let volume = c.create_volume(wanted("life", 16 * MIB)).await.expect("made").volume.expect("a volume");
    let id = || volume.volume_id.clone();
    let mut shown = Vec::new();
    for _ in 0..2 {
        rig.stage(&id(), mounted(Mode::SingleNodeWriter)).await.expect("staged");
        shown.push(rig.publish(&id(), "a", mounted(Mode::SingleNodeWriter)).await.expect("published"));
    }
    let page = shown[0].join("page");
    fs::write(&page, "data").expect("written");
    let stats = NodeGetVolumeStatsRequest {
        volume_id: id(),
        volume_path: shown[0].to_string_lossy().into_owned(),
        ..Default::default()
    };
    let stats = n.node_get_volume_stats(stats).await.expect("figures");
    let bytes = stats.usage.iter().find(|u| u.unit() == UsageUnit::Bytes).expect("bytes");
    assert!(bytes.total > 8 * MIB && bytes.total <= 16 * MIB && bytes.used > 0, "{bytes:?}");
    assert!(stats.usage.iter().any(|u| u.unit() == UsageUnit::Inodes && u.total > 0));
    refused(
        Code::FailedPrecondition,
        c.delete_volume(DeleteVolumeRequest { volume_id: id(), ..Default::default() }).await,
    );

    let snapshot = CreateSnapshotRequest { source_volume_id: id(), name: "s".into(), ..Default::default() };
    let snapshot = c.create_snapshot(snapshot).await.expect("taken").snapshot.expect("a snapshot");
    let source = ContentSource::Snapshot(SnapshotSource { snapshot_id: snapshot.snapshot_id.clone() });
    let source = Some(VolumeContentSource { r#type: Some(source) });
    let copy = CreateVolumeRequest { volume_content_source: source.clone(), ..wanted("copy", 16 * MIB) };
    let copy = c.create_volume(copy).await.expect("restored").volume.expect("a volume");
    assert_eq!(copy.content_source, source);
    for _ in 0..2 {
        rig.unpublish(&id(), "a").await.expect("unpublished");
        rig.unstage(&id()).await.expect("unstaged");
    }
    rig.stage(&copy.volume_id, mounted(Mode::SingleNodeWriter)).await.expect("staged");
    let shown = rig.publish(&copy.volume_id, "b", mounted(Mode::SingleNodeWriter)).await.expect("published");
    assert_eq!(fs::read_to_string(shown.join("page")).expect("copied"), "data");
    rig.unpublish(&copy.volume_id, "b").await.expect("unpublished");
    rig.unstage(&copy.volume_id).await.expect("unstaged");
    for volume_id in [id(), copy.volume_id, id()] {
        c.delete_volume(DeleteVolumeRequest { volume_id, ..Default::default() }).await.expect("deleted");
    }
}

#[tokio::test]
async fn modes_of_access() {
    let rig = start().await;
    let c = &rig.controller;
    let alone = mounted(Mode::SingleNodeSingleWriter);
    let request = CreateVolumeRequest { volume_capabilities: vec![alone.clone()], ..wanted("alone", 16 * MIB) };
    let id = c.create_volume(request).await.expect("made").volume.expect("a volume").volume_id;
    rig.stage(&id, alone.clone()).await.expect("staged");
    rig.publish(&id, "a", alone.clone()).await.expect("published");
    refused(Code::FailedPrecondition, rig.publish(&id, "b", alone.clone()).await);
    rig.unpublish(&id, "a").await.expect("unpublished");
    rig.publish(&id, "b", alone).await.expect("free again");
    rig.unpublish(&id, "b").await.expect("unpublished");
    rig.unstage(&id).await.expect("unstaged");

    // Many pods, here where the volume is; those of a mode that only reads cannot write, whatever else is said.
    let shared = mounted(Mode::MultiNodeMultiWriter);
    let request = CreateVolumeRequest { volume_capabilities: vec![shared.clone()], ..wanted("shared", 16 * MIB) };
    let id = c.create_volume(request).await.expect("made").volume.expect("a volume").volume_id;
    rig.stage(&id, shared.clone()).await.expect("staged");
    let first = rig.publish(&id, "a", shared.clone()).await.expect("published");
    let second = rig.publish(&id, "b", mounted(Mode::MultiNodeReaderOnly)).await.expect("published twice");
    fs::write(first.join("page"), "data").expect("written");
    assert_eq!(fs::read_to_string(second.join("page")).expect("read"), "data");
    assert!(fs::write(second.join("page"), "x").is_err(), "written through a publication that only reads");
    refused(Code::InvalidArgument, rig.publish(&id, "c", block(Mode::MultiNodeMultiWriter)).await);
    for name in ["a", "b"] {
        rig.unpublish(&id, name).await.expect("unpublished");
    }
    rig.unstage(&id).await.expect("unstaged");

    let raw = block(Mode::SingleNodeWriter);
    let request = CreateVolumeRequest { volume_capabilities: vec![raw.clone()], ..wanted("raw", 4 * MIB) };
    let id = c.create_volume(request).await.expect("made").volume.expect("a volume").volume_id;
    refused(Code::InvalidArgument, rig.stage(&id, mounted(Mode::SingleNodeWriter)).await);
    rig.stage(&id, raw.clone()).await.expect("staged");
    let device = rig.publish(&id, "a", raw).await.expect("published");
    fs::OpenOptions::new().write(true).open(device).expect("a device");
    rig.unpublish(&id, "a").await.expect("unpublished");
    rig.unstage(&id).await.expect("unstaged");
    let both = vec![mounted(Mode::SingleNodeWriter), block(Mode::SingleNodeWriter)];
    let request = CreateVolumeRequest { volume_capabilities: both, ..wanted("both", MIB) };
    refused(Code::InvalidArgument, c.create_volume(request).await);
}

#[tokio::test]
async fn a_filesystem_is_named_by_the_class_or_by_what_is_copied() {
    let rig = start().await;
    let c = &rig.controller;
    let mut unnamed = mounted(Mode::SingleNodeWriter);
    unnamed.access_type = Some(AccessType::Mount(MountVolume::default()));
    let request =
        |name: &str| CreateVolumeRequest { volume_capabilities: vec![unnamed.clone()], ..wanted(name, 16 * MIB) };
    let parameters = BTreeMap::from([("csi.storage.k8s.io/fstype".to_owned(), "ext3".to_owned())]);
    let request_ext3 = CreateVolumeRequest { parameters, ..request("v") };
    let volume = c.create_volume(request_ext3).await.expect("made").volume.expect("a volume");
    let source = ContentSource::Volume(VolumeSource { volume_id: volume.volume_id.clone() });
    let source = Some(VolumeContentSource { r#type: Some(source) });
    let copy = CreateVolumeRequest { volume_content_source: source, ..request("copy") };
    let copy = c.create_volume(copy).await.expect("copied").volume.expect("a volume");
    for volume in [volume, copy] {
        let validate = ValidateVolumeCapabilitiesRequest {
            volume_id: volume.volume_id.clone(),
            volume_capabilities: vec![unnamed.clone()],
            ..Default::default()
        };
        assert!(c.validate_volume_capabilities(validate).await.expect("judged").confirmed.is_some());
        rig.stage(&volume.volume_id, unnamed.clone()).await.expect("staged");
        let shown = rig.publish(&volume.volume_id, "a", unnamed.clone()).await.expect("published");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let line = mounts.lines().find(|line| line.contains(&*shown.to_string_lossy()));
        assert!(line.is_some_and(|line| line.contains(" - ext3 ")), "{line:?}");
        rig.unpublish(&volume.volume_id, "a").await.expect("unpublished");
        rig.unstage(&volume.volume_id).await.expect("unstaged");
    }
}

#[tokio::test]
async fn growth_may_be_left_to_the_node() {
    let ours = |pool| driver::Driver::new(pool, "n1").growing_on_node().routes();
    let rig = Rig::serving(None, ours).await;
    let (c, n) = (&rig.controller, &rig.node);
    let offered = c.controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await.expect("capabilities");
    let expands = ControllerCapability::Rpc(ControllerRpc { r#type: ControllerRpcType::ExpandVolume.into() });
    assert!(offered.capabilities.iter().all(|c| c.r#type != Some(expands.clone())));
    let capability = block(Mode::SingleNodeWriter);
    let request = CreateVolumeRequest { volume_capabilities: vec![capability.clone()], ..wanted("raw", 16 * MIB) };
    let volume = c.create_volume(request).await.expect("made").volume.expect("a volume");
    rig.stage(&volume.volume_id, capability.clone()).await.expect("staged");
    let shown = rig.publish(&volume.volume_id, "raw", capability).await.expect("published");
    let grow = NodeExpandVolumeRequest {
        volume_id: volume.volume_id.clone(),
        volume_path: shown.to_string_lossy().into_owned(),
        capacity_range: Some(CapacityRange { required_bytes: 32 * MIB, limit_bytes: 0 }),
        ..Default::default()
    };
    assert_eq!(n.node_expand_volume(grow).await.expect("grown").capacity_bytes, 32 * MIB);
    rig.unpublish(&volume.volume_id, "raw").await.expect("unpublished");
    rig.unstage(&volume.volume_id).await.expect("unstaged");
    c.delete_volume(DeleteVolumeRequest { volume_id: volume.volume_id, ..Default::default() }).await.expect("deleted");
}
