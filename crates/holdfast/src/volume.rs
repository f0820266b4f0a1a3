//! `holdfast volume`: volumes of our driver, seen from the API and from the driver on this machine.
mod drivers;
mod list;
mod object;
mod progress;
mod snapshot;
mod transfer;
mod undelete;
mod usage;

use std::process::ExitCode;

use crate::{
    Outcome,
    cli::volume::{VolumeArgs, VolumeCommand},
    client::{Error, Session},
    errors::said,
};
use drivers::Place;
pub use transfer::name;

pub async fn run(args: VolumeArgs) -> Outcome {
    let one_namespace = args.place.server.namespace.clone();
    let place = Place::open(&args.place).await?;
    match args.command {
        VolumeCommand::List { deleted, output } => list::run(&place, one_namespace, deleted, &output).await?,
        VolumeCommand::Usage { output } => usage::run(&place, one_namespace, &output).await?,
        VolumeCommand::Snapshot { claim, name, class, timeout } => {
            let claim = Named::parse(&claim, &place.session)?;
            snapshot::take(&place, &claim, name, class, timeout).await?;
        }
        VolumeCommand::Restore { snapshot, claim, class, size, timeout } => {
            let snapshot = Named::parse(&snapshot, &place.session)?;
            snapshot::restore(&place, &snapshot, &snapshot::NewClaim { name: claim, class, size }, timeout).await?;
        }
        VolumeCommand::Export { volume, file } => transfer::export(&place, &volume, file.as_deref()).await?,
        VolumeCommand::Import { file, name, claim, object } => {
            let claim = claim.map(|c| Named::parse(&c, &place.session)).transpose()?;
            transfer::import(&place, &file, &name, claim.as_ref(), &object).await?;
        }
        VolumeCommand::Undelete { volume, claim, any_claim, object } => {
            let claim = claim.map(|c| Named::parse(&c, &place.session)).transpose()?;
            undelete::run(&place, &volume, claim, any_claim, &object).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// An object of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    namespace: String,
    name: String,
}

impl Named {
    /// `NAME`, or `NAMESPACE/NAME`.
    fn parse(text: &str, session: &Session) -> Result<Self, Error> {
        Self::within(text, &session.namespace)
    }

    fn within(text: &str, namespace: &str) -> Result<Self, Error> {
        let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            return said(format!("{text:?} is no name; write NAME or NAMESPACE/NAME"));
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A size as Kubernetes writes it.
fn quantity(bytes: u64) -> String {
    api::quantity::said(i64::try_from(bytes).unwrap_or(i64::MAX))
}

/// A number of bytes for people, with three digits.
fn about(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["Ki", "Mi", "Gi", "Ti", "Pi"];
    let (mut size, mut unit) = (bytes as f64 / 1024.0, 0);
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    if bytes < 1024 {
        return bytes.to_string();
    }
    format!("{}{}", format!("{size:.1}").trim_end_matches(".0"), UNITS[unit])
}

#[test]
fn names_and_sizes() {
    let named = |text: &str| Named::within(text, "here").map(|n| n.to_string()).map_err(|e| e.to_string());
    assert_eq!(named("db"), Ok("here/db".into()));
    assert_eq!(named("shop/db"), Ok("shop/db".into()));
    for wrong in ["", "/db", "shop/", "a/b/c"] {
        assert!(named(wrong).is_err_and(|e| e.contains("NAMESPACE/NAME")), "{wrong}");
    }
    for (bytes, exact, rough) in [
        (0, "0", "0"),
        (1000, "1000", "1000"),
        (1 << 20, "1Mi", "1Mi"),
        (1536 << 20, "1536Mi", "1.5Gi"),
        ((1 << 30) - 1, "1073741823", "1Gi"),
    ] {
        assert_eq!((quantity(bytes).as_str(), about(bytes).as_str()), (exact, rough));
    }
}
