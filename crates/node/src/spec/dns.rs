//! The pod's `/etc/resolv.conf`.
use k8s_openapi::api::core::v1::Pod;

/// The cluster's name server, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDns {
    pub servers: Vec<std::net::IpAddr>,
    /// `cluster.local`
    pub domain: String,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Resolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut r = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => r.servers.extend(words.next()),
                // The last line of these wins, as in the C library.
                Some("search") => r.searches = words.collect(),
                Some("options") => r.options = words.collect(),
                _ => {}
            }
        }
        r
    }

    fn print(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text += &format!("search {}\n", self.searches.join(" "));
        }
        for server in &self.servers {
            text += &format!("nameserver {server}\n");
        }
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.join(" "));
        }
        text
    }
}

/// Content of the pod's resolver configuration by `dnsPolicy` and `dnsConfig`; `host` is the host's own file. Without a
/// cluster name server `ClusterFirst` means the host's, as upstream's.
pub fn resolv_conf(pod: &Pod, host: &str, cluster: Option<&ClusterDns>) -> String {
    let Some(spec) = &pod.spec else { return host.to_owned() };
    let host_network = spec.host_network == Some(true);
    let mut r = match (spec.dns_policy.as_deref().unwrap_or("ClusterFirst"), cluster) {
        ("None", _) => Resolver::default(),
        ("ClusterFirst", Some(dns)) if !host_network => for_cluster(pod, host, dns),
        ("ClusterFirstWithHostNet", Some(dns)) => for_cluster(pod, host, dns),
        _ => Resolver::parse(host),
    };
    if let Some(config) = &spec.dns_config {
        add_new(&mut r.servers, config.nameservers.iter().flatten().cloned());
        add_new(&mut r.searches, config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            r.options.retain(|o| o.split(':').next() != Some(name.as_str()));
            r.options.push(match option.value.as_deref().filter(|v| !v.is_empty()) {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    r.print()
}

fn for_cluster(pod: &Pod, host: &str, dns: &ClusterDns) -> Resolver {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let domain = &dns.domain;
    let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    add_new(&mut searches, Resolver::parse(host).searches.into_iter());
    Resolver {
        servers: dns.servers.iter().map(ToString::to_string).collect(),
        searches,
        options: vec!["ndots:5".into()],
    }
}

fn add_new(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

#[test]
fn policies() {
    let dns = ClusterDns { servers: vec![[10, 0, 0, 10].into()], domain: "cluster.local".into() };
    let host = "nameserver 192.0.2.1\nsearch corp.test\noptions timeout:1 rotate\n";
    let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local corp.test\nnameserver 10.0.0.10\n\
                   options ndots:5\n";
    let own = "search corp.test\nnameserver 192.0.2.1\noptions timeout:1 rotate\n";
    let config = serde_json::json!({"nameservers": ["192.0.2.7"], "searches": ["x.test"],
        "options": [{"name": "timeout", "value": "9"}, {"name": "edns0"}]});
    for (spec, dns, want) in [
        (serde_json::json!({}), Some(&dns), cluster),
        (serde_json::json!({}), None, own),
        (serde_json::json!({"hostNetwork": true}), Some(&dns), own),
        (serde_json::json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), Some(&dns), cluster),
        (serde_json::json!({"dnsPolicy": "Default"}), Some(&dns), own),
        (
            serde_json::json!({"dnsPolicy": "None", "dnsConfig": config}),
            Some(&dns),
            "search x.test\nnameserver 192.0.2.7\noptions timeout:9 edns0\n",
        ),
        (
            serde_json::json!({"dnsPolicy": "Default", "dnsConfig": config}),
            None,
            "search corp.test x.test\nnameserver 192.0.2.1\nnameserver 192.0.2.7\noptions rotate timeout:9 edns0\n",
        ),
    ] {
        let mut s = serde_json::json!({"containers": []});
        s.as_object_mut().expect("object").extend(spec.as_object().expect("object").clone());
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"metadata": {"namespace": "ns"}, "spec": s})).expect("valid");
        assert_eq!(resolv_conf(&pod, host, dns), want, "{spec}");
    }
}
