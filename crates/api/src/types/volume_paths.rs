//! Files of one volume that would lie upon each other.
use std::fmt;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume, VolumeProjection};

use crate::check::{items, text};

/// A file's path in the volume and, in a projected one, where it is from.
#[derive(PartialEq)]
struct File {
    path: String,
    source: String,
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.path)?;
        if self.source.is_empty() { Ok(()) } else { write!(f, " ({})", self.source) }
    }
}

impl File {
    fn new(path: &str, source: &str) -> Self {
        Self { path: path.trim_end_matches('/').to_owned(), source: source.to_owned() }
    }

    /// Whether one is the other, or a directory above it.
    fn meets(&self, other: &File) -> bool {
        let (a, b) = (format!("{}/", self.path), format!("{}/", other.path));
        !self.path.is_empty() && !other.path.is_empty() && (a.starts_with(&b) || b.starts_with(&a))
    }
}

fn keys(list: &Option<Vec<KeyToPath>>, source: &str) -> Vec<File> {
    items(list).map(|i| File::new(&i.path, source)).collect()
}

fn fields(list: &Option<Vec<DownwardAPIVolumeFile>>, source: &str) -> Vec<File> {
    items(list).map(|i| File::new(&i.path, source)).collect()
}

fn projected(source: &VolumeProjection) -> Vec<File> {
    let mut files = Vec::new();
    if let Some(s) = &source.config_map {
        files.extend(keys(&s.items, &format!("ConfigMap {:?}", s.name)));
    } else if let Some(s) = &source.secret {
        files.extend(keys(&s.items, &format!("Secret {:?}", s.name)));
    } else if let Some(s) = &source.downward_api {
        files.extend(fields(&s.items, "DownwardAPI"));
    } else if let Some(s) = &source.service_account_token {
        files.push(File::new(&s.path, "ServiceAccountToken"));
    } else if let Some(s) = &source.cluster_trust_bundle {
        let name = if s.name.is_some() { &s.name } else { &s.signer_name };
        files.push(File::new(&s.path, &format!("ClusterTrustBundle {:?}", text(name))));
    }
    files
}

/// Warnings about the files of a pod's volumes.
pub(super) fn warnings(volumes: &Option<Vec<Volume>>, out: &mut Vec<String>) {
    for volume in items(volumes) {
        let (kind, files) = if let Some(s) = &volume.config_map {
            (format!("ConfigMap {:?}", s.name), keys(&s.items, ""))
        } else if let Some(s) = &volume.secret {
            (format!("Secret {:?}", text(&s.secret_name)), keys(&s.items, ""))
        } else if let Some(s) = &volume.downward_api {
            ("DownwardAPI".to_owned(), fields(&s.items, ""))
        } else if let Some(s) = &volume.projected {
            for _ in items(&s.sources).filter(|s| **s == VolumeProjection::default()) {
                out.push(format!("volume {:?} (Projected) has no sources provided", volume.name));
            }
            ("Projected".to_owned(), items(&s.sources).flat_map(projected).collect())
        } else {
            continue;
        };
        for (i, file) in files.iter().enumerate() {
            for other in files[..i].iter().filter(|other| file.meets(other)) {
                out.push(format!("volume {:?} ({kind}): overlapping paths: {file} with {other}", volume.name));
            }
        }
    }
}
