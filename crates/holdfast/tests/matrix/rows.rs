//! The types, what is expected of them, and what they name.
use std::process::Command;

use testkit::LoopDevice;

use crate::{
    common::{Instance, text},
    memory::MEMORY,
    place::Place,
};

pub const MIB: u64 = 1 << 20;

/// What is expected of a type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Files that the pod may write, and that are its group's.
    Written,
    /// The same, with pages that have to be mapped to be written.
    Huge,
    /// Files of the node, as they are.
    Own,
    /// Files that only the node writes.
    Files,
    /// Files that nobody writes.
    Image,
    /// What is no directory: `test` knows it by this letter.
    Single(char),
    /// A block device for `volumeDevices`, of so many MiB.
    Device(u64),
}

pub struct Row {
    /// Of the volume; it is mounted below the directory of that name.
    pub name: &'static str,
    pub pod: &'static str,
    pub kind: Kind,
    pub source: String,
    /// A mount option that containers' mounts have.
    pub option: &'static str,
}

impl Row {
    fn new(pod: &'static str, name: &'static str, kind: Kind, source: impl Into<String>) -> Self {
        Self { name, pod, kind, source: source.into(), option: "" }
    }

    pub fn is_tree(&self) -> bool {
        !matches!(self.kind, Kind::Single(_) | Kind::Device(_))
    }

    pub fn takes_writes(&self) -> bool {
        matches!(self.kind, Kind::Written | Kind::Own)
    }

    /// A directory in it with a file, a file at its top, and the variable that names the directory.
    pub fn parts(&self) -> (&'static str, &'static str, &'static str) {
        if self.kind == Kind::Image { ("bin", "bin/sh", "BIN") } else { ("d", "f", "DIR") }
    }

    /// The claim that it is.
    pub fn claim(&self) -> Option<String> {
        let named = self.source.strip_prefix("persistentVolumeClaim: {claimName: ");
        let own = self.source.starts_with("ephemeral").then(|| format!("{}-{}", self.pod, self.name));
        named.map(|rest| rest.trim_end_matches('}').to_owned()).or(own)
    }

    /// Its mounts, or its device, in the container that looks.
    pub fn looked_at(&self) -> Vec<String> {
        let name = self.name;
        let at = |place: &str, more: &str| format!("{{name: {name}, mountPath: /{name}/{place}{more}}}");
        let (dir, file, variable) = self.parts();
        let whole = [
            at("rw", ""),
            at("ro", ", readOnly: true"),
            at("rro", ", readOnly: true, recursiveReadOnly: Enabled"),
            at("h2c", ", mountPropagation: HostToContainer"),
            at("both", ", mountPropagation: Bidirectional"),
        ];
        let part = [
            at("subd", &format!(", subPath: {dir}")),
            at("subro", &format!(", subPath: {dir}, readOnly: true")),
            at("subf", &format!(", subPath: {file}")),
            at("expr", &format!(", subPathExpr: $({variable})")),
        ];
        match self.kind {
            Kind::Device(_) => Vec::new(),
            Kind::Single(_) => whole.into(),
            _ => whole.into_iter().chain(part).collect(),
        }
    }
}

/// A volume and its claim.
fn pair(node: &str, name: &str, mode: &str, source: &str) -> String {
    let both = format!("volumeMode: {mode}, storageClassName: \"\"");
    format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\nspec: {{capacity: {{storage: 8Mi}}, accessModes: \
         [ReadWriteOnce], {both}, {source}, nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchExpressions: [{{key: \
         kubernetes.io/hostname, operator: In, values: [\"{node}\"]}}]}}]}}}}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{accessModes: [ReadWriteOnce], {both}, \
         volumeName: {name}, resources: {{requests: {{storage: 8Mi}}}}}}\n---\n"
    )
}

/// A claim that a class serves.
fn claim(name: &str, class: &str, mode: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{accessModes: [ReadWriteOnce], \
         storageClassName: {class}, volumeMode: {mode}, resources: {{requests: {{storage: 16Mi}}}}}}\n---\n"
    )
}

const OBJECTS: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {f: \"f\\n\"}\n---\n\
    apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {f: \"f\\n\"}\n---\n\
    apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {name: memory.example.com}\nspec: {attachRequired: false, \
    volumeLifecycleModes: [Ephemeral], fsGroupPolicy: File}\n---\n\
    apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: image}\nprovisioner: local.csi.holdfast\n\
    mountOptions: [noatime]\n---\n\
    apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: directory}\nprovisioner: local.csi.holdfast\n\
    parameters: {backend: directory}\n---\n";

/// What the rows name.
pub fn objects(instance: &Instance, place: &Place, disk: &LoopDevice, raw: &LoopDevice) -> String {
    let node = instance.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let out = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "/dev/null",
        ])
        .args(["-days", "2", "-subj", "/CN=one"])
        .output()
        .expect("run openssl");
    let lines: String = text(&out.stdout).lines().map(|line| format!("    {line}\n")).collect();
    let bundle = format!(
        "apiVersion: certificates.k8s.io/v1beta1\nkind: ClusterTrustBundle\nmetadata: {{name: \"example.com:s:a\"}}\nspec:\n  \
         signerName: example.com/s\n  trustBundle: |\n{lines}---\n"
    );
    let local = |path: &str, more: &str| format!("local: {{path: {path}}}{more}");
    let (disk, raw) = (disk.path().to_string_lossy(), raw.path().to_string_lossy());
    [
        OBJECTS.to_owned(),
        bundle,
        pair(&node, "local-dir", "Filesystem", &local(&place.tree("local"), ", mountOptions: [noexec]")),
        pair(&node, "local-disk", "Filesystem", &local(&disk, ", mountOptions: [noatime]")),
        pair(&node, "local-raw", "Block", &local(&raw, "")),
        pair(&node, "host", "Filesystem", &format!("hostPath: {{path: {}}}", place.tree("claimed"))),
        pair(
            &node,
            "optional",
            "Filesystem",
            &format!("hostPath: {{path: {}}}, mountOptions: [ro]", place.tree("opt")),
        ),
        pair(&node, "flex", "Filesystem", "flexVolume: {driver: example.com/bind}"),
        claim("own-image", "image", "Filesystem"),
        claim("own-dir", "directory", "Filesystem"),
        claim("own-raw", "image", "Block"),
    ]
    .concat()
}

pub fn claimed(pod: &'static str, name: &'static str, kind: Kind, option: &'static str) -> Row {
    Row { option, ..Row::new(pod, name, kind, format!("persistentVolumeClaim: {{claimName: {name}}}")) }
}

/// Every type, and what is to be seen of it.
pub fn rows(place: &Place, huge: bool) -> Vec<Row> {
    use Kind::{Device, Files, Huge, Image, Own, Single, Written};
    let items = "items: [{key: f, path: f}, {key: f, path: d/f}]";
    let name = |path: &str| format!("{{path: {path}, fieldRef: {{fieldPath: metadata.name}}}}");
    let path = |name: &str| place.path(name).to_string_lossy().into_owned();
    let host = |path: &str, kind: &str| format!("hostPath: {{path: {path}, type: {kind:?}}}");
    let projected = format!(
        "projected: {{sources: [{{configMap: {{name: m, items: [{{key: f, path: f}}]}}}}, {{secret: {{name: s, items: [{{key: f, \
         path: d/f}}]}}}}, {{downwardAPI: {{items: [{}]}}}}, {{serviceAccountToken: {{path: d/token}}}}, {{clusterTrustBundle: \
         {{name: \"example.com:s:a\", path: d/ca}}}}]}}",
        name("d/name")
    );
    let template = "ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], storageClassName: image, resources: \
                    {requests: {storage: 16Mi}}}}}";
    let git = format!("gitRepo: {{repository: \"file://{}/app.git\", directory: .}}", path("repositories"));
    let mut all = vec![
        Row::new("scratch", "disk", Written, "emptyDir: {}"),
        Row::new("scratch", "limited", Written, "emptyDir: {sizeLimit: 8Mi}"),
        Row::new("scratch", "memory", Written, "emptyDir: {medium: Memory}"),
        Row::new("scratch", "memory-limited", Written, "emptyDir: {medium: Memory, sizeLimit: 1Mi}"),
        Row::new("scratch", "git", Written, git),
        Row::new("scratch", "inline", Written, format!("csi: {{driver: {MEMORY}}}")),
        Row::new("scratch", "bound", Written, "flexVolume: {driver: example.com/bind}"),
        Row { option: "noatime", ..Row::new("scratch", "generic", Written, template) },
        Row::new("files", "config", Files, format!("configMap: {{name: m, {items}}}")),
        Row::new("files", "secret", Files, format!("secret: {{secretName: s, {items}}}")),
        Row::new("files", "down", Files, format!("downwardAPI: {{items: [{}, {}]}}", name("f"), name("d/f"))),
        Row::new("files", "all", Files, projected),
        Row { option: "noexec", ..Row::new("files", "oci", Image, "image: {reference: \"hfbox:1\"}") },
        Row::new("host", "any", Own, host(&place.tree("any"), "")),
        Row::new("host", "dir", Own, host(&place.tree("dir"), "Directory")),
        Row::new("host", "made", Own, host(&path("made/deep"), "DirectoryOrCreate")),
        Row::new("host", "file", Single('f'), host(&path("any/f"), "File")),
        Row::new("host", "new", Single('f'), host(&path("new"), "FileOrCreate")),
        Row::new("host", "socket", Single('S'), host(&path("socket"), "Socket")),
        Row::new("host", "char", Single('c'), host(&path("null"), "CharDevice")),
        Row::new("host", "block", Single('b'), host(&path("loop"), "BlockDevice")),
        claimed("claims", "host", Own, ""),
        claimed("claims", "local-dir", Written, "noexec"),
        claimed("claims", "local-disk", Written, "noatime"),
        claimed("claims", "local-raw", Device(8), ""),
        claimed("claims", "flex", Written, ""),
        claimed("claims", "own-image", Written, "noatime"),
        claimed("claims", "own-dir", Written, ""),
        claimed("claims", "own-raw", Device(16), ""),
    ];
    if huge {
        all.push(Row::new("huge", "pages", Huge, "emptyDir: {medium: HugePages-2Mi}"));
        all.push(Row::new("huge", "few-pages", Huge, "emptyDir: {medium: HugePages, sizeLimit: 2Mi}"));
    }
    all
}
