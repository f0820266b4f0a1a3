//! `holdfast volume usage`: how full claims are, as their driver's `NodeGetVolumeStats` says.
use std::collections::BTreeMap;

use csi::{NodeGetVolumeStatsRequest, UsageUnit};
use driver::admin::Kept;
use k8s_openapi::api::core::v1::PersistentVolume;
use serde::Serialize;

use super::{
    about,
    drivers::{Local, Place},
    object,
};
use crate::{
    client::{Error, get::align},
    errors::say,
};

/// What of how much is used.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
struct Figures {
    used: u64,
    total: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Claim {
    namespace: String,
    claim: String,
    volume: String,
    /// Of its volume.
    size_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes: Option<Figures>,
    /// Why there are no figures, or what is wrong with the volume.
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

/// All claims of a namespace together.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Namespace {
    namespace: String,
    claims: usize,
    size_bytes: u64,
    /// Of those that are mounted.
    used_bytes: u64,
}

pub async fn run(place: &Place, namespace: Option<String>, output: &str) -> Result<(), Error> {
    let drivers = place.drivers().await?;
    let all: Vec<PersistentVolume> = place.list(object::VOLUMES).await?;
    let mut claims = Vec::new();
    for driver in &drivers {
        let kept: Vec<Kept> = driver.volumes().await?.into_iter().filter(|kept| kept.deleted == 0).collect();
        for volume in &all {
            let Some(of) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { continue };
            // Kept for a claim is not had by one.
            let bound = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
            let Some((name, handle)) = object::source(volume).filter(|(name, _)| bound && *name == driver.name) else {
                continue;
            };
            let Some(kept) = kept.iter().find(|kept| object::is_same(&name, kept, &handle)) else { continue };
            if namespace.as_ref().is_none_or(|n| of.namespace.as_ref() == Some(n)) {
                let names = (of.namespace.clone().unwrap_or_default(), of.name.clone().unwrap_or_default());
                let volume = volume.metadata.name.clone().unwrap_or_default();
                claims.push(ask(driver, kept, names, volume).await?);
            }
        }
    }
    claims.sort_by(|a, b| (&a.namespace, &a.claim).cmp(&(&b.namespace, &b.claim)));
    let namespaces = sums(&claims);
    match output {
        "json" => {
            say(serde_json::to_string_pretty(&serde_json::json!({ "claims": claims, "namespaces": namespaces }))?)
        }
        _ => print(&claims, &namespaces),
    }
}

async fn ask(driver: &Local, kept: &Kept, claim: (String, String), volume: String) -> Result<Claim, Error> {
    let mut row = Claim {
        namespace: claim.0,
        claim: claim.1,
        volume,
        size_bytes: kept.bytes,
        bytes: None,
        inodes: None,
        note: kept.trouble.clone(),
    };
    if kept.mounted_at.is_empty() {
        row.note = "not mounted".into();
        return Ok(row);
    }
    let request = NodeGetVolumeStatsRequest {
        volume_id: kept.handle.clone(),
        volume_path: kept.mounted_at.clone(),
        ..Default::default()
    };
    let said = match driver.node.node_get_volume_stats(request).await {
        Ok(said) => said,
        // Its pod ended meanwhile.
        Err(status) if status.code() == csi::Code::NotFound => {
            row.note = "not mounted".into();
            return Ok(row);
        }
        Err(status) => return Err(driver.refused(&status)),
    };
    let uncounted = match (kept.filesystem.is_empty(), kept.unlimited) {
        (true, _) => Some("a block device: nobody knows what of it is used"),
        // What the filesystem says is about all of itself.
        (_, true) => Some("a directory without a limit: nobody counts what it uses"),
        _ => None,
    };
    if let Some(why) = uncounted {
        row.note = why.into();
        return Ok(row);
    }
    for usage in &said.usage {
        let number = |n: i64| u64::try_from(n).unwrap_or(0);
        let figures = Figures { used: number(usage.used), total: number(usage.total) };
        match usage.unit() {
            UsageUnit::Bytes => row.bytes = Some(figures),
            // A filesystem that counts none says 0.
            UsageUnit::Inodes => row.inodes = Some(figures).filter(|f| f.total > 0),
            UsageUnit::Unknown => {}
        }
    }
    Ok(row)
}

fn sums(claims: &[Claim]) -> Vec<Namespace> {
    let mut sums: BTreeMap<&str, Namespace> = BTreeMap::new();
    for claim in claims {
        let sum = sums.entry(&claim.namespace).or_default();
        sum.claims += 1;
        sum.size_bytes += claim.size_bytes;
        sum.used_bytes += claim.bytes.map_or(0, |f| f.used);
    }
    sums.into_iter().map(|(name, sum)| Namespace { namespace: name.to_owned(), ..sum }).collect()
}

fn percent(figures: Figures) -> String {
    // As `df` does: rounded up, so that 100 % is full.
    let full = (u128::from(figures.used) * 100).div_ceil(u128::from(figures.total).max(1));
    format!("{full}%")
}

fn print(claims: &[Claim], namespaces: &[Namespace]) -> Result<(), Error> {
    if claims.is_empty() {
        eprintln!("No claims with volumes of this machine found.");
        return Ok(());
    }
    let head = ["NAMESPACE", "CLAIM", "VOLUME", "SIZE", "USED", "OF", "USE%", "INODES", "OF", "IUSE%", "NOTE"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    let none = || ["-", "-", "-"].map(str::to_owned);
    for row in claims {
        let bytes = row.bytes.map_or_else(none, |f| [about(f.used), about(f.total), percent(f)]);
        let inodes = row.inodes.map_or_else(none, |f| [f.used.to_string(), f.total.to_string(), percent(f)]);
        let mut line = vec![row.namespace.clone(), row.claim.clone(), row.volume.clone(), about(row.size_bytes)];
        line.extend(bytes.into_iter().chain(inodes));
        line.push(row.note.clone());
        lines.push(line);
    }
    align(&lines).iter().try_for_each(say)?;
    say("")?;
    let mut lines = vec![["NAMESPACE", "CLAIMS", "SIZE", "USED"].map(str::to_owned).to_vec()];
    lines.extend(
        namespaces.iter().map(|sum| {
            vec![sum.namespace.clone(), sum.claims.to_string(), about(sum.size_bytes), about(sum.used_bytes)]
        }),
    );
    align(&lines).iter().try_for_each(say)
}

#[test]
fn full_is_full_and_namespaces_add_up() {
    for (used, total, text) in [(0, 0, "0%"), (1, 1000, "1%"), (999, 1000, "100%"), (1, 2, "50%")] {
        assert_eq!(percent(Figures { used, total }), text);
    }
    let claim = |namespace: &str, used: Option<u64>| Claim {
        namespace: namespace.into(),
        claim: "c".into(),
        volume: "v".into(),
        size_bytes: 10,
        bytes: used.map(|used| Figures { used, total: 9 }),
        inodes: None,
        note: String::new(),
    };
    let sum = |namespace: &str, claims: usize, size_bytes: u64, used_bytes: u64| Namespace {
        namespace: namespace.into(),
        claims,
        size_bytes,
        used_bytes,
    };
    let all = [claim("b", Some(3)), claim("a", Some(1)), claim("b", None)];
    assert_eq!(sums(&all), [sum("a", 1, 10, 1), sum("b", 2, 20, 3)]);
}
