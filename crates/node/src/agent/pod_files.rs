//! The files that all containers of a pod share: `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname`.
use std::{fs, io, path::Path};

use k8s_openapi::api::core::v1::Pod;
use runtime::SandboxStatus;

use super::{Shared, identity};
use crate::spec::{dns, hosts};

/// Where systemd-resolved keeps the real servers behind its stub at 127.0.0.53, which pods cannot reach.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Writes the files. With `keep`, those that exist stay as they are.
///
/// # Errors
/// Names the file.
pub fn write(shared: &Shared, pod: &Pod, sandbox: &SandboxStatus, keep: bool) -> Result<(), (String, io::Error)> {
    let dir = shared.config.layout.pods().join(identity(pod).2);
    fs::create_dir_all(&dir).map_err(|e| (dir.display().to_string(), e))?;
    let names = hosts::names(pod, &shared.config.cluster_domain);
    let ips: Vec<String> = sandbox.ips.iter().map(ToString::to_string).collect();
    let host_network = sandbox.spec.host_network;
    let own = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let hostname = if host_network { own("/etc/hostname") } else { format!("{}\n", names.hostname) };
    let files = [
        (
            "etc-hosts",
            hosts::hosts_file(pod, &ips, &names, &if host_network { own("/etc/hosts") } else { String::new() }),
        ),
        ("resolv.conf", dns::resolv_conf(pod, &host_resolv_conf(), shared.config.cluster_dns.as_ref())),
        ("hostname", hostname),
    ];
    for (name, text) in files {
        let path = dir.join(name);
        if keep && path.exists() {
            continue;
        }
        fs::write(&path, text).map_err(|e| (path.display().to_string(), e))?;
    }
    Ok(())
}

fn host_resolv_conf() -> String {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let stub = text.lines().any(|l| l.split_whitespace().eq(["nameserver", "127.0.0.53"]));
    if stub && Path::new(RESOLVED).exists() { fs::read_to_string(RESOLVED).unwrap_or(text) } else { text }
}
