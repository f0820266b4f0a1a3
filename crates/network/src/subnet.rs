//! An IPv4 range, as a value.
use std::{fmt, net::Ipv4Addr, str::FromStr};

use crate::error::NetworkError;

/// An IPv4 network with a prefix of 16 to 29 bits: room for at least five pods, and host numbers fit 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

impl Subnet {
    /// The range that holds `address`; bits below the prefix are cleared.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Result<Self, NetworkError> {
        if !(16..=29).contains(&prefix) {
            let text = format!("{address}/{prefix}");
            return Err(NetworkError::BadSubnet { text, why: "the prefix length must be between 16 and 29" });
        }
        Ok(Self { base: u32::from(address) & mask(prefix), prefix })
    }
    /// Bits of the network part.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }
    /// First address, of the network itself.
    pub fn base(&self) -> Ipv4Addr {
        self.base.into()
    }
    /// The network mask.
    pub fn mask(&self) -> Ipv4Addr {
        mask(self.prefix).into()
    }
    /// The `n`th address. The caller keeps `n` below [`Subnet::size`].
    pub fn host(&self, n: u32) -> Ipv4Addr {
        (self.base | (n & !mask(self.prefix))).into()
    }
    /// Number of an address of this range.
    pub fn index(&self, address: Ipv4Addr) -> Option<u32> {
        self.contains(address).then(|| u32::from(address) & !mask(self.prefix))
    }
    /// Count of addresses, with those of the network and of broadcast.
    pub fn size(&self) -> u32 {
        1 << (32 - self.prefix)
    }
    /// The bridge's own address, the pods' gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        self.host(1)
    }
    /// Whether `address` is of this range.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.base
    }
    /// Whether any address is both of this range and of `address/prefix`.
    pub fn overlaps(&self, address: Ipv4Addr, prefix: u8) -> bool {
        let shared = mask(prefix.min(self.prefix));
        u32::from(address) & shared == self.base & shared
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = NetworkError;
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let bad = |why| NetworkError::BadSubnet { text: text.into(), why };
        let (address, prefix) = text.split_once('/').ok_or_else(|| bad("expected ADDRESS/PREFIX"))?;
        let address = address.parse().map_err(|_| bad("expected an IPv4 address"))?;
        Self::new(address, prefix.parse().map_err(|_| bad("expected a prefix length"))?)
    }
}

impl serde::Serialize for Subnet {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Subnet {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_computes() {
        let net: Subnet = "10.88.7.9/24".parse().expect("valid");
        assert_eq!(net.to_string(), "10.88.7.0/24");
        assert_eq!(net.gateway(), Ipv4Addr::new(10, 88, 7, 1));
        assert_eq!(net.host(255), Ipv4Addr::new(10, 88, 7, 255));
        assert_eq!(net.index(Ipv4Addr::new(10, 88, 7, 12)), Some(12));
        assert_eq!(net.index(Ipv4Addr::new(10, 88, 8, 12)), None);
        assert_eq!(net.mask(), Ipv4Addr::new(255, 255, 255, 0));
    }

    #[test]
    fn refuses_what_cannot_work() {
        for text in ["", "10.0.0.0", "10.0.0.0/8", "10.0.0.0/30", "10.0.0/24", "fd00::/64", "10.0.0.0/x"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn overlap_goes_both_ways() {
        let net: Subnet = "10.88.7.0/24".parse().expect("valid");
        let cases = [
            ("10.88.7.128", 25, true),
            ("10.88.0.0", 16, true),
            ("10.88.7.3", 32, true),
            ("10.88.8.0", 24, false),
            ("192.168.0.0", 16, false),
            ("10.0.0.0", 8, true),
        ];
        for (address, prefix, expect) in cases {
            assert_eq!(net.overlaps(address.parse().expect("address"), prefix), expect, "{address}/{prefix}");
        }
    }
}
