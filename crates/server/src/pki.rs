//! Certificates: the authority, what the server shows, what the administrator logs in with.
//!
//! In: a directory and the names under which the server is reached. Out: PEM and a TLS configuration.
//! Keys are made once and reused; the serving certificate is made again when its names change or it nears its end.
use std::{
    io::Write,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// Days that a certificate is good for, and how many must be left at a start.
const VALID_DAYS: i64 = 365;
const LEFT_DAYS: i64 = 90;
const CA_DAYS: i64 = 3650;

/// Why certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{action} {}; check the data directory's permissions and free space", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("make the {what}")]
    Make {
        what: &'static str,
        #[source]
        source: rcgen::Error,
    },
    #[error("read {}; remove the pki directory to make new keys (kubeconfigs then change too)", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("set up TLS")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Everything that identifies this server and its administrator.
#[derive(Debug)]
pub struct Pki {
    /// The authority's certificate, PEM.
    pub ca_pem: String,
    serving_pem: String,
    serving_key: String,
    admin_pem: String,
    admin_key: String,
    /// Key that signs service account tokens, PKCS#8 PEM.
    pub account_key: String,
}

impl Pki {
    /// Reads what is in `dir` and makes what is missing. `names` are DNS names and addresses of the server.
    pub fn open(dir: &Path, names: &[String]) -> Result<Self, PkiError> {
        let file = |action, path: &Path| {
            let path = path.to_owned();
            move |source| PkiError::File { action, path, source }
        };
        std::fs::create_dir_all(dir).map_err(file("create", dir))?;
        let keys = Keys { dir };
        let (ca_pem, ca_key) = keys.authority()?;
        // In the notes beside certificates: one of another authority is of no use.
        let authority = BASE64.encode(ca_key.public_key_raw());
        let issuer = Issuer::new(ca_params(), ca_key);
        let serving_key = keys.get("serving.key")?;
        let serving_pem = keys.certificate("serving", &serving_key, &issuer, &authority, serving_params(names))?;
        let admin_key = keys.get("admin.key")?;
        let admin_pem = keys.certificate("admin", &admin_key, &issuer, &authority, admin_params())?;
        let account_key = keys.get("service-account.key")?.serialize_pem();
        Ok(Self {
            ca_pem,
            serving_pem,
            serving_key: serving_key.serialize_pem(),
            admin_pem,
            admin_key: admin_key.serialize_pem(),
            account_key,
        })
    }

    /// The names a server at `listen` goes by.
    pub fn names(listen: &[String], service_ip: IpAddr) -> Vec<String> {
        let mut names: Vec<String> = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "127.0.0.1",
            "::1",
        ]
        .map(str::to_owned)
        .to_vec();
        names.push(service_ip.to_string());
        names.extend(std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|h| h.trim().to_owned()));
        names.extend(listen.iter().cloned());
        names.retain(|n| !n.is_empty() && n != "0.0.0.0" && n != "::");
        names.sort();
        names.dedup();
        names
    }

    /// TLS for the listener: HTTP/2 and 1.1, client certificates of this authority welcome but not required.
    pub fn server_config(&self) -> Result<ServerConfig, PkiError> {
        fn tls<E: std::error::Error + Send + Sync + 'static>(e: E) -> PkiError {
            PkiError::Tls(Box::new(e))
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).map_err(tls)?).map_err(tls)?;
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(tls)?;
        let chain = vec![CertificateDer::from_pem_slice(self.serving_pem.as_bytes()).map_err(tls)?];
        let key = PrivateKeyDer::from_pem_slice(self.serving_key.as_bytes()).map_err(tls)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .map_err(tls)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// The administrator's kubeconfig for a server at `url`, all data embedded.
    pub fn kubeconfig(&self, url: &str) -> String {
        let data = |pem: &str| BASE64.encode(pem);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: holdfast\n  cluster:\n    server: {url}\n    \
             certificate-authority-data: {ca}\nusers:\n- name: kubernetes-admin\n  user:\n    \
             client-certificate-data: {certificate}\n    client-key-data: {key}\ncontexts:\n- name: holdfast\n  \
             context:\n    cluster: holdfast\n    user: kubernetes-admin\ncurrent-context: holdfast\n",
            ca = data(&self.ca_pem),
            certificate = data(&self.admin_pem),
            key = data(&self.admin_key),
        )
    }
}

/// The directory of keys and certificates.
struct Keys<'a> {
    dir: &'a Path,
}

impl Keys<'_> {
    /// The authority's certificate and key. Clients trust the certificate, so it is made once and never again.
    fn authority(&self) -> Result<(String, KeyPair), PkiError> {
        let (path, key_path) = (self.dir.join("ca.crt"), self.dir.join("ca.key"));
        let pem = match std::fs::read_to_string(&path) {
            Ok(pem) => pem,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let key = self.get("ca.key")?;
                let made = ca_params()
                    .self_signed(&key)
                    .map_err(|source| PkiError::Make { what: "certificate authority", source })?;
                write(&path, &made.pem())?;
                return Ok((made.pem(), key));
            }
            Err(source) => return Err(PkiError::File { action: "read", path, source }),
        };
        if !key_path.exists() {
            return Err(PkiError::Read { path: key_path, source: "it is missing".into() });
        }
        let key = self.get("ca.key")?;
        if !is_for(&pem, &key) {
            return Err(PkiError::Read { path, source: "it is no certificate, or not that of ca.key".into() });
        }
        Ok((pem, key))
    }

    fn get(&self, name: &str) -> Result<KeyPair, PkiError> {
        let path = self.dir.join(name);
        match std::fs::read_to_string(&path) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(|e| PkiError::Read { path, source: Box::new(e) }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let key = KeyPair::generate().map_err(|source| PkiError::Make { what: "key", source })?;
                write(&path, &key.serialize_pem())?;
                Ok(key)
            }
            Err(source) => Err(PkiError::File { action: "read", path, source }),
        }
    }

    /// The certificate `NAME.crt`, made anew unless `NAME.for` says that it is for these names and long enough.
    fn certificate(
        &self,
        name: &'static str,
        key: &KeyPair,
        issuer: &Issuer<'_, KeyPair>,
        authority: &str,
        params: (CertificateParams, String),
    ) -> Result<String, PkiError> {
        let (params, names) = params;
        let names = format!("{names}\nby {authority}");
        let path = self.dir.join(format!("{name}.crt"));
        let note_path = self.dir.join(format!("{name}.for"));
        let note = std::fs::read_to_string(&note_path).unwrap_or_default();
        let enough = today().as_second() + LEFT_DAYS * 86_400;
        let good = note
            .split_once('\n')
            .is_some_and(|(end, noted)| noted == names && end.parse::<i64>().is_ok_and(|end| end > enough));
        if good
            && let Ok(pem) = std::fs::read_to_string(&path)
            && is_for(&pem, key)
        {
            return Ok(pem);
        }
        let made = params.signed_by(key, issuer).map_err(|source| PkiError::Make { what: "certificate", source })?;
        write(&path, &made.pem())?;
        let end = today().as_second() + VALID_DAYS * 86_400;
        write(&note_path, &format!("{end}\n{names}"))?;
        Ok(made.pem())
    }
}

/// Writes a file that only its owner may read, whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), PkiError> {
    let fail = |action| {
        let path = path.to_owned();
        move |source| PkiError::File { action, path, source }
    };
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(fail("create"))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fail("write"))?;
    std::fs::rename(&temporary, path).map_err(fail("put in place"))
}

fn subject(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

/// Now, but never before this was written: machines without a battery start in 1970, and learn the time later.
fn today() -> Timestamp {
    const WRITTEN: Timestamp = Timestamp::constant(1_767_225_600, 0);
    Timestamp::now().max(WRITTEN)
}

fn dated(mut params: CertificateParams, days: i64) -> CertificateParams {
    // From the beginning of time, because a clock that lags must not refuse a certificate.
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    let end = today().checked_add(SignedDuration::from_hours(24 * days)).unwrap_or(Timestamp::MAX);
    let end = end.to_zoned(jiff::tz::TimeZone::UTC).date();
    params.not_after =
        rcgen::date_time_ymd(i32::from(end.year()), end.month().unsigned_abs(), end.day().unsigned_abs());
    params
}

/// Whether a PEM certificate is one of this key.
fn is_for(pem: &str, key: &KeyPair) -> bool {
    // The public key stands in the certificate as it is.
    CertificateDer::from_pem_slice(pem.as_bytes())
        .is_ok_and(|der| der.windows(key.public_key_raw().len()).any(|part| part == key.public_key_raw()))
}

fn ca_params() -> CertificateParams {
    let mut params = dated(CertificateParams::default(), CA_DAYS);
    params.distinguished_name = subject("holdfast-ca", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn serving_params(names: &[String]) -> (CertificateParams, String) {
    let mut params = dated(CertificateParams::default(), VALID_DAYS);
    params.distinguished_name = subject("kube-apiserver", None);
    params.subject_alt_names = names
        .iter()
        .filter_map(|name| match name.parse::<IpAddr>() {
            Ok(ip) => Some(SanType::IpAddress(ip)),
            Err(_) => name.as_str().try_into().ok().map(SanType::DnsName),
        })
        .collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    (params, names.join(","))
}

fn admin_params() -> (CertificateParams, String) {
    let mut params = dated(CertificateParams::default(), VALID_DAYS);
    params.distinguished_name = subject("kubernetes-admin", Some(crate::identity::Identity::MASTERS));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    (params, "kubernetes-admin".into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_private_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let names = Pki::names(&["192.0.2.1".into()], "10.96.0.1".parse().unwrap());
        let first = Pki::open(dir.path(), &names).unwrap();
        let second = Pki::open(dir.path(), &names).unwrap();
        assert_eq!(
            (&first.ca_pem, &first.serving_pem, &first.admin_pem),
            (&second.ca_pem, &second.serving_pem, &second.admin_pem)
        );
        let third = Pki::open(dir.path(), &["localhost".into()]).unwrap();
        assert_eq!(first.ca_pem, third.ca_pem);
        assert_ne!(first.serving_pem, third.serving_pem);
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
        first.server_config().unwrap();
        let config = first.kubeconfig("https://127.0.0.1:1");
        assert!(config.contains("server: https://127.0.0.1:1\n"));
    }

    #[test]
    fn a_damaged_directory_is_mended_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["localhost".to_owned()];
        let open = || Pki::open(dir.path(), &names);
        let first = open().unwrap();
        let put = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
        for file in ["serving.crt", "admin.crt", "serving.for", "admin.for"] {
            put(file, "junk");
            let again = open().unwrap();
            again.server_config().unwrap();
            assert!(is_for(&again.admin_pem, &KeyPair::from_pem(&again.admin_key).unwrap()), "{file}");
            assert_eq!(again.ca_pem, first.ca_pem);
        }
        for file in ["ca.crt", "ca.key", "serving.key", "admin.key", "service-account.key"] {
            let good = std::fs::read_to_string(dir.path().join(file)).unwrap();
            put(file, "");
            let text = open().unwrap_err().to_string();
            assert!(text.contains(file) && text.contains("remove the pki directory"), "{text}");
            put(file, &good);
        }
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(open().unwrap_err().to_string().contains("ca.key"));
        std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
        let other = open().unwrap();
        assert_ne!(other.ca_pem, first.ca_pem);
        assert_ne!(other.serving_pem, first.serving_pem, "signed by the new authority");
    }
}
