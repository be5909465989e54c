//! TLS of probes, and which certificates they trust.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use nix::libc::O_NONBLOCK;
use rustls::ClientConfig;
use rustls::DigitallySignedStruct;
use rustls::RootCertStore;
use rustls::SignatureScheme;
use rustls::client::Resumption;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::crypto::ring;
use rustls::crypto::verify_tls12_signature;
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;

use super::super::check::Tls;
use super::super::check::Trust;
use super::super::check::invalid;
use crate::error::Result;

/// The largest size of a certificate file, in bytes.
const MAX_PEM: u64 = 16 << 20;

/// The authorities of this host and of files, read once for all checks.
#[derive(Default)]
pub(in crate::health) struct Authorities {
    system: Option<Arc<RootCertStore>>,
    files: HashMap<PathBuf, Arc<RootCertStore>>,
}

impl Authorities {
    fn of_file(&mut self, path: &Path) -> Result<Arc<RootCertStore>> {
        if let Some(store) = self.files.get(path) {
            return Ok(Arc::clone(store));
        }
        let store = Arc::new(of_pem(&read(path)?, path.display())?);
        self.files.insert(path.to_owned(), Arc::clone(&store));
        Ok(store)
    }

    fn of_system(&mut self) -> Result<Arc<RootCertStore>> {
        if let Some(store) = &self.system {
            return Ok(Arc::clone(store));
        }
        let found = rustls_native_certs::load_native_certs();
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(found.certs);
        if store.is_empty() {
            let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
            let reason = format!(
                "this host has no trusted authorities ({}): install its CA certificates package, or set authorities",
                errors.join("; ")
            );
            return Err(invalid("authorities", "this host's", reason));
        }
        let store = Arc::new(store);
        self.system = Some(Arc::clone(&store));
        Ok(store)
    }
}

/// The server's name, if there is one.
pub(super) fn server_name(tls: &Tls) -> Result<Option<ServerName<'static>>> {
    let Some(name) = &tls.server_name else {
        return Ok(None);
    };
    match ServerName::try_from(name.clone()) {
        Ok(name) => Ok(Some(name)),
        Err(_) => Err(invalid(
            "server_name",
            name,
            "must be a DNS name or an address",
        )),
    }
}

/// No session is resumed, so each probe verifies the certificate.
pub(super) fn client(tls: &Tls, authorities: &mut Authorities) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid("tls", "ring", error.to_string()))?;
    let builder = match &tls.trust {
        Trust::System => builder.with_root_certificates(authorities.of_system()?),
        Trust::Authorities(pem) => builder.with_root_certificates(of_pem(pem, "given as text")?),
        Trust::File(path) => builder.with_root_certificates(authorities.of_file(path)?),
        Trust::Any => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(algorithms))),
    };
    let mut config = builder.with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Reads a file. Opening something else than a regular file could block, be endless, or have side
/// effects (a watchdog).
fn read(path: &Path) -> Result<String> {
    let read = || {
        let no_file = || io::Error::other("not a regular file");
        if !fs::metadata(path)?.is_file() {
            return Err(no_file());
        }
        let mut options = File::options();
        let file = options.read(true).custom_flags(O_NONBLOCK).open(path)?;
        // The file may have been replaced in the meantime.
        if !file.metadata()?.is_file() {
            return Err(no_file());
        }
        let mut pem = String::new();
        let length = file.take(MAX_PEM).read_to_string(&mut pem)? as u64;
        match length < MAX_PEM {
            true => Ok(pem),
            false => Err(io::Error::other("too long for a certificate file")),
        }
    };
    read().map_err(|error: io::Error| invalid("authorities", path.display(), error.to_string()))
}

fn of_pem(pem: &str, whose: impl Display) -> Result<RootCertStore> {
    let bad = |reason: String| invalid("authorities", &whose, reason);
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| bad(format!("not PEM: {error}")))?;
        store
            .add(certificate)
            .map_err(|error| bad(format!("not a certificate: {error}")))?;
    }
    match store.is_empty() {
        true => Err(bad("needs at least one certificate in PEM".to_owned())),
        false => Ok(store),
    }
}

/// Accepts any certificate whose key the server has.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
