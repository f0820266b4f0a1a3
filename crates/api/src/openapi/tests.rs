use super::*;
use crate::KINDS;

fn core() -> Value {
    serde_json::from_slice(&v3_document(KINDS, "", "v1").unwrap()).unwrap()
}

#[test]
fn index_lists_every_group_version_once() {
    let index = v3_index(KINDS);
    let paths = index["paths"].as_object().unwrap();
    assert!(paths["api/v1"]["serverRelativeURL"].as_str().unwrap().starts_with("/openapi/v3/api/v1?hash="));
    for kind in KINDS {
        assert!(paths.contains_key(&root(kind.group, kind.version)));
        assert!(v3_document(KINDS, kind.group, kind.version).is_some());
    }
    assert!(v3_document(KINDS, "none", "v1").is_none());
    assert_ne!(hash(KINDS, "api/v1"), hash(KINDS, "apis/apps/v1"));
    assert_ne!(hash(KINDS, "api/v1"), hash(&KINDS[1..], "api/v1"));
}

#[test]
fn every_reference_resolves_and_every_kind_is_marked() {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    found.push(reference.clone());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let mut documents = vec![(v2(KINDS), "/definitions/")];
    for kind in KINDS {
        let document = v3_document(KINDS, kind.group, kind.version).unwrap();
        documents.push((serde_json::from_slice(&document).unwrap(), "/components/schemas/"));
    }
    for (document, prefix) in &documents {
        let mut found = Vec::new();
        references(document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(pointer.starts_with(prefix) && document.pointer(pointer).is_some(), "{reference}");
        }
    }
    for kind in KINDS {
        let marked = &documents[0].0["definitions"][kind.schema]["x-kubernetes-group-version-kind"];
        assert_eq!(*marked, json!([gvk(kind.group, kind.version, kind.kind)]));
    }
}

#[test]
fn operations_are_told_apart() {
    let document = v2(KINDS);
    let mut ids: Vec<&str> = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|item| item.as_object().unwrap().values())
        .filter_map(|operation| operation["operationId"].as_str())
        .collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    // exec and its like answer GET and POST alike, under one name.
    assert!(all - ids.len() <= 3, "{} of {all}", ids.len());
}

#[test]
fn patches_take_field_validation() {
    let document = core();
    let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"], json!({"group":"","kind":"Pod","version":"v1"}));
    assert_eq!(patch["x-kubernetes-action"], "patch");
    let names: Vec<_> = patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].clone()).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    let eviction = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}/eviction"]["post"];
    assert_eq!(eviction["x-kubernetes-group-version-kind"]["kind"], "Eviction");
}

#[test]
fn schemas_carry_what_patching_needs() {
    let document = core();
    let schemas = &document["components"]["schemas"];
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-type"], "map");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    let metadata = &schemas["io.k8s.api.core.v1.Pod"]["properties"]["metadata"];
    assert!(metadata["description"].is_string() && metadata["allOf"][0]["$ref"].is_string());
    assert_eq!(schemas["io.k8s.api.core.v1.Pod"]["required"], Value::Null);
    assert_eq!(schemas["io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector"]["x-kubernetes-map-type"], "atomic");
    assert_eq!(schemas["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]["format"], "int-or-string");
}

/// Reads protobuf fields back: (number, payload) pairs of length-delimited fields.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let length = usize::try_from(varint(&mut bytes)).unwrap();
        if tag & 7 == 2 {
            found.push((tag >> 3, &bytes[..length]));
            bytes = &bytes[length..];
        }
    }
    found
}

#[test]
fn protobuf_holds_the_same_document() {
    let json = v2(KINDS);
    let bytes = v2_protobuf(KINDS);
    let top = fields(&bytes);
    assert_eq!(top[0], (1, &b"2.0"[..]));
    let named = |number: u64, inner: u64| {
        let (_, block) = top.iter().find(|(found, _)| *found == number).unwrap();
        fields(block)
            .into_iter()
            .filter(|(found, _)| *found == inner)
            .map(|(_, item)| String::from_utf8(fields(item)[0].1.to_vec()).unwrap())
            .collect::<Vec<_>>()
    };
    let names = |member: &str| json[member].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(named(8, 2), names("paths"));
    assert_eq!(named(9, 1), names("definitions"));
}
