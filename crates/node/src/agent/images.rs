//! Making sure that a container's image is there, with upstream's pull policies, back-off and words.
use std::{collections::HashMap, sync::Arc, time::Duration};

use base::chain;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ImageVolumeSource, Pod, Secret};
use kube::Api;
use parking_lot::Mutex;
use runtime::{ImageInfo, RegistryAuth, RuntimeError};

use super::{Shared, identity};
use crate::{
    core::facts::{Later, Trouble, later},
    spec::{
        container::{Member, field_path},
        credentials::registry_auth,
    },
};

const FIRST: Duration = Duration::from_secs(10);
const CAP: Duration = Duration::from_secs(300);
/// How long the failure itself is shown before the wait is.
const SHOW_FIRST: Duration = Duration::from_secs(2);

struct Waiting {
    delay: Duration,
    until: Timestamp,
}

/// State of pulls on this node.
#[derive(Default)]
pub struct Images {
    /// By pod UID and image.
    waiting: Mutex<HashMap<(String, String), Waiting>>,
    /// One pull at a time, as upstream by default.
    turn: tokio::sync::Mutex<()>,
}

impl Images {
    /// Forgets a pod's failures.
    pub fn forget(&self, pod_uid: &str) {
        self.waiting.lock().retain(|(uid, _), _| uid != pod_uid);
    }
}

/// `Always` for `:latest` and untagged names, else `IfNotPresent`, unless the pod says.
fn policy(name: &str, said: Option<&str>) -> String {
    if let Some(policy) = said.filter(|p| !p.is_empty()) {
        return policy.to_owned();
    }
    let last = name.rsplit('/').next().unwrap_or_default();
    let latest = !last.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest");
    if latest { "Always" } else { "IfNotPresent" }.into()
}

fn trouble(reason: &str, message: String, retry_at: Timestamp) -> Trouble {
    Trouble { reason: reason.into(), message, retry_at: Some(retry_at), later: None }
}

/// Finds or pulls the container's image. Failures have been told as events.
pub async fn ensure(shared: &Arc<Shared>, pod: &Pod, member: &Member) -> Result<ImageInfo, Trouble> {
    let image = member.container.image.clone().unwrap_or_default();
    let path = field_path(member.kind, &member.container.name);
    let tell = |warning, reason: &str, message: String| {
        shared.events.pod(pod, Some(path.clone()), warning, reason, message);
    };
    find_or_pull(shared, pod, (&image, &policy(&image, member.container.image_pull_policy.as_deref())), tell).await
}

/// Finds or pulls the image that a volume is made of, as for a container.
pub async fn ensure_for_volume(
    shared: &Arc<Shared>,
    pod: &Pod,
    volume: &str,
    source: &ImageVolumeSource,
) -> Result<(String, ImageInfo), Trouble> {
    let image = source.reference.clone().unwrap_or_default();
    let tell = |warning, reason: &str, message: String| {
        let message = if warning { of_volume(message, volume) } else { message };
        shared.events.pod(pod, None, warning, reason, message);
    };
    let found = find_or_pull(shared, pod, (&image, &policy(&image, source.pull_policy.as_deref())), tell).await;
    let named = |later: Later| Later { message: of_volume(later.message, volume), ..later };
    let found = found.map_err(|t| Trouble { message: of_volume(t.message, volume), later: t.later.map(named), ..t });
    Ok((image, found?))
}

fn of_volume(message: String, volume: &str) -> String {
    format!("{message} (volume {volume:?})")
}

async fn find_or_pull(
    shared: &Arc<Shared>,
    pod: &Pod,
    (image, policy): (&str, &str),
    tell: impl Fn(bool, &str, String),
) -> Result<ImageInfo, Trouble> {
    let now = shared.clock.now();
    let present = match shared.runtime.image(image).await {
        Ok(found) => found,
        Err(RuntimeError::BadImageName { why, .. }) => {
            let text =
                format!("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {why}");
            tell(true, "InspectFailed", text.clone());
            return Err(trouble("InvalidImageName", text, later(now, CAP)));
        }
        Err(error) => {
            let text = format!("Failed to inspect image {image:?}: {}", chain(&error));
            tell(true, "InspectFailed", text.clone());
            return Err(trouble("ImageInspectError", text, later(now, FIRST)));
        }
    };
    let (present, auth) = if present.as_ref().is_some_and(|info| !info.everybodys) {
        let auth = registry_auth(&secrets(shared, pod).await);
        // To whom it does not belong, it is not here.
        let allowed = may_use(shared, image, &auth).await;
        (present.filter(|_| allowed), Some(auth))
    } else {
        (present, None)
    };
    let present = match way(policy, present) {
        Way::Use(info) => {
            tell(false, "Pulled", present_text(image, &info));
            return Ok(info);
        }
        Way::Missing => {
            let text = format!("Container image {image:?} is not present with pull policy of Never");
            tell(true, "ErrImageNeverPull", text.clone());
            return Err(trouble("ErrImageNeverPull", text, later(now, FIRST)));
        }
        Way::Pull(present) => present,
    };
    let auth = match auth {
        Some(auth) => auth,
        None => registry_auth(&secrets(shared, pod).await),
    };
    pull(shared, pod, (image, present), &auth, tell).await
}

/// Whether the pod may have an image that somebody else pulled with a password. When in doubt, its registry decides.
async fn may_use(shared: &Shared, image: &str, auth: &RegistryAuth) -> bool {
    shared.runtime.may_use(image, auth).await.unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), image, "cannot tell who may use an image; its registry is asked");
        false
    })
}

/// What to do for an image.
enum Way {
    /// Run what is here.
    Use(ImageInfo),
    /// Not here, and not to be pulled.
    Missing,
    /// Ask the registry; what is here serves if it does not answer.
    Pull(Option<ImageInfo>),
}

/// `Always` asks about pulled names only: an import is the operator's own word on what the name means.
fn way(policy: &str, present: Option<ImageInfo>) -> Way {
    match present {
        Some(info) if policy != "Always" || info.imported => Way::Use(info),
        None if policy == "Never" => Way::Missing,
        present => Way::Pull(present),
    }
}

fn present_text(image: &str, info: &ImageInfo) -> String {
    let origin = if info.imported { "(imported)" } else { "and can be accessed by the pod" };
    format!("Container image {image:?} already present on machine {origin}")
}

/// The local copy that serves although its registry could not be asked, and what to tell about it.
fn fall_back(image: &str, present: Option<ImageInfo>, error: &RuntimeError) -> Option<(ImageInfo, String)> {
    let RuntimeError::Pull { unreachable: true, .. } = error else { return None };
    let info = present?;
    let why = reason(error);
    Some((info, format!("Container image {image:?} already present on machine; its registry does not answer: {why}")))
}

/// Why a pull failed; that it did, and of which image, is said around it.
fn reason(error: &RuntimeError) -> String {
    match error {
        RuntimeError::Pull { source, .. } => chain(source.as_ref()),
        other => chain(other),
    }
}

/// Pulls the image and tells of it.
async fn pull(
    shared: &Arc<Shared>,
    pod: &Pod,
    (image, present): (&str, Option<ImageInfo>),
    auth: &RegistryAuth,
    tell: impl Fn(bool, &str, String),
) -> Result<ImageInfo, Trouble> {
    tell(false, "Pulling", format!("Pulling image {image:?}"));
    let asked = tokio::time::Instant::now();
    let turn = shared.images.turn.lock().await;
    let began = tokio::time::Instant::now();
    let result = shared.runtime.pull(image, auth).await;
    drop(turn);
    let key = (identity(pod).2.to_owned(), image.to_owned());
    match result {
        Ok(info) => {
            shared.images.waiting.lock().remove(&key);
            let text = format!(
                "Successfully pulled image {image:?} in {} ({} including waiting). Image size: {} bytes.",
                short(began.elapsed()),
                short(asked.elapsed()),
                info.size_bytes
            );
            tell(false, "Pulled", text);
            Ok(info)
        }
        Err(error) => {
            if let Some((info, text)) = fall_back(image, present, &error) {
                shared.images.waiting.lock().remove(&key);
                tell(false, "Pulled", text);
                return Ok(info);
            }
            let why = reason(&error);
            tell(true, "Failed", format!("Failed to pull image {image:?}: {why}"));
            tell(true, "Failed", "Error: ErrImagePull".into());
            let now = shared.clock.now();
            let until = {
                let mut waiting = shared.images.waiting.lock();
                let entry = waiting.entry(key).or_insert(Waiting { delay: FIRST / 2, until: now });
                entry.delay = (entry.delay * 2).min(CAP);
                entry.until = later(now, entry.delay);
                entry.until
            };
            let back_off = format!("Back-off pulling image {image:?}");
            Err(Trouble {
                reason: "ErrImagePull".into(),
                message: why.clone(),
                retry_at: Some(until),
                later: Some(Later {
                    from: later(now, SHOW_FIRST),
                    reason: "ImagePullBackOff".into(),
                    message: format!("{back_off}: ErrImagePull: {why}"),
                }),
            })
        }
    }
}

/// Go's way to print a short time.
fn short(d: Duration) -> String {
    if d.as_secs() > 0 { format!("{:.3}s", d.as_secs_f64()) } else { format!("{}ms", d.as_millis()) }
}

/// The pod's pull secrets that exist.
async fn secrets(shared: &Shared, pod: &Pod) -> Vec<Secret> {
    let api: Api<Secret> = shared.api(identity(pod).1);
    let names = pod.spec.as_ref().and_then(|s| s.image_pull_secrets.clone()).unwrap_or_default();
    let mut found = Vec::new();
    for name in names.into_iter().map(|r| r.name).filter(|n| !n.is_empty()) {
        match api.get_opt(&name).await {
            Ok(Some(secret)) => found.push(secret),
            Ok(None) => {
                let text = format!(
                    "Unable to retrieve some image pull secrets ({name}); attempting to pull the image may not succeed."
                );
                shared.events.pod(pod, None, true, "FailedToRetrieveImagePullSecret", text);
            }
            Err(error) => tracing::warn!(error = chain(&error), name, "could not read an image pull secret"),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_policies() {
        for (image, set, want) in [
            ("nginx", None, "Always"),
            ("nginx:latest", None, "Always"),
            ("nginx:1", None, "IfNotPresent"),
            ("r.test:5000/nginx", None, "Always"),
            ("nginx@sha256:00", None, "IfNotPresent"),
            ("nginx", Some("Never"), "Never"),
        ] {
            assert_eq!(policy(image, set), want, "{image}");
        }
    }

    fn info(imported: bool) -> ImageInfo {
        ImageInfo {
            id: "sha256:1".into(),
            repo_digests: vec![],
            repo_tags: vec![],
            size_bytes: 1,
            user: None,
            imported,
            everybodys: true,
        }
    }

    #[test]
    fn only_pulled_names_are_asked_about() {
        // Policy; here, and if so imported; what happens.
        for (policy, present, want) in [
            ("Always", None, "pull"),
            ("Always", Some(false), "pull, else use"),
            ("Always", Some(true), "use"),
            ("IfNotPresent", None, "pull"),
            ("IfNotPresent", Some(false), "use"),
            ("IfNotPresent", Some(true), "use"),
            ("Never", None, "missing"),
            ("Never", Some(false), "use"),
            ("Never", Some(true), "use"),
        ] {
            let got = match way(policy, present.map(info)) {
                Way::Use(_) => "use",
                Way::Missing => "missing",
                Way::Pull(None) => "pull",
                Way::Pull(Some(_)) => "pull, else use",
            };
            assert_eq!(got, want, "{policy} {present:?}");
        }
        assert_eq!(
            present_text("a", &info(false)),
            "Container image \"a\" already present on machine and can be accessed by the pod"
        );
        assert_eq!(present_text("a", &info(true)), "Container image \"a\" already present on machine (imported)");
    }

    #[test]
    fn a_local_copy_serves_only_if_nobody_answered() {
        for (unreachable, present, want) in [(true, true, true), (true, false, false), (false, true, false)] {
            let source = "dial tcp: no route to host".into();
            let error = RuntimeError::Pull { image: "a".into(), unreachable, source };
            let got = fall_back("a", present.then(|| info(false)), &error);
            assert_eq!(got.is_some(), want, "unreachable {unreachable} present {present}");
            if let Some((_, text)) = got {
                assert!(text.ends_with("its registry does not answer: dial tcp: no route to host"), "{text}");
            }
        }
        let other = RuntimeError::Other("the disk is full".into());
        assert!(fall_back("a", Some(info(false)), &other).is_none());
    }
}
