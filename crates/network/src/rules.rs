//! The packet rules of one instance, computed from its leases.
use std::net::{IpAddr, Ipv4Addr};

use crate::{
    leases::State,
    nft::{Hook, Rule},
};

/// All chains of the instance's table.
pub fn chains(state: &State) -> Vec<(Hook, Vec<Rule>)> {
    let (network, mask) = (state.subnet.base(), state.subnet.mask());
    let loopback = (Ipv4Addr::new(127, 0, 0, 0), Ipv4Addr::new(255, 0, 0, 0));
    let any = Rule::default;
    // The kernel routes loopback addresses on the bridge where there are host ports. No honest packet comes with one: the
    // answers of redirected connections get theirs only after this.
    let arrives = || any().enters_by(&state.bridge);
    let martian = vec![arrives().to(loopback.0, loopback.1).drop(), arrives().from(loopback.0, loopback.1).drop()];
    let mut source = vec![any().from(network, mask).leaves_by(&state.bridge, false).masquerade()];
    let mut redirects = vec![];
    for lease in state.leases.values() {
        for port in &lease.ports {
            let to = match port.specific_ip() {
                None => any().for_host(),
                Some(IpAddr::V4(ip)) => any().to(ip, Ipv4Addr::BROADCAST),
                Some(IpAddr::V6(_)) => continue, // pods have no IPv6 address to redirect to
            };
            let matched = to.port(port.protocol.number(), port.host_port);
            redirects.push(matched.redirect(lease.address, port.container_port));
        }
    }
    if !redirects.is_empty() {
        // A pod answers a neighbour directly, past the rewriting; and it cannot answer 127.0.0.1 at all.
        source.push(any().from(network, mask).leaves_by(&state.bridge, true).was_redirected().masquerade());
        source.push(any().from(loopback.0, loopback.1).leaves_by(&state.bridge, true).masquerade());
    }
    let mut chains = vec![(Hook::Arrival, martian), (Hook::Postrouting, source)];
    if !redirects.is_empty() {
        chains.push((Hook::Prerouting, redirects.clone()));
        chains.push((Hook::Output, redirects));
    }
    chains
}
