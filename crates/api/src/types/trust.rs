//! The rules of `certificates.k8s.io`: bundles of certificates that are trusted.
use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use serde_json::Value;

use super::{NAME, col};
use crate::certificate::{blocks, is_authority};
use crate::check::text;
use crate::contract::{Column, SelectableFields};
use crate::field::{Errors, Path};
use crate::names;
use crate::typed::Rules;

/// Most bytes of a bundle.
const BUNDLE_MAX: usize = 1024 * 1024;
/// What errors show instead of a bundle.
const OMITTED: &str = "<value omitted>";

/// The mistakes in the name of a bundle that says it is of this signer (empty: of none).
fn name_of_bundle(name: &str, signer: &str) -> Vec<String> {
    if signer.is_empty() {
        return match name.contains(':') {
            true => vec!["ClusterTrustBundle without signer name must not have \":\" in its name".to_owned()],
            false => names::dns_subdomain(name),
        };
    }
    let prefix = format!("{}:", signer.replace('/', ":"));
    match name.strip_prefix(&prefix) {
        Some(rest) => names::dns_subdomain(rest),
        None => vec![format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}")],
    }
}

/// Of the parts of a name between dots, only the first that is wrong is told about.
fn first_wrong(at: &Path<'_>, whole: &str, rule: fn(&str) -> Vec<String>, e: &mut Errors) {
    if let Some((part, errors)) = whole.split('.').map(|part| (part, rule(part))).find(|(_, errors)| !errors.is_empty())
    {
        e.invalid_all(at, &whole, errors.into_iter().map(|why| format!("validating label {part:?}: {why}")));
    }
}

/// `example.com/signer-name`.
fn signer_name(at: &Path<'_>, name: &str, e: &mut Errors) {
    const LABEL_MAX: usize = 63;
    const SUBDOMAIN_MAX: usize = 253;
    if !e.need(at, name) {
        return;
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [domain, path] = parts[..] else {
        e.invalid(at, &name, "must be a fully qualified domain and path of the form 'example.com/signer-name'");
        return;
    };
    if domain.len() > SUBDOMAIN_MAX {
        e.too_long(at, SUBDOMAIN_MAX);
    }
    first_wrong(at, domain, names::dns_label, e);
    if !domain.contains('.') {
        e.invalid(at, &domain, "should be a domain with at least two segments separated by dots");
    }
    first_wrong(at, path, names::dns_subdomain, e);
    let max = SUBDOMAIN_MAX + 1 + SUBDOMAIN_MAX + LABEL_MAX + 1;
    if name.len() > max {
        e.too_long(at, max);
    }
}

fn bundle(at: &Path<'_>, bundle: &str, e: &mut Errors) {
    if bundle.len() > BUNDLE_MAX {
        e.too_long(at, BUNDLE_MAX);
        return;
    }
    let before = e.len();
    let mut places: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
    for (i, block) in blocks(bundle).into_iter().enumerate() {
        let wrong = match is_authority(&block.content) {
            _ if block.label != "CERTIFICATE" => format!("has bad block type: {}", block.label),
            _ if block.headers => "has PEM block headers".to_owned(),
            None => "does not parse as X.509".to_owned(),
            Some(false) => "does not have the CA bit set".to_owned(),
            Some(true) => {
                places.entry(block.content).or_default().push(i);
                continue;
            }
        };
        e.invalid(at, &OMITTED, &format!("entry {i} {wrong}"));
    }
    if e.len() > before {
        return;
    }
    if places.is_empty() {
        e.invalid(at, &OMITTED, "at least one trust anchor must be provided");
    }
    for indices in places.values().filter(|indices| indices.len() > 1) {
        let indices: Vec<String> = indices.iter().map(ToString::to_string).collect();
        e.invalid(at, &OMITTED, &format!("duplicate trust anchor (indices [{}])", indices.join(" ")));
    }
}

fn all_but_bundle(object: &ClusterTrustBundle, e: &mut Errors) {
    let (meta, spec) = (Path::top("metadata"), Path::top("spec"));
    let signer = text(&object.spec.signer_name);
    let name = text(&object.metadata.name);
    e.invalid_all(&meta.field("name"), &name, name_of_bundle(name, signer));
    if !signer.is_empty() {
        signer_name(&spec.field("signerName"), signer, e);
    }
}

impl Rules for ClusterTrustBundle {
    const COLUMNS: &'static [Column] =
        &[NAME, col("SignerName", "string", "The signer whose certificates the bundle verifies, if any.")];
    const SELECTABLE: &'static [&'static str] = &["spec.signerName"];

    fn default(&mut self) {}

    fn validate(&self, e: &mut Errors) {
        all_but_bundle(self, e);
        bundle(&Path::top("spec").field("trustBundle"), &self.spec.trust_bundle, e);
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        all_but_bundle(self, e);
        let spec = Path::top("spec");
        // One that was let in stays in.
        if self.spec.trust_bundle != old.spec.trust_bundle {
            bundle(&spec.field("trustBundle"), &self.spec.trust_bundle, e);
        }
        let (new, old) = (text(&self.spec.signer_name), text(&old.spec.signer_name));
        e.same(&spec.field("signerName"), &new, &old);
    }

    fn row(&self, _: Timestamp) -> Vec<Value> {
        let signer = text(&self.spec.signer_name);
        vec![self.metadata.name.clone().into(), if signer.is_empty() { "<none>" } else { signer }.into()]
    }

    fn selectable(&self) -> SelectableFields {
        vec![("spec.signerName", text(&self.spec.signer_name).to_owned())]
    }
}

/// The bundle that a projected volume names; all but conflicts of its path with others.
pub(crate) fn projection(at: &Path<'_>, source: &ClusterTrustBundleProjection, e: &mut Errors) {
    match (&source.name, &source.signer_name) {
        (Some(_), Some(_)) => e.invalid(at, source, "only one of name and signerName may be used"),
        (Some(name), None) => {
            let name_at = at.field("name");
            if name.is_empty() {
                e.required(&name_at, "must be a valid object name");
            }
            let signer = name.rsplit_once(':').map_or(String::new(), |(signer, _)| signer.replace(':', "/"));
            let wrong = name_of_bundle(name, &signer).into_iter();
            e.invalid_all(&name_at, name, wrong.map(|why| format!("not a valid clustertrustbundlename: {why}")));
            if let Some(selector) = &source.label_selector {
                e.invalid(&at.field("labelSelector"), selector, "labelSelector must be unset if name is specified");
            }
        }
        (None, Some(signer)) => {
            if signer.is_empty() {
                e.required(&at.field("signerName"), "must be a valid signer name");
            }
            signer_name(&at.field("signerName"), signer, e);
            if let Some(selector) = &source.label_selector {
                e.label_selector(&at.field("labelSelector"), selector);
            }
        }
        (None, None) => e.required(at, "either name or signerName must be specified"),
    }
    let path_at = at.field("path");
    if source.path.is_empty() {
        e.required(&path_at, "");
    }
    e.not_reserved(&path_at, &source.path);
}
