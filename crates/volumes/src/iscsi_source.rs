//! From an `iscsi` source, of a pod or of a persistent volume, to the LUN that it means. Pure.
use k8s_openapi::api::core::v1::{ISCSIPersistentVolumeSource, ISCSIVolumeSource, PersistentVolumeSpec, Pod};

use crate::{contract::Source, drivers::SecretRef, error::VolumeError};

const DEFAULT_PORT: u16 = 3260;
const DEFAULT_INTERFACE: &str = "default";

/// A LUN of an iSCSI target, and how a pod uses it. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IscsiSource {
    /// Name of the persistent volume, or the pod's name for its own.
    pub name: String,
    /// `address:port`, `targetPortal` first.
    pub portals: Vec<String>,
    /// The target's name.
    pub iqn: String,
    pub lun: u32,
    /// Of open-iscsi: how the kernel reaches the target.
    pub interface: String,
    /// This machine's name to the target, where it is not the usual one.
    pub initiator: Option<String>,
    pub chap_discovery: bool,
    pub chap_session: bool,
    pub secret: Option<SecretRef>,
    /// `None`: what is on it; an empty one gets ext4.
    pub fs_type: Option<String>,
    pub read_only: bool,
    /// It is for `volumeDevices`.
    pub block: bool,
    pub mount_options: Vec<String>,
}

/// A volume that a pod names itself.
pub(crate) fn inline(pod: &Pod, name: &str, s: &ISCSIVolumeSource) -> Result<Source, VolumeError> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let all = Fields {
        portals: portals(name, &s.target_portal, s.portals.as_deref())?,
        iqn: &s.iqn,
        lun: s.lun,
        interface: s.iscsi_interface.as_deref(),
        initiator: s.initiator_name.as_deref(),
    };
    all.source(name).map(|source| {
        Source::Iscsi(Box::new(IscsiSource {
            chap_discovery: s.chap_auth_discovery == Some(true),
            chap_session: s.chap_auth_session == Some(true),
            secret: s.secret_ref.as_ref().map(|r| SecretRef { namespace, name: r.name.clone() }),
            fs_type: s.fs_type.clone().filter(|t| !t.is_empty()),
            read_only: s.read_only == Some(true),
            ..source
        }))
    })
}

/// A persistent volume.
pub(crate) fn persistent(
    name: &str,
    spec: &PersistentVolumeSpec,
    s: &ISCSIPersistentVolumeSource,
    read_only: bool,
) -> Result<Source, VolumeError> {
    // As upstream: a secret without a namespace lies in that of who uses the volume.
    let user = spec.claim_ref.as_ref().and_then(|c| c.namespace.clone()).unwrap_or_default();
    let secret = s.secret_ref.as_ref().map(|r| SecretRef {
        namespace: r.namespace.clone().filter(|n| !n.is_empty()).unwrap_or(user),
        name: r.name.clone().unwrap_or_default(),
    });
    let all = Fields {
        portals: portals(name, &s.target_portal, s.portals.as_deref())?,
        iqn: &s.iqn,
        lun: s.lun,
        interface: s.iscsi_interface.as_deref(),
        initiator: s.initiator_name.as_deref(),
    };
    all.source(name).map(|source| {
        Source::Iscsi(Box::new(IscsiSource {
            chap_discovery: s.chap_auth_discovery == Some(true),
            chap_session: s.chap_auth_session == Some(true),
            secret,
            fs_type: s.fs_type.clone().filter(|t| !t.is_empty()),
            read_only: read_only || s.read_only == Some(true),
            block: spec.volume_mode.as_deref() == Some("Block"),
            mount_options: spec.mount_options.clone().unwrap_or_default(),
            ..source
        }))
    })
}

/// What both kinds of source say of the LUN.
struct Fields<'a> {
    portals: Vec<String>,
    iqn: &'a str,
    lun: i32,
    interface: Option<&'a str>,
    initiator: Option<&'a str>,
}

impl Fields<'_> {
    /// All of it goes into names of files and arguments of programs: what is not a plain name is refused here.
    fn source(self, volume: &str) -> Result<IscsiSource, VolumeError> {
        let interface = self.interface.filter(|i| !i.is_empty()).unwrap_or(DEFAULT_INTERFACE);
        let initiator = self.initiator.filter(|i| !i.is_empty());
        let names = [("iqn", Some(self.iqn)), ("iscsiInterface", Some(interface)), ("initiatorName", initiator)];
        for (field, name) in names {
            if let Some(name) = name.filter(|n| !is_name(n)) {
                return Err(invalid(volume, field, name, "it has characters that no such name has"));
            }
        }
        let lun = u32::try_from(self.lun)
            .map_err(|_| invalid(volume, "lun", &self.lun.to_string(), "LUNs are numbers from 0 on"))?;
        Ok(IscsiSource {
            name: volume.to_owned(),
            portals: self.portals,
            iqn: self.iqn.to_owned(),
            lun,
            interface: interface.to_owned(),
            initiator: initiator.map(str::to_owned),
            chap_discovery: false,
            chap_session: false,
            secret: None,
            fs_type: None,
            read_only: false,
            block: false,
            mount_options: Vec::new(),
        })
    }
}

fn invalid(volume: &str, field: &str, value: &str, why: &str) -> VolumeError {
    VolumeError::Disk {
        volume: volume.to_owned(),
        why: format!("iscsi.{field} {value:?} cannot be used: {why}"),
        cause: None,
    }
}

fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".:-_".contains(&b);
    !text.is_empty() && text.len() <= 223 && !text.starts_with(['-', '.']) && text.bytes().all(plain)
}

/// All portals with their ports, each once.
fn portals(volume: &str, first: &str, others: Option<&[String]>) -> Result<Vec<String>, VolumeError> {
    let mut all: Vec<String> = Vec::new();
    let named = std::iter::once(("targetPortal", first))
        .chain(others.iter().copied().flatten().map(|p| ("portals", p.as_str())));
    for (field, text) in named {
        let why = "it is not an address with a port, as 10.0.0.1:3260 or [fd00::1]:3260 is";
        let portal = portal(text).ok_or_else(|| invalid(volume, field, text, why))?;
        if !all.contains(&portal) {
            all.push(portal);
        }
    }
    Ok(all)
}

fn portal(text: &str) -> Option<String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok().filter(|p| *p != 0)?),
        _ => (text, DEFAULT_PORT),
    };
    let good = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').is_some_and(|a| a.parse::<std::net::Ipv6Addr>().is_ok()),
        None => is_name(host) && !host.contains(':') && host.len() <= 253,
    };
    good.then(|| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portals_have_ports_and_are_what_they_seem() {
        let of = |text: &str| portal(text);
        assert_eq!(of("10.0.0.1").as_deref(), Some("10.0.0.1:3260"));
        assert_eq!(of("10.0.0.1:860").as_deref(), Some("10.0.0.1:860"));
        assert_eq!(of("store.example:3260").as_deref(), Some("store.example:3260"));
        assert_eq!(of("[fd00::1]").as_deref(), Some("[fd00::1]:3260"));
        assert_eq!(of("[fd00::1]:3261").as_deref(), Some("[fd00::1]:3261"));
        for bad in
            ["", ":3260", "-p", "a b", "a:0", "a:70000", "a:b", "fd00::1", "[x]:1", "../..", "a,b", "a/b:1", "a:1 -o"]
        {
            assert_eq!(of(bad), None, "{bad}");
        }
        let all = portals("v", "a", Some(&["b:1".into(), "a:3260".into()])).expect("good");
        assert_eq!(all, ["a:3260", "b:1"]);
        let refused = portals("v", "a", Some(&["b c".into()])).expect_err("no address").to_string();
        assert!(refused.contains("volume \"v\"") && refused.contains("iscsi.portals \"b c\""), "{refused}");
    }
}
