//! Service account tokens: signed here, accepted here, verifiable elsewhere through the published key.
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use jiff::Timestamp;
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
    },
};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Inner, identity::Identity, object};

/// Who issues tokens, and for whom where a request names nobody.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// The key could not be used.
#[derive(Debug, thiserror::Error)]
#[error("use the service account key; remove service-account.key from the pki directory to make a new one")]
pub struct KeyError(#[source] Box<dyn std::error::Error + Send + Sync>);

/// A name and the uid of its one incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ref {
    pub name: String,
    pub uid: String,
}

/// The private claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kubernetes {
    pub namespace: String,
    pub serviceaccount: Ref,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pod: Option<Ref>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<Ref>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub secret: Option<Ref>,
}

/// What a token says. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Kubernetes,
    pub nbf: i64,
    pub sub: String,
}

/// Signs and checks tokens.
pub struct Tokens {
    key: EcdsaKeyPair,
    random: SystemRandom,
    key_id: String,
}

impl Tokens {
    /// Uses a PKCS#8 PEM key.
    pub fn new(pem: &str) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| KeyError(Box::new(e)))?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random)
            .map_err(|e| KeyError(e.to_string().into()))?;
        let key_id = BASE64.encode(Sha256::digest(key.public_key().as_ref()));
        Ok(Self { key, random, key_id })
    }

    /// The token for these claims.
    pub fn sign(&self, claims: &Claims) -> Result<String, KeyError> {
        let header = json!({"alg": "ES256", "kid": self.key_id, "typ": "JWT"});
        let claims = serde_json::to_vec(claims).map_err(|e| KeyError(Box::new(e)))?;
        let text = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims));
        let signature = self.key.sign(&self.random, text.as_bytes()).map_err(|e| KeyError(e.to_string().into()))?;
        Ok(format!("{text}.{}", BASE64.encode(signature)))
    }

    /// The claims of a token that this key signed and that is valid at `now`; nothing says that its objects still exist.
    pub fn verify(&self, token: &str, now: Timestamp) -> Option<Claims> {
        let (text, signature) = token.rsplit_once('.')?;
        let (header, claims) = text.split_once('.')?;
        let header: Value = serde_json::from_slice(&BASE64.decode(header).ok()?).ok()?;
        if header["alg"] != "ES256" {
            return None;
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(text.as_bytes(), &BASE64.decode(signature).ok()?)
            .ok()?;
        let claims: Claims = serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()?;
        let now = now.as_second();
        (claims.iss == ISSUER && claims.nbf <= now && now < claims.exp).then_some(claims)
    }

    /// The public key as a JSON Web Key Set.
    pub fn jwks(&self) -> Value {
        // Uncompressed point: one byte of form, then x and y of 32 bytes each.
        let point = self.key.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": BASE64.encode(x), "y": BASE64.encode(y),
        }]})
    }

    /// The OpenID discovery document.
    pub fn configuration() -> Value {
        json!({
            "issuer": ISSUER,
            "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

impl Inner {
    /// Whom a bearer token stands for, if it is meant for one of `audiences` and what it is bound to still exists.
    pub(crate) fn authenticate(&self, token: &str, audiences: &[String]) -> Option<(Identity, Vec<String>)> {
        let claims = self.tokens.verify(token, Timestamp::now())?;
        let shared: Vec<String> = claims.aud.iter().filter(|a| audiences.contains(a)).cloned().collect();
        if shared.is_empty() {
            return None;
        }
        let k = &claims.kubernetes;
        let alive = |plural: &str, r: &Ref| {
            let found = self.store.get(&format!("/core/{plural}/{}/{}", k.namespace, r.name));
            found.is_some_and(|found| *found.facets.uid == *r.uid)
        };
        let bound = alive("serviceaccounts", &k.serviceaccount)
            && k.pod.as_ref().is_none_or(|pod| alive("pods", pod))
            && k.secret.as_ref().is_none_or(|secret| alive("secrets", secret));
        if !bound {
            return None;
        }
        let mut identity = Identity {
            user: format!("system:serviceaccount:{}:{}", k.namespace, k.serviceaccount.name),
            uid: k.serviceaccount.uid.clone(),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{}", k.namespace),
                "system:authenticated".into(),
            ],
            ..Identity::default()
        };
        let mut extra = |name: &str, value: &str| {
            identity.extra.insert(format!("authentication.kubernetes.io/{name}"), vec![value.to_owned()]);
        };
        extra("credential-id", &format!("JTI={}", claims.jti));
        for (kind, bound) in [("pod", &k.pod), ("node", &k.node)] {
            if let Some(bound) = bound {
                extra(&format!("{kind}-name"), &bound.name);
                extra(&format!("{kind}-uid"), &bound.uid);
            }
        }
        Some((identity, shared))
    }

    /// Claims of a new token for a service account, valid from now on.
    pub(crate) fn claims(account: &Value, audiences: Vec<String>, seconds: i64) -> Claims {
        let now = Timestamp::now().as_second();
        let text = |f| object::meta(account, f).to_owned();
        Claims {
            aud: audiences,
            exp: now + seconds,
            iat: now,
            iss: ISSUER.into(),
            jti: uuid::Uuid::new_v4().to_string(),
            nbf: now,
            sub: format!("system:serviceaccount:{}:{}", text("namespace"), text("name")),
            kubernetes: Kubernetes {
                namespace: text("namespace"),
                serviceaccount: Ref { name: text("name"), uid: text("uid") },
                pod: None,
                node: None,
                secret: None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_valid_in_their_time_and_unaltered() {
        let tokens = Tokens::new(&rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let account = json!({"metadata": {"namespace": "n", "name": "a", "uid": "u"}});
        let claims = Inner::claims(&account, vec![ISSUER.into()], 600);
        let token = tokens.sign(&claims).unwrap();
        let now = Timestamp::now();
        assert_eq!(tokens.verify(&token, now), Some(claims.clone()));
        let at = |s| Timestamp::from_second(claims.iat + s).unwrap();
        assert_eq!(tokens.verify(&token, at(600)), None);
        assert_eq!(tokens.verify(&token, at(-1)), None);
        let parts: Vec<&str> = token.split('.').collect();
        let mut other = claims.clone();
        other.kubernetes.namespace = "kube-system".into();
        let forged = BASE64.encode(serde_json::to_vec(&other).unwrap());
        assert_eq!(tokens.verify(&format!("{}.{forged}.{}", parts[0], parts[2]), now), None);
        let none = BASE64.encode(r#"{"alg":"none"}"#);
        assert_eq!(tokens.verify(&format!("{none}.{}.", parts[1]), now), None);
        assert_eq!(tokens.verify("nonsense", now), None);
        let stranger = Tokens::new(&rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert_eq!(stranger.verify(&token, now), None);
        assert_eq!(tokens.jwks()["keys"][0]["crv"], "P-256");
    }
}
