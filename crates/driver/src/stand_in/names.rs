//! What clouds call their disks.
use sha2::{Digest as _, Sha256};

/// The project of every disk of Google's that is here.
pub const PROJECT: &str = "holdfast";
/// In handles that were translated from in-tree names: not known.
const UNSPECIFIED: &str = "UNSPECIFIED";
const AZURE: &str =
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/holdfast/providers/Microsoft.Compute/disks/";

/// Hexadecimal figures that are the same for the same name.
pub fn digest(name: &str, figures: usize) -> String {
    let bytes = Sha256::digest(name.as_bytes());
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).filter_map(|b| char::from_digit(b.into(), 16)).take(figures).collect()
}

/// The same, in the form of a UUID.
pub fn uuid(name: &str) -> String {
    let figures = digest(name, 32);
    let [a, b, c, d, e] = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &figures[part]);
    format!("{a}-{b}-{c}-{d}-{e}")
}

pub fn gce(name: &str, zone: &str, regional: bool) -> String {
    match zone.rsplit_once('-').filter(|_| regional) {
        Some((region, _)) => format!("projects/{PROJECT}/regions/{region}/disks/{name}"),
        None => format!("projects/{PROJECT}/zones/{zone}/disks/{name}"),
    }
}

fn parts(handle: &str) -> Option<[&str; 4]> {
    let parts: Vec<&str> = handle.split('/').collect();
    match parts[..] {
        ["projects", project, scope @ ("zones" | "regions"), place, "disks", name] => {
            Some([project, scope, place, name])
        }
        _ => None,
    }
}

pub fn gce_named(name: &str, zone: &str) -> Option<String> {
    if let Some([_, _, place, name]) = parts(name) {
        return (place == zone || place == UNSPECIFIED).then(|| gce(name, zone, false));
    }
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fits =
        (1..=63).contains(&name.len()) && name.bytes().all(good) && name.starts_with(|c: char| c.is_ascii_lowercase());
    fits.then(|| gce(name, zone, false))
}

/// Whoever only knows a disk's name means the one of that name.
pub fn gce_same(handle: &str, asked: &str) -> bool {
    let (Some(handle), Some(asked)) = (parts(handle), parts(asked)) else { return false };
    let [project, scope, place, name] = asked;
    name == handle[3]
        && (project == UNSPECIFIED || project == handle[0])
        && (place == UNSPECIFIED || (scope, place) == (handle[1], handle[2]))
}

pub fn azure(name: &str) -> String {
    format!("{AZURE}{name}")
}

pub fn azure_named(name: &str, _: &str) -> Option<String> {
    let plain = !name.is_empty() && !name.contains('/');
    let full = || {
        let low = name.to_ascii_lowercase();
        low.starts_with("/subscriptions/") && low.contains("/providers/microsoft.compute/disks/") && !low.ends_with('/')
    };
    if plain { Some(azure(name)) } else { full().then(|| name.to_owned()) }
}

#[test]
fn disks_of_google() {
    let full = "projects/holdfast/zones/z-1-a/disks/d";
    assert_eq!(gce("d", "z-1-a", false), full);
    assert_eq!(gce("d", "z-1-a", true), "projects/holdfast/regions/z-1/disks/d");
    for (name, wanted) in [
        ("d", Some(full)),
        ("projects/p/zones/z-1-a/disks/d", Some(full)),
        ("projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d", Some(full)),
        ("projects/p/zones/other/disks/d", None),
        ("D", None),
        ("", None),
        ("a/b", None),
    ] {
        assert_eq!(gce_named(name, "z-1-a").as_deref(), wanted, "{name}");
    }
    for (asked, same) in [
        (full, true),
        ("projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d", true),
        ("projects/UNSPECIFIED/zones/z-1-a/disks/d", true),
        ("projects/UNSPECIFIED/zones/z-1-b/disks/d", false),
        ("projects/UNSPECIFIED/regions/z-1/disks/d", false),
        ("projects/mine/zones/z-1-a/disks/d", false),
        ("projects/holdfast/zones/z-1-a/disks/e", false),
        ("d", false),
    ] {
        assert_eq!(gce_same(full, asked), same, "{asked}");
    }
}

#[test]
fn disks_of_others() {
    assert_eq!(uuid("x"), uuid("x"));
    assert_eq!(uuid("x").len(), 36);
    assert_eq!(digest("x", 16).len(), 16);
    let uri = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/disks/d";
    assert_eq!(azure_named("d", ""), Some(azure("d")));
    assert_eq!(azure_named(uri, "").as_deref(), Some(uri));
    assert_eq!(azure_named("/subscriptions/s/disks/d", ""), None);
    assert_eq!(azure_named("", ""), None);
}
