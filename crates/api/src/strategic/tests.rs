use proptest::prelude::*;
use serde_json::json;

use super::*;

const POD: &str = "io.k8s.api.core.v1.Pod";

fn spec(original: Value, patch: Value) -> Result<Value, String> {
    apply(POD, &json!({ "spec": original }), &json!({ "spec": patch }))
        .map(|mut pod| pod["spec"].take())
        .map_err(|error| error.to_string())
}

#[test]
fn merges_as_upstream_does() {
    let two = json!({"containers":[{"name":"a","image":"1","env":[{"name":"X","value":"1"},{"name":"Y","value":"2"}]},
        {"name":"b","image":"2"}]});
    let cases = [
        // Merge by key: new elements come before those that only the server has, unless both were there before.
        (
            two.clone(),
            json!({"containers":[{"name":"c"},{"name":"a","image":"9"}]}),
            json!({"containers":[{"name":"c"},
                {"name":"a","image":"9","env":[{"name":"X","value":"1"},{"name":"Y","value":"2"}]},{"name":"b","image":"2"}]}),
        ),
        (
            two.clone(),
            json!({"containers":[{"name":"a","env":[{"name":"X","$patch":"delete"},{"name":"Z"}]},{"name":"b","$patch":"delete"}]}),
            json!({"containers":[{"name":"a","image":"1","env":[{"name":"Z"},{"name":"Y","value":"2"}]}]}),
        ),
        (two.clone(), json!({"containers":[{"$patch":"replace"},{"name":"n"}]}), json!({"containers":[{"name":"n"}]})),
        (two.clone(), json!({"containers":null,"nodeName":"n"}), json!({"nodeName":"n"})),
        (
            two,
            json!({"$setElementOrder/containers":[{"name":"b"},{"name":"a"}]}),
            json!({"containers":[{"name":"b","image":"2"},
                {"name":"a","image":"1","env":[{"name":"X","value":"1"},{"name":"Y","value":"2"}]}]}),
        ),
        // A list without merge strategy is replaced; so is a map under `$patch: replace`.
        (
            json!({"tolerations":[{"key":"a"},{"key":"b"}]}),
            json!({"tolerations":[{"key":"c"}]}),
            json!({"tolerations":[{"key":"c"}]}),
        ),
        (
            json!({"nodeSelector":{"a":"1"}}),
            json!({"nodeSelector":{"$patch":"replace","b":"2"}}),
            json!({"nodeSelector":{"b":"2"}}),
        ),
        (
            json!({"securityContext":{"runAsUser":1}}),
            json!({"securityContext":{"$patch":"delete"}}),
            json!({"securityContext":{}}),
        ),
        // What is absent takes the patch, without nulls and directives.
        (
            json!({}),
            json!({"securityContext":{"runAsUser":null,"runAsGroup":2},"affinity":{"$patch":"delete"},
            "volumes":[{"name":"a","$patch":"delete"},{"name":"b"}]}),
            json!({"securityContext":{"runAsGroup":2},"volumes":[{"name":"b"}]}),
        ),
        (
            json!({"volumes":[{"name":"v","configMap":{"name":"m"}}]}),
            json!({"volumes":[{"$retainKeys":["name","secret"],"name":"v","secret":{"secretName":"s"}}]}),
            json!({"volumes":[{"name":"v","secret":{"secretName":"s"}}]}),
        ),
        // Server-only elements keep their place among those that were reordered.
        (
            json!({"volumes":[{"name":"1"},{"name":"2"},{"name":"3"},{"name":"4"}]}),
            json!({"$setElementOrder/volumes":[{"name":"4"},{"name":"5"},{"name":"2"}],"volumes":[{"name":"5"}]}),
            json!({"volumes":[{"name":"1"},{"name":"3"},{"name":"4"},{"name":"5"},{"name":"2"}]}),
        ),
    ];
    for (original, patch, expected) in cases {
        assert_eq!(spec(original, patch.clone()), Ok(expected), "{patch}");
    }
}

#[test]
fn primitive_lists_merge_and_shrink() {
    let object = json!({"metadata":{"finalizers":["a","b","c"]}});
    let patched =
        |patch: Value| apply(POD, &object, &json!({ "metadata": patch })).map(|o| o["metadata"]["finalizers"].clone());
    assert_eq!(patched(json!({"finalizers":["d","b"]})), Ok(json!(["d", "a", "b", "c"])));
    assert_eq!(patched(json!({"$deleteFromPrimitiveList/finalizers":["b","x"]})), Ok(json!(["a", "c"])));
    assert_eq!(
        patched(
            json!({"$setElementOrder/finalizers":["d","a"],"$deleteFromPrimitiveList/finalizers":["c"],"finalizers":["d"]})
        ),
        Ok(json!(["d", "a", "b"]))
    );
    assert_eq!(
        apply(POD, &json!({}), &json!({"metadata":{"$deleteFromPrimitiveList/finalizers":["c"]}})),
        Ok(json!({"metadata":{}}))
    );
}

#[test]
fn refuses_what_upstream_refuses() {
    let old = json!({"containers":[{"name":"a"}],"volumes":[{"name":"v"}],"nodeSelector":{}});
    let cases = [
        (json!({"containers":[{"image":"x"}]}), "map: map[image:x] does not contain declared merge key: name"),
        (
            json!({"containers":[{"$patch":"delete"}]}),
            "map: map[$patch:delete] does not contain declared merge key: name",
        ),
        (json!({"containers":[{"$patch":"merge","name":"a"}]}), "merging lists cannot yet be specified in the patch"),
        (json!({"containers":[{"$patch":"x","name":"a"}]}), "unknown patch type: x in map: map[$patch:x name:a]"),
        (json!({"nodeSelector":{"$patch":"merge"}}), "unknown patch type: merge in map: map[$patch:merge]"),
        (json!({"volumes":[{"name":"v","$retainKeys":["name"],"emptyDir":{}}]}), "invalid patch format of retainKeys"),
        (json!({"volumes":[{"name":"v","$retainKeys":"name"}]}), "invalid patch format of retainKeys"),
        (
            json!({"$setElementOrder/containers":{"name":"v"}}),
            "expected a []interface {}, but received a map[string]interface {}",
        ),
        (
            json!({"$setElementOrder/containers":[{"name":"b"}],"containers":[{"name":"a"}]}),
            "The order in patch list:\n[map[name:a]]\n doesn't match $setElementOrder list:\n[map[name:b]]\n",
        ),
        (json!({"$setElementOrderX":[]}), "invalid patch format of setElementOrder list"),
        (json!({"$deleteFromPrimitiveList":[]}), "invalid patch format of primitive list"),
        (
            json!({"$setElementOrder/nope":[]}),
            r#"unable to find api field in struct PodSpec for the json field "nope""#,
        ),
        (json!({"containers":["a"]}), "list element types are not identical: [[map[name:a]] [a]]"),
    ];
    for (patch, message) in cases {
        assert_eq!(spec(old.clone(), patch.clone()), Err(message.to_owned()), "{patch}");
    }
    assert_eq!(
        apply(POD, &old, &json!([])).unwrap_err().to_string(),
        "json: cannot unmarshal array into Go value of type map[string]interface {}"
    );
    assert!(matches!(apply("x", &old, &json!({})), Err(StrategicError::NoSuchType(_))));
}

#[test]
fn merge_patch_follows_the_rfc() {
    let cases = [
        (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
        (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
        (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
        (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
        (json!(["a"]), json!({"a":{"b":{"c":null}}}), json!({"a":{"b":{}}})),
        (json!({"a":1}), json!(["c"]), json!(["c"])),
        (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
    ];
    for (original, patch, expected) in cases {
        assert_eq!(merge_patch(&original, &patch), expected);
    }
}

/// A patch that turns one list of keyed objects into another, as `kubectl apply` writes it.
fn keyed_patch(field: &str, key: &str, old: &[Value], new: &[Value]) -> Object {
    let find = |list: &[Value], item: &Value| list.iter().find(|other| other[key] == item[key]).cloned();
    let mut items = Vec::new();
    for item in new {
        let Some(before) = find(old, item) else {
            items.push(item.clone());
            continue;
        };
        let mut changes = item.as_object().cloned().unwrap_or_default();
        for gone in before.as_object().into_iter().flatten().map(|(name, _)| name) {
            changes.entry(gone.as_str()).or_insert(Value::Null);
        }
        items.push(Value::Object(changes));
    }
    items.extend(
        old.iter().filter(|item| find(new, item).is_none()).map(|item| json!({ key: item[key], "$patch": "delete" })),
    );
    let order: Vec<Value> = new.iter().map(|item| json!({ key: item[key] })).collect();
    let mut patch = Object::new();
    patch.insert(format!("$setElementOrder/{field}"), Value::Array(order));
    patch.insert(field.to_owned(), Value::Array(items));
    patch
}

fn volumes() -> impl Strategy<Value = Vec<Value>> {
    let volume = ("[a-e]", prop::option::of("[x-z]"), any::<bool>()).prop_map(|(name, medium, secret)| {
        let mut volume = json!({ "name": name });
        if let Some(medium) = medium {
            volume["emptyDir"] = json!({ "medium": medium });
        }
        if secret {
            volume["secret"] = json!({"secretName":"s"});
        }
        volume
    });
    prop::collection::vec(volume, 0..5).prop_map(|mut list| {
        let mut seen = Vec::new();
        list.retain(|volume| {
            let new = !seen.contains(&volume["name"]);
            seen.push(volume["name"].clone());
            new
        });
        list
    })
}

proptest! {
    /// A patch made from two states leads from the first to the second, and applying it twice changes nothing more.
    #[test]
    fn a_difference_applies_and_is_idempotent(old in volumes(), new in volumes()) {
        let patch = json!({ "spec": keyed_patch("volumes", "name", &old, &new) });
        let once = apply(POD, &json!({"spec":{"volumes":old}}), &patch).unwrap();
        prop_assert_eq!(&once, &json!({"spec":{"volumes":new}}));
        prop_assert_eq!(apply(POD, &once, &patch).unwrap(), once);
    }

    /// Elements that the patch does not name keep their order, and none is lost or doubled.
    #[test]
    fn unnamed_elements_stay(old in volumes(), new in volumes()) {
        let patch = json!({"spec":{"volumes":new}});
        let merged = apply(POD, &json!({"spec":{"volumes":old}}), &patch).unwrap();
        let names = |list: &[Value]| list.iter().map(|v| v["name"].clone()).collect::<Vec<_>>();
        let (before, named) = (names(&old), names(&new));
        let after = names(merged["spec"]["volumes"].as_array().unwrap());
        let untouched = |list: &[Value]| list.iter().filter(|n| !named.contains(n)).cloned().collect::<Vec<_>>();
        prop_assert_eq!(untouched(&before), untouched(&after));
        prop_assert_eq!(after.iter().filter(|n| named.contains(n)).cloned().collect::<Vec<_>>(), named);
    }
}
