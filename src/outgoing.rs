//! The outgoing calls that are not AWS': webhooks.
//!
//! Not here: what a webhook is told and when (`worker`, `store`).
//!
//! Invariants
//! - A call goes only to a host that the operator has named, and to no other one that it points to.
//! - The URL that is sent to is the one that was checked, as the same reader wrote it.
//! - URLs and secrets never reach a log or an error: receivers put keys into paths.
//!
//! Sources: WHATWG URL; RFC 2104 (HMAC); ureq 3, `Error` and `Timeouts`.

use std::fmt;
use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use url::{Host, Url};

use crate::config::{Secret, WebhookHost};
use crate::tls::{self, CertificateDer};

/// Longest URL of a webhook, in bytes.
const URL_BYTES_MAX: usize = 2_048;
/// How much of an answer is read, in bytes. It is thrown away.
const ANSWER_BYTES_MAX: u64 = 4_096;
/// Longest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1_024;
/// What receivers see of us.
const USER_AGENT: &str = concat!("servicebroker/", env!("CARGO_PKG_VERSION"));

/// Why a URL is not called.
pub(crate) const OFF: &str = "webhooks are off: WEBHOOK_HOSTS names the hosts that they may go to";
/// Why a URL is not called.
const FOREIGN: &str = "the webhook's host and port are not in WEBHOOK_HOSTS";
/// Why a URL is not called.
const UNFIT: &str =
    "webhook must be an http or https URL without user, password and fragment, 2048 bytes at most";

/// The URL as it will be called, if it may be.
///
/// # Errors
/// Why not, fit for the platform to read.
pub(crate) fn check_url(text: &str, hosts: &[WebhookHost]) -> Result<Secret, &'static str> {
    if hosts.is_empty() {
        return Err(OFF);
    }
    let is_clean = text.len() <= URL_BYTES_MAX && !text.contains(|it: char| it.is_control() || it == ' ');
    let url = Url::parse(text).ok().filter(|_| is_clean).ok_or(UNFIT)?;
    let usual_port = match url.scheme() {
        "https" => 443,
        "http" => 80,
        _ => return Err(UNFIT),
    };
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(UNFIT);
    }
    let name = match url.host() {
        Some(Host::Domain(name)) => name.to_owned(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(_)) | None => return Err(FOREIGN),
    };
    let port = url.port().unwrap_or(usual_port);
    let is_listed = hosts.iter().any(|it| it.name == name && it.port.unwrap_or(usual_port) == port);
    if is_listed { Ok(Secret::new(url)) } else { Err(FOREIGN) }
}

/// Why a receiver was not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undelivered {
    /// It answered with this status; a redirect is one too.
    Answered(u16),
    /// It did not answer, or could not be asked.
    NoAnswer(&'static str),
}

impl fmt::Display for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Undelivered::Answered(status) => write!(f, "the webhook's receiver answered {status}"),
            Undelivered::NoAnswer(cause) => write!(f, "the webhook's receiver gave no answer: {cause}"),
        }
    }
}

/// Sends webhooks.
pub(crate) struct Outgoing {
    /// Opens a connection for each call.
    agent: ureq::Agent,
}

impl Outgoing {
    /// Trusts these certificates, which may be none where every URL is plain http.
    pub(crate) fn new(roots: &[CertificateDer<'static>]) -> Outgoing {
        let roots: Vec<Certificate<'static>> =
            roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(tls::provider())
            .root_certs(RootCerts::new_with_certs(&roots))
            .build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(USER_AGENT)
            .max_response_header_size(HEAD_BYTES_MAX)
            .max_idle_connections(0)
            .build()
            .new_agent();
        Outgoing { agent }
    }

    /// Posts `body` and what proves that it is ours. All of it ends within `limit`.
    ///
    /// # Errors
    /// Anything but a 2xx. The receiver may have been told all the same.
    pub(crate) fn post(
        &self,
        url: &Secret,
        secret: &Secret,
        body: &[u8],
        limit: Duration,
    ) -> Result<(), Undelivered> {
        let request = self
            .agent
            .post(url.expose())
            .header("content-type", "application/json")
            .header("x-osb-signature", sign(secret, body))
            .config()
            .timeout_global(Some(limit))
            .build();
        let response = request.send(body).map_err(|err| Undelivered::NoAnswer(describe(&err)))?;
        let status = response.status().as_u16();
        // a receiver that still writes would take a closed connection for a failure
        drop(response.into_body().into_with_config().limit(ANSWER_BYTES_MAX).read_to_vec());
        if (200..300).contains(&status) { Ok(()) } else { Err(Undelivered::Answered(status)) }
    }
}

/// The value of `x-osb-signature`: HMAC-SHA256 of the body, in base64.
fn sign(secret: &Secret, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
    STANDARD.encode(hmac::sign(&key, body))
}

/// A failure in fixed words. The library's own text may hold the URL.
fn describe(error: &ureq::Error) -> &'static str {
    if let ureq::Error::Io(error) = error {
        let words = [
            (io::ErrorKind::ConnectionRefused, "connection refused"),
            (io::ErrorKind::TimedOut, "timed out"),
        ];
        let found = words.iter().find(|(kind, _)| *kind == error.kind()).map(|(_, words)| *words);
        return found.or_else(|| tls::describe_failure(error)).unwrap_or("connection failed");
    }
    if matches!(error, ureq::Error::Timeout(_)) {
        "timed out"
    } else if matches!(error, ureq::Error::HostNotFound) {
        "host not found"
    } else if matches!(error, ureq::Error::Tls(_) | ureq::Error::Rustls(_)) {
        "TLS failed"
    } else if matches!(error, ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..)) {
        "not an HTTP answer"
    } else {
        "connection failed"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent to, for these hosts.
    fn checked(url: &str) -> Result<String, &'static str> {
        let host = |name: &str, port| WebhookHost { name: name.to_owned(), port };
        let hosts = [host("hooks.example.com", None), host("a.example", Some(8443)), host("10.0.0.1", None)];
        check_url(url, &hosts).map(|it| it.expose().to_owned())
    }

    #[test]
    fn only_hosts_that_were_named_are_called() {
        for (url, sent) in [
            ("https://hooks.example.com/x?y=1", "https://hooks.example.com/x?y=1"),
            ("http://hooks.example.com", "http://hooks.example.com/"),
            ("HTTPS://HOOKS.example.com:443/", "https://hooks.example.com/"),
            ("https://a.example:8443/", "https://a.example:8443/"),
            ("http://a.example:8443/", "http://a.example:8443/"),
            ("http://10.0.0.1/", "http://10.0.0.1/"),
            ("http://0xa000001/", "http://10.0.0.1/"),
            ("https://hooks.example.com\\@evil.example/", "https://hooks.example.com/@evil.example/"),
        ] {
            assert_eq!(checked(url).as_deref(), Ok(sent), "{url}");
        }
        for (url, why) in [
            ("https://evil.example/", FOREIGN),
            ("https://hooks.example.com.evil.example/", FOREIGN),
            ("https://x.hooks.example.com/", FOREIGN),
            ("https://hooks.example.com./", FOREIGN),
            ("https://hooks.example.com:8443/", FOREIGN),
            ("http://hooks.example.com:443/", FOREIGN),
            ("https://a.example/", FOREIGN),
            ("http://[::ffff:10.0.0.1]/", FOREIGN),
            ("http://169.254.169.254/", FOREIGN),
            ("https://evil.example\\@hooks.example.com/", FOREIGN),
            ("https://u@hooks.example.com/", UNFIT),
            ("https://:p@hooks.example.com/", UNFIT),
            ("https://hooks.example.com/#x", UNFIT),
            ("ftp://hooks.example.com/", UNFIT),
            ("file:///etc/passwd", UNFIT),
            ("hooks.example.com", UNFIT),
            ("/x", UNFIT),
            ("https://", UNFIT),
            ("https://hooks.example.com/a b", UNFIT),
            ("https://hooks.example.com/a\tb", UNFIT),
            ("https://hooks.example.com/a\r\nX: y", UNFIT),
            (&format!("https://hooks.example.com/{}", "x".repeat(2_100)), UNFIT),
        ] {
            assert_eq!(checked(url), Err(why), "{url}");
        }
        assert_eq!(check_url("https://hooks.example.com/", &[]), Err(OFF));
    }

    /// RFC 4231, section 4.3: key "Jefe".
    #[test]
    fn signatures_are_those_of_the_standard() {
        let digest = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let bytes: Vec<u8> = (0..digest.len())
            .step_by(2)
            .map(|it| u8::from_str_radix(&digest[it..it + 2], 16).unwrap())
            .collect();
        let signed = sign(&Secret::new("Jefe"), b"what do ya want for nothing?");
        assert_eq!(signed, STANDARD.encode(bytes));
    }

    #[test]
    fn failures_name_no_url() {
        let url = Secret::new("http://127.0.0.1:1/planted");
        let failed = Outgoing::new(&[]).post(&url, &Secret::new("planted"), b"{}", Duration::from_secs(2));
        let error = failed.unwrap_err();
        assert_eq!(error, Undelivered::NoAnswer("connection refused"));
        assert!(!format!("{error} {error:?}").contains("planted"));
    }
}
