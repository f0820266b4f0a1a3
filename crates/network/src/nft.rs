//! nf_tables messages: just enough to write one table of NAT rules in one transaction, and to let a bridge pass a
//! firewall that others set up.
//!
//! Numbers are the kernel's (`linux/netfilter/nf_tables.h`, `nfnetlink.h`). All integers in attributes are big-endian;
//! what a rule loads into a register keeps the order it has in the packet or in the kernel's memory.
use std::{io, net::Ipv4Addr};

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULES: u16 = 7;
const DELETE_RULE: u16 = 8;
const NETLINK_ERROR: u16 = 2;
const NETLINK_DONE: u16 = 3;
const FAMILY_IPV4: u8 = 2;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;

/// Attributes under construction.
#[derive(Debug, Default, Clone)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).expect("an attribute here is far below 64 KiB");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
    fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }
    fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }
    fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// Where a chain hooks into the packet's way.
#[derive(Debug, Clone, Copy)]
pub enum Hook {
    /// Before everything else: packets as they are on the wire, with no address rewritten.
    Arrival,
    Prerouting,
    Output,
    Postrouting,
}

impl Hook {
    fn number_and_priority(self) -> (u32, i32) {
        match self {
            Self::Arrival => (0, -300),
            Self::Prerouting => (0, -100),
            Self::Output => (3, -100),
            Self::Postrouting => (4, 100),
        }
    }
    /// The type of chain.
    fn kind(self) -> &'static str {
        match self {
            Self::Arrival => "filter",
            Self::Prerouting | Self::Output | Self::Postrouting => "nat",
        }
    }
    fn name(self) -> &'static str {
        match self {
            Self::Arrival => "arrival",
            Self::Prerouting => "prerouting",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// A rule: expressions in order, all of which must match before the last one acts.
#[derive(Debug, Default, Clone)]
pub struct Rule(Attributes);

impl Rule {
    fn expression(self, name: &str, data: Attributes) -> Self {
        let element = Attributes::default().text(1, name).nest(2, data);
        Self(self.0.nest(1, element))
    }
    fn compare(self, register: u32, equal: bool, value: &[u8]) -> Self {
        let data = Attributes::default().bytes(1, value);
        let op = u32::from(!equal);
        self.expression("cmp", Attributes::default().number(1, register).number(2, op).nest(3, data))
    }
    fn masked(self, register: u32, mask: &[u8]) -> Self {
        let bits = |value: &[u8]| Attributes::default().bytes(1, value);
        let length = u32::try_from(mask.len()).expect("a register holds 16 bytes");
        let data = Attributes::default().number(1, register).number(2, register).number(3, length);
        self.expression("bitwise", data.nest(4, bits(mask)).nest(5, bits(&vec![0; mask.len()])))
    }
    fn payload(self, base: u32, offset: u32, length: u32) -> Self {
        let data = Attributes::default().number(1, 1).number(2, base).number(3, offset).number(4, length);
        self.expression("payload", data)
    }
    fn address(self, offset: u32, network: Ipv4Addr, mask: Ipv4Addr) -> Self {
        self.payload(1, offset, 4).masked(1, &mask.octets()).compare(1, true, &network.octets())
    }

    /// Source address within `network`.
    pub fn from(self, network: Ipv4Addr, mask: Ipv4Addr) -> Self {
        self.address(12, network, mask)
    }
    /// Destination address within `network`.
    pub fn to(self, network: Ipv4Addr, mask: Ipv4Addr) -> Self {
        self.address(16, network, mask)
    }
    /// Destination is one of the host's own addresses.
    pub fn for_host(self) -> Self {
        let (by_destination, address_type, local) = (2, 3, 2_u32);
        let data = Attributes::default().number(1, 1).number(2, address_type).number(3, by_destination);
        self.expression("fib", data).compare(1, true, &local.to_ne_bytes())
    }
    /// Leaves by the interface `name`, or by any other.
    pub fn leaves_by(self, name: &str, equal: bool) -> Self {
        self.interface(7, name, equal)
    }
    /// Enters by the interface `name`.
    pub fn enters_by(self, name: &str) -> Self {
        self.interface(6, name, true)
    }
    fn interface(self, key: u32, name: &str, equal: bool) -> Self {
        let mut padded = [0; 16];
        padded[..name.len().min(15)].copy_from_slice(&name.as_bytes()[..name.len().min(15)]);
        self.expression("meta", Attributes::default().number(1, 1).number(2, key)).compare(1, equal, &padded)
    }
    /// Transport protocol and destination port.
    pub fn port(self, protocol: u8, port: u16) -> Self {
        self.expression("meta", Attributes::default().number(1, 1).number(2, 16))
            .compare(1, true, &[protocol])
            .payload(2, 2, 2)
            .compare(1, true, &port.to_be_bytes())
    }
    /// Belongs to a connection whose destination was rewritten.
    pub fn was_redirected(self) -> Self {
        let (status, destination_nat) = (2, 1_u32 << 5);
        self.expression("ct", Attributes::default().number(1, 1).number(2, status))
            .masked(1, &destination_nat.to_ne_bytes())
            .compare(1, false, &0_u32.to_ne_bytes())
    }
    /// Enters or leaves by the interface `name`, written exactly as iptables writes it, whose tools must be able to read
    /// the chain they own.
    fn passes(self, name: &str, enters: bool) -> Self {
        let key = if enters { 6 } else { 7 };
        let name = [name.as_bytes(), &[0]].concat();
        let zeros = Attributes::default().bytes(1, &[0; 8]).bytes(2, &[0; 8]);
        self.expression("meta", Attributes::default().number(1, 1).number(2, key))
            .compare(1, true, &name)
            .expression("counter", zeros)
            .verdict(1)
    }
    /// Lets nothing of it go on.
    pub fn drop(self) -> Self {
        self.verdict(0)
    }
    fn verdict(self, code: u32) -> Self {
        let verdict = Attributes::default().nest(2, Attributes::default().number(1, code));
        self.expression("immediate", Attributes::default().number(1, 0).nest(2, verdict))
    }
    /// Rewrites the source to the address of the interface it leaves by.
    pub fn masquerade(self) -> Self {
        self.expression("masq", Attributes::default())
    }
    /// Rewrites the destination.
    pub fn redirect(self, address: Ipv4Addr, port: u16) -> Self {
        let load = |rule: Self, register, value: &[u8]| {
            let data = Attributes::default().bytes(1, value);
            rule.expression("immediate", Attributes::default().number(1, register).nest(2, data))
        };
        let rule = load(load(self, 1, &address.octets()), 2, &port.to_be_bytes());
        let (destination, min_address, min_port) = (1, 1, 2);
        let data = Attributes::default().number(1, destination).number(2, u32::from(FAMILY_IPV4));
        rule.expression("nat", data.number(3, min_address).number(5, min_port))
    }
}

/// Replaces the table `name` by these chains, in one transaction. An empty list removes the table.
pub fn replace_table(name: &str, chains: &[(Hook, Vec<Rule>)]) -> io::Result<()> {
    let mut batch = Batch::default();
    batch.control(BATCH_BEGIN);
    let table = || Attributes::default().text(1, name);
    // Adding first makes the deletion succeed in either case.
    batch.message(NEW_TABLE, CREATE, table());
    batch.message(DELETE_TABLE, 0, table());
    if !chains.is_empty() {
        batch.message(NEW_TABLE, CREATE, table());
    }
    for (hook, rules) in chains {
        let (number, priority) = hook.number_and_priority();
        let place = Attributes::default().number(1, number).bytes(2, &priority.to_be_bytes());
        batch.message(NEW_CHAIN, CREATE, table().text(3, hook.name()).nest(4, place).text(7, hook.kind()));
        for rule in rules {
            let expressions = rule.0.clone();
            batch.message(NEW_RULE, CREATE | APPEND, table().text(2, hook.name()).nest(4, expressions));
        }
    }
    batch.control(BATCH_END);
    batch.commit()
}

/// The chain of iptables that sees forwarded packets; container engines and firewalls often let it drop what they do
/// not know.
const FILTER: (&str, &str) = ("filter", "FORWARD");

/// Lets what enters or leaves by `bridge` pass iptables' forwarding chain, if that chain exists in nf_tables, or (with
/// `pass` false) takes that back. Nothing happens if things are so already.
pub fn pass_firewall(bridge: &str, pass: bool) -> io::Result<()> {
    let place = || Attributes::default().text(1, FILTER.0).text(2, FILTER.1);
    let chain = Attributes::default().text(1, FILTER.0).text(3, FILTER.1);
    match ask(GET_CHAIN, ACK, &chain) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => drop(other?),
    }
    let name = [bridge.as_bytes(), &[0]].concat();
    let answers = ask(GET_RULES, DUMP, &place())?;
    let ours: Vec<&Vec<u8>> = answers.iter().filter(|rule| rule.windows(name.len()).any(|w| w == name)).collect();
    if pass && ours.len() >= 2 {
        return Ok(());
    }
    let mut batch = Batch::default();
    batch.control(BATCH_BEGIN);
    for handle in ours.iter().filter_map(|rule| attribute(rule, 3)) {
        batch.message(DELETE_RULE, 0, place().bytes(3, handle));
    }
    for enters in [true, false].into_iter().filter(|_| pass) {
        // Without APPEND a rule goes to the head of its chain.
        batch.message(NEW_RULE, CREATE, place().nest(4, Rule::default().passes(bridge, enters).0));
    }
    batch.control(BATCH_END);
    batch.commit()
}

/// Sends one question and returns the attributes of each answer.
fn ask(kind: u16, flags: u16, attributes: &Attributes) -> io::Result<Vec<Vec<u8>>> {
    let mut question = Batch::default();
    question.raw((SUBSYSTEM << 8) | kind, REQUEST | flags, FAMILY_IPV4, 0, &attributes.0);
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&question.bytes, 0)?;
    let mut found = vec![];
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while let Some(head) = rest.first_chunk::<20>() {
            let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
            match u16::from_ne_bytes([head[4], head[5]]) {
                NETLINK_DONE => return Ok(found),
                NETLINK_ERROR => {
                    let code = i32::from_ne_bytes([head[16], head[17], head[18], head[19]]);
                    return if code == 0 { Ok(found) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                _ => found.push(rest[20..length.clamp(20, rest.len())].to_vec()),
            }
            rest = &rest[length.max(20).next_multiple_of(4).min(rest.len())..];
        }
    }
}

/// The value of the first attribute of that kind.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some(head) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        if length < 4 || length > rest.len() {
            return None;
        }
        if u16::from_ne_bytes([head[2], head[3]]) & !NESTED == wanted {
            return Some(&rest[4..length]);
        }
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    None
}

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    acks: u32,
}

impl Batch {
    fn control(&mut self, kind: u16) {
        self.raw(kind, REQUEST, 0, SUBSYSTEM, &[]);
    }
    fn message(&mut self, kind: u16, flags: u16, attributes: Attributes) {
        self.acks += 1;
        self.raw((SUBSYSTEM << 8) | kind, REQUEST | ACK | flags, FAMILY_IPV4, 0, &attributes.0);
    }
    fn raw(&mut self, kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) {
        self.sequence += 1;
        let length = u32::try_from(20 + body.len()).expect("a message here is far below 4 GiB");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(body);
    }

    /// Sends the batch and reads one answer per message; the first refusal is the result.
    fn commit(self) -> io::Result<()> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The kernel has answered everything when `send` returns, so an empty queue means the end.
        socket.set_non_blocking(true)?;
        socket.send(&self.bytes, 0)?;
        let mut answered = 0;
        while answered < self.acks {
            let (bytes, _) = match socket.recv_from_full() {
                Ok(answer) => answer,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            };
            let mut rest = &bytes[..];
            while let Some(head) = rest.first_chunk::<20>() {
                let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
                let kind = u16::from_ne_bytes([head[4], head[5]]);
                let code = i32::from_ne_bytes([head[16], head[17], head[18], head[19]]);
                if kind == NETLINK_ERROR && code != 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
                answered += 1;
                rest = &rest[length.max(20).next_multiple_of(4).min(rest.len())..];
            }
        }
        if answered < self.acks {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "nf_tables did not answer"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn drop_everything_forwarded() -> io::Result<()> {
        let mut batch = Batch::default();
        batch.control(BATCH_BEGIN);
        batch.message(NEW_TABLE, CREATE, Attributes::default().text(1, FILTER.0));
        let hook = Attributes::default().number(1, 2).number(2, 0);
        let chain = Attributes::default().text(1, FILTER.0).text(3, FILTER.1).nest(4, hook).number(5, 0);
        batch.message(NEW_CHAIN, CREATE, chain.text(7, "filter"));
        batch.control(BATCH_END);
        batch.commit()
    }

    fn rules() -> usize {
        let place = Attributes::default().text(1, FILTER.0).text(2, FILTER.1);
        ask(GET_RULES, DUMP, &place).expect("list rules").len()
    }

    #[test]
    fn passes_a_firewall_and_leaves_no_trace() {
        let work = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
            pass_firewall("hf-00000001", true).expect("no firewall, nothing to do");
            drop_everything_forwarded().expect("firewall");
            for _ in 0..2 {
                pass_firewall("hf-00000001", true).expect("pass");
                assert_eq!(rules(), 2, "in and out, once");
            }
            pass_firewall("hf-00000002", true).expect("another bridge");
            assert_eq!(rules(), 4);
            pass_firewall("hf-00000001", false).expect("take back");
            assert_eq!(rules(), 2);
            pass_firewall("hf-00000002", false).expect("take back");
            assert_eq!(rules(), 0);
        };
        std::thread::spawn(work).join().expect("test thread");
    }
}
