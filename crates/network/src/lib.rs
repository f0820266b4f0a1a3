//! The pod network of one node: a bridge, an address per pod, NAT for egress. Talks netlink only.
