//! Registry credentials from image pull secrets.
use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use runtime::RegistryAuth;
use serde_json::Value;

/// Collects the entries of `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg` secrets, in order. What cannot
/// be read is skipped: another secret may still do.
pub fn registry_auth<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> RegistryAuth {
    let mut auth = RegistryAuth::default();
    for secret in secrets {
        let data = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|b| b.0.as_slice());
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
        let list = match (data(".dockerconfigjson"), data(".dockercfg")) {
            (Some(bytes), _) => parse(bytes).and_then(|v| v.get("auths").cloned()),
            (None, Some(bytes)) => parse(bytes),
            (None, None) => None,
        };
        for (registry, entry) in list.as_ref().and_then(Value::as_object).into_iter().flatten() {
            if let Some((user, password)) = login(entry) {
                auth.entries.push((registry.clone(), user, password));
            }
        }
    }
    auth
}

fn login(entry: &Value) -> Option<(String, String)> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|s| !s.is_empty()).map(str::to_owned);
    if let Some(packed) = text("auth") {
        let plain = String::from_utf8(STANDARD.decode(packed.trim()).ok()?).ok()?;
        let (user, password) = plain.split_once(':')?;
        return Some((user.to_owned(), password.trim_end_matches('\0').to_owned()));
    }
    Some((text("username")?, text("password").unwrap_or_default()))
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
