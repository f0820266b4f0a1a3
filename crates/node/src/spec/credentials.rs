//! Registry credentials from image pull secrets.
use k8s_openapi::api::core::v1::Secret;
use runtime::RegistryAuth;

/// Collects the entries of `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg` secrets, in order. What cannot
/// be read is skipped: another secret may still do.
pub fn registry_auth<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> RegistryAuth {
    let mut auth = RegistryAuth::default();
    for secret in secrets {
        let data = |key: &str| secret.data.as_ref().and_then(|d| d.get(key));
        if let Some(bytes) = data(".dockerconfigjson").or_else(|| data(".dockercfg")) {
            auth.add_docker_config(&bytes.0);
        }
    }
    auth
}

#[test]
fn reads_both_formats_and_skips_rubbish() {
    let secret = |key: &str, text: &str| Secret {
        data: Some([(key.to_owned(), k8s_openapi::ByteString(text.as_bytes().to_vec()))].into()),
        ..Secret::default()
    };
    let all = [
        secret(
            ".dockerconfigjson",
            r#"{"auths":{"r.test":{"auth":"dTpwOnc="},"q.test":{"username":"a","password":"b"}}}"#,
        ),
        secret(".dockercfg", r#"{"https://index.docker.io/v1/":{"auth":"eDp5"}}"#),
        secret(".dockerconfigjson", "not json"),
        secret(".dockerconfigjson", r#"{"auths":{"bad.test":{"auth":"?"}}}"#),
    ];
    let got = registry_auth(&all).entries;
    let flat: Vec<_> = got.iter().map(|(r, u, p)| format!("{r} {u} {p}")).collect();
    assert_eq!(flat, ["r.test u p:w", "q.test a b", "https://index.docker.io/v1/ x y"]);
}
