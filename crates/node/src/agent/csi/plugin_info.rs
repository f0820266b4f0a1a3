//! A driver's registrar: what it says, and what it is told.
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use csi::{
    Driver, RegistrationClient,
    registration::{CSI_PLUGIN, InfoRequest, RegistrationStatus},
};

const TIME_TO_ANSWER: Duration = Duration::from_secs(10);

/// A driver that asks to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub name: String,
    /// Where the driver itself listens.
    pub endpoint: PathBuf,
}

/// Asks the registrar behind a socket. `None`: what it registers is no CSI driver.
///
/// # Errors
/// A sentence.
pub async fn ask(socket: &Path) -> Result<Option<Offer>, String> {
    let client = RegistrationClient::new(&Driver::at(socket, TIME_TO_ANSWER));
    let info = client.get_info(InfoRequest {}).await.map_err(|status| {
        let why = csi::rpc_error(&status);
        format!("failed to get plugin info using RPC GetInfo at socket {}, err: {why}", socket.display())
    })?;
    if info.r#type != CSI_PLUGIN {
        return Ok(None);
    }
    let endpoint = match info.endpoint.as_str() {
        "" => socket.to_path_buf(),
        endpoint => PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint)),
    };
    check(&info.name, &endpoint, &info.supported_versions)?;
    Ok(Some(Offer { name: info.name, endpoint }))
}

/// Any 1.x is spoken here, and 0.x by upstream's word for it.
fn check(name: &str, endpoint: &Path, versions: &[String]) -> Result<(), String> {
    let fail = |why: String| {
        let at = endpoint.display();
        Err(format!("validation failed for CSI Driver {name} at endpoint {at}: kubernetes.io/csi: {why}"))
    };
    if versions.is_empty() {
        return fail(format!(
            "ValidatePlugin for CSI driver {name:?} failed. Plugin returned an empty list for supported versions"
        ));
    }
    let major = |version: &String| version.trim_start_matches('v').split('.').next()?.parse::<u32>().ok();
    if versions.iter().filter_map(major).any(|v| v <= 1) {
        return Ok(());
    }
    let all: Vec<String> = versions.iter().map(|v| format!("{v:?}")).collect();
    fail(format!(
        "ValidatePlugin for CSI driver {name:?} failed. None of the versions specified [{}] are supported",
        all.join(" ")
    ))
}

/// Tells the registrar what came of it. One that does not hear it asks again by itself.
pub async fn tell(socket: &Path, outcome: Result<(), &str>) {
    let client = RegistrationClient::new(&Driver::at(socket, TIME_TO_ANSWER));
    let status = RegistrationStatus {
        plugin_registered: outcome.is_ok(),
        error: outcome.err().map(str::to_owned).unwrap_or_default(),
    };
    if let Err(status) = client.notify_registration_status(status).await {
        let why = csi::rpc_error(&status);
        tracing::debug!(why, socket = %socket.display(), "a driver's registrar does not listen to what came of it");
    }
}

#[test]
fn versions_of_the_first_kind_are_spoken() {
    let ok = |versions: &[&str]| {
        let versions: Vec<String> = versions.iter().map(ToString::to_string).collect();
        check("d", Path::new("/s"), &versions).is_ok()
    };
    assert!(ok(&["1.0.0"]) && ok(&["v1.11.0", "2.0"]) && ok(&["0.3.0"]));
    assert!(!ok(&[]) && !ok(&["2.0.0"]) && !ok(&["new"]));
}
