//! Who has which address: one small file, replaced atomically before an address is used.
//!
//! Not forced to the disk: a lease has to outlive the daemon's death, not the machine's, which ends all pods.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{error::NetworkError, subnet::Subnet};

/// Transport protocol of a forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As Kubernetes spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
    /// The number in the IP header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl FromStr for Protocol {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|p| p.name() == text)
            .ok_or_else(|| format!("unknown protocol {text:?}: expected TCP, UDP or SCTP"))
    }
}

/// A port of the host that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// Only this address of the host; `None` (or the unspecified address): all of them.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
}

impl HostPort {
    /// `None` for "all addresses".
    pub(crate) fn specific_ip(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }
    fn collides(&self, other: &Self) -> bool {
        let ips = match (self.specific_ip(), other.specific_ip()) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        ips && self.host_port == other.host_port && self.protocol == other.protocol
    }
}

/// What a pod holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub address: Ipv4Addr,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<HostPort>,
}

/// The network's whole durable state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub bridge: String,
    /// False if the bridge was there before us: then it is not ours to remove.
    pub owns_bridge: bool,
    /// Eight hexadecimal digits in all kernel names of this instance.
    pub tag: String,
    pub subnet: Subnet,
    pub leases: BTreeMap<String, Lease>,
    /// Addresses given back, longest ago first.
    pub released: Vec<Ipv4Addr>,
    /// Inode of the directory that this was written for: a copy has another.
    #[serde(default)]
    pub home: Option<u64>,
}

impl State {
    /// The pod's lease, made if needed: a fresh address while there is one, else the one released longest ago, so that
    /// nobody's stale connection meets a new pod.
    pub fn lease(&mut self, uid: &str) -> Result<Ipv4Addr, NetworkError> {
        if let Some(lease) = self.leases.get(uid) {
            return Ok(lease.address);
        }
        let used: BTreeSet<Ipv4Addr> = self.leases.values().map(|l| l.address).collect();
        let stale: BTreeSet<Ipv4Addr> = self.released.iter().copied().collect();
        let address = (2..self.subnet.size() - 1)
            .map(|n| self.subnet.host(n))
            .find(|a| !used.contains(a) && !stale.contains(a))
            .or_else(|| self.released.iter().copied().find(|a| self.subnet.contains(*a) && !used.contains(a)))
            .ok_or_else(|| NetworkError::Exhausted { subnet: self.subnet.to_string(), leases: used.len() })?;
        self.released.retain(|a| *a != address);
        self.leases.insert(uid.into(), Lease { address, ports: vec![] });
        Ok(address)
    }

    /// Whether any port of the host leads to a pod.
    pub fn has_ports(&self) -> bool {
        self.leases.values().any(|lease| !lease.ports.is_empty())
    }

    /// Gives an address back; false if there was no lease.
    pub fn release(&mut self, uid: &str) -> bool {
        let Some(lease) = self.leases.remove(uid) else { return false };
        self.released.retain(|a| *a != lease.address);
        self.released.push(lease.address);
        true
    }

    /// Records the ports of an attached pod in place of its earlier ones; false if nothing changed.
    pub fn forward(&mut self, uid: &str, ports: &[HostPort]) -> Result<bool, NetworkError> {
        let taken = self.leases.iter().filter(|(other, _)| *other != uid).find_map(|(other, lease)| {
            let clash = ports.iter().find(|p| lease.ports.iter().any(|q| q.collides(p)))?;
            Some((other.clone(), clash.clone()))
        });
        if let Some((other, port)) = taken {
            let by = format!("pod {other}");
            return Err(NetworkError::PortInUse { port: port.host_port, protocol: port.protocol.name(), by });
        }
        let lease = self.leases.get_mut(uid).ok_or_else(|| NetworkError::NotAttached(uid.into()))?;
        if lease.ports == ports {
            return Ok(false);
        }
        lease.ports = ports.to_vec();
        Ok(true)
    }

    /// Name of the host's end of a pod's veth pair; unique per address.
    pub fn veth(&self, address: Ipv4Addr) -> String {
        format!("hf{}v{:x}", self.tag, self.subnet.index(address).unwrap_or(0))
    }
    /// What all veth names begin with.
    pub fn veth_prefix(&self) -> String {
        format!("hf{}v", self.tag)
    }
    /// Name of this instance's nf_tables table.
    pub fn table(&self) -> String {
        format!("hf-{}", self.tag)
    }
}

/// Where the state lives.
#[derive(Debug)]
pub struct StateFile {
    dir: PathBuf,
}

impl StateFile {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("network.json")
    }

    pub fn load(&self) -> Result<Option<State>, NetworkError> {
        let path = self.path();
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).map_err(|source| NetworkError::Damaged { path, source })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(NetworkError::File { action: "read network records", path, source }),
        }
    }

    /// Forgets everything.
    pub fn remove(&self) -> Result<(), NetworkError> {
        let path = self.path();
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(NetworkError::File { action: "remove network records", path, source: e })
            }
            _ => Ok(()),
        }
    }

    /// Returns when every later reader, also after a crash of this process, sees the state.
    pub fn save(&self, state: &State) -> Result<(), NetworkError> {
        let path = self.path();
        let bytes = serde_json::to_vec_pretty(state).map_err(|e| NetworkError::Internal(e.to_string()))?;
        replace(&path, &bytes).map_err(|source| NetworkError::File { action: "write network records", path, source })
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("json.new");
    fs::write(&new, bytes)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(subnet: &str) -> State {
        State {
            bridge: "hf-00000000".into(),
            owns_bridge: true,
            tag: "00000000".into(),
            subnet: subnet.parse().expect("subnet"),
            leases: BTreeMap::new(),
            released: vec![],
            home: None,
        }
    }

    #[test]
    fn same_pod_same_address_and_oldest_release_is_reused_first() {
        let mut s = state("10.0.0.0/29");
        let got: Vec<u8> = ["a", "b", "c", "d", "e"].iter().map(|u| s.lease(u).expect("free").octets()[3]).collect();
        assert_eq!(got, [2, 3, 4, 5, 6]);
        assert_eq!(s.lease("c").expect("own").octets()[3], 4);
        assert!(matches!(s.lease("f"), Err(NetworkError::Exhausted { .. })));
        assert!(s.release("d") && s.release("b") && !s.release("b"));
        assert_eq!(s.lease("f").expect("free").octets()[3], 5, "d's was released first");
        assert_eq!(s.lease("g").expect("free").octets()[3], 3);
    }

    #[test]
    fn a_fresh_address_is_preferred_to_a_released_one() {
        let mut s = state("10.0.0.0/24");
        s.lease("a").expect("free");
        s.release("a");
        assert_eq!(s.lease("b").expect("free").octets()[3], 3);
    }

    #[test]
    fn state_survives_a_reload_and_a_torn_write() {
        let dir = tempfile::tempdir().expect("dir");
        let file = StateFile::new(dir.path().into());
        assert_eq!(file.load().expect("empty"), None);
        let mut s = state("10.0.0.0/24");
        s.lease("a").expect("free");
        let port = HostPort { host_ip: None, host_port: 80, container_port: 8080, protocol: Protocol::Tcp };
        assert!(s.forward("a", &[port]).expect("attached"));
        file.save(&s).expect("save");
        fs::write(dir.path().join("network.json.new"), b"{half").expect("torn");
        assert_eq!(file.load().expect("load"), Some(s));
        fs::write(dir.path().join("network.json"), b"{half").expect("damage");
        assert!(matches!(file.load(), Err(NetworkError::Damaged { .. })));
    }

    #[test]
    fn one_host_port_one_pod() {
        let mut s = state("10.0.0.0/24");
        let port = |ip: Option<&str>, protocol| HostPort {
            host_ip: ip.map(|i| i.parse().expect("ip")),
            host_port: 80,
            container_port: 80,
            protocol,
        };
        for uid in ["a", "b"] {
            s.lease(uid).expect("free");
        }
        assert!(s.forward("a", &[port(Some("10.1.1.1"), Protocol::Tcp)]).expect("free"));
        assert!(!s.forward("a", &[port(Some("10.1.1.1"), Protocol::Tcp)]).expect("same"));
        for clash in [Some("10.1.1.1"), None, Some("0.0.0.0")] {
            let refused = s.forward("b", &[port(clash, Protocol::Tcp)]);
            assert!(matches!(refused, Err(NetworkError::PortInUse { .. })), "{clash:?}");
        }
        assert!(s.forward("b", &[port(Some("10.1.1.2"), Protocol::Tcp)]).expect("other address"));
        assert!(s.forward("b", &[port(None, Protocol::Udp)]).expect("other protocol"));
        assert!(matches!(s.forward("x", &[]), Err(NetworkError::NotAttached(_))));
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        let s = state("10.88.0.0/16");
        assert!(s.veth(Ipv4Addr::new(10, 88, 255, 254)).len() <= 15);
    }
}
