//! `holdfast why`: reads what an explanation may rest on, from any Kubernetes, and prints the explanation.
use std::process::ExitCode;

use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;
use serde_json::Value;
use why::{Answer, Facts, Subject};

use super::{Error, Resources, Session, is_not_found, resources::targets};
use crate::{
    Outcome,
    cli::WhyArgs,
    errors::{misused, said, say},
};

/// Exit status of an object that somebody has to see to.
const NOT_NORMAL: u8 = 3;

pub async fn run(args: WhyArgs) -> Outcome {
    let session = Session::open(&args.server).await?;
    let names: Vec<String> = args.name.into_iter().collect();
    let (kinds, names) = targets(&args.kind, &names);
    let ([kind], [name]) = (&kinds[..], &names[..]) else {
        return misused("why needs one kind and one name: holdfast why pvc/web");
    };
    let resources = Resources::discover(&session).await?;
    let resource = resources.find(kind)?;
    let (namespace, name) = (session.namespace.clone(), name.clone());
    let subject = match resource.kind.as_str() {
        "PersistentVolumeClaim" => Subject::Claim { namespace, name },
        "PersistentVolume" => Subject::Volume(name),
        "Pod" => Subject::Pod { namespace, name },
        "StorageClass" => Subject::Class(name),
        _ => return misused("why explains pods, persistentvolumeclaims, persistentvolumes and storageclasses"),
    };
    let facts = Collector { session: &session, unread: Vec::new() }.collect(&subject).await?;
    let now = jiff::Timestamp::now();
    let Some(answer) = why::explain(&subject, &facts, now) else {
        // The server's own sentence about what is not there.
        let name = &names[0];
        session.get(&resource.path(Some(&session.namespace), Some(name))).await?;
        return said(format!("{} {name:?} appeared only just now; ask again", resource.plural));
    };
    print(&answer, &args.output, now)?;
    Ok(if answer.is_normal() { ExitCode::SUCCESS } else { ExitCode::from(NOT_NORMAL) })
}

fn print(answer: &Answer, output: &str, now: jiff::Timestamp) -> Result<(), Error> {
    match output {
        "json" => say(serde_json::to_string_pretty(answer)?),
        _ => answer.text(now).iter().try_for_each(say),
    }
}

struct Collector<'a> {
    session: &'a Session,
    unread: Vec<String>,
}

impl Collector<'_> {
    async fn collect(mut self, subject: &Subject) -> Result<Facts, Error> {
        let namespace = match subject {
            Subject::Claim { namespace, .. } | Subject::Pod { namespace, .. } => Some(namespace.as_str()),
            Subject::Volume(_) | Subject::Class(_) => None,
        };
        // Events about what has no namespace are kept in `default`.
        let place = format!("/api/v1/namespaces/{}", namespace.unwrap_or("default"));
        let storage = "/apis/storage.k8s.io/v1";
        let claims = match subject {
            Subject::Claim { .. } => format!("{place}/persistentvolumeclaims"),
            _ => "/api/v1/persistentvolumeclaims".into(),
        };
        let mut facts = Facts {
            claims: self.list("claims", &claims).await?.unwrap_or_default(),
            volumes: self.list("volumes", "/api/v1/persistentvolumes").await?.unwrap_or_default(),
            classes: self.list("classes", &format!("{storage}/storageclasses")).await?.unwrap_or_default(),
            pods: self.list("pods", "/api/v1/pods").await?.unwrap_or_default(),
            nodes: self.list("nodes", "/api/v1/nodes").await?.unwrap_or_default(),
            events: self.list("events", &format!("{place}/events")).await?.unwrap_or_default(),
            drivers: self.list("CSI drivers", &format!("{storage}/csidrivers")).await?.unwrap_or_default(),
            csi_nodes: self.list("CSI nodes", &format!("{storage}/csinodes")).await?.unwrap_or_default(),
            attachments: self.list("attachments", &format!("{storage}/volumeattachments")).await?.unwrap_or_default(),
            leases: self.list("leases", "/apis/coordination.k8s.io/v1/leases").await?.unwrap_or_default(),
            ..Facts::default()
        };
        if let Subject::Pod { namespace, name } = subject {
            facts.config_maps = self.list("config maps", &format!("{place}/configmaps")).await?;
            let secrets: Option<Vec<Value>> = self.list("secrets", &format!("{place}/secrets")).await?;
            facts.secrets = secrets.map(|all| all.iter().map(without_values).collect());
            let of = |p: &&Pod| {
                p.metadata.name.as_deref() == Some(name) && p.metadata.namespace.as_deref() == Some(namespace)
            };
            if let Some(pod) = facts.pods.iter().find(of) {
                facts.logs = self.logs(pod).await;
            }
        }
        facts.unread = self.unread;
        Ok(facts)
    }

    /// Everything at a path. A kind that the server does not serve has no objects; one that it does not show is noted,
    /// and `None`.
    async fn list<T: DeserializeOwned>(&mut self, what: &str, path: &str) -> Result<Option<Vec<T>>, Error> {
        let list = match self.session.get(path).await {
            Ok(list) => list,
            Err(error) if is_not_found(&error) => return Ok(Some(Vec::new())),
            Err(error) => match error.downcast_ref::<super::ApiFailure>() {
                Some(failure) if matches!(failure.code, 401 | 403) => {
                    self.unread.push(format!("{what} ({failure})"));
                    return Ok(None);
                }
                _ => return Err(error),
            },
        };
        let items = match list {
            Value::Object(mut fields) => fields.remove("items"),
            _ => None,
        };
        let Some(Value::Array(items)) = items else { return Ok(Some(Vec::new())) };
        let mut read = Vec::with_capacity(items.len());
        for item in items {
            match serde_json::from_value(item) {
                Ok(object) => read.push(object),
                Err(error) => self.unread.push(format!("one of the {what} ({error})")),
            }
        }
        Ok(Some(read))
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

/// Name and keys of a Secret.
fn without_values(secret: &Value) -> (String, Vec<String>) {
    let keys = secret["data"].as_object().map(|d| d.keys().cloned().collect()).unwrap_or_default();
    (secret["metadata"]["name"].as_str().unwrap_or_default().to_owned(), keys)
}

#[test]
fn secrets_lose_their_values() {
    let secret = serde_json::json!({"metadata": {"name": "s"}, "data": {"password": "aHVudGVyMg=="}});
    assert_eq!(without_values(&secret), ("s".to_owned(), vec!["password".to_owned()]));
}
