//! Blocking requests over a netlink socket. The kernel answers a request before `send` returns, so this never waits.
use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, OwnedFd},
};

use rtnetlink::{
    LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
        NetlinkPayload,
    },
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{InfoData, InfoVeth, LinkAttribute, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// A route or an address of the host: what a pod network must not overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub address: Ipv4Addr,
    pub prefix: u8,
    /// Interface index, 0 if unknown.
    pub interface: u32,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
}

/// A routing socket in the network namespace of the thread that made it; stays there whichever thread uses it.
pub struct RouteSocket {
    socket: Socket,
    sequence: u32,
}

impl RouteSocket {
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        self.answers()
    }

    fn answers(&mut self) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut found = vec![];
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = &bytes[..];
            while rest.len() >= 16 {
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                if length < 16 || length > rest.len() {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "malformed netlink answer"));
                }
                let sequence = u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]);
                let decoded = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..length]);
                rest = &rest[(length.next_multiple_of(4)).min(rest.len())..];
                if sequence != self.sequence {
                    continue; // left over from a request that ended early
                }
                // A newer kernel may add attributes that do not decode; such an object is skipped, not fatal.
                let Ok(decoded) = decoded else { continue };
                match decoded.payload {
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(e) if e.code.is_none() => return Ok(found),
                    NetlinkPayload::Error(e) => return Err(e.to_io()),
                    NetlinkPayload::InnerMessage(m) => found.push(m),
                    _ => {}
                }
            }
        }
    }

    /// The interface of that name.
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        match self.request(RouteNetlinkMessage::GetLink(message), NLM_F_ACK) {
            Ok(answers) => Ok(answers.into_iter().find_map(as_link)),
            Err(e) if is(&e, &[nix::errno::Errno::ENODEV]) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All interfaces.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(as_link).collect())
    }

    /// Makes a bridge, up, with a fixed hardware address (else it would change with its ports).
    pub fn add_bridge(&mut self, name: &str, mac: [u8; 6]) -> io::Result<()> {
        let message = LinkBridge::new(name).address(mac.to_vec()).build();
        self.add(RouteNetlinkMessage::NewLink(message), NLM_F_EXCL)
    }

    /// Makes a veth pair in one request: `name` here, up, a port of `bridge`; its peer `eth0` in `netns`, down
    /// (the kernel refuses to bring up a peer before the pair is complete).
    pub fn add_veth(&mut self, name: &str, bridge: u32, netns: &OwnedFd, mac: [u8; 6]) -> io::Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name("eth0")
            .address(mac.to_vec())
            .setns_by_fd(netns.as_raw_fd())
            .build();
        let message = LinkVeth::new(name, "eth0")
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .controller(bridge)
            .up()
            .build();
        self.add(RouteNetlinkMessage::NewLink(message), NLM_F_EXCL)
    }

    /// Lets a bridge port send frames back where they came from: a pod that reaches itself through the host.
    pub fn set_hairpin(&mut self, port: u32) -> io::Result<()> {
        let message = LinkBridgePort::new(port).hairpin(true).build();
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_ACK).map(drop)
    }

    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map(drop)
    }

    /// Removes an interface (and a veth's peer). Succeeds if there is none.
    pub fn delete_link(&mut self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        self.delete(message)
    }

    /// Removes an interface by number. Succeeds if there is none.
    pub fn delete_index(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.delete(message)
    }

    fn delete(&mut self, message: LinkMessage) -> io::Result<()> {
        match self.request(RouteNetlinkMessage::DelLink(message), NLM_F_ACK) {
            Err(e) if is(&e, &[nix::errno::Errno::ENODEV]) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Adds an address with its broadcast address. Succeeds if it is there.
    pub fn add_address(&mut self, interface: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix;
        message.header.index = interface;
        let host = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        message.attributes = vec![
            AddressAttribute::Local(IpAddr::V4(address)),
            AddressAttribute::Address(IpAddr::V4(address)),
            AddressAttribute::Broadcast(Ipv4Addr::from(u32::from(address) | host)),
        ];
        self.add(RouteNetlinkMessage::NewAddress(message), NLM_F_REPLACE)
    }

    /// Makes `gateway` the default route.
    pub fn add_default_route(&mut self, gateway: Ipv4Addr) -> io::Result<()> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
        self.add(RouteNetlinkMessage::NewRoute(message), NLM_F_REPLACE)
    }

    /// IPv4 addresses of all interfaces.
    pub fn addresses(&mut self) -> io::Result<Vec<Taken>> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        let answers = self.request(RouteNetlinkMessage::GetAddress(message), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(as_address).collect())
    }

    /// IPv4 routes of all tables, without default routes.
    pub fn routes(&mut self) -> io::Result<Vec<Taken>> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let answers = self.request(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(as_route).collect())
    }

    fn add(&mut self, message: RouteNetlinkMessage, flag: u16) -> io::Result<()> {
        self.request(message, NLM_F_ACK | NLM_F_CREATE | flag).map(drop)
    }
}

fn is(error: &io::Error, codes: &[nix::errno::Errno]) -> bool {
    codes.iter().any(|c| error.raw_os_error() == Some(*c as i32))
}

fn as_link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(link) = message else { return None };
    let mut found = Link { index: link.header.index, name: String::new(), master: None };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name = name,
            LinkAttribute::Controller(index) => found.master = Some(index),
            _ => {}
        }
    }
    Some(found)
}

fn as_address(message: RouteNetlinkMessage) -> Option<Taken> {
    let RouteNetlinkMessage::NewAddress(m) = message else { return None };
    let local = m.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
        _ => None,
    })?;
    Some(Taken { address: local, prefix: m.header.prefix_len, interface: m.header.index })
}

fn as_route(message: RouteNetlinkMessage) -> Option<Taken> {
    let RouteNetlinkMessage::NewRoute(m) = message else { return None };
    let mut found = None;
    let mut interface = 0;
    for attribute in &m.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => found = Some(*ip),
            RouteAttribute::Oif(index) => interface = *index,
            _ => {}
        }
    }
    Some(Taken { address: found?, prefix: m.header.destination_prefix_length, interface })
}
