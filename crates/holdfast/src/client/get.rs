//! `holdfast get`: the server's own table, or objects as JSON, YAML or names.
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Error, Resource, Resources, Session, is_not_found, resources::targets};
use crate::{
    Outcome,
    cli::GetArgs,
    errors::{misused, say, story},
};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

pub async fn run(args: GetArgs) -> Outcome {
    let session = Session::open(&args.server).await?;
    let resources = Resources::discover(&session).await?;
    let (kinds, names) = targets(&args.kind, &args.names);
    let mut asked = Vec::new();
    for kind in &kinds {
        asked.extend(resources.select(kind)?);
    }
    if asked.len() > 1 && !names.is_empty() {
        return misused("several kinds and names at once are not possible; ask for one kind");
    }
    let as_table = matches!(args.output.as_str(), "table" | "wide");
    let accept = if as_table { TABLE } else { "application/json" };
    let mut objects = Vec::new();
    let mut missing = Vec::new();
    let mut shown = 0;
    for resource in &asked {
        let mut table: Option<Value> = None;
        for path in paths(&args, &session, resource, &names) {
            let mut answer = match session.send("GET", &path, accept, None).await {
                Err(error) if is_not_found(&error) && !names.is_empty() => {
                    missing.push(error);
                    continue;
                }
                other => other?,
            };
            if as_table {
                match table.as_mut().and_then(|t| t["rows"].as_array_mut()).zip(answer["rows"].as_array_mut()) {
                    Some((rows, more)) => rows.append(more),
                    None => table = Some(answer),
                }
            } else if let Some(Value::Array(items)) = answer.get("items") {
                objects.extend(items.iter().map(|item| ((*resource).clone(), item.clone())));
            } else {
                objects.push(((*resource).clone(), answer));
            }
        }
        if let Some(table) = table.filter(|t| t["rows"].as_array().is_some_and(|rows| !rows.is_empty())) {
            if shown > 0 {
                say("")?;
            }
            shown += 1;
            print_table(&table, &args, resource, asked.len() > 1)?;
        }
    }
    if !as_table {
        print_objects(&args.output, &names, objects)?;
    } else if shown == 0 && missing.is_empty() {
        let everywhere = args.all_namespaces || asked.iter().all(|r| !r.namespaced);
        let place = if everywhere { String::new() } else { format!(" in {} namespace", session.namespace) };
        eprintln!("No resources found{place}.");
    }
    let Some(last) = missing.pop() else { return Ok(ExitCode::SUCCESS) };
    for error in &missing {
        eprintln!("holdfast: {}", story(error.as_ref()));
    }
    Err(last)
}

fn paths(args: &GetArgs, session: &Session, resource: &Resource, names: &[String]) -> Vec<String> {
    let namespace = (!args.all_namespaces).then_some(session.namespace.as_str());
    if !names.is_empty() {
        return names.iter().map(|name| resource.path(Some(&session.namespace), Some(name))).collect();
    }
    let selector = args.selector.as_deref().map(|s| format!("?labelSelector={}", escape(s))).unwrap_or_default();
    vec![resource.path(namespace, None) + &selector]
}

/// Percent-encodes what may not stand in a query value.
pub fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

fn print_objects(output: &str, names: &[String], objects: Vec<(Resource, Value)>) -> Result<(), Error> {
    if output == "name" {
        for (resource, object) in &objects {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            say(format_args!("{}{name}", resource.prefix()))?;
        }
        return Ok(());
    }
    let mut values: Vec<Value> = objects.into_iter().map(|(_, object)| object).collect();
    let shown = match values.len() {
        1 if names.len() == 1 => values.remove(0),
        _ => json!({"apiVersion": "v1", "kind": "List", "items": values}),
    };
    match output {
        "yaml" => say(serde_saphyr::to_string(&shown)?.trim_end()),
        _ => say(serde_json::to_string_pretty(&shown)?),
    }
}

fn print_table(table: &Value, args: &GetArgs, resource: &Resource, with_kind: bool) -> Result<(), Error> {
    let columns = table["columnDefinitions"].as_array().cloned().unwrap_or_default();
    let shown: Vec<usize> = (0..columns.len())
        .filter(|i| args.output == "wide" || columns[*i]["priority"].as_i64().unwrap_or(0) == 0)
        .collect();
    let spaced = args.all_namespaces && resource.namespaced;
    let mut lines: Vec<Vec<String>> = Vec::new();
    let mut head: Vec<String> =
        shown.iter().map(|i| columns[*i]["name"].as_str().unwrap_or_default().to_uppercase()).collect();
    if spaced {
        head.insert(0, "NAMESPACE".into());
    }
    lines.push(head);
    for row in table["rows"].as_array().into_iter().flatten() {
        let mut cells: Vec<String> = shown.iter().map(|i| cell(&row["cells"][*i])).collect();
        if with_kind && let Some(first) = cells.first_mut() {
            *first = resource.prefix() + first;
        }
        if spaced {
            cells.insert(0, cell(&row["object"]["metadata"]["namespace"]));
        }
        lines.push(cells);
    }
    align(&lines).iter().try_for_each(say)
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<none>".into(),
        other => other.to_string(),
    }
}

/// Pads columns to their widest cell, three spaces between.
pub fn align(lines: &[Vec<String>]) -> Vec<String> {
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| lines.iter().filter_map(|l| l.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let pad = |(i, c): (usize, &String)| format!("{c:<width$}", width = widths[i]);
    lines.iter().map(|l| l.iter().enumerate().map(pad).collect::<Vec<_>>().join("   ").trim_end().to_owned()).collect()
}

#[test]
fn columns_line_up() {
    let line = |cells: &[&str]| cells.iter().map(|c| c.to_string()).collect::<Vec<_>>();
    assert_eq!(
        align(&[line(&["NAME", "AGE"]), line(&["a-long-name", "5s"])]),
        ["NAME          AGE", "a-long-name   5s"]
    );
    assert_eq!(escape("a in (b,c)"), "a%20in%20%28b%2Cc%29");
}
