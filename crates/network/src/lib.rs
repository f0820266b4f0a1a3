//! The pod network of one node: a bridge, an address per pod, NAT for egress. Talks netlink only.
//!
//! In: a directory for its records, network namespaces by path, pod UIDs. Out: interfaces, addresses, routes and one
//! nf_tables table, all named after the instance, so that several instances run side by side on one machine.
//!
//! Invariants: a lease is in its file before its address is used (`leases` tests); every call is idempotent and finishes what
//! an earlier, interrupted call began; the kernel's own tables are the truth about interfaces, the disk about leases.
//! Absent on purpose: Kubernetes types, sub-processes, IPv6 pod addresses, services.
mod error;
mod leases;
mod netlink;
mod netns;
mod network;
mod nft;
mod rules;
mod subnet;

pub use error::NetworkError;
pub use leases::{HostPort, Protocol};
pub use netns::{create_netns, dial, in_netns, is_netns, remove_netns};
pub use network::{Egress, Network, Options};
pub use subnet::Subnet;
