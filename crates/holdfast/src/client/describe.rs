//! `holdfast describe`: one object as YAML, then its events.
use std::process::ExitCode;

use super::{
    Resources, Session,
    get::{align, escape},
    resources::targets,
};
use crate::{
    Outcome,
    cli::DescribeArgs,
    errors::{misused, say},
};

pub async fn run(args: DescribeArgs) -> Outcome {
    let session = Session::open(&args.server).await?;
    let resources = Resources::discover(&session).await?;
    let names: Vec<String> = args.name.into_iter().collect();
    let (kinds, names) = targets(&args.kind, &names);
    let ([kind], [name]) = (&kinds[..], &names[..]) else {
        return misused("describe needs one kind and one name: holdfast describe pod/web");
    };
    let resource = resources.find(kind)?;
    let mut object = session.get(&resource.path(Some(&session.namespace), Some(name))).await?;
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    say(serde_saphyr::to_string(&object)?.trim_end())?;
    let selector = escape(&format!("involvedObject.name={name},involvedObject.kind={}", resource.kind));
    let events = session.get(&format!("/api/v1/events?fieldSelector={selector}")).await?;
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().trim().to_owned();
    let uid = text(&object["metadata"]["uid"]);
    let mut lines = vec![["TYPE", "REASON", "COUNT", "LAST SEEN", "MESSAGE"].map(str::to_owned).to_vec()];
    for event in events["items"].as_array().into_iter().flatten() {
        if text(&event["involvedObject"]["uid"]) != uid {
            continue;
        }
        let seen = [&event["lastTimestamp"], &event["eventTime"]].map(text).into_iter().find(|t| !t.is_empty());
        let count = event["count"].as_i64().unwrap_or(1).to_string();
        lines.push(vec![
            text(&event["type"]),
            text(&event["reason"]),
            count,
            seen.unwrap_or_default(),
            text(&event["message"]),
        ]);
    }
    say("---\nevents:")?;
    match lines.len() {
        1 => say("  <none>")?,
        _ => align(&lines).iter().try_for_each(|line| say(format_args!("  {line}")))?,
    }
    Ok(ExitCode::SUCCESS)
}
