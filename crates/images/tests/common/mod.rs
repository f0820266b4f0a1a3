//! Images made by hand, for the tests.
#![allow(dead_code, reason = "each test file uses its part")]
pub mod registry;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// One entry of a layer.
pub struct Entry {
    pub path: String,
    pub kind: EntryType,
    pub mode: u32,
    pub owner: (u64, u64),
    pub data: Vec<u8>,
    pub link: String,
    pub device: (u32, u32),
    pub extended: Vec<(String, Vec<u8>)>,
}

fn entry(path: &str, kind: EntryType, mode: u32) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode,
        owner: (0, 0),
        data: vec![],
        link: String::new(),
        device: (0, 0),
        extended: vec![],
    }
}
pub fn dir(path: &str, mode: u32) -> Entry {
    entry(path, EntryType::Directory, mode)
}
pub fn file(path: &str, data: &str) -> Entry {
    Entry { data: data.into(), ..entry(path, EntryType::Regular, 0o644) }
}
pub fn symlink(path: &str, to: &str) -> Entry {
    Entry { link: to.into(), ..entry(path, EntryType::Symlink, 0o777) }
}
pub fn hard_link(path: &str, to: &str) -> Entry {
    Entry { link: to.into(), ..entry(path, EntryType::Link, 0o644) }
}
pub fn device(path: &str, major: u32, minor: u32) -> Entry {
    Entry { device: (major, minor), ..entry(path, EntryType::Char, 0o666) }
}

/// The tar file of a layer. Paths are written as they are, however wrong.
pub fn layer(entries: &[Entry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(vec![]);
    for e in entries {
        if !e.extended.is_empty() {
            let records = e.extended.iter().map(|(k, v)| (k.as_str(), v.as_slice()));
            builder.append_pax_extensions(records).expect("pax");
        }
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..e.path.len()].copy_from_slice(e.path.as_bytes());
        header.as_old_mut().linkname[..e.link.len()].copy_from_slice(e.link.as_bytes());
        header.set_entry_type(e.kind);
        header.set_mode(e.mode);
        header.set_uid(e.owner.0);
        header.set_gid(e.owner.1);
        header.set_mtime(1_700_000_000);
        header.set_size(e.data.len() as u64);
        header.set_device_major(e.device.0).expect("major");
        header.set_device_minor(e.device.1).expect("minor");
        header.set_cksum();
        builder.append(&header, &e.data[..]).expect("append");
    }
    builder.into_inner().expect("tar")
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(bytes).expect("gzip");
    encoder.finish().expect("gzip")
}

pub fn sha(bytes: &[u8]) -> String {
    images_digest(bytes)
}
fn images_digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

pub fn arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// Content by digest, and a manifest that leads to it.
pub struct Made {
    pub blobs: Vec<(String, Vec<u8>)>,
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    pub diff_ids: Vec<String>,
}

/// An image of these layers (plain tar files), compressed by `pack`.
pub fn image(layers: &[Vec<u8>], pack: impl Fn(&[u8]) -> Vec<u8>) -> Made {
    let diff_ids: Vec<String> = layers.iter().map(|l| sha(l)).collect();
    let config = json!({
        "architecture": arch(), "os": "linux",
        "config": {"Entrypoint": ["/bin/app"], "Env": ["A=b"], "User": "www"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes();
    let descriptor = |kind: &str, bytes: &[u8]| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": sha(bytes), "size": bytes.len()});
    let packed: Vec<Vec<u8>> = layers.iter().map(|l| pack(l)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": packed.iter().map(|l| descriptor("layer.v1.tar+gzip", l)).collect::<Vec<Value>>(),
    })
    .to_string()
    .into_bytes();
    let mut blobs: Vec<(String, Vec<u8>)> = packed.into_iter().map(|l| (sha(&l), l)).collect();
    blobs.push((sha(&config), config.clone()));
    blobs.push((sha(&manifest), manifest.clone()));
    Made { blobs, manifest, config, diff_ids }
}

/// An index that offers the image for this platform among others.
pub fn index(made: &Made, annotations: &Value) -> Vec<u8> {
    let entry = |digest: String, size: usize, os: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
            "platform": {"os": os, "architecture": arch()}, "annotations": annotations,
        })
    };
    json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry(sha(b"no such thing"), 1, "windows"), entry(sha(&made.manifest), made.manifest.len(), "linux")],
    })
    .to_string()
    .into_bytes()
}

/// Parts of an OCI layout.
pub fn oci_parts(made: &Made, annotations: &Value) -> Vec<(String, Vec<u8>)> {
    let mut parts = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), index(made, annotations)),
    ];
    for (digest, bytes) in &made.blobs {
        parts.push((format!("blobs/sha256/{}", &digest["sha256:".len()..]), bytes.clone()));
    }
    parts
}

pub fn write_dir(dir: &Path, parts: &[(String, Vec<u8>)]) {
    for (name, bytes) in parts {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("dir");
        fs::write(path, bytes).expect("write");
    }
}

pub fn write_tar(path: &Path, parts: &[(String, Vec<u8>)]) -> PathBuf {
    let mut builder = tar::Builder::new(fs::File::create(path).expect("create"));
    for (name, bytes) in parts {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &bytes[..]).expect("append");
    }
    builder.finish().expect("finish");
    path.into()
}

/// Every file below the store's layers and temporary directories, for "nothing is left" checks.
pub fn left_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = ["tmp", "layers"]
        .iter()
        .flat_map(|d| fs::read_dir(dir.join(d)).expect("read").flatten())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
