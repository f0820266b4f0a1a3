//! The pod network against the real kernel, in network namespaces made for the test: the machine's own is not touched.
//! Needs root.
use std::{
    collections::HashSet,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    time::Duration,
};

use futures::TryStreamExt;
use network::{
    Egress, HostPort, Network, NetworkError, Options, Protocol, create_netns, dial, in_netns, is_netns, remove_netns,
};
use nix::sched::{CloneFlags, unshare};

/// Removes the pinned namespaces of a test in all outcomes.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn netns(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        create_netns(&path).expect("create a network namespace (needs root)");
        path
    }
    fn state(&self, name: &str) -> PathBuf {
        self.dir.path().join("state").join(name)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.dir.path()).expect("read dir").flatten() {
            if is_netns(&entry.path()) {
                remove_netns(&entry.path()).expect("remove namespace");
            }
        }
    }
}

/// Runs `test` in a fresh network namespace that plays the host.
fn on_fresh_host<F: Future<Output = ()>>(test: impl FnOnce(World) -> F + Send + 'static) {
    let work = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        let world = World { dir: tempfile::tempdir().expect("dir") };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(test(world));
    };
    if let Err(panic) = std::thread::spawn(work).join() {
        std::panic::resume_unwind(panic);
    }
}

fn open(world: &World, name: &str) -> Network {
    Network::open(world.state(name), Options::default()).expect("open network")
}

/// Serves one line per connection: the address the caller seems to have. Ends with the process.
fn serve(netns: &Path, address: SocketAddr) {
    let listener = in_netns(netns, || TcpListener::bind(address)).expect("enter").expect("bind");
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = stream.write_all(peer.ip().to_string().as_bytes());
        }
    });
}

fn ask(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn ask_from(netns: &Path, to: SocketAddr) -> String {
    in_netns(netns, || ask(to)).expect("enter").unwrap_or_else(|e| panic!("no answer from {to}: {e}"))
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn links() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").expect("net/dev");
    table.lines().skip(2).filter_map(|l| Some(l.split(':').next()?.trim().to_owned())).collect()
}

#[test]
fn namespaces_are_pinned_and_unpinned_again_and_again() {
    let world = World { dir: tempfile::tempdir().expect("dir") };
    let path = world.netns("ns");
    create_netns(&path).expect("again");
    assert!(is_netns(&path));
    let inside = in_netns(&path, links).expect("enter");
    assert_eq!(inside, ["lo"]);
    remove_netns(&path).expect("remove");
    remove_netns(&path).expect("again");
    assert!(!path.exists());
    assert!(matches!(in_netns(&path, || ()), Err(NetworkError::NoNetns(_))));
}

#[test]
fn pods_and_host_reach_each_other() {
    on_fresh_host(|world| async move {
        let net = open(&world, "one");
        let (a, b) = (world.netns("a"), world.netns("b"));
        let ip_a = net.attach("a", &a).await.expect("attach")[0];
        let ip_b = net.attach("b", &b).await.expect("attach")[0];
        assert_ne!(ip_a, ip_b);
        assert_eq!(net.attach("a", &a).await.expect("again"), [ip_a]);
        serve(&a, at(Ipv4Addr::UNSPECIFIED.into(), 80));
        assert_eq!(ask(at(ip_a, 80)).expect("host to pod"), net.gateway().to_string());
        assert_eq!(ask_from(&b, at(ip_a, 80)), ip_b.to_string(), "pod to pod");
        assert_eq!(ask_from(&a, at(ip_a, 80)), ip_a.to_string(), "pod to itself");
        let mut stream = dial(Some(&a), 80).await.expect("dial").into_std().expect("std");
        stream.set_nonblocking(false).expect("blocking");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("read");
        assert_eq!(text, "127.0.0.1");
        let listener = TcpListener::bind((net.gateway(), 0)).expect("listen on the gateway");
        let port = listener.local_addr().expect("address").port();
        std::thread::spawn(move || listener.accept().map(|(mut s, p)| s.write_all(p.ip().to_string().as_bytes())));
        assert_eq!(ask_from(&b, at(net.gateway(), port)), ip_b.to_string(), "pod to host");
    });
}

#[test]
fn leases_survive_a_restart_and_nothing_is_left_after_removal() {
    on_fresh_host(|world| async move {
        let before = links();
        let net = open(&world, "one");
        let a = world.netns("a");
        let ip = net.attach("a", &a).await.expect("attach");
        let subnet = net.subnet();
        drop(net);
        let net = open(&world, "one");
        assert_eq!(net.subnet(), subnet);
        assert_eq!(net.attach("a", &a).await.expect("adopt"), ip);
        serve(&a, at(Ipv4Addr::UNSPECIFIED.into(), 80));
        ask(at(ip[0], 80)).expect("still connected");
        // A sandbox made anew: same pod, other namespace, same address.
        let again = world.netns("again");
        assert_eq!(net.attach("a", &again).await.expect("move"), ip);
        net.detach("a").await.expect("detach");
        net.detach("a").await.expect("again");
        assert_ne!(net.attach("b", &a).await.expect("attach"), ip, "an address rests before it is used again");
        net.detach("b").await.expect("detach");
        let c = net.attach("c", &a).await.expect("the namespace has the interface of b, or not, any more");
        serve(&a, at(c[0], 81));
        ask(at(c[0], 81)).expect("the new interface is not removed in place of the old one");
        net.sweep(&HashSet::new()).await.expect("sweep");
        assert_eq!(links().len(), before.len() + 1, "only the bridge is left: {:?}", links());
        net.remove_all().await.expect("remove");
        assert_eq!(links(), before);
    });
}

#[test]
fn damaged_records_matter_only_while_the_bridge_exists() {
    on_fresh_host(|world| async move {
        let net = open(&world, "one");
        let records = world.state("one").join("network.json");
        let good = std::fs::read(&records).expect("read");
        std::fs::write(&records, b"").expect("cut by a power failure");
        let refused = Network::open(world.state("one"), Options::default()).map(|_| ());
        assert!(matches!(refused, Err(NetworkError::Damaged { .. })));
        std::fs::write(&records, good).expect("restore");
        net.remove_all().await.expect("as after a reboot");
        std::fs::write(&records, b"").expect("cut");
        open(&world, "one");
    });
}

#[test]
fn two_instances_side_by_side() {
    on_fresh_host(|world| async move {
        let (one, two) = (open(&world, "one"), open(&world, "two"));
        assert_ne!(one.subnet(), two.subnet());
        assert_ne!(one.bridge(), two.bridge());
        let (a, b) = (world.netns("a"), world.netns("b"));
        let ip_a = one.attach("pod", &a).await.expect("attach")[0];
        two.attach("pod", &b).await.expect("attach");
        serve(&a, at(Ipv4Addr::UNSPECIFIED.into(), 80));
        assert_eq!(ask_from(&b, at(ip_a, 80)), one.gateway().to_string(), "routed, as egress of the other instance");
        two.remove_all().await.expect("remove");
        ask(at(ip_a, 80)).expect("the other instance is not disturbed");
    });
}

#[test]
fn a_taken_range_is_avoided_or_refused() {
    on_fresh_host(|world| async move {
        let one = open(&world, "one");
        let wish = Options { pod_cidr: Some(one.subnet()), bridge: None };
        let refused = Network::open(world.state("two"), wish).map(|_| ()).expect_err("overlap");
        assert!(matches!(refused, NetworkError::Overlap { .. }), "{refused}");
        let wish = Options { pod_cidr: Some("172.31.9.0/24".parse().expect("subnet")), bridge: Some("mine".into()) };
        let two = Network::open(world.state("two"), wish).expect("free");
        assert_eq!(two.gateway().to_string(), "172.31.9.1");
        assert!(links().contains(&"mine".to_owned()));
        for bridge in ["", "much-too-long-a-name", "a/b", "a b"] {
            let wish = Options { pod_cidr: None, bridge: Some(bridge.into()) };
            let refused = Network::open(world.state("bad"), wish).map(|_| ());
            assert!(matches!(refused, Err(NetworkError::BadBridge(_))), "{bridge}");
        }
        for uid in ["", "../x", "a/b"] {
            assert!(matches!(two.detach(uid).await, Err(NetworkError::BadUid(_))), "{uid}");
        }
    });
}

#[test]
fn egress_is_masqueraded() {
    on_fresh_host(|world| async move {
        let net = open(&world, "one");
        assert_eq!(net.egress(), &Egress::Available);
        // A second instance plays the outside: its pod sees the first one's traffic come from its own gateway.
        let wish = Options { pod_cidr: Some("192.168.77.0/24".parse().expect("subnet")), bridge: None };
        let outside = Network::open(world.state("outside"), wish).expect("open");
        let (pod, server) = (world.netns("pod"), world.netns("server"));
        net.attach("pod", &pod).await.expect("attach");
        let ip = outside.attach("server", &server).await.expect("attach")[0];
        serve(&server, at(Ipv4Addr::UNSPECIFIED.into(), 80));
        assert_eq!(ask_from(&pod, at(ip, 80)), outside.gateway().to_string());
    });
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    on_fresh_host(|world| async move {
        let net = open(&world, "one");
        let up = |ns: &Path| in_netns(ns, || TcpListener::bind("127.0.0.1:0").map(drop));
        let (a, b) = (world.netns("a"), world.netns("b"));
        net.attach("a", &a).await.expect("attach");
        net.attach("b", &b).await.expect("attach");
        up(&a).expect("enter").expect("lo is up");
        serve(&a, at(Ipv4Addr::UNSPECIFIED.into(), 8080));
        let port = |n| HostPort { host_ip: None, host_port: n, container_port: 8080, protocol: Protocol::Tcp };
        net.forward("a", &[port(80)]).await.expect("forward");
        net.forward("a", &[port(80)]).await.expect("again");
        let gateway = net.gateway();
        ask(at(gateway, 80)).expect("host, by an address of its own");
        ask_from(&b, at(gateway, 80));
        ask_from(&a, at(gateway, 80));
        raise_loopback().await;
        ask(at(Ipv4Addr::LOCALHOST.into(), 80)).expect("host, by localhost");
        let refused = net.forward("b", &[port(80)]).await.expect_err("taken");
        assert!(matches!(refused, NetworkError::PortInUse { .. }), "{refused}");
        let listener = TcpListener::bind("0.0.0.0:0").expect("a program of the host");
        let busy = listener.local_addr().expect("address").port();
        let refused = net.forward("b", &[port(busy)]).await.expect_err("in use");
        assert!(matches!(refused, NetworkError::PortInUse { .. }), "{refused}");
        let v6 = HostPort { host_ip: Some("::1".parse().expect("ip")), ..port(81) };
        let refused = net.forward("b", &[v6]).await.expect_err("no IPv6");
        assert!(matches!(refused, NetworkError::NoForward { .. }), "{refused}");
        net.detach("a").await.expect("detach");
        assert!(ask(at(gateway, 80)).is_err(), "gone with the pod");
        net.forward("b", &[port(80)]).await.expect("free again");
    });
}

/// A pod that may change its own network routes 127.0.0.1 to the host, where programs listen that trust whoever reaches
/// them there. With host ports in use the kernel would take such packets.
#[test]
fn cve_2020_8558_loopback_of_the_host_is_out_of_reach() {
    on_fresh_host(|world| async move {
        let net = open(&world, "one");
        let (a, b) = (world.netns("a"), world.netns("b"));
        net.attach("a", &a).await.expect("attach");
        net.attach("b", &b).await.expect("attach");
        let port = HostPort { host_ip: None, host_port: 80, container_port: 8080, protocol: Protocol::Tcp };
        net.forward("a", &[port]).await.expect("forward");
        let routed = || {
            let path = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", net.bridge());
            std::fs::read_to_string(path).expect("read").trim().to_owned()
        };
        assert_eq!(routed(), "1");
        raise_loopback().await;
        let victim = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        victim.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        let target = victim.local_addr().expect("address");
        // The owner of the port, and a neighbour.
        for (pod, name) in [(&a, "a"), (&b, "b")] {
            serve(pod, at(Ipv4Addr::UNSPECIFIED.into(), 8080));
            in_netns(pod, || attack(target)).expect("enter");
            // Takes the same way there and back, so the packets have had their time.
            ask_from(pod, at(net.gateway(), 80));
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|s| s.send_to(b"own", target)).expect("send");
            let mut heard = [0; 16];
            let (length, from) = victim.recv_from(&mut heard).expect("at least the host's own word");
            assert_eq!(&heard[..length], b"own", "pod {name} reached 127.0.0.1 of the host, as {from}");
        }
        // Honest use of the port by that address is not hurt.
        ask(at(Ipv4Addr::LOCALHOST.into(), 80)).expect("host, by localhost");
        net.detach("a").await.expect("detach");
        assert_eq!(routed(), "0", "switched off with the last port");
    });
}

/// Sends datagrams to `target` past this namespace's own loopback interface.
fn attack(target: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(forget_loopback());
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
    for _ in 0..10 {
        socket.send_to(b"attack", target).expect("send");
    }
}

/// Takes the addresses of this namespace's loopback interface, so that they are routed like any other.
async fn forget_loopback() {
    let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
    let driver = tokio::spawn(connection);
    // It is the first interface of every namespace.
    let all = handle.address().get().set_link_index_filter(1).execute();
    for address in all.try_collect::<Vec<_>>().await.expect("addresses of lo") {
        handle.address().del(address).execute().await.expect("remove an address");
    }
    driver.abort();
}

async fn raise_loopback() {
    let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
    let driver = tokio::spawn(connection);
    let up = rtnetlink::LinkUnspec::new_with_name("lo").up().build();
    handle.link().set(up).execute().await.expect("bring up lo");
    driver.abort();
}
