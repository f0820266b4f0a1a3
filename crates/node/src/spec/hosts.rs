//! The pod's host name and its `/etc/hosts`.
use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// Longest host name the kernel takes.
const HOSTNAME_BYTES: usize = 63;

/// The UTS host name, and the pod's domain where `subdomain` asks for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// What `hostname` prints in the container.
    pub hostname: String,
    /// `<subdomain>.<namespace>.svc.<cluster domain>`; empty without a subdomain.
    pub domain: String,
}

/// The pod's names. A long name is cut to 63 characters and loses a trailing `-` or `.`.
pub fn names(pod: &Pod, cluster_domain: &str) -> Names {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    if let Some(name) = spec.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return Names { hostname: name.into(), domain: String::new() };
    }
    let own = pod.metadata.name.as_deref().unwrap_or_default();
    let mut hostname = spec.hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or(own);
    if hostname.len() > HOSTNAME_BYTES {
        hostname = hostname[..HOSTNAME_BYTES].trim_end_matches(['-', '.']);
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let domain = match spec.subdomain.as_deref().filter(|s| !s.is_empty()) {
        Some(sub) => format!("{sub}.{namespace}.svc.{cluster_domain}"),
        None => String::new(),
    };
    if spec.set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        return Names { hostname: format!("{hostname}.{domain}"), domain };
    }
    Names { hostname: hostname.into(), domain }
}

/// Content of the pod's hosts file; `host_file` is the host's own, used with `hostNetwork`.
pub fn hosts_file(pod: &Pod, ips: &[String], names: &Names, host_file: &str) -> String {
    let spec = pod.spec.as_ref();
    let mut text;
    if spec.is_some_and(|s| s.host_network == Some(true)) {
        text = format!("# Kubernetes-managed hosts file (host network).\n{host_file}");
    } else {
        text = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned();
        for ip in ips {
            let short = names.hostname.strip_suffix(&format!(".{}", names.domain)).unwrap_or(&names.hostname);
            if names.domain.is_empty() {
                text += &format!("{ip}\t{short}\n");
            } else {
                text += &format!("{ip}\t{short}.{}\t{short}\n", names.domain);
            }
        }
    }
    let aliases: Vec<_> = spec.and_then(|s| s.host_aliases.as_ref()).into_iter().flatten().collect();
    if !aliases.is_empty() {
        text += "\n# Entries added by HostAliases.\n";
        for alias in aliases {
            text += &format!(
                "{}\t{}\n",
                alias.ip,
                alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        let mut s = json!({"containers": []});
        s.as_object_mut().expect("object").extend(spec.as_object().expect("object").clone());
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": s})).expect("valid")
    }

    #[test]
    fn host_names() {
        let long = "a".repeat(62) + "-bcd";
        for (spec, hostname, domain) in [
            (json!({}), "p", ""),
            (json!({"hostname": "h"}), "h", ""),
            (json!({"hostname": "h", "subdomain": "s"}), "h", "s.ns.svc.cluster.local"),
            (
                json!({"subdomain": "s", "setHostnameAsFQDN": true}),
                "p.s.ns.svc.cluster.local",
                "s.ns.svc.cluster.local",
            ),
            (json!({"setHostnameAsFQDN": true}), "p", ""),
            (json!({"hostname": long}), &"a".repeat(62), ""),
            (json!({"hostnameOverride": "other.test", "subdomain": "s"}), "other.test", ""),
        ] {
            let got = names(&pod(spec.clone()), "cluster.local");
            assert_eq!((got.hostname.as_str(), got.domain.as_str()), (hostname, domain), "{spec}");
        }
    }

    #[test]
    fn hosts_files() {
        let p = pod(json!({"subdomain": "s", "setHostnameAsFQDN": true,
            "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["one.test", "two.test"]}]}));
        let text = hosts_file(&p, &["10.0.0.2".into()], &names(&p, "cluster.local"), "");
        assert!(text.contains("10.0.0.2\tp.s.ns.svc.cluster.local\tp\n"), "{text}");
        assert!(text.ends_with("\n# Entries added by HostAliases.\n192.0.2.9\tone.test\ttwo.test\n"), "{text}");
        let p = pod(json!({"hostNetwork": true}));
        let text = hosts_file(&p, &[], &names(&p, "cluster.local"), "127.0.0.1 localhost\n");
        assert_eq!(text, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n");
    }
}
