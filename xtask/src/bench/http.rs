//! The least of an HTTPS client: one request at a time on a kept connection, and a watch read line by line.
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};

use super::Result;

/// Where the server is, and who we are.
#[derive(Clone)]
pub(super) struct Client {
    address: String,
    tls: Arc<ClientConfig>,
}

/// A connection that is kept between requests.
pub(super) struct Connection(BufReader<StreamOwned<ClientConnection, TcpStream>>);

impl Client {
    /// As the administrator's kubeconfig says.
    pub(super) fn new(kubeconfig: &Path) -> Result<Self> {
        let text = fs::read_to_string(kubeconfig)?;
        let field = |name: &str| -> Result<&str> {
            let line = text.lines().find_map(|l| l.trim().strip_prefix(name)?.strip_prefix(": "));
            Ok(line.ok_or_else(|| format!("{}: no {name}", kubeconfig.display()))?)
        };
        let pem = |name: &str| Result::Ok(STANDARD.decode(field(name)?)?);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem("certificate-authority-data")?)?)?;
        let chain = CertificateDer::pem_slice_iter(&pem("client-certificate-data")?)
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&pem("client-key-data")?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        let address = field("server")?.trim_start_matches("https://").to_owned();
        Ok(Self { address, tls: Arc::new(tls) })
    }

    pub(super) fn connect(&self) -> Result<Connection> {
        let socket = TcpStream::connect(&self.address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(super::PATIENCE))?;
        let connection = ClientConnection::new(self.tls.clone(), ServerName::try_from("localhost")?)?;
        Ok(Connection(BufReader::new(StreamOwned::new(connection, socket))))
    }

    /// The lines of an answer that does not end.
    pub(super) fn stream(&self, path: &str) -> Result<impl Iterator<Item = std::io::Result<String>> + use<>> {
        let mut connection = self.connect()?;
        // Of version 1.0, so that the answer is not cut into chunks.
        write!(connection.0.get_mut(), "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
        connection.0.get_mut().flush()?;
        let (code, _) = connection.head()?;
        if code != 200 {
            return Err(format!("GET {path}: {code}").into());
        }
        Ok(connection.0.lines())
    }
}

impl Connection {
    /// The body of the answer to a request; anything but success is an error.
    pub(super) fn request(&mut self, method: &str, path: &str, body: &str) -> Result<String> {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        self.0.get_mut().write_all(request.as_bytes())?;
        self.0.get_mut().flush()?;
        let (code, length) = self.head()?;
        let mut answer = vec![0; length];
        self.0.read_exact(&mut answer)?;
        let answer = String::from_utf8(answer)?;
        if !(200..300).contains(&code) {
            return Err(format!("{method} {path}: {code} {answer}").into());
        }
        Ok(answer)
    }

    /// Status and length of an answer.
    fn head(&mut self) -> Result<(u16, usize)> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let code = line.split(' ').nth(1).ok_or("no answer")?.parse()?;
        let mut length = 0;
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            match line.trim().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse()?,
                Some(_) => {}
                None => return Ok((code, length)),
            }
        }
    }
}
