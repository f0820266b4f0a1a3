//! Elastic block stores of Amazon's cloud.
use k8s_openapi::api::{
    core::v1::{
        AWSElasticBlockStoreVolumeSource, CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeSpec, Volume,
    },
    storage::v1::StorageClass,
};

use crate::{ONCE, Plugin, Why, gce_pd::class_with_zones_and_fs_type, inline, map, partition, source, spec, topology};

pub struct AwsEbs;

const DRIVER: &str = "ebs.csi.aws.com";
const ZONE_KEY: &str = "topology.ebs.csi.aws.com/zone";

/// What Amazon calls a volume, of `vol-1`, `aws:///vol-1` and `aws://ZONE/vol-1`.
fn handle(id: &str) -> Result<String, Why> {
    let Some(rest) = id.strip_prefix("aws://") else { return Ok(id.to_owned()) };
    let name = rest.split_once('/').map(|(_zone, path)| path.trim_matches('/'));
    let known = name.filter(|n| n.starts_with("vol-") && !n.contains('/'));
    known.map(str::to_owned).ok_or_else(|| format!("volumeID {id:?} is not of the form aws://ZONE/vol-ID"))
}

/// Zones are called like `us-west-2a`, `us-gov-east-1a`, `us-west-2-lax-1a` and `us-east-1-wl1-bos-wlz-1`.
fn region(zones: &[&str]) -> Result<String, Why> {
    let of = |zone: &str| {
        let parts: Vec<&str> = zone.split('-').collect();
        match (parts.len(), parts.last()) {
            (3 | 4, Some(last)) if last.len() == 2 && last.is_ascii() => Some(zone[..zone.len() - 1].to_owned()),
            (5 | 7, _) => Some(parts[..3].join("-")),
            _ => None,
        }
    };
    topology::one_region(zones, of, "us-west-2a")
}

fn csi(disk: &AWSElasticBlockStoreVolumeSource) -> Result<CSIPersistentVolumeSource, Why> {
    let partition = disk.partition.unwrap_or_default().to_string();
    Ok(CSIPersistentVolumeSource {
        read_only: disk.read_only,
        fs_type: disk.fs_type.clone(),
        volume_attributes: Some(map([("partition", &partition)])),
        ..source(DRIVER, handle(&disk.volume_id)?)
    })
}

impl Plugin for AwsEbs {
    fn name(&self) -> &'static str {
        "kubernetes.io/aws-ebs"
    }

    fn driver(&self) -> &'static str {
        DRIVER
    }

    fn made(&self, spec: &PersistentVolumeSpec) -> bool {
        spec.aws_elastic_block_store.is_some()
    }

    fn is_inline(&self, volume: &Volume) -> bool {
        volume.aws_elastic_block_store.is_some()
    }

    fn class(&self, class: &mut StorageClass) -> Result<(), Why> {
        class_with_zones_and_fs_type(class, ZONE_KEY)?;
        let parameters = class.parameters.get_or_insert_default();
        if parameters.keys().any(|k| k.eq_ignore_ascii_case("iopsPerGB")) {
            // The plugin raised what was too little for a volume's size; the driver does so if it is told to.
            parameters.insert("allowautoiopspergbincrease".to_owned(), "true".to_owned());
        }
        Ok(())
    }

    fn inline(&self, volume: &Volume, _: &str) -> Result<PersistentVolume, Why> {
        let source = csi(&volume.aws_elastic_block_store.clone().unwrap_or_default())?;
        Ok(inline(format!("{DRIVER}-{}", source.volume_handle), ONCE, source))
    }

    fn to_csi(&self, volume: &mut PersistentVolume) -> Result<(), Why> {
        let source = csi(&spec(volume).aws_elastic_block_store.take().unwrap_or_default())?;
        topology::to_csi(volume, ZONE_KEY, true);
        spec(volume).csi = Some(source);
        Ok(())
    }

    fn back(&self, volume: &mut PersistentVolume, source: CSIPersistentVolumeSource) -> Result<(), Why> {
        let disk = AWSElasticBlockStoreVolumeSource {
            partition: partition(source.volume_attributes.as_ref())?.filter(|p| *p != 0),
            volume_id: source.volume_handle,
            fs_type: source.fs_type,
            read_only: source.read_only,
        };
        topology::from_csi(volume, ZONE_KEY, Some(region))?;
        spec(volume).aws_elastic_block_store = Some(disk);
        Ok(())
    }
}

#[test]
fn regions_and_handles() {
    for (zones, wanted) in [
        (&["us-west-2a", "us-west-2b"][..], Some("us-west-2")),
        (&["us-gov-east-1a"], Some("us-gov-east-1")),
        (&["us-east-1-wl1-bos-wlz-1"], Some("us-east-1")),
        (&["us-west-2-lax-1a"], Some("us-west-2")),
        (&[], None),
        (&["us-west-2a", "us-east-1a"], None),
        (&["us-west-2"], None),
        (&["us-west-2ab"], None),
        (&["us-west"], None),
        (&["us-west-é"], None),
    ] {
        assert_eq!(region(zones).ok().as_deref(), wanted, "{zones:?}");
    }
    for (id, wanted) in [
        ("vol-0239", Some("vol-0239")),
        ("aws:///vol-0239", Some("vol-0239")),
        ("aws://us-west-2a/vol-0239", Some("vol-0239")),
        ("aws://us-west-2a/0239", None),
        ("aws://us-west-2a/x/vol-0239", None),
        ("aws://vol-0239", None),
        ("anything", Some("anything")),
    ] {
        assert_eq!(handle(id).ok().as_deref(), wanted, "{id}");
    }
}
