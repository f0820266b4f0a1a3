//! What is looked at before anything is made: a start that cannot work says so and leaves nothing behind.
use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use base::Layout;
use rustix::thread::CapabilitySet;

use crate::{
    client::Error,
    errors::{Doing, said},
};

/// What pods cannot be run without.
const NEEDED: [(CapabilitySet, &str); 10] = [
    (CapabilitySet::CHOWN, "CAP_CHOWN"),
    (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
    (CapabilitySet::FOWNER, "CAP_FOWNER"),
    (CapabilitySet::SETGID, "CAP_SETGID"),
    (CapabilitySet::SETUID, "CAP_SETUID"),
    (CapabilitySet::SETPCAP, "CAP_SETPCAP"),
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
    (CapabilitySet::SYS_CHROOT, "CAP_SYS_CHROOT"),
    (CapabilitySet::MKNOD, "CAP_MKNOD"),
];
/// What containers have by default beyond these: programs that use it fail without, others run.
const USUAL: [(CapabilitySet, &str); 6] = [
    (CapabilitySet::FSETID, "CAP_FSETID"),
    (CapabilitySet::KILL, "CAP_KILL"),
    (CapabilitySet::NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE"),
    (CapabilitySet::NET_RAW, "CAP_NET_RAW"),
    (CapabilitySet::AUDIT_WRITE, "CAP_AUDIT_WRITE"),
    (CapabilitySet::SETFCAP, "CAP_SETFCAP"),
];

/// Refuses to run pods without the rights for it.
pub fn privileges() -> Result<(), Error> {
    if !rustix::process::geteuid().is_root() {
        return said("running pods needs root; start with sudo, or with --no-node for the API and controllers alone");
    }
    let have = rustix::thread::capabilities(None).doing(|| "read this process's capabilities".into())?.effective;
    let missing = |of: &[(CapabilitySet, &'static str)]| -> Vec<_> {
        of.iter().filter(|(c, _)| !have.contains(*c)).map(|(_, name)| *name).collect()
    };
    let usual = missing(&USUAL);
    if !usual.is_empty() {
        tracing::warn!(missing = usual.join(", "), "containers will lack capabilities that they have elsewhere");
    }
    let missing = missing(&NEEDED);
    if missing.is_empty() {
        return Ok(());
    }
    said(format!(
        "running pods needs {}, which this root user lacks; start outside of the container or service that took it \
         away, or with --no-node for the API and controllers alone",
        missing.join(", ")
    ))
}

/// The node's name: as asked, else made of the host's.
pub fn node_name(asked: Option<&str>) -> Result<String, Error> {
    let Some(name) = asked else {
        return Ok(plain(&rustix::system::uname().nodename().to_string_lossy()));
    };
    // It is also the value of the label kubernetes.io/hostname.
    let mut wrong = api::names::dns_subdomain(name);
    wrong.extend(api::names::label_value(name));
    match wrong.first() {
        None => Ok(name.to_owned()),
        Some(why) => said(format!("--node-name {name:?} cannot be a node's name: {why}")),
    }
}

/// A host name with what cannot be in a node's name replaced.
fn plain(host: &str) -> String {
    let fine = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' { c } else { '-' };
    let name: String = host.to_lowercase().chars().map(fine).take(63).collect();
    let parts: Vec<_> = name.split('.').map(|p| p.trim_matches('-')).filter(|p| !p.is_empty()).collect();
    if parts.is_empty() { "node".into() } else { parts.join(".") }
}

/// The data directory, held by this process alone until it ends.
pub struct DataDir {
    pub layout: Layout,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if it is missing and takes it.
    pub fn take(dir: &Path) -> Result<Self, Error> {
        let layout = Layout::new(make(dir)?);
        let what = || format!("take the data directory {}; choose another with --data-dir", dir.display());
        // The directory itself is locked: no file to be written, so a full disk does not keep a daemon from starting.
        let lock = File::open(layout.root()).doing(what)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = fs::read_to_string(layout.store().join("lock")).unwrap_or_default();
                let holder =
                    if pid.trim().is_empty() { "another process".into() } else { format!("process {}", pid.trim()) };
                let dir = layout.root().display();
                return said(format!(
                    "the data directory {dir} is in use by {holder}; stop it, or choose another with --data-dir"
                ));
            }
            Err(TryLockError::Error(error)) => return Err(error).doing(what)?,
        }
        Ok(Self { layout, _lock: lock })
    }
}

/// Makes the data directory and gives its absolute path.
fn make(dir: &Path) -> Result<PathBuf, Error> {
    use std::os::unix::fs::DirBuilderExt;
    let what = || format!("make the data directory {}; choose another with --data-dir", dir.display());
    if dir.exists() && !dir.is_dir() {
        return said(format!("the data directory {} is a file; choose another with --data-dir", dir.display()));
    }
    // Containers of other users pass through it to their volumes, so it can be entered but not listed.
    fs::DirBuilder::new().recursive(true).mode(0o711).create(dir).doing(what)?;
    Ok(dir.canonicalize().doing(what)?)
}

#[test]
fn any_host_name_makes_a_node_name() {
    let cases = [
        ("vm", "vm"),
        ("My_Host.example.COM", "my-host.example.com"),
        ("-a-..b-", "a.b"),
        ("(none)", "none"),
        ("", "node"),
        ("___", "node"),
    ];
    for (host, name) in cases {
        assert_eq!(plain(host), name);
    }
    for host in ["x".repeat(64), format!("{}.{}", "a".repeat(62), "b".repeat(9)), "é☃.x".into()] {
        let name = plain(&host);
        assert_eq!(api::names::dns_subdomain(&name), [""; 0], "{host}");
        assert_eq!(api::names::label_value(&name), [""; 0], "{host}");
    }
}
