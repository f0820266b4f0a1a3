//! `holdfast delete`: deletes and waits until the objects are gone.
use std::{process::ExitCode, time::Duration};

use serde_json::json;

use super::{Error, Resource, Resources, Session, is_not_found, read_manifests, resources::targets};
use crate::{
    Outcome,
    cli::DeleteArgs,
    errors::{misused, say},
};

pub async fn run(args: DeleteArgs) -> Outcome {
    let session = Session::open(&args.server).await?;
    let resources = Resources::discover(&session).await?;
    let mut doomed: Vec<(&Resource, String, String)> = Vec::new();
    for file in &args.files {
        for object in read_manifests(file)? {
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or(&session.namespace).to_owned();
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            doomed.push((resources.of(&object)?, namespace, name));
        }
    }
    if let Some(kind) = &args.kind {
        let (kinds, names) = targets(kind, &args.names);
        let ([kind], false) = (&kinds[..], names.is_empty()) else {
            return misused("delete needs one kind and at least one name: holdfast delete pod/web");
        };
        let resource = resources.find(kind)?;
        doomed.extend(names.into_iter().map(|name| (resource, session.namespace.clone(), name)));
    }
    if doomed.is_empty() {
        return misused("nothing to delete; name a kind and objects, or give -f FILE");
    }
    let mut waiting = Vec::new();
    for (resource, namespace, name) in &doomed {
        let path = resource.path(Some(namespace), Some(name));
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": args.grace_period});
        let body = ("application/json", serde_json::to_vec(&options)?);
        session.send("DELETE", &path, "application/json", Some(body)).await?;
        say(format_args!("{} \"{name}\" deleted", resource.prefix().trim_end_matches('/')))?;
        waiting.push(path);
    }
    if !args.no_wait {
        for path in &waiting {
            gone(&session, path).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn gone(session: &Session, path: &str) -> Result<(), Error> {
    loop {
        match session.get(path).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
