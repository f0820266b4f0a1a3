//! `emptyDir` in huge pages: which pages, and how many of them.
use api::{Quantity, pod::requests};
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::{
    contract::{Medium, Source},
    error::VolumeError,
};

/// Pages of the one size that the pod asks for.
pub(crate) const HUGE_PAGES: &str = "HugePages";
/// Pages of the size that follows.
pub(crate) const HUGE_PAGES_OF: &str = "HugePages-";
const RESOURCE: &str = "hugepages-";

/// A volume of such a medium. It has room for what the pod asks for of these pages, or for less by its own limit.
pub(crate) fn source(pod: &Pod, medium: &str, limit_bytes: Option<u64>) -> Result<Source, VolumeError> {
    let invalid = |message: String| VolumeError::Invalid { message };
    let size = |text: &str| Quantity::parse(text).ok().and_then(|q| u64::try_from(q.value()).ok()).filter(|b| *b > 0);
    let wanted = match medium.strip_prefix(HUGE_PAGES_OF) {
        Some(text) => Some(size(text).ok_or_else(|| invalid(format!("unknown storage medium {medium:?}")))?),
        None => None,
    };
    let asked = pod.spec.as_ref().map(asked).unwrap_or_default();
    let mut sizes: Vec<u64> = asked.iter().filter_map(|name| size(name.strip_prefix(RESOURCE)?)).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let page_bytes = match (wanted, sizes.as_slice()) {
        (Some(wanted), sizes) if sizes.contains(&wanted) => wanted,
        (None, [one]) => *one,
        (None, [_, _, ..]) => {
            let why = "can't be used if container requests multiple huge page sizes";
            return Err(invalid(format!("medium: {medium} {why}")));
        }
        _ => {
            let why = "hugePages storage requested, but there is no resource request for huge pages";
            return Err(invalid(format!("medium {medium}: {why}")));
        }
    };
    let total = pod.spec.as_ref().map(requests).unwrap_or_default();
    let of_size = |name: &str| name.strip_prefix(RESOURCE).and_then(size) == Some(page_bytes);
    let requested =
        total.iter().filter(|(name, _)| of_size(name)).filter_map(|(_, q)| u64::try_from(q.value()).ok()).sum();
    // Part of a page is none: what is asked for by a limit is had in whole ones.
    let bytes = limit_bytes.map_or(requested, |limit| limit.next_multiple_of(page_bytes).min(requested));
    Ok(Source::EmptyDir { medium: Medium::HugePages { page_bytes }, limit_bytes: Some(bytes) })
}

/// The huge pages that a pod or any of its containers requests.
fn asked(spec: &PodSpec) -> Vec<&str> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let all = containers.map(|c| c.resources.as_ref()).chain([spec.resources.as_ref()]);
    let names = all.flatten().flat_map(|r| r.requests.iter().flat_map(|list| list.keys()));
    names.map(String::as_str).filter(|name| name.starts_with(RESOURCE)).collect()
}
