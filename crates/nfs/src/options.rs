//! What stands after `mount -o` for NFS: read once, for both clients.
use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

/// A mount option that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    #[error("mount option {option:?} is not known for NFS; remove it from the volume's mountOptions")]
    Unknown { option: String },
    #[error("mount option {option:?} has no value that can be used: {expected}")]
    Value {
        option: String,
        /// What it should be.
        expected: &'static str,
    },
    #[error(
        "mount option {option:?} needs the kernel's NFS client, which this node's kernel has not got; remove the \
         option (version 3 over TCP with sec=sys is what works here), or run the pod on a node with that client"
    )]
    NeedsKernel { option: String },
}

/// A version of the protocol that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V3,
    /// 4, with its minor version where that was said.
    V4(Option<u8>),
}

/// The mount options of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    pub version: Option<Version>,
    pub read_only: bool,
    /// Of the NFS server; else it is looked up.
    pub port: Option<u16>,
    /// Of mountd; else it is looked up.
    pub mount_port: Option<u16>,
    /// `noexec`, `nosuid`, `nodev`, `noatime`, ...: what the mount itself does, whatever the filesystem.
    pub flags: Vec<String>,
    /// What only the kernel's client can do, for the error.
    pub(crate) needs_kernel: Option<String>,
    /// What the kernel's client is told besides version, ports and addresses.
    pub(crate) for_kernel: Vec<String>,
    pub(crate) tuning: Tuning,
    pub(crate) locks_said: bool,
    /// The option that asks for locks of the server's.
    pub(crate) needs_locks: Option<String>,
}

/// How the embedded client behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tuning {
    pub read_size: Option<u32>,
    pub write_size: Option<u32>,
    /// An error after `retrans` repeats instead of waiting for ever.
    pub soft: bool,
    pub answer: Duration,
    pub repeats: u32,
    /// How long attributes and names are believed.
    pub believed: Duration,
    /// Every write is on the server's disk when it returns.
    pub sync: bool,
    /// Directories are listed together with attributes.
    pub list_plus: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            read_size: None,
            write_size: None,
            soft: false,
            answer: Duration::from_secs(60),
            repeats: 2,
            believed: Duration::from_secs(1),
            sync: false,
            list_plus: true,
        }
    }
}

/// Flags of any mount.
const FLAGS: [&str; 6] = ["noexec", "nosuid", "nodev", "noatime", "nodiratime", "strictatime"];
/// For those who mount at boot, or about the time of trying: nothing to anybody here.
const FOR_OTHERS: [&str; 19] = [
    "rw", "defaults", "auto", "noauto", "_netdev", "nofail", "bg", "fg", "user", "nouser", "users", "owner", "sloppy",
    "exec", "suid", "dev", "atime", "diratime", "relatime",
];
/// Switches that the embedded client has the one way of, or for which it makes no difference.
const HARMLESS: [&str; 21] = [
    "async",
    "ac",
    "intr",
    "nointr",
    "acl",
    "noacl",
    "rdirplus",
    "cto",
    "sharecache",
    "nosharecache",
    "fsc",
    "nofsc",
    "migration",
    "nomigration",
    "trunkdiscovery",
    "notrunkdiscovery",
    "resvport",
    "lock",
    "nolock",
    "posix",
    "nocto",
];
/// The same with values.
const HARMLESS_WITH: [&str; 8] =
    ["local_lock", "nconnect", "max_connect", "lookupcache", "namlen", "write", "mountvers", "fsc"];

impl Options {
    /// Reads options, one or several (by commas) in each text. Of two that contradict each other, the last counts.
    ///
    /// # Errors
    /// The first that is unknown or has a wrong value.
    pub fn parse(texts: &[String]) -> Result<Self, OptionError> {
        let mut options = Self::default();
        for option in texts.iter().flat_map(|t| t.split(',')).map(str::trim).filter(|o| !o.is_empty()) {
            options.add(option)?;
        }
        Ok(options)
    }

    fn add(&mut self, option: &str) -> Result<(), OptionError> {
        let (key, value) = option.split_once('=').map_or((option, None), |(k, v)| (k, Some(v)));
        let wrong = |expected| OptionError::Value { option: option.to_owned(), expected };
        let number = || value.and_then(|v| v.parse::<u32>().ok()).ok_or_else(|| wrong("a whole number is expected"));
        let port = || value.and_then(|v| v.parse::<u16>().ok()).ok_or_else(|| wrong("a port is expected"));
        let kernel_too = |options: &mut Self| options.for_kernel.push(option.to_owned());
        match (key, value) {
            (flag, None) if FLAGS.contains(&flag) => self.flags.push(flag.to_owned()),
            ("ro", None) => self.read_only = true,
            (other, None) if FOR_OTHERS.contains(&other) => {}
            ("retry", Some(_)) => drop(number()?),
            (other, _) if other.starts_with("x-") || other == "comment" => {}
            ("vers" | "nfsvers", Some(v)) => self.version = Some(version(v).ok_or_else(|| wrong(VERSIONS))?),
            ("v3", None) => self.version = Some(Version::V3),
            ("v4" | "v4.0" | "v4.1" | "v4.2", None) => self.version = version(&key[1..]),
            ("minorversion", Some(_)) => {
                let minor = u8::try_from(number()?).ok().filter(|m| *m <= 2).ok_or_else(|| wrong("0, 1 or 2"))?;
                self.version = Some(Version::V4(Some(minor)));
            }
            ("port", _) => self.port = Some(port()?).filter(|p| *p != 0),
            ("mountport", _) => self.mount_port = Some(port()?).filter(|p| *p != 0),
            ("proto" | "mountproto", Some("tcp" | "tcp6")) | ("tcp" | "sec", None | Some("sys")) => {}
            ("udp" | "rdma" | "proto" | "mountproto" | "sec" | "xprtsec" | "noresvport" | "clientaddr", _) => {
                self.needs_kernel = Some(option.to_owned());
                kernel_too(self);
            }
            ("mounthost" | "mountaddr" | "addr", Some(_)) => {
                return Err(wrong("the volume's server is what is asked; remove the option"));
            }
            (other, None) if HARMLESS.contains(&other) => {
                if matches!(other, "lock" | "nolock") {
                    self.locks_said = true;
                    self.needs_locks = (other == "lock").then(|| option.to_owned());
                }
                kernel_too(self);
            }
            (other, Some(_)) if HARMLESS_WITH.contains(&other) => {
                if other == "local_lock" {
                    self.locks_said = true;
                    self.needs_locks = (value == Some("none")).then(|| option.to_owned());
                }
                kernel_too(self);
            }
            _ => {
                self.tuning.add(key, value.is_some(), &number).map_err(|unknown| {
                    if unknown { OptionError::Unknown { option: option.to_owned() } } else { wrong(NUMBER) }
                })?;
                kernel_too(self);
            }
        }
        Ok(())
    }

    /// Whether the embedded client can do what was asked for.
    ///
    /// # Errors
    /// Names the option that it cannot follow.
    pub fn without_kernel(&self) -> Result<(), OptionError> {
        let needed = match self.version {
            Some(Version::V4(None)) => Some("vers=4".to_owned()),
            Some(Version::V4(Some(minor))) => Some(format!("vers=4.{minor}")),
            // Its locks are its own.
            _ => self.needs_kernel.clone().or_else(|| self.needs_locks.clone()),
        };
        needed.map_or(Ok(()), |option| Err(OptionError::NeedsKernel { option }))
    }

    /// What the kernel's client is to be tried with, best first: the filesystem's name and its options.
    ///
    /// `mount.nfs` does the same: the kernel resolves no names, and is told the newest version first.
    /// `keeps_locks`: whether the service runs here that version 3 needs for locks of the server's.
    pub fn kernel_tries(&self, server: IpAddr, keeps_locks: bool) -> Vec<(&'static str, Vec<String>)> {
        let minors: &[u8] = match self.version {
            None | Some(Version::V4(None)) => &[2, 1, 0],
            Some(Version::V4(Some(minor))) => &[minor],
            Some(Version::V3) => &[],
        };
        let mut tries = Vec::new();
        for minor in minors {
            tries.push(("nfs4", self.kernel_options(&[format!("vers=4.{minor}"), format!("addr={server}")])));
        }
        if !matches!(self.version, Some(Version::V4(_))) {
            let mut own = vec!["vers=3".to_owned(), format!("addr={server}")];
            own.extend([format!("mountaddr={server}"), "mountvers=3".into()]);
            let tcp = if server.is_ipv6() { "tcp6" } else { "tcp" };
            if !self.for_kernel.iter().any(|o| o.starts_with("proto=") || o == "udp" || o == "rdma") {
                own.extend([format!("proto={tcp}"), format!("mountproto={tcp}")]);
            }
            own.extend(self.mount_port.map(|p| format!("mountport={p}")));
            if !keeps_locks && !self.locks_said {
                own.push("nolock".into());
            }
            tries.push(("nfs", self.kernel_options(&own)));
        }
        tries
    }

    fn kernel_options(&self, own: &[String]) -> Vec<String> {
        let port = self.port.map(|p| format!("port={p}"));
        own.iter().cloned().chain(port).chain(self.for_kernel.iter().cloned()).collect()
    }
}

const VERSIONS: &str = "3, 4, 4.0, 4.1 or 4.2 is expected";
const NUMBER: &str = "a whole number above 0 is expected";

fn version(text: &str) -> Option<Version> {
    Some(match text {
        "3" => Version::V3,
        "4" => Version::V4(None),
        "4.0" => Version::V4(Some(0)),
        "4.1" => Version::V4(Some(1)),
        "4.2" => Version::V4(Some(2)),
        _ => return None,
    })
}

impl Tuning {
    /// The error says whether the option is unknown; else its value is wrong.
    fn add(&mut self, key: &str, with_value: bool, number: &dyn Fn() -> Result<u32, OptionError>) -> Result<(), bool> {
        let number = || number().map_err(|_| false);
        let above_0 = || number().and_then(|n| if n == 0 { Err(false) } else { Ok(n) });
        match (key, with_value) {
            ("hard", false) => self.soft = false,
            ("soft" | "softerr" | "softreval", false) => self.soft = true,
            ("sync", false) => self.sync = true,
            ("noac", false) => (self.believed, self.sync) = (Duration::ZERO, true),
            ("nordirplus", false) => self.list_plus = false,
            // Less than a kernel's call asks for at once makes no sense.
            ("rsize", true) => self.read_size = Some(above_0()?.max(4096)),
            ("wsize", true) => self.write_size = Some(above_0()?.max(4096)),
            ("timeo", true) => self.answer = Duration::from_millis(u64::from(above_0()?) * 100),
            ("retrans", true) => self.repeats = number()?,
            ("actimeo", true) => self.believed = Duration::from_secs(number()?.into()),
            // Of the four bounds the lowest is what may be relied on.
            ("acregmin" | "acdirmin", true) => {
                self.believed = self.believed.min(Duration::from_secs(number()?.into()));
            }
            ("acregmax" | "acdirmax", true) => drop(number()?),
            _ => return Err(true),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, OptionError> {
        Options::parse(&[text.to_owned()])
    }

    fn tries(text: &str) -> Vec<String> {
        let options = parse(text).expect("options");
        let tries = options.kernel_tries("192.0.2.1".parse().expect("address"), false);
        tries.into_iter().map(|(kind, options)| format!("{kind} {}", options.join(","))).collect()
    }

    #[test]
    fn options_say_how_the_embedded_client_behaves() {
        let all =
            parse("soft,timeo=5,retrans=1,port=2050,mountport=2051,nolock,vers=3,ro,rsize=1,noexec").expect("options");
        assert_eq!((all.port, all.mount_port, all.read_only), (Some(2050), Some(2051), true));
        assert_eq!((all.tuning.soft, all.tuning.repeats, all.tuning.read_size), (true, 1, Some(4096)));
        assert_eq!((all.tuning.answer, all.flags), (Duration::from_millis(500), vec!["noexec".to_owned()]));
        assert_eq!(parse("actimeo=0").map(|o| o.tuning.believed), Ok(Duration::ZERO));
        assert_eq!(parse("soft,hard").map(|o| o.tuning.soft), Ok(false));
        assert_eq!(parse("x-systemd.automount,_netdev,nofail,rw,,"), Ok(Options::default()));
    }

    #[test]
    fn what_cannot_be_followed_is_named() {
        for option in ["fast", "vers=2", "port=x", "timeo=", "rsize=0", "ro=1", "mounthost=other", "nfsvers"] {
            let error = parse(option).expect_err(option).to_string();
            assert!(error.contains(&format!("{option:?}")), "{error}");
        }
        for option in ["vers=4", "vers=4.1", "sec=krb5", "proto=udp", "udp", "lock", "local_lock=none"] {
            let error = parse(option).expect("for a kernel").without_kernel().expect_err(option).to_string();
            assert!(error.contains(&format!("{option:?}")), "{error}");
        }
        for option in ["vers=3", "tcp,proto=tcp,sec=sys", "lock,nolock,local_lock=all,nconnect=4"] {
            assert_eq!(parse(option).expect("options").without_kernel(), Ok(()), "{option}");
        }
    }

    #[test]
    fn the_kernel_is_told_what_it_cannot_find_out() {
        let v3 = "vers=3,addr=192.0.2.1,mountaddr=192.0.2.1,mountvers=3,proto=tcp,mountproto=tcp";
        assert_eq!(
            tries(""),
            [
                "nfs4 vers=4.2,addr=192.0.2.1".to_owned(),
                "nfs4 vers=4.1,addr=192.0.2.1".into(),
                "nfs4 vers=4.0,addr=192.0.2.1".into(),
                format!("nfs {v3},nolock")
            ]
        );
        assert_eq!(tries("nfsvers=3,lock,soft,ro,noexec"), [format!("nfs {v3},lock,soft")]);
        assert_eq!(tries("vers=4.1,port=2050,bg"), ["nfs4 vers=4.1,addr=192.0.2.1,port=2050"]);
        assert_eq!(tries("vers=3,mountport=20048"), [format!("nfs {v3},mountport=20048,nolock")]);
    }
}
