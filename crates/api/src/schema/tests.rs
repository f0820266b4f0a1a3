use super::*;

const POD: &str = "io.k8s.api.core.v1.Pod";
const MAP: &str = "io.k8s.api.core.v1.ConfigMap";

fn pod(json: &str) -> Result<Decoded, String> {
    decode(POD, json.as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn every_root_builds_and_finds_its_definition() {
    for root in roots::ROOTS {
        let name = (root.name)();
        let found = definition(&name).unwrap_or_else(|| panic!("{name}"));
        assert!(!found.fields().is_empty(), "{name}");
    }
}

#[test]
fn fact_tables_are_sorted_and_name_real_fields() {
    for root in roots::ROOTS {
        definition(&(root.name)());
    }
    let table = TABLE.get().unwrap().read().unwrap();
    for facts in [facts::STRATEGIES, facts::LISTS, facts::ZERO, facts::NAMED, facts::NULLS] {
        assert!(facts.is_sorted_by_key(|row| row.0));
        let mut known = 0;
        for (name, _) in facts {
            for prefix in ["io.k8s.api.", "io.k8s.apimachinery.pkg.apis."] {
                let full = format!("{prefix}{name}");
                let Some(definition) = table.get(full.as_str()) else { continue };
                known += 1;
                for (field, _) in facts_of(facts, &full) {
                    assert!(definition.field(field).is_some(), "{name}.{field}");
                }
            }
        }
        assert!(known > 10);
    }
}

#[test]
fn keeps_what_fits_and_drops_what_says_nothing() {
    let text = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{},"namespace":"","annotations":null,
        "creationTimestamp":null},"spec":{"volumes":[{"name":"v","emptyDir":{}}],"terminationGracePeriodSeconds":0,
        "hostNetwork":false,"automountServiceAccountToken":false,"containers":[{"name":"c","image":"i","env":[],
        "resources":{"limits":{"cpu":1,"memory":" 1Gi"}},"livenessProbe":{"httpGet":{"port":80}}}]},"status":{}}"#;
    let decoded = pod(text).unwrap();
    assert_eq!(decoded.problems, Vec::<String>::new());
    assert_eq!(
        decoded.value,
        json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"volumes":[{"name":"v","emptyDir":{}}],
            "terminationGracePeriodSeconds":0,"automountServiceAccountToken":false,
            "containers":[{"name":"c","image":"i","resources":{"limits":{"cpu":"1","memory":"1Gi"}},
            "livenessProbe":{"httpGet":{"port":80}}}]},"status":{}})
    );
    let value: Value = serde_json::from_str(text).unwrap();
    assert_eq!(decode_value(POD, value).unwrap(), decoded);
}

#[test]
fn storage_class_name_tells_empty_from_absent() {
    let claim = decode(
        "io.k8s.api.core.v1.PersistentVolumeClaim",
        br#"{"spec":{"storageClassName":"","volumeName":"","accessModes":["ReadWriteOnce"]}}"#,
    );
    assert_eq!(claim.unwrap().value, json!({"spec":{"storageClassName":"","accessModes":["ReadWriteOnce"]}}));
}

#[test]
fn reports_unknown_and_duplicate_fields_as_upstream_does() {
    let decoded = pod(r#"{"foo":{"a":1,"a":2},"metadata":{"name":"a","name":"b","labels":{"x":"1","x":"2"}},
           "spec":{"containers":[{"name":"a"},{"name":"b","bar":1,"env":[{"nme":1}]}],"Volumes":[]}}"#)
    .unwrap();
    assert_eq!(
        decoded.problems,
        [
            r#"unknown field "foo""#,
            r#"duplicate field "metadata.name""#,
            r#"duplicate field "metadata.labels.x""#,
            r#"unknown field "spec.containers[1].bar""#,
            r#"unknown field "spec.containers[1].env[0].nme""#,
            r#"unknown field "spec.Volumes""#,
        ]
    );
    assert_eq!(decoded.value["metadata"], json!({"name":"b","labels":{"x":"2"}}));
    assert_eq!(decoded.value["spec"], json!({"containers":[{"name":"a"},{"name":"b","env":[{}]}]}));
}

#[test]
fn wrong_types_are_refused_in_gos_words() {
    let cases = [
        (
            r#"{"metadata":{"name":1}}"#,
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.name of type string",
        ),
        (
            r#"{"metadata":{"labels":{"a":true}}}"#,
            "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            r#"{"metadata":"x"}"#,
            "json: cannot unmarshal string into Go struct field Pod.metadata of type v1.ObjectMeta",
        ),
        (
            r#"{"spec":{"containers":{}}}"#,
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            r#"{"spec":{"containers":["x"]}}"#,
            "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type v1.Container",
        ),
        (
            r#"{"spec":{"containers":[{"image":[]}]}}"#,
            "json: cannot unmarshal array into Go struct field Container.spec.containers.image of type string",
        ),
        (
            r#"{"spec":{"restartPolicy":5}}"#,
            "json: cannot unmarshal number into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy",
        ),
        (
            r#"{"spec":{"containers":[{"resources":{"limits":[]}}]}}"#,
            "json: cannot unmarshal array into Go struct field ResourceRequirements.spec.containers.resources.limits of type v1.ResourceList",
        ),
        (
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}"#,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            r#"{"spec":{"priority":2147483648}}"#,
            "json: cannot unmarshal number 2147483648 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (
            r#"{"spec":{"terminationGracePeriodSeconds":1.5}}"#,
            "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.terminationGracePeriodSeconds of type int64",
        ),
        (
            "{\"spec\":{\n\"priority\": 1.0 }}",
            "json: cannot unmarshal number 1.0 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (
            r#"{"spec":{"containers":[{"ports":[{"containerPort":8e1}]}]}}"#,
            "json: cannot unmarshal number 8e1 into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        (
            r#"{"spec":{"containers":[{"livenessProbe":{"httpGet":{"port":80.0}}}]}}"#,
            "json: cannot unmarshal number 80.0 into Go value of type int32",
        ),
        (r#"{"spec":{"priority":1.0"#, "unexpected end of JSON input"),
        (
            r#"{"metadata":{"name":7},"spec":{"priority":1.0}}"#,
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.name of type string",
        ),
        (
            r#"{"spec":{"hostNetwork":"yes"}}"#,
            "json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool",
        ),
        (
            r#"{"metadata":{"creationTimestamp":"x"}}"#,
            r#"parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006""#,
        ),
        (
            r#"{"spec":{"containers":[{"livenessProbe":{"httpGet":{"port":true}}}]}}"#,
            "json: cannot unmarshal bool into Go value of type int32",
        ),
        ("[]", "json: cannot unmarshal array into Go value of type v1.Pod"),
    ];
    for (text, message) in cases {
        assert_eq!(pod(text).unwrap_err(), message, "{text}");
    }
    let Err(DecodeError::Mismatch { field, .. }) = decode(POD, br#"{"spec":{"containers":[{},{"image":1}]}}"#) else {
        panic!("decoded")
    };
    assert_eq!(field, "spec.containers[1].image");
    assert!(matches!(decode(POD, b"{"), Err(DecodeError::Syntax { .. })));
    assert!(matches!(decode(POD, b"{} x"), Err(DecodeError::Syntax { .. })));
    assert!(matches!(decode("io.k8s.Nope", b"{}"), Err(DecodeError::NoSuchType(_))));
}

#[test]
fn map_values_and_list_elements_read_null_as_zero() {
    let decoded = decode(MAP, br#"{"data":{"a":null,"b":"x"},"binaryData":{"c":"aGk="},"immutable":null}"#).unwrap();
    assert_eq!(decoded.value, json!({"data":{"a":"","b":"x"},"binaryData":{"c":"aGk="}}));
}

#[test]
fn what_upstream_always_writes_is_null_where_it_holds_nothing() {
    let claim = "io.k8s.api.core.v1.PersistentVolumeClaim";
    let volume = "io.k8s.api.core.v1.PersistentVolume";
    let cases = [
        (
            POD,
            json!({"spec": {"volumes": [{"projected": {}}, {"projected": {"sources": []}}, {"scaleIO": {"system": "s"}}]}}),
            json!({"spec": {"volumes": [{"projected": {"sources": null}}, {"projected": {"sources": null}},
                {"scaleIO": {"system": "s", "secretRef": null}}]}}),
        ),
        (
            volume,
            json!({"spec": {"azureFile": {"secretName": "s"}, "scaleIO": {"secretRef": {}}}}),
            json!({"spec": {"azureFile": {"secretName": "s", "secretNamespace": null}, "scaleIO": {"secretRef": null}}}),
        ),
        (
            claim,
            json!({"spec": {"dataSource": {"kind": "A"}, "dataSourceRef": {"apiGroup": "g", "kind": "A"}}}),
            json!({"spec": {"dataSource": {"kind": "A", "apiGroup": null}, "dataSourceRef": {"apiGroup": "g", "kind": "A"}}}),
        ),
        ("io.k8s.api.storage.v1.CSINode", json!({"spec": {}}), json!({"spec": {"drivers": null}})),
        ("io.k8s.api.rbac.v1.Role", json!({"rules": [{"verbs": []}]}), json!({"rules": [{"verbs": null}]})),
        (POD, json!({"spec": {"volumes": [{"emptyDir": {}}]}}), json!({"spec": {"volumes": [{"emptyDir": {}}]}})),
        ("io.k8s.Nope", json!({"spec": {}}), json!({"spec": {}})),
    ];
    for (schema, mut object, written) in cases {
        for _ in 0..2 {
            write_nulls(schema, &mut object);
            assert_eq!(object, written, "{schema}");
        }
    }
}

/// As a Go decoder has it: null is nothing, whatever a field holds.
#[test]
fn a_null_field_is_an_absent_one() {
    let null = r#"{"metadata":{"name":"a","labels":null,"finalizers":null,"deletionGracePeriodSeconds":null},"spec":{
        "restartPolicy":null,"hostNetwork":null,"terminationGracePeriodSeconds":null,"securityContext":null,
        "nodeSelector":null,"tolerations":null,"volumes":[{"name":"v","nfs":null,"emptyDir":{"sizeLimit":null,"medium":null}},
        {"name":"w","projected":{"sources":null,"defaultMode":null}}],"containers":[{"name":"c","image":null}]},"status":null}"#;
    let absent = json!({"metadata":{"name":"a"},"spec":{"volumes":[{"name":"v","emptyDir":{}},
        {"name":"w","projected":{}}],"containers":[{"name":"c"}]}});
    assert_eq!(pod(null).unwrap().value, absent);
    let listed = pod(r#"{"spec":{"containers":[null],"tolerations":[null]}}"#).unwrap();
    assert_eq!(listed.value, json!({"spec":{"containers":[{}],"tolerations":[{}]}}));
}

#[test]
fn anything_goes_in_raw_fields() {
    let text = br#"{"metadata":{"managedFields":[{"fieldsV1":{"f:data":{"f:a":{},".":null}}}]}}"#;
    let decoded = decode(MAP, text).unwrap();
    assert_eq!(decoded.problems, Vec::<String>::new());
    assert_eq!(decoded.value, serde_json::from_slice::<Value>(text).unwrap());
}

#[test]
fn base64_is_checked_and_canonical() {
    let read = |text: &str| scalar::bytes(text, &mut Vec::new());
    assert_eq!(read("aGk=").unwrap(), "aGk=");
    assert_eq!(read("aG\nk=\r\n").unwrap(), "aGk=");
    assert_eq!(read("aGl=").unwrap(), "aGk=");
    assert_eq!(read("aG-k").unwrap_err(), "illegal base64 data at input byte 2");
    assert!(read("aGk").is_err());
}

#[test]
fn quantities_follow_upstreams_grammar() {
    for good in ["0", "1", "-1", "+1.5Gi", "1.", ".5", "1e3", "1E-3", "100m", "5u", "3n", "1Ei", "12E"] {
        assert_eq!(scalar::quantity(good), Ok(good));
    }
    for bad in ["", "x", "1.1.M", "1+1.0M", "0.1mi", "1i", "-3.01i", "1 G", "1e", "10gb", "1GiB", "e"] {
        assert!(scalar::quantity(bad).is_err(), "{bad}");
    }
}

#[test]
fn times_are_brought_to_utc() {
    let time = |text: &str| scalar::time(text, false);
    assert_eq!(time("2026-02-28T23:59:59Z").unwrap(), "2026-02-28T23:59:59Z");
    assert_eq!(time("2026-02-28T23:59:59.987+01:30").unwrap(), "2026-02-28T22:29:59Z");
    assert_eq!(scalar::time("2026-02-28T23:59:59.000001-00:01", true).unwrap(), "2026-03-01T00:00:59.000001Z");
    assert_eq!(time("2026-02-30T00:00:00Z").unwrap_err(), r#"parsing time "2026-02-30T00:00:00Z": day out of range"#);
    assert_eq!(time("2026-13-30T00:00:00Z").unwrap_err(), r#"parsing time "2026-13-30T00:00:00Z": month out of range"#);
    assert!(time("2026-02-03 00:00:00Z").unwrap_err().ends_with(r#"cannot parse " 00:00:00Z" as "T""#));
    assert!(time("2026-02-03T00:00:00").unwrap_err().ends_with(r#"cannot parse "" as "Z07:00""#));
    assert!(time("2026-02-03T00:00:00Zé").unwrap_err().contains("extra text"));
    assert!(time("20é").is_err());
    assert!(scalar::time("2026-02-03T00:00:00Z", true).unwrap_err().ends_with(r#"cannot parse "Z" as ".000000""#));
}

proptest::proptest! {
    /// What was decoded once decodes to itself, with nothing to complain about.
    #[test]
    fn decoding_is_idempotent(name in "[a-z]{0,3}", grace in proptest::option::of(-1i64..3), host in proptest::bool::ANY,
                              data in proptest::collection::btree_map("[a-z]", "[ -~é]{0,4}", 0..3)) {
        let text = json!({"metadata":{"name":name,"labels":data,"x":1},
            "spec":{"terminationGracePeriodSeconds":grace,"hostNetwork":host,"containers":[]}});
        let once = decode(POD, text.to_string().as_bytes()).unwrap();
        let again = decode_value(POD, once.value.clone()).unwrap();
        proptest::prop_assert_eq!(&again.value, &once.value);
        proptest::prop_assert!(again.problems.is_empty());
    }

    /// Bytes from anywhere never panic.
    #[test]
    fn garbage_is_refused_or_read(text in "[\\[\\]{}:,\"a-z0-9.\\-TZ\\n\\\\]{0,60}") {
        let _ = decode(POD, text.as_bytes());
        let _ = scalar::time(&text, true);
        let _ = scalar::quantity(&text);
    }
}

#[test]
fn every_kind_has_a_schema() {
    for kind in crate::KINDS {
        assert!(definition(kind.schema).is_some(), "{}", kind.schema);
    }
}

/// Types without fields are not looked into; only those that hold anything by nature may be like that.
#[test]
fn only_raw_types_hold_anything() {
    let all =
        library_schemas(roots::ROOTS.iter().map(|root| (root.name)()).collect::<Vec<_>>().iter().map(|n| &**n), "/x");
    let mut raw: Vec<_> = all
        .iter()
        .filter(|(name, schema)| schema.get("properties").is_none() && special(name).is_none())
        .map(|(name, _)| name.rsplit('.').next().unwrap_or(name))
        .collect();
    raw.sort_unstable();
    let expected = [
        // A struct without fields.
        "CustomResourceSubresourceStatus",
        "FieldsV1",
        "JSON",
        "JSONSchemaPropsOrArray",
        "JSONSchemaPropsOrBool",
        "JSONSchemaPropsOrStringArray",
        "RawExtension",
    ];
    assert_eq!(raw, expected);
}
