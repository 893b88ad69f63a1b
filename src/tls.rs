//! TLS as a client: which certificates are trusted and how far a server is checked.
//!
//! Not here: sockets, and the listener's own certificate and key.
//!
//! Invariants
//! - There is one cryptographic provider in the process: ring.
//! - Whatever [`Verify`] says, the handshake's signature is verified, so the peer holds the key of the
//!   certificate that it showed.
//! - An empty set of trusted certificates is an error, never "trust everything".
//!
//! Sources: PostgreSQL manual, "SSL Support" (sslmode); rustls 0.23, `WebPkiServerVerifier`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// A certificate as it goes over the wire; the rooms that only pass certificates on name it through here.
pub(crate) use rustls::pki_types::CertificateDer;

/// Where operating systems keep their CA bundle; the first that exists is taken.
const SYSTEM_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt", // Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",   // Red Hat, Fedora
    "/etc/ssl/ca-bundle.pem",             // SUSE
    "/etc/pki/tls/cacert.pem",            // OpenELEC
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem", // BSD, macOS
];

/// Why no TLS configuration could be made.
#[derive(Debug)]
pub(crate) enum TlsError {
    /// The file could not be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The file is not PEM from beginning to end.
    NotPem {
        /// The file.
        path: PathBuf,
    },
    /// Nothing that could be trusted was found; holds the places looked at.
    NoCertificates {
        /// The places, comma separated.
        looked_at: String,
    },
    /// None of the trusted certificates can be used.
    Unusable,
    /// The provider does not have what TLS needs; a fault of the build.
    Provider,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::Unreadable { path, cause } => write!(f, "cannot read {}: {cause}", path.display()),
            TlsError::NotPem { path } => write!(f, "{} holds a broken PEM block", path.display()),
            TlsError::NoCertificates { looked_at } => write!(f, "no CA certificates found in {looked_at}"),
            TlsError::Unusable => f.write_str("none of the CA certificates can be used"),
            TlsError::Provider => f.write_str("the TLS library lacks a cipher suite or protocol version"),
        }
    }
}

impl std::error::Error for TlsError {}

/// The cryptography below every TLS connection of this process.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The CA certificates of a PEM file; other blocks in it are passed over.
pub(crate) fn roots_from_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = std::fs::read(path).map_err(|cause| TlsError::Unreadable { path: path.into(), cause })?;
    let roots: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::NotPem { path: path.into() })?;
    if roots.is_empty() {
        return Err(TlsError::NoCertificates { looked_at: path.display().to_string() });
    }
    Ok(roots)
}

/// The CA certificates of the system.
///
/// `ssl_cert_file` is what the variable `SSL_CERT_FILE` names. When given it is the only place looked at:
/// who sets it wants exactly that bundle.
pub(crate) fn system_roots(ssl_cert_file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    if let Some(path) = ssl_cert_file {
        return roots_from_file(path);
    }
    let bundle = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists());
    bundle.map_or_else(
        || Err(TlsError::NoCertificates { looked_at: SYSTEM_BUNDLES.join(", ") }),
        roots_from_file,
    )
}

/// The failure of a handshake in fixed words, if `error` is one.
pub(crate) fn describe_failure(error: &io::Error) -> Option<&'static str> {
    let failure = error.get_ref()?.downcast_ref::<Error>()?;
    let is_certificate = matches!(failure, Error::InvalidCertificate(_));
    Some(if is_certificate { "certificate not trusted" } else { "TLS failed" })
}

/// How far a server's certificate is checked; the names in brackets are PostgreSQL's sslmode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verify {
    /// Encrypt, and believe any certificate (require).
    Nothing,
    /// Signed by a trusted CA, issued to anybody (verify-ca).
    Chain,
    /// Signed by a trusted CA and issued to the host that was asked for (verify-full).
    ChainAndName,
}

/// The client side of TLS: no client certificate, TLS 1.2 and 1.3.
///
/// `roots` may be empty only with [`Verify::Nothing`].
pub(crate) fn client_config(
    roots: &[CertificateDer<'static>],
    verify: Verify,
) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let verifier = verifier(roots, verify, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| TlsError::Provider)?;
    // `dangerous` is only the library's word for choosing the verifier ourselves.
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// What decides about a server's certificate.
fn verifier(
    roots: &[CertificateDer<'static>],
    verify: Verify,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    Ok(match verify {
        Verify::Nothing => Arc::new(AnyCertificate { provider: Arc::clone(provider) }),
        Verify::Chain => Arc::new(AnyName { strict: chain_verifier(roots, provider)? }),
        Verify::ChainAndName => chain_verifier(roots, provider)?,
    })
}

/// The library's own check of chain and name. Certificates in a bundle that it cannot read are left out,
/// as system bundles carry old ones.
fn chain_verifier(
    roots: &[CertificateDer<'static>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let mut store = RootCertStore::empty();
    let (usable, _unusable) = store.add_parsable_certificates(roots.iter().cloned());
    if usable == 0 {
        return Err(TlsError::Unusable);
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
        .build()
        .map_err(|_| TlsError::Unusable)
}

/// Checks the chain but not the name.
#[derive(Debug)]
struct AnyName {
    /// Checks both, the chain first, so a complaint about the name means that the chain is sound.
    strict: Arc<WebPkiServerVerifier>,
}

/// Whether the only fault found is that the certificate was issued to another name.
fn is_other_name(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        )
    )
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.strict.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(error) if is_other_name(&error) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.strict.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.strict.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.strict.supported_verify_schemes()
    }
}

/// Believes any certificate; still verifies that the peer holds its key.
#[derive(Debug)]
struct AnyCertificate {
    /// Verifies the signatures.
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CA made for this test; its key was thrown away.
    const CA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBfDCCASGgAwIBAgIUEbdHFD6ap6LaH1eM7iGjmDvCwEUwCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHdGVzdCBDQTAgFw0yNjExMjMwODU4MjNaGA8yMTI2MTAzMDA4
NTgyM1owEjEQMA4GA1UEAwwHdGVzdCBDQTBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABMERHL8mzVmngWY0/jofFO9HV9g+aHoxvAofTCqoD5L9BZ0pDLO2Fm0tb0SF
/b5cEva5B4C1P/ZONgqELIXoTHWjUzBRMB0GA1UdDgQWBBSgCjuetZ6nY2uZSKZ2
PzHJ+wuqvjAfBgNVHSMEGDAWgBSgCjuetZ6nY2uZSKZ2PzHJ+wuqvjAPBgNVHRMB
Af8EBTADAQH/MAoGCCqGSM49BAMCA0kAMEYCIQCObqRzhCQqab24FPxKWMTgVPWf
M0Pv/ZsEa0NNJZhz3QIhAKVhnvGB5k6ZhfIaizmT2zDNglw82PZX2b305K7dm479
-----END CERTIFICATE-----
";

    /// Another one, which signed nothing.
    const OTHER_CA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBfTCCASOgAwIBAgIUH2mVTELB9/zTuQhxz+5TJKGoUIowCgYIKoZIzj0EAwIw
EzERMA8GA1UEAwwIb3RoZXIgQ0EwIBcNMjYxMTIzMDg1ODIzWhgPMjEyNjEwMzAw
ODU4MjNaMBMxETAPBgNVBAMMCG90aGVyIENBMFkwEwYHKoZIzj0CAQYIKoZIzj0D
AQcDQgAEEq2tIgAD4MiCDg+Hw1HF0xIH4p5ighe+jYCECT6Wvd9zbTPHM++BaXKM
vuEWQ/tpo6XKEq2sLgSxqZR39/gex6NTMFEwHQYDVR0OBBYEFCoVNvhWTVlU+QEn
WlFpe8ORSrBuMB8GA1UdIwQYMBaAFCoVNvhWTVlU+QEnWlFpe8ORSrBuMA8GA1Ud
EwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIhANKFv1Drn9oVrUux9J3zmebt
BgIW/aPpbxzDjuoamfs2AiAb9/iElXgu7Fid56n38dKjOJ3nHOabvEQkBsEvASF3
aA==
-----END CERTIFICATE-----
";

    /// A server certificate for `db.test`, signed by `CA`.
    const SERVER: &str = "\
-----BEGIN CERTIFICATE-----
MIIBnTCCAUSgAwIBAgIUJsn6OJ7Lbcc4CUk2SqHJSt9ClV4wCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHdGVzdCBDQTAgFw0yNjExMjMwODU4MjNaGA8yMTI2MTAzMDA4
NTgyM1owEjEQMA4GA1UEAwwHZGIudGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABOojC5/MSH4otWjZkJi9NEo6GE5DNexTe9SmC8KIDOJn3G2wzgIT0fKF924y
V1EqNU85HZyUsV+RcTcuknG+2mijdjB0MBIGA1UdEQQLMAmCB2RiLnRlc3QwCQYD
VR0TBAIwADATBgNVHSUEDDAKBggrBgEFBQcDATAdBgNVHQ4EFgQUsaVm3l6KgxP2
om8n/aA5/uRm2SUwHwYDVR0jBBgwFoAUoAo7nrWep2NrmUimdj8xyfsLqr4wCgYI
KoZIzj0EAwIDRwAwRAIgdWCUfZFsegNWb8Ugbf0DQ9ruH9OWjnsIkhVPVYMXZ1kC
IFneQiauPPkd5hvarLobEPku5SSZXH69EDyMDYrpi0yq
-----END CERTIFICATE-----
";

    /// A moment at which all three are valid.
    const VALID_S: u64 = 1_893_456_000;

    fn certificate(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn a_server_is_checked_as_far_as_asked() {
        use Verify::{Chain, ChainAndName, Nothing};
        let cases = [
            (Nothing, CA, "db.test", true),
            (Nothing, OTHER_CA, "elsewhere.test", true),
            (Chain, CA, "db.test", true),
            (Chain, CA, "elsewhere.test", true),
            (Chain, CA, "127.0.0.1", true),
            (Chain, OTHER_CA, "db.test", false),
            (ChainAndName, CA, "db.test", true),
            (ChainAndName, CA, "elsewhere.test", false),
            (ChainAndName, CA, "127.0.0.1", false),
            (ChainAndName, OTHER_CA, "db.test", false),
        ];
        for (verify, ca, name, accepted) in cases {
            let verifier = verifier(&[certificate(ca)], verify, &provider()).unwrap();
            for (at_s, valid) in [(VALID_S, true), (0, false)] {
                let verdict = verifier.verify_server_cert(
                    &certificate(SERVER),
                    &[],
                    &ServerName::try_from(name).unwrap(),
                    &[],
                    UnixTime::since_unix_epoch(std::time::Duration::from_secs(at_s)),
                );
                let expected = accepted && (valid || verify == Nothing);
                assert_eq!(verdict.is_ok(), expected, "{verify:?} {name} at {at_s}: {verdict:?}");
            }
            assert!(!verifier.supported_verify_schemes().is_empty());
        }
    }

    #[test]
    fn trusting_nobody_is_an_error_unless_nothing_is_verified() {
        let junk = CertificateDer::from(vec![1, 2, 3]);
        assert!(client_config(&[], Verify::Nothing).is_ok());
        for verify in [Verify::Chain, Verify::ChainAndName] {
            assert!(matches!(client_config(&[], verify), Err(TlsError::Unusable)));
            assert!(matches!(client_config(std::slice::from_ref(&junk), verify), Err(TlsError::Unusable)));
            assert!(client_config(&[junk.clone(), certificate(CA)], verify).is_ok());
        }
    }

    #[test]
    fn bundles_are_read_whole_or_not_at_all() {
        let directory = std::env::temp_dir().join(format!("tls-room-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let cases: [(&str, String, Result<usize, &str>); 4] = [
            ("two", format!("# comment\n{CA}\n{OTHER_CA}"), Ok(2)),
            ("empty", "nothing here\n".into(), Err("no CA certificates found in ")),
            ("broken", format!("{CA}-----BEGIN CERTIFICATE-----\nAAAA\n"), Err("holds a broken PEM block")),
            ("binary", "\u{0}\u{1}".into(), Err("no CA certificates found in ")),
        ];
        for (name, text, expected) in cases {
            let path = directory.join(name);
            std::fs::write(&path, text).unwrap();
            for found in [roots_from_file(&path), system_roots(Some(&path))] {
                match (&found, expected) {
                    (Ok(roots), Ok(count)) => assert_eq!(roots.len(), count),
                    (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                    _ => panic!("{name}: {found:?}"),
                }
            }
        }
        let missing = roots_from_file(&directory.join("missing")).unwrap_err().to_string();
        assert!(missing.starts_with("cannot read ") && missing.contains("missing"), "{missing}");
        std::fs::remove_dir_all(&directory).unwrap();
    }
    #[test]
    fn failures_of_tls_are_told_apart() {
        let cases = [
            (
                io::Error::other(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
                Some("certificate not trusted"),
            ),
            (io::Error::other(Error::DecryptError), Some("TLS failed")),
            (io::Error::from(io::ErrorKind::ConnectionReset), None),
            (io::Error::other("else"), None),
        ];
        for (error, words) in cases {
            assert_eq!(describe_failure(&error), words);
        }
    }
}
