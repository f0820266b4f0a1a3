//! The network itself: what makes leases true in the kernel.
use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr as UnixAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    error::{NetworkError, kernel},
    leases::{HostPort, Protocol, State, StateFile},
    netlink::{RouteSocket, Taken},
    netns, nft, rules,
    subnet::Subnet,
};

/// Wishes of the operator.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Addresses for pods; `None`: the first free /24 of 10.88.0.0/13. Counts only when the records are first made.
    pub pod_cidr: Option<Subnet>,
    /// Name of the bridge; `None`: one derived from the directory.
    pub bridge: Option<String>,
}

/// Whether pods reach what lies beyond the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Egress {
    /// By NAT.
    Available,
    /// Pods and host reach each other, nothing else; the text says why.
    Unavailable(String),
}

/// The pod network of one instance. Cheap to clone; calls may run at once.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    file: StateFile,
    subnet: Subnet,
    bridge: String,
    egress: Egress,
    live: Mutex<Live>,
    /// For slow removals, past the lock of the others.
    reaper: Mutex<RouteSocket>,
}

/// Guarded together: the records and the sockets that make them true.
struct Live {
    state: State,
    socket: RouteSocket,
}

impl Network {
    /// Opens the network recorded in `dir`, or makes one: bridge, gateway address, forwarding, NAT. Idempotent.
    ///
    /// Blocks for a few milliseconds. All work is done in the calling thread's network namespace.
    pub fn open(dir: PathBuf, options: Options) -> Result<Self, NetworkError> {
        fs::create_dir_all(&dir).map_err(|source| NetworkError::File {
            action: "create network directory",
            path: dir.clone(),
            source,
        })?;
        let dir = dir.canonicalize().map_err(|source| NetworkError::File {
            action: "find network directory",
            path: dir.clone(),
            source,
        })?;
        let file = StateFile::new(dir.clone());
        let mut socket = RouteSocket::open().map_err(kernel("open", "a netlink routing socket"))?;
        let _one_at_a_time = ChoiceLock::take();
        let taken = taken(&mut socket)?;
        let mut state = load(&file, &mut socket, &dir, &options, &taken)?;
        make_bridge(&mut socket, &mut state, &taken, &options)?;
        note_home(&state, &dir);
        // A full disk must not keep the daemon from what it recorded before.
        if !matches!(file.load(), Ok(Some(recorded)) if recorded == state) {
            file.save(&state)?;
        }
        let egress = egress(&state);
        if let Egress::Unavailable(why) = &egress {
            tracing::warn!(bridge = state.bridge, why, "pods will not reach networks beyond this host");
        }
        let reaper = Mutex::new(RouteSocket::open().map_err(kernel("open", "a netlink routing socket"))?);
        let (subnet, bridge) = (state.subnet, state.bridge.clone());
        let live = Mutex::new(Live { state, socket });
        Ok(Self { inner: Arc::new(Inner { file, subnet, bridge, egress, live, reaper }) })
    }

    /// The bridge's address: the pods' gateway, and the host as they see it.
    pub fn gateway(&self) -> IpAddr {
        IpAddr::V4(self.inner.subnet.gateway())
    }
    /// The range of pod addresses.
    pub fn subnet(&self) -> Subnet {
        self.inner.subnet
    }
    /// Name of the bridge.
    pub fn bridge(&self) -> &str {
        &self.inner.bridge
    }
    /// Whether pods reach what lies beyond the host.
    pub fn egress(&self) -> &Egress {
        &self.inner.egress
    }
    /// The pod's addresses, if it is attached.
    pub fn addresses(&self, uid: &str) -> Vec<IpAddr> {
        self.inner.live.lock().state.leases.get(uid).map(|l| IpAddr::V4(l.address)).into_iter().collect()
    }

    /// Gives the namespace at `netns` (see [`crate::create_netns`]) `lo`, `eth0`, an address and a default route.
    /// The same `uid` gets the same address until [`Network::detach`].
    pub async fn attach(&self, uid: &str, netns: &Path) -> Result<Vec<IpAddr>, NetworkError> {
        let (uid, netns) = (checked(uid)?, netns.to_path_buf());
        self.blocking(move |inner| inner.attach(&uid, &netns)).await
    }

    /// Removes the pod's forwarded ports and lease, and its interface in the background: the kernel takes tens of
    /// milliseconds for that. Succeeds if there are none.
    pub async fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        let uid = checked(uid)?;
        let doomed = self.blocking(move |inner| inner.detach(&[uid])).await?;
        if !doomed.is_empty() {
            let inner = self.inner.clone();
            tokio::task::spawn_blocking(move || inner.reap(&doomed));
        }
        Ok(())
    }

    /// Makes `ports` the host ports that lead to an attached pod, in place of earlier ones.
    pub async fn forward(&self, uid: &str, ports: &[HostPort]) -> Result<(), NetworkError> {
        let (uid, ports) = (checked(uid)?, ports.to_vec());
        self.blocking(move |inner| inner.forward(&uid, &ports)).await
    }

    /// Detaches every pod that is not in `live` and removes interfaces that no lease explains.
    pub async fn sweep(&self, live: &HashSet<String>) -> Result<(), NetworkError> {
        let live = live.clone();
        self.blocking(move |inner| inner.sweep(&live)).await
    }

    /// [`Network::remove_all`] unless a pod is attached: for a start that failed.
    pub async fn remove_unused(&self) -> Result<(), NetworkError> {
        let used = !self.inner.live.lock().state.leases.is_empty();
        if used { Ok(()) } else { self.remove_all().await }
    }

    /// Removes everything this instance has in the kernel, and its records. The network cannot be used afterwards.
    pub async fn remove_all(&self) -> Result<(), NetworkError> {
        self.blocking(Inner::remove_all).await
    }

    async fn blocking<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<R, NetworkError> + Send + 'static,
    ) -> Result<R, NetworkError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || work(&inner)).await.map_err(|e| NetworkError::Internal(e.to_string()))?
    }
}

impl Inner {
    fn attach(&self, uid: &str, netns: &Path) -> Result<Vec<IpAddr>, NetworkError> {
        let ns = netns::open(netns)?;
        let subnet = self.subnet;
        let (address, veth) = {
            let mut live = self.live.lock();
            let known = live.state.leases.contains_key(uid);
            let address = live.state.lease(uid)?;
            if !known && let Err(e) = self.file.save(&live.state) {
                live.state.release(uid);
                return Err(e);
            }
            let veth = live.state.veth(address);
            if in_ns(netns, move |s| Ok(s.link("eth0")?.is_some()))? && live.link(&veth)?.is_some() {
                // Left by an earlier call; the rest of the work is idempotent.
            } else {
                live.delete(&veth)?;
                // Of an earlier pod in the same namespace, not removed yet.
                in_ns(netns, |s| s.delete_link("eth0"))?;
                let bridge = live.bridge_index()?;
                live.socket
                    .add_veth(&veth, bridge, &ns, mac(address))
                    .map_err(kernel("create pod interface", veth.clone()))?;
            }
            let port = live.link(&veth)?.ok_or_else(|| gone(&veth))?;
            live.socket.set_hairpin(port).map_err(kernel("set hairpin mode of", veth.clone()))?;
            live.socket.set_up(port).map_err(kernel("bring up", veth.clone()))?;
            (address, veth)
        };
        in_ns(netns, move |s| {
            let missing = || io::Error::from(io::ErrorKind::NotFound);
            let lo = s.link("lo")?.ok_or_else(missing)?.index;
            s.set_up(lo)?;
            let eth0 = s.link("eth0")?.ok_or_else(missing)?.index;
            s.add_address(eth0, address, subnet.prefix())?;
            s.set_up(eth0)?;
            s.add_default_route(subnet.gateway())
        })?;
        tracing::debug!(uid, %address, veth, "pod attached");
        Ok(vec![IpAddr::V4(address)])
    }

    /// Returns the interfaces to remove. Until they are, no lease explains them, so a crash leaves them to `sweep`.
    fn detach(&self, uids: &[String]) -> Result<Vec<u32>, NetworkError> {
        let mut live = self.live.lock();
        let mut new = live.state.clone();
        let mut ports = false;
        let mut doomed = vec![];
        for uid in uids {
            let Some(lease) = live.state.leases.get(uid) else { continue };
            ports |= !lease.ports.is_empty();
            let veth = live.state.veth(lease.address);
            doomed.extend(live.link(&veth)?);
            new.release(uid);
        }
        if new == live.state {
            return Ok(doomed);
        }
        if ports {
            apply(&new)?;
            route_loopback(&new, true);
        }
        self.file.save(&new)?;
        live.state = new;
        Ok(doomed)
    }

    /// Removes interfaces by number: the name may belong to the next pod already.
    fn reap(&self, doomed: &[u32]) {
        for index in doomed {
            if let Err(error) = self.reaper.lock().delete_index(*index) {
                tracing::warn!(index, %error, "cannot remove a pod's interface; it goes at the next start");
            }
        }
    }

    fn forward(&self, uid: &str, ports: &[HostPort]) -> Result<(), NetworkError> {
        let mut live = self.live.lock();
        let mut new = live.state.clone();
        if !new.forward(uid, ports)? {
            return Ok(());
        }
        let ipv6 = |p: &&HostPort| p.specific_ip().is_some_and(|ip| ip.is_ipv6());
        if let Some(port) = ports.iter().find(ipv6) {
            let why = "pods have no IPv6 address; use an IPv4 hostIP or none".into();
            return Err(NetworkError::NoForward { port: port.host_port, protocol: port.protocol.name(), why });
        }
        if let (Egress::Unavailable(why), Some(port)) = (&self.egress, ports.first()) {
            let why = why.clone();
            return Err(NetworkError::NoForward { port: port.host_port, protocol: port.protocol.name(), why });
        }
        let had = live.state.leases.get(uid).map(|l| l.ports.clone()).unwrap_or_default();
        ports.iter().filter(|p| !had.contains(p)).try_for_each(unused)?;
        let routed = live.state.has_ports();
        self.file.save(&new)?;
        live.state = new;
        apply(&live.state)?;
        route_loopback(&live.state, routed);
        Ok(())
    }

    fn sweep(&self, keep: &HashSet<String>) -> Result<(), NetworkError> {
        let gone: Vec<String> = self.live.lock().state.leases.keys().filter(|u| !keep.contains(*u)).cloned().collect();
        self.reap(&self.detach(&gone)?);
        let mut live = self.live.lock();
        let prefix = live.state.veth_prefix();
        let leased: HashSet<String> = live.state.leases.values().map(|l| live.state.veth(l.address)).collect();
        let links = live.socket.links().map_err(kernel("list", "interfaces"))?;
        for link in links.iter().filter(|l| l.name.starts_with(&prefix) && !leased.contains(&l.name)) {
            live.delete(&link.name)?;
        }
        Ok(())
    }

    fn remove_all(&self) -> Result<(), NetworkError> {
        self.sweep(&HashSet::new())?;
        let mut live = self.live.lock();
        if self.egress == Egress::Available {
            nft::replace_table(&live.state.table(), &[]).map_err(kernel("remove NAT table", live.state.table()))?;
            firewall(&self.bridge, false)?;
        }
        if live.state.owns_bridge {
            live.delete(&self.bridge)?;
        }
        self.file.remove()
    }
}

impl Live {
    fn link(&mut self, name: &str) -> Result<Option<u32>, NetworkError> {
        Ok(self.socket.link(name).map_err(kernel("look up interface", name))?.map(|l| l.index))
    }
    fn delete(&mut self, name: &str) -> Result<(), NetworkError> {
        self.socket.delete_link(name).map_err(kernel("delete interface", name))
    }
    fn bridge_index(&mut self) -> Result<u32, NetworkError> {
        let name = self.state.bridge.clone();
        self.link(&name)?.ok_or_else(|| gone(&name))
    }
}

fn gone(name: &str) -> NetworkError {
    kernel("find interface", name)(io::Error::new(
        io::ErrorKind::NotFound,
        "it was removed by someone else; restart to make it anew",
    ))
}

fn in_ns<R: Send>(
    netns: &Path,
    work: impl FnOnce(&mut RouteSocket) -> io::Result<R> + Send,
) -> Result<R, NetworkError> {
    netns::in_netns(netns, || work(&mut RouteSocket::open()?))?
        .map_err(kernel("set up pod network in", netns.display().to_string()))
}

/// UIDs are names that others gave: short and harmless, or refused.
fn checked(uid: &str) -> Result<String, NetworkError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if uid.is_empty() || uid.len() > 128 || !uid.chars().all(fine) {
        return Err(NetworkError::BadUid(uid.into()));
    }
    Ok(uid.into())
}

fn taken(socket: &mut RouteSocket) -> Result<Vec<Taken>, NetworkError> {
    let mut all = socket.addresses().map_err(kernel("list", "addresses of the host"))?;
    all.extend(socket.routes().map_err(kernel("list", "routes of the host"))?);
    all.retain(|t| t.prefix > 0);
    Ok(all)
}

/// The recorded state, or a fresh one. Records are not forced to disk, because what they speak of ends with the machine's
/// run: damaged ones after a power failure, when no bridge exists, say nothing that is still true.
fn load(
    file: &StateFile,
    socket: &mut RouteSocket,
    dir: &Path,
    options: &Options,
    taken: &[Taken],
) -> Result<State, NetworkError> {
    match file.load() {
        // Of a copied directory: what is in the kernel belongs to the one that it was copied from.
        Ok(Some(state)) if state.home.is_some_and(|home| home != inode(dir)) => {
            tracing::warn!(bridge = state.bridge, dir = %dir.display(), "this directory is a copy: it gets a pod network of its own");
            fresh(dir, options, taken)
        }
        Ok(Some(state)) => Ok(State { home: Some(inode(dir)), ..state }),
        Ok(None) => fresh(dir, options, taken),
        Err(damage @ NetworkError::Damaged { .. }) => {
            let state = fresh(dir, options, taken)?;
            match socket.link(&state.bridge).map_err(kernel("look up interface", state.bridge.clone()))? {
                Some(_) => Err(damage),
                None => {
                    tracing::warn!(error = base::chain(&damage), "no pod is attached: starting with new records");
                    Ok(state)
                }
            }
        }
        Err(e) => Err(e),
    }
}

fn fresh(dir: &Path, options: &Options, taken: &[Taken]) -> Result<State, NetworkError> {
    let tag = free_tag(dir);
    let bridge = options.bridge.clone().unwrap_or_else(|| format!("hf-{tag}"));
    let fine = |c: char| !c.is_whitespace() && c != '/' && !c.is_control();
    if bridge.is_empty() || bridge.len() > 15 || bridge == "." || bridge == ".." || !bridge.chars().all(fine) {
        return Err(NetworkError::BadBridge(bridge));
    }
    let subnet = match options.pod_cidr {
        Some(subnet) => subnet,
        None => free_subnet(taken)?,
    };
    Ok(State {
        bridge,
        owns_bridge: true,
        tag,
        subnet,
        leases: BTreeMap::new(),
        released: vec![],
        home: Some(inode(dir)),
    })
}

/// What tells a directory from its copies, and stays when it is moved.
fn inode(dir: &Path) -> u64 {
    fs::metadata(dir).map_or(0, |m| m.ino())
}

/// A tag that follows from the directory's place, so that what an instance left there is found again by the next one;
/// another one where an instance that has moved away since still goes by it.
fn free_tag(dir: &Path) -> String {
    let path = dir.as_os_str().as_encoded_bytes();
    let tags = (0..u8::MAX).map(|n| format!("{:08x}", hash(path).wrapping_add(n.into())));
    let mut tags = tags.skip_while(|tag| {
        let Some(owner) = home_of(&format!("hf-{tag}")) else { return false };
        owner != dir && matches!(StateFile::new(owner).load(), Ok(Some(state)) if state.tag == *tag)
    });
    tags.next().unwrap_or_else(|| format!("{:08x}", hash(path)))
}

/// The directory of the instance that a bridge belongs to, as the bridge's alias says.
fn home_of(bridge: &str) -> Option<PathBuf> {
    let alias = fs::read_to_string(format!("/sys/class/net/{bridge}/ifalias")).ok()?;
    Some(alias.trim_end_matches('\n')).filter(|a| !a.is_empty()).map(PathBuf::from)
}

/// Notes at the bridge whose it is, for [`home_of`] and for people (`ip link`).
fn note_home(state: &State, dir: &Path) {
    if !state.owns_bridge || home_of(&state.bridge).is_some_and(|home| home == dir) {
        return;
    }
    if let Err(error) =
        fs::write(format!("/sys/class/net/{}/ifalias", state.bridge), dir.as_os_str().as_encoded_bytes())
    {
        tracing::debug!(bridge = state.bridge, %error, "cannot name the bridge's owner");
    }
}

fn free_subnet(taken: &[Taken]) -> Result<Subnet, NetworkError> {
    (0..8 * 256)
        .filter_map(|n: u32| Subnet::new(Ipv4Addr::from(0x0a58_0000 + (n << 8)), 24).ok())
        .find(|s| clash(s, taken, 0).is_none())
        .ok_or(NetworkError::NoSubnet)
}

/// Something of the host that overlaps, on another interface than `own`.
fn clash<'t>(subnet: &Subnet, taken: &'t [Taken], own: u32) -> Option<&'t Taken> {
    taken.iter().find(|t| (own == 0 || t.interface != own) && subnet.overlaps(t.address, t.prefix))
}

/// Makes the bridge and its address true. Without a bridge no pod is attached (a reboot), so a range that is no longer
/// free can still be exchanged then.
fn make_bridge(
    socket: &mut RouteSocket,
    state: &mut State,
    taken: &[Taken],
    options: &Options,
) -> Result<(), NetworkError> {
    let name = state.bridge.clone();
    let find = |socket: &mut RouteSocket| socket.link(&name).map_err(kernel("look up interface", name.clone()));
    let found = find(socket)?;
    let own = found.as_ref().map_or(0, |l| l.index);
    if let Some(other) = clash(&state.subnet, taken, own) {
        if options.pod_cidr == Some(state.subnet) || found.is_some() {
            let (subnet, other) = (state.subnet.to_string(), format!("{}/{}", other.address, other.prefix));
            return Err(NetworkError::Overlap { subnet, other });
        }
        let subnet = free_subnet(taken)?;
        tracing::warn!(old = %state.subnet, new = %subnet, "the pod network now overlaps one of this host: moved");
        *state = State { subnet, leases: BTreeMap::new(), released: vec![], ..state.clone() };
    }
    let gateway = state.subnet.gateway();
    let index = match found {
        Some(link) => {
            let known = taken.iter().any(|t| t.interface == link.index && t.address == gateway);
            state.owns_bridge &= known || name == format!("hf-{}", state.tag);
            link.index
        }
        None => {
            socket.add_bridge(&name, mac(gateway)).map_err(kernel("create bridge", name.clone()))?;
            state.owns_bridge = true;
            find(socket)?.ok_or_else(|| gone(&name))?.index
        }
    };
    socket
        .add_address(index, gateway, state.subnet.prefix())
        .map_err(kernel("give the gateway address to", name.clone()))?;
    socket.set_up(index).map_err(kernel("bring up", name.clone()))
}

/// Switches on forwarding and NAT; what fails there costs egress, not the network.
fn egress(state: &State) -> Egress {
    let forward = "/proc/sys/net/ipv4/ip_forward";
    let on = fs::read_to_string(forward).is_ok_and(|t| t.trim() == "1");
    if !on && let Err(e) = fs::write(forward, "1") {
        return Egress::Unavailable(format!("cannot switch on {forward}: {e}"));
    }
    if let Err(e) = firewall(&state.bridge, true) {
        tracing::warn!(bridge = state.bridge, error = base::chain(&e), "this host's firewall may block pods");
    }
    match apply(state) {
        Ok(()) => {
            route_loopback(state, state.owns_bridge);
            Egress::Available
        }
        Err(e) => Egress::Unavailable(format!("the kernel has no usable nf_tables NAT: {}", base::chain(&e))),
    }
}

fn firewall(bridge: &str, pass: bool) -> Result<(), NetworkError> {
    nft::pass_firewall(bridge, pass).map_err(kernel("write rules to the firewall for", bridge))
}

fn apply(state: &State) -> Result<(), NetworkError> {
    nft::replace_table(&state.table(), &rules::chains(state)).map_err(kernel("write NAT table", state.table()))
}

/// Lets the kernel route loopback addresses on the bridge while there are host ports: connections from the host to
/// 127.0.0.1 are redirected too. Whoever `had` that switched on before gets it switched off with the last port. The rules
/// keep others from using it, so they come first.
fn route_loopback(state: &State, had: bool) {
    let wanted = state.has_ports();
    if !wanted && !had {
        return;
    }
    let path = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", state.bridge);
    if let Err(error) = fs::write(&path, if wanted { "1" } else { "0" }) {
        tracing::warn!(path, %error, wanted, "could not switch whether host ports answer on 127.0.0.1");
    }
}

/// Refuses a host port on which a program of the host listens: redirecting would hide that program.
fn unused(port: &HostPort) -> Result<(), NetworkError> {
    let ip = port.specific_ip().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let tried = match port.protocol {
        Protocol::Tcp => TcpListener::bind((ip, port.host_port)).map(drop),
        Protocol::Udp => UdpSocket::bind((ip, port.host_port)).map(drop),
        Protocol::Sctp => Ok(()),
    };
    match tried {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(NetworkError::PortInUse {
            port: port.host_port,
            protocol: port.protocol.name(),
            by: "another program on this host".into(),
        }),
        // An address that is not (yet) of this host is the operator's business.
        _ => Ok(()),
    }
}

/// A locally administered hardware address that follows from the IP address, so neighbours' caches stay right when an
/// address moves to another pod.
fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// FNV-1a: stable over versions, and spread enough for a handful of instances.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

/// Keeps two instances that start at once from choosing one range: an abstract socket, freed by the kernel at a crash.
/// Held for milliseconds; without it (a stuck holder) the overlap check of the next start still says what is wrong.
struct ChoiceLock {
    _socket: Option<UnixListener>,
}

impl ChoiceLock {
    fn take() -> Self {
        let bind = || UnixListener::bind_addr(&UnixAddr::from_abstract_name("holdfast/pod-network-choice")?);
        for _ in 0..400 {
            match bind() {
                Ok(socket) => return Self { _socket: Some(socket) },
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => std::thread::sleep(Duration::from_millis(5)),
                Err(_) => break,
            }
        }
        Self { _socket: None }
    }
}
