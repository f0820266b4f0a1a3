//! `holdfast why`: reads what an explanation may rest on, from any Kubernetes, and prints the explanation.
use std::{collections::BTreeSet, process::ExitCode};

use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use serde::de::DeserializeOwned;
use serde_json::Value;
use why::{Answer, Facts, Need, Subject};

use super::{Error, Session, is_expired, is_not_found, resources::targets};
use crate::{
    Outcome,
    cli::WhyArgs,
    errors::{misused, said, say},
};

/// Exit status of an object that somebody has to see to.
const NOT_NORMAL: u8 = 3;

/// Objects per page of a list.
const PAGE: usize = 500;

pub async fn run(args: WhyArgs) -> Outcome {
    let session = Session::open(&args.server).await?;
    let names: Vec<String> = args.name.into_iter().collect();
    let (kinds, names) = targets(&args.kind, &names);
    let ([kind], [name]) = (&kinds[..], &names[..]) else {
        return misused("why needs one kind and one name: holdfast why pvc/web");
    };
    let subject = subject(&session, kind, name).await?;
    let mut collector = Collector { session: &session, facts: Facts::default(), read: BTreeSet::new() };
    collector.collect(&subject).await?;
    let now = jiff::Timestamp::now();
    let Some(answer) = why::explain(&subject, &collector.facts, now) else {
        return not_found(&session, &subject, &collector.facts).await;
    };
    print(&answer, &args.output, now)?;
    Ok(if answer.is_normal() { ExitCode::SUCCESS } else { ExitCode::from(NOT_NORMAL) })
}

/// What a kind, as people may write it, and a name mean. Only what every Kubernetes has is explained, so that no server
/// has to be asked what it serves.
async fn subject(session: &Session, kind: &str, name: &str) -> Result<Subject, Error> {
    let (namespace, name) = (session.namespace.clone(), name.to_owned());
    Ok(match kind.to_lowercase().split('.').next().unwrap_or_default() {
        "persistentvolumeclaim" | "persistentvolumeclaims" | "pvc" => Subject::Claim { namespace, name },
        "persistentvolume" | "persistentvolumes" | "pv" => Subject::Volume(name),
        "pod" | "pods" | "po" => Subject::Pod { namespace, name },
        "storageclass" | "storageclasses" | "sc" => Subject::Class(name),
        "volumesnapshot" | "volumesnapshots" | "vs" => match session.get(SNAPSHOTS).await {
            Ok(_) => Subject::Snapshot { namespace, name },
            Err(error) if is_not_found(&error) => {
                return said(
                    "this cluster does not know VolumeSnapshots: their CRDs (snapshot.storage.k8s.io) are not \
                     installed, so nothing makes snapshots; install the CRDs, the snapshot controller and a CSI driver \
                     that makes them",
                );
            }
            Err(error) => return Err(error),
        },
        _ => {
            return misused(
                "why explains pods, persistentvolumeclaims, persistentvolumes, storageclasses and volumesnapshots",
            );
        }
    })
}

/// The server's own sentence about what is not there, and what may have kept it from being made.
async fn not_found(session: &Session, subject: &Subject, facts: &Facts) -> Outcome {
    let path = path(subject);
    let Err(error) = session.get(&path).await else {
        return said(format!("{path} appeared only just now; ask again"));
    };
    let reasons = why::no_room(subject, facts);
    if !is_not_found(&error) || reasons.is_empty() {
        return Err(error);
    }
    said(format!("{error}; {}", reasons.join("; ")))
}

const STORAGE: &str = "/apis/storage.k8s.io/v1";
const SNAPSHOTS: &str = "/apis/snapshot.storage.k8s.io/v1";

/// Where a subject is.
fn path(subject: &Subject) -> String {
    match subject {
        Subject::Claim { namespace, name } => format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"),
        Subject::Volume(name) => format!("/api/v1/persistentvolumes/{name}"),
        Subject::Pod { namespace, name } => format!("/api/v1/namespaces/{namespace}/pods/{name}"),
        Subject::Class(name) => format!("{STORAGE}/storageclasses/{name}"),
        Subject::Snapshot { namespace, name } => format!("{SNAPSHOTS}/namespaces/{namespace}/volumesnapshots/{name}"),
    }
}

/// The namespace that a subject's namespaced needs are in. Events about what has no namespace are kept in `default`.
fn namespace(subject: &Subject) -> &str {
    match subject {
        Subject::Claim { namespace, .. } | Subject::Pod { namespace, .. } | Subject::Snapshot { namespace, .. } => {
            namespace
        }
        Subject::Volume(_) | Subject::Class(_) => "default",
    }
}

fn print(answer: &Answer, output: &str, now: jiff::Timestamp) -> Result<(), Error> {
    match output {
        "json" => say(serde_json::to_string_pretty(answer)?),
        _ => answer.text(now).iter().try_for_each(say),
    }
}

/// Reads what is needed, once each.
struct Collector<'a> {
    session: &'a Session,
    facts: Facts,
    read: BTreeSet<Need>,
}

impl Collector<'_> {
    async fn collect(&mut self, subject: &Subject) -> Result<(), Error> {
        self.itself(subject).await?;
        loop {
            let needed: Vec<Need> = why::needs(subject, &self.facts).difference(&self.read).cloned().collect();
            if needed.is_empty() {
                break;
            }
            for need in needed {
                self.satisfy(subject, &need).await?;
                self.read.insert(need);
            }
        }
        if let Subject::Pod { namespace, name } = subject {
            let of = |p: &&Pod| {
                p.metadata.name.as_deref() == Some(name) && p.metadata.namespace.as_deref() == Some(namespace)
            };
            if let Some(pod) = self.facts.pods.iter().find(of).cloned() {
                self.facts.logs = self.logs(&pod).await;
            }
        }
        Ok(())
    }

    /// The object that is asked about: it may be shown where lists are not.
    async fn itself(&mut self, subject: &Subject) -> Result<(), Error> {
        let object = match self.session.get(&path(subject)).await {
            Ok(object) => object,
            // It may have been refused; that is told at the end.
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        match subject {
            Subject::Claim { .. } => {
                let own = self.parsed("claims", object);
                self.facts.claims.extend(own);
            }
            Subject::Volume(_) => {
                let own = self.parsed("volumes", object);
                self.facts.volumes.extend(own);
            }
            Subject::Pod { .. } => {
                let own = self.parsed("pods", object);
                self.facts.pods.extend(own);
            }
            Subject::Class(_) => {
                let own = self.parsed("classes", object);
                self.facts.classes.extend(own);
            }
            Subject::Snapshot { .. } => {
                let own = self.parsed("snapshots", object);
                self.facts.snapshots.extend(own);
            }
        }
        Ok(())
    }

    async fn satisfy(&mut self, subject: &Subject, need: &Need) -> Result<(), Error> {
        let place = format!("/api/v1/namespaces/{}", namespace(subject));
        match need {
            Need::Claims => {
                let all = self.list("claims", &format!("{place}/persistentvolumeclaims")).await?;
                put(all, &mut self.facts.claims);
            }
            Need::AllClaims => {
                let all = self.list("claims of all namespaces", "/api/v1/persistentvolumeclaims").await?;
                put(all, &mut self.facts.claims);
            }
            Need::Pods => {
                let all = self.list("pods", &format!("{place}/pods")).await?;
                put(all, &mut self.facts.pods);
            }
            Need::AllPods => {
                let all = self.list("pods of all namespaces", "/api/v1/pods").await?;
                put(all, &mut self.facts.pods);
            }
            Need::Volume(name) => {
                let known = |v: &PersistentVolume| v.metadata.name.as_ref() == Some(name);
                if !self.facts.volumes.iter().any(known) {
                    let one = self.one("volumes", &format!("/api/v1/persistentvolumes/{name}")).await?;
                    self.facts.volumes.extend(one);
                }
            }
            Need::Volumes => {
                let all = self.list("volumes", "/api/v1/persistentvolumes").await?;
                put(all, &mut self.facts.volumes);
            }
            Need::Events => put(self.list("events", &format!("{place}/events")).await?, &mut self.facts.events),
            Need::Nodes => put(self.list("nodes", "/api/v1/nodes").await?, &mut self.facts.nodes),
            Need::Quotas => {
                put(self.list("quotas", &format!("{place}/resourcequotas")).await?, &mut self.facts.quotas);
            }
            Need::AllLeases => {
                put(self.list("leases", "/apis/coordination.k8s.io/v1/leases").await?, &mut self.facts.leases);
            }
            Need::ConfigMaps => {
                self.facts.config_maps = self.list("config maps", &format!("{place}/configmaps")).await?;
            }
            Need::Secrets => {
                let secrets: Option<Vec<Value>> = self.list("secrets", &format!("{place}/secrets")).await?;
                self.facts.secrets = secrets.map(|all| all.iter().map(without_values).collect());
            }
            Need::Classes | Need::Drivers | Need::CsiNodes | Need::Attachments | Need::Capacities => {
                self.storage(need).await?;
            }
            Need::Snapshots => self.snapshots(namespace(subject)).await?,
        }
        Ok(())
    }

    async fn storage(&mut self, need: &Need) -> Result<(), Error> {
        let at = |plural: &str| format!("{STORAGE}/{plural}");
        match need {
            Need::Drivers => put(self.list("CSI drivers", &at("csidrivers")).await?, &mut self.facts.drivers),
            Need::CsiNodes => put(self.list("CSI nodes", &at("csinodes")).await?, &mut self.facts.csi_nodes),
            Need::Attachments => {
                put(self.list("attachments", &at("volumeattachments")).await?, &mut self.facts.attachments);
            }
            Need::Capacities => {
                put(self.list("capacities", &at("csistoragecapacities")).await?, &mut self.facts.capacities);
            }
            _ => put(self.list("classes", &at("storageclasses")).await?, &mut self.facts.classes),
        }
        Ok(())
    }

    async fn snapshots(&mut self, namespace: &str) -> Result<(), Error> {
        let mine = format!("{SNAPSHOTS}/namespaces/{namespace}/volumesnapshots");
        put(self.list("snapshots", &mine).await?, &mut self.facts.snapshots);
        let contents = format!("{SNAPSHOTS}/volumesnapshotcontents");
        put(self.list("snapshot contents", &contents).await?, &mut self.facts.snapshot_contents);
        let classes = format!("{SNAPSHOTS}/volumesnapshotclasses");
        put(self.list("snapshot classes", &classes).await?, &mut self.facts.snapshot_classes);
        Ok(())
    }

    /// One object at a path; `None` where there is none or it is not shown, the latter being noted.
    async fn one<T: DeserializeOwned>(&mut self, what: &str, path: &str) -> Result<Option<T>, Error> {
        match self.session.get(path).await {
            Ok(object) => Ok(self.parsed(what, object)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => self.hidden(what, error),
        }
    }

    /// Everything at a path, page by page. What the server does not serve or does not show is noted, and `None`.
    async fn list<T: DeserializeOwned>(&mut self, what: &str, path: &str) -> Result<Option<Vec<T>>, Error> {
        let mut found = Vec::new();
        let mut after = String::new();
        loop {
            let list = match self.session.get(&format!("{path}?limit={PAGE}{after}")).await {
                Ok(list) => list,
                Err(error) if is_not_found(&error) => {
                    self.facts.unread.push(format!("{what} (the server does not serve them)"));
                    return Ok(None);
                }
                // The list has changed too much since its first page: once more, all in one.
                Err(error) if is_expired(&error) && !after.is_empty() => {
                    found.clear();
                    self.session.get(path).await?
                }
                Err(error) => return self.hidden(what, error),
            };
            let next = list["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
            if let Value::Object(mut fields) = list
                && let Some(Value::Array(items)) = fields.remove("items")
            {
                found.extend(items.into_iter().filter_map(|item| self.parsed(what, item)));
            }
            if next.is_empty() {
                return Ok(Some(found));
            }
            after = format!("&continue={}", encode(&next));
        }
    }

    fn parsed<T: DeserializeOwned>(&mut self, what: &str, object: Value) -> Option<T> {
        match serde_json::from_value(object) {
            Ok(object) => Some(object),
            Err(error) => {
                self.facts.unread.push(format!("one of the {what} ({error})"));
                None
            }
        }
    }

    /// Notes what the server does not show to this user; any other failure is one.
    fn hidden<T>(&mut self, what: &str, error: Error) -> Result<Option<T>, Error> {
        match error.downcast_ref::<super::ApiFailure>() {
            Some(failure) if matches!(failure.code, 401 | 403) => {
                self.facts.unread.push(format!("{what} ({failure})"));
                Ok(None)
            }
            _ => Err(error),
        }
    }

    /// The last lines of containers that ended badly. What cannot be had is no loss: it is only a hint.
    async fn logs(&self, pod: &Pod) -> Vec<(String, String)> {
        let pods: kube::Api<Pod> =
            kube::Api::namespaced(self.session.client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        let failed = statuses.filter(|s| s.last_state.as_ref().is_some_and(|s| s.terminated.is_some()));
        let mut found = Vec::new();
        for status in failed {
            let params = kube::api::LogParams {
                container: Some(status.name.clone()),
                previous: true,
                tail_lines: Some(20),
                ..kube::api::LogParams::default()
            };
            if let Ok(log) = pods.logs(name, &params).await {
                found.push((status.name.clone(), log));
            }
        }
        found
    }
}

/// Puts what was read in the place of what was known; nothing where it could not be read.
fn put<T>(read: Option<Vec<T>>, place: &mut Vec<T>) {
    if let Some(read) = read {
        *place = read;
    }
}

/// Percent-encodes a query value.
fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Name and keys of a Secret.
fn without_values(secret: &Value) -> (String, Vec<String>) {
    let keys = secret["data"].as_object().map(|d| d.keys().cloned().collect()).unwrap_or_default();
    (secret["metadata"]["name"].as_str().unwrap_or_default().to_owned(), keys)
}

#[test]
fn continue_tokens_survive_a_query() {
    assert_eq!(encode("a-B_0.~"), "a-B_0.~");
    assert_eq!(encode("e+/=&"), "e%2B%2F%3D%26");
}

#[test]
fn secrets_lose_their_values() {
    let secret = serde_json::json!({"metadata": {"name": "s"}, "data": {"password": "aHVudGVyMg=="}});
    assert_eq!(without_values(&secret), ("s".to_owned(), vec!["password".to_owned()]));
}
