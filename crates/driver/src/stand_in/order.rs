//! What is asked for when a disk is to be made.
use std::collections::BTreeMap;

use csi::{CapacityRange, Status, TopologyRequirement};

use super::face::{DiskType, Face};

/// What a provisioner adds for its own use.
const OF_PROVISIONER: &str = "csi.storage.k8s.io/";
/// By which `holdfast disk create` says that the name is the disk's own.
pub const BY_NAME: &str = "holdfast.dev/disk";

/// Parameters of a class, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    pub kind: DiskType,
    /// In two zones of a region.
    pub regional: bool,
    /// The class is of the in-tree plugin, which knows a disk by its path.
    pub by_path: bool,
    /// It is made by hand, and its name is its own.
    pub by_name: bool,
}

fn fits(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => name.ends_with(end),
        (_, Some(begin)) => name.starts_with(begin),
        (None, None) => name == pattern,
    }
}

impl Order {
    /// # Errors
    /// A parameter or type that the cloud's driver does not have.
    pub fn parse(face: &Face, given: &BTreeMap<String, String>) -> Result<Self, Status> {
        let mut order = Self { kind: face.types[0], regional: false, by_path: false, by_name: false };
        for (name, value) in given.iter().filter(|(name, _)| !name.starts_with(OF_PROVISIONER)) {
            let low = name.to_ascii_lowercase();
            match &*low {
                BY_NAME => order.by_name = true,
                // The older name of the same.
                _ if low == face.type_parameter
                    || (low == "storageaccounttype" && face.type_parameter == "skuname") =>
                {
                    order.kind = kind(face, value)?;
                }
                _ if !face.parameters.iter().any(|p| fits(p, &low)) => {
                    let why = format!("parameter {name:?} of the class is none of driver {}", face.driver);
                    return Err(Status::invalid_argument(why));
                }
                "replication-type" => match value.as_str() {
                    "none" => {}
                    "regional-pd" => order.regional = true,
                    _ => {
                        let why =
                            format!("parameter {name} of the class is {value:?}, which is none of none, regional-pd");
                        return Err(Status::invalid_argument(why));
                    }
                },
                "csimigration" => order.by_path = value == "true",
                _ => {}
            }
        }
        Ok(order)
    }

    /// At least and at most how many bytes; both for the next step up.
    ///
    /// # Errors
    /// The cloud has no disks of that size.
    pub fn size(&self, face: &Face, range: Option<CapacityRange>) -> Result<CapacityRange, Status> {
        let range = range.unwrap_or_default();
        let asked =
            u64::try_from(range.required_bytes).map_err(|_| Status::invalid_argument("a capacity is negative"))?;
        let gib = |n: u64| n << 30;
        let required =
            asked.max(gib(self.kind.least_gib)).max(face.step_bytes).checked_next_multiple_of(face.step_bytes);
        let required = required.filter(|bytes| *bytes <= gib(face.largest_gib)).ok_or_else(|| {
            let why = format!(
                "{asked} bytes are asked for, and disks of {} have at most {}Gi",
                face.driver, face.largest_gib
            );
            Status::out_of_range(why)
        })?;
        let required_bytes = i64::try_from(required).unwrap_or(i64::MAX);
        if range.limit_bytes != 0 && required_bytes > range.limit_bytes {
            let why = format!(
                "at most {} bytes are asked for, and the smallest disk of type {} that holds what is asked for has {required_bytes}",
                range.limit_bytes, self.kind.name
            );
            return Err(Status::out_of_range(why));
        }
        Ok(CapacityRange { required_bytes, limit_bytes: range.limit_bytes })
    }

    /// The zones that the disk is to be in, of a machine that is in the zone `here`.
    ///
    /// # Errors
    /// It is wanted where this machine is not.
    pub fn zones(&self, face: &Face, here: &str, wanted: Option<&TopologyRequirement>) -> Result<Vec<String>, Status> {
        let all = wanted.into_iter().flat_map(|w| w.preferred.iter().chain(&w.requisite));
        let all: Vec<&str> = all.filter_map(|p| p.segments.get(face.zone_key)).map(String::as_str).collect();
        let first = all.first().copied().unwrap_or(here);
        if self.by_name {
            return Ok(vec![first.to_owned()]);
        }
        if !all.is_empty() && !all.contains(&here) {
            let why = format!(
                "a disk is wanted in zone {first}, and this machine stands in for {} in zone {here}; \
                 start it with --stand-in {}={first}, or ask for {here}",
                face.driver, face.word
            );
            return Err(Status::resource_exhausted(why));
        }
        let mut zones = vec![here.to_owned()];
        if self.regional {
            let region = (face.region)(here);
            let other = all.into_iter().find(|zone| *zone != here && (face.region)(zone) == region);
            let other = other.ok_or_else(|| {
                let why = "a regional disk is in two zones of its region; name both in allowedTopologies of the class";
                Status::invalid_argument(why)
            })?;
            zones.push(other.to_owned());
            zones.sort();
        }
        Ok(zones)
    }
}

fn kind(face: &Face, value: &str) -> Result<DiskType, Status> {
    let known = |t: &&DiskType| t.name == "*" || t.name.eq_ignore_ascii_case(value);
    face.types.iter().find(known).copied().ok_or_else(|| {
        let known: Vec<&str> = face.types.iter().map(|t| t.name).collect();
        let why = format!("disks of type {value:?} are none of driver {}; there are {}", face.driver, known.join(", "));
        Status::invalid_argument(why)
    })
}

#[cfg(test)]
mod tests {
    use csi::{Code, Topology};

    use super::*;

    fn order(word: &str, given: &[(&str, &str)]) -> Result<Order, Status> {
        let given = given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Order::parse(Face::of(word).expect("known"), &given)
    }

    #[test]
    fn parameters_are_the_clouds() {
        for (word, given) in [
            ("gce-pd", &[("type", "pd-ssd"), ("csi.storage.k8s.io/pvc/name", "x")][..]),
            ("gce-pd", &[("type", "pd-standard"), ("replication-type", "none"), ("labels", "a=b")]),
            ("aws-ebs", &[("type", "io2"), ("iopsPerGB", "10"), ("encrypted", "true"), ("tagSpecification_1", "a=b")]),
            ("azure-disk", &[("skuName", "Premium_LRS"), ("kind", "Managed"), ("cachingMode", "ReadOnly")]),
            ("azure-disk", &[("storageaccounttype", "premium_lrs")]),
            ("cinder", &[("type", "whatever"), ("availability", "nova")]),
            (
                "vsphere",
                &[("storagepolicyname", "gold"), ("csimigration", "true"), ("diskformat-migrationparam", "thin")],
            ),
        ] {
            order(word, given).unwrap_or_else(|e| panic!("{word} {given:?}: {e}"));
        }
        for (word, wrong, said) in [
            ("gce-pd", ("type", "floppy"), "pd-balanced"),
            ("gce-pd", ("typ", "pd-ssd"), "\"typ\""),
            ("gce-pd", ("replication-type", "twice"), "regional-pd"),
            ("aws-ebs", ("type", "pd-ssd"), "gp3"),
            ("azure-disk", ("type", "Premium_LRS"), "\"type\""),
            ("vsphere", ("type", "x"), "\"type\""),
        ] {
            let error = order(word, &[wrong]).expect_err("wrong");
            assert!(error.code() == Code::InvalidArgument && error.message().contains(said), "{error}");
        }
        assert!(order("gce-pd", &[("replication-type", "regional-pd")]).expect("known").regional);
        assert!(order("vsphere", &[("csimigration", "true")]).expect("known").by_path);
    }

    #[test]
    fn sizes_are_those_of_the_type() {
        let gib = |n: i64| n << 30;
        let size = |word: &str, kind: Option<(&str, &str)>, required: i64, limit: i64| {
            let order = order(word, kind.as_slice()).expect("known");
            let range = CapacityRange { required_bytes: required, limit_bytes: limit };
            order.size(Face::of(word).expect("known"), Some(range)).map(|r| r.required_bytes).map_err(|e| e.code())
        };
        let ssd = Some(("type", "pd-ssd"));
        assert_eq!(size("gce-pd", ssd, 100 << 20, 0), Ok(gib(10)));
        assert_eq!(size("gce-pd", ssd, gib(12) + 1, 0), Ok(gib(13)));
        assert_eq!(size("gce-pd", ssd, 0, 0), Ok(gib(10)));
        assert_eq!(size("gce-pd", ssd, 100 << 20, gib(1)), Err(Code::OutOfRange));
        assert_eq!(size("gce-pd", ssd, i64::MAX, 0), Err(Code::OutOfRange));
        assert_eq!(size("gce-pd", ssd, -1, 0), Err(Code::InvalidArgument));
        assert_eq!(size("aws-ebs", Some(("type", "st1")), gib(1), 0), Ok(gib(125)));
        assert_eq!(size("aws-ebs", None, 1, 0), Ok(gib(1)));
        assert_eq!(size("azure-disk", Some(("skuname", "UltraSSD_LRS")), 1, 0), Ok(gib(4)));
        assert_eq!(size("vsphere", None, 100 << 20, 0), Ok(100 << 20));
    }

    #[test]
    fn disks_are_where_the_machine_is() {
        let face = Face::of("gce-pd").expect("known");
        let place = |zone: &str| Topology { segments: BTreeMap::from([(face.zone_key.to_owned(), zone.to_owned())]) };
        let zones = |given: &[(&str, &str)], wanted: &[&str]| {
            let wanted =
                TopologyRequirement { requisite: wanted.iter().map(|z| place(z)).collect(), preferred: vec![] };
            order("gce-pd", given)
                .expect("known")
                .zones(face, "eu-w1-b", Some(&wanted))
                .map_err(|e| e.message().to_owned())
        };
        assert_eq!(zones(&[], &[]), Ok(vec!["eu-w1-b".into()]));
        assert_eq!(zones(&[], &["eu-w1-c", "eu-w1-b"]), Ok(vec!["eu-w1-b".into()]));
        assert!(zones(&[], &["us-e1-a"]).is_err_and(|e| e.contains("--stand-in gce-pd=us-e1-a")));
        assert_eq!(zones(&[(BY_NAME, "")], &["us-e1-a"]), Ok(vec!["us-e1-a".into()]));
        let regional = &[("replication-type", "regional-pd")][..];
        assert_eq!(zones(regional, &["us-e1-a", "eu-w1-c", "eu-w1-b"]), Ok(vec!["eu-w1-b".into(), "eu-w1-c".into()]));
        assert!(zones(regional, &["eu-w1-b"]).is_err_and(|e| e.contains("two zones")));
    }
}
