//! Lifecycle hooks: `postStart` and `preStop`.
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use runtime::ContainerId;

use super::{Shared, request};
use crate::spec::security::pod_label;

/// How long an HTTP hook may take at most; exec hooks are bounded by their caller.
const HTTP_TIMEOUT: Duration = Duration::from_secs(30);
/// An exec hook's own bound where the caller has none.
pub const LONG: Duration = Duration::from_secs(24 * 3600);

/// Runs a hook to its end.
///
/// # Errors
/// Upstream's sentence about the failure.
pub async fn run(
    shared: &Shared,
    pod: &Pod,
    container: &Container,
    id: &ContainerId,
    host: &str,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    let label = format!("for Container {:?} in Pod {:?} failed - error:", container.name, pod_label(pod));
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = format!("[{}]", command.join(" "));
        return match shared.runtime.exec_sync(id, &command, LONG).await {
            Ok(out) if out.exit_code == 0 => Ok(()),
            Ok(out) => {
                let text = String::from_utf8_lossy(&out.output).into_owned();
                let why = format!("command '{}' exited with {}", command.join(" "), out.exit_code);
                Err(format!("Exec lifecycle hook ({shown}) {label} {why}: {text}, message: {text:?}"))
            }
            Err(error) => Err(format!("Exec lifecycle hook ({shown}) {label} {}, message: \"\"", base::chain(&error))),
        };
    }
    if let Some(http) = &hook.http_get {
        let path = http.path.as_deref().unwrap_or_default();
        let done = request::get(container, http, host, "kube-lifecycle/1.36", HTTP_TIMEOUT).await;
        return match done {
            Ok(answer) if !answer.status.is_client_error() && !answer.status.is_server_error() => Ok(()),
            Ok(answer) => Err(format!("HTTP lifecycle hook ({path}) {label} http status {}", answer.status)),
            Err(error) => Err(format!("HTTP lifecycle hook ({path}) {label} {error}")),
        };
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
    }
    Ok(())
}
