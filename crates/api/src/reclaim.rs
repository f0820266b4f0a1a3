//! What becomes of a volume whose claim is gone: one rule for the controller that says so and the node that does it.
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec};
use serde_json::{Value, json};

/// Who made a volume; its absence means an administrator did.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// The claimRef is the binder's, not an administrator's reservation.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Keeps a volume object until what is behind it was deleted by a plugin of this program.
pub const IN_TREE_FINALIZER: &str = "kubernetes.io/pv-controller";

/// The CSI driver that does the work of the in-tree provisioner that made a volume.
pub const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";
const IN_TREE: &str = "kubernetes.io/";
const HOST_PATH_PLUGIN: &str = "kubernetes.io/host-path";

/// What is to be done with a released volume, by its policy at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reclaim {
    /// Nothing, by anybody.
    Keep,
    /// Someone outside this program deletes it.
    Elsewhere,
    /// A node that reaches it empties it; then it is free again.
    Recycle,
    /// A node that reaches it deletes what is behind it; then the object goes.
    Delete,
    /// Nobody ever can: event reason and sentence.
    Impossible { reason: &'static str, message: String },
}

/// Reads the policy, the source and who made the volume; sentences are upstream's.
pub fn reclaim(volume: &PersistentVolume) -> Reclaim {
    let Some(spec) = &volume.spec else { return Reclaim::Keep };
    if !annotation(volume, MIGRATED_TO).is_empty() {
        return Reclaim::Elsewhere;
    }
    let impossible = |reason, message: String| Reclaim::Impossible { reason, message };
    match spec.persistent_volume_reclaim_policy.as_deref().unwrap_or("Retain") {
        "Retain" => Reclaim::Keep,
        "Recycle" if is_directory(spec) => Reclaim::Recycle,
        "Recycle" => impossible("VolumeFailedRecycle", "No recycler plugin found for the volume!".into()),
        "Delete" => deletion(volume, spec).unwrap_or_else(|message| impossible("VolumeFailedDelete", message)),
        _ => impossible("VolumeUnknownReclaimPolicy", "Volume has unrecognized PersistentVolumeReclaimPolicy".into()),
    }
}

fn is_directory(spec: &PersistentVolumeSpec) -> bool {
    (spec.host_path.is_some() || spec.nfs.is_some())
        && spec.volume_mode.as_deref().unwrap_or("Filesystem") == "Filesystem"
}

fn deletion(volume: &PersistentVolume, spec: &PersistentVolumeSpec) -> Result<Reclaim, String> {
    let provisioner = annotation(volume, PROVISIONED_BY);
    let in_tree = provisioner.starts_with(IN_TREE);
    if (!provisioner.is_empty() && !in_tree) || (provisioner.is_empty() && spec.csi.is_some()) {
        return Ok(Reclaim::Elsewhere);
    }
    // Flocker's plugin deleted datasets, whoever had made them.
    if spec.flocker.is_some() {
        return Ok(Reclaim::Delete);
    }
    if in_tree && provisioner != HOST_PATH_PLUGIN {
        return Err(format!("no volume plugin matched name: {provisioner}"));
    }
    match &spec.host_path {
        // Upstream also takes `/tmp/` further inside a path; a directory that merely looks alike is not ours to delete.
        Some(source) if source.path.strip_prefix("/tmp/").is_some_and(|rest| !rest.trim_matches('/').is_empty()) => {
            Ok(Reclaim::Delete)
        }
        Some(source) => Err(format!("host_path deleter only supports /tmp/.+ but received provided {}", source.path)),
        None => {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            let why = "no deletable volume plugin matched";
            Err(format!("error getting deleter volume plugin for volume {name:?}: {why}"))
        }
    }
}

/// The merge patch that gives up a volume's reservation: an administrator's is kept, without the claim's UID.
pub fn unbinding(volume: &PersistentVolume) -> Value {
    let annotations = volume.metadata.annotations.as_ref();
    match annotations.is_some_and(|a| a.contains_key(BOUND_BY_CONTROLLER)) {
        true => json!({ "spec": { "claimRef": null }, "metadata": { "annotations": { BOUND_BY_CONTROLLER: null } } }),
        false => json!({ "spec": { "claimRef": { "uid": null } } }),
    }
}

fn annotation<'a>(volume: &'a PersistentVolume, name: &str) -> &'a str {
    let annotations = volume.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(name)).map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::from_value;

    use super::*;

    fn of(policy: &str, spec: Value, annotations: Value) -> Reclaim {
        let mut volume = json!({"metadata": {"name": "v", "annotations": annotations}, "spec": spec});
        volume["spec"]["persistentVolumeReclaimPolicy"] = json!(policy);
        reclaim(&from_value(volume).unwrap())
    }

    #[test]
    fn policy_source_and_maker_say_what_becomes_of_a_volume() {
        use Reclaim::{Delete, Elsewhere, Keep, Recycle};
        let host = |path: &str| json!({"hostPath": {"path": path}});
        let csi = json!({"csi": {"driver": "d", "volumeHandle": "h"}});
        let made_by = |name: &str| json!({PROVISIONED_BY: name});
        let migrated = json!({MIGRATED_TO: "csi.example.com"});
        let block = json!({"hostPath": {"path": "/tmp/d"}, "volumeMode": "Block"});
        let failed = |reason, message: &str| Reclaim::Impossible { reason, message: message.into() };
        let no_recycler = failed("VolumeFailedRecycle", "No recycler plugin found for the volume!");
        let not_tmp = |path: &str| {
            let message = format!("host_path deleter only supports /tmp/.+ but received provided {path}");
            failed("VolumeFailedDelete", &message)
        };
        let no_plugin = "error getting deleter volume plugin for volume \"v\": no deletable volume plugin matched";
        let unknown = "Volume has unrecognized PersistentVolumeReclaimPolicy";
        let table = [
            ("Retain", host("/tmp/d"), json!({}), Keep),
            ("Recycle", host("/srv/d"), json!({}), Recycle),
            ("Recycle", json!({"nfs": {"server": "s", "path": "/"}}), json!({}), Recycle),
            ("Recycle", host("/srv/d"), migrated.clone(), Elsewhere),
            ("Recycle", csi.clone(), json!({}), no_recycler.clone()),
            ("Recycle", block, json!({}), no_recycler.clone()),
            ("Recycle", json!({"local": {"path": "/tmp/d"}}), json!({}), no_recycler),
            ("Delete", host("/tmp/d"), json!({}), Delete),
            ("Delete", host("/tmp/d"), made_by("kubernetes.io/host-path"), Delete),
            ("Delete", host("/tmp/d"), made_by("example.com/maker"), Elsewhere),
            ("Delete", host("/tmp/d"), migrated, Elsewhere),
            ("Delete", host("/tmp/d"), made_by(""), Delete),
            (
                "Delete",
                host("/tmp/d"),
                made_by("kubernetes.io/gone"),
                failed("VolumeFailedDelete", "no volume plugin matched name: kubernetes.io/gone"),
            ),
            ("Delete", host("/tmp"), json!({}), not_tmp("/tmp")),
            ("Delete", host("/tmp//"), json!({}), not_tmp("/tmp//")),
            ("Delete", host("/tmpfoo/x"), json!({}), not_tmp("/tmpfoo/x")),
            ("Delete", host("/srv/tmp/x"), json!({}), not_tmp("/srv/tmp/x")),
            ("Delete", csi, json!({}), Elsewhere),
            ("Delete", json!({"flocker": {"datasetUUID": "u"}}), made_by("kubernetes.io/flocker"), Delete),
            (
                "Delete",
                json!({"nfs": {"server": "s", "path": "/"}}),
                json!({}),
                failed("VolumeFailedDelete", no_plugin),
            ),
            ("Burn", host("/tmp/d"), json!({}), failed("VolumeUnknownReclaimPolicy", unknown)),
        ];
        for (policy, spec, annotations, wanted) in table {
            assert_eq!(of(policy, spec.clone(), annotations.clone()), wanted, "{policy} {spec} {annotations}");
        }
    }

    #[test]
    fn an_administrators_reservation_outlives_its_claim() {
        let volume = |annotations: Value| from_value(json!({"metadata": {"annotations": annotations}})).unwrap();
        assert_eq!(unbinding(&volume(json!({})))["spec"]["claimRef"], json!({"uid": null}));
        let ours = unbinding(&volume(json!({BOUND_BY_CONTROLLER: "yes"})));
        assert_eq!(ours["spec"], json!({"claimRef": null}));
        assert_eq!(ours["metadata"]["annotations"], json!({BOUND_BY_CONTROLLER: null}));
    }
}
