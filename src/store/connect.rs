//! How to reach PostgreSQL: the text of `DATABASE_URL`, TLS, limits of a connection.
//!
//! Not here: the pool (`store`), certificates and their checking (`tls`).
//!
//! `sslmode` means what it means to lib/pq, the driver of the old broker: left out it is
//! `require`, encrypted but unverified; `require` with `sslrootcert` verifies the chain.
//!
//! Sources: PostgreSQL manual, "Connection Strings", "SSL Support" and "Message Formats" (SSLRequest);
//! lib/pq documentation.

use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use postgres::config::Host;
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use postgres::{Client, Config, NoTls, Socket};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::config::Secret;
use crate::tls::{self, Verify};

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long sent bytes may stay unacknowledged before the connection counts as broken.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// When a silent connection is first asked whether it lives.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// How often it is asked again.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How often in vain before it counts as broken.
const KEEPALIVE_RETRIES: u32 = 3;

/// The message SSLRequest: its length and its code, each in four bytes.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// Where PostgreSQL listens if nothing else is said.
const DEFAULT_PORT: u16 = 5432;

/// Parameters that rust-postgres understands by itself.
const KNOWN_PARAMETERS: [&str; 15] = [
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
];
/// Parameters of libpq or lib/pq that mean nothing here.
const IGNORED_PARAMETERS: [&str; 4] =
    ["fallback_application_name", "binary_parameters", "disable_prepared_binary_result", "gssencmode"];

/// A database that can be connected to.
pub(crate) struct Target {
    /// Host, user, password and the rest, as rust-postgres holds them.
    config: Config,
    /// How to encrypt, if at all.
    connector: Option<Connector>,
    /// What is set on each new connection.
    session: String,
}

impl Target {
    /// Understands a database URL; the error is fit to be shown and holds no part of the URL.
    pub(crate) fn parse(
        url: &Secret,
        statement_timeout: Duration,
        ssl_cert_file: Option<&Path>,
    ) -> Result<Target, String> {
        let text = url.expose();
        if !["postgres://", "postgresql://"].iter().any(|it| text.starts_with(it)) {
            return Err("must begin with postgres:// or postgresql://".to_owned());
        }
        let (base, query) = text.split_once('?').unwrap_or((text, ""));
        let parameters = Parameters::parse(query)?;
        let mut config = Config::from_str(&format!("{base}?{}", parameters.kept.join("&")))
            .map_err(|_| "is not a URL like postgres://user:password@host:5432/name".to_owned())?;
        if config.get_hosts().is_empty() {
            return Err("names no host".to_owned());
        }
        if config.get_application_name().is_none() {
            config.application_name("servicebroker");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        config.tcp_user_timeout(TCP_USER_TIMEOUT);
        // A host that vanished is noticed by these alone; what the URL says of them comes first.
        let said = |name: &str| parameters.kept.iter().any(|it| it.starts_with(&format!("{name}=")));
        if !said("keepalives_idle") {
            config.keepalives_idle(KEEPALIVE_IDLE);
        }
        if !said("keepalives_interval") {
            config.keepalives_interval(KEEPALIVE_INTERVAL);
        }
        if !said("keepalives_retries") {
            config.keepalives_retries(KEEPALIVE_RETRIES);
        }
        config.ssl_mode(match parameters.encryption {
            Encryption::Off => postgres::config::SslMode::Disable,
            Encryption::Preferred => postgres::config::SslMode::Prefer,
            Encryption::Required(_) => postgres::config::SslMode::Require,
        });
        let timeout_ms = statement_timeout.as_millis();
        Ok(Target {
            connector: parameters.connector(ssl_cert_file)?,
            config,
            session: format!(
                "set statement_timeout = {timeout_ms}; set lock_timeout = {timeout_ms};
                 set idle_in_transaction_session_timeout = {}",
                timeout_ms.saturating_mul(4)
            ),
        })
    }

    /// Opens a connection.
    pub(crate) fn connect(&self) -> Result<Client, postgres::Error> {
        let mut client = match &self.connector {
            Some(connector) => self.config.connect(connector.clone())?,
            None => self.config.connect(NoTls)?,
        };
        client.batch_execute(&self.session)?;
        Ok(client)
    }

    /// Whether a server answers a knock within `limit`. Leaves nothing behind that hangs, as a
    /// connection of the client library does: that one waits for its server for ever.
    pub(super) fn answers(&self, limit: Duration) -> bool {
        let (hosts, addresses, ports) =
            (self.config.get_hosts(), self.config.get_hostaddrs(), self.config.get_ports());
        let doors: Vec<Option<(String, u16)>> = hosts
            .iter()
            .enumerate()
            .map(|(number, host)| {
                let port = ports.get(number).or(ports.first()).copied().unwrap_or(DEFAULT_PORT);
                match (host, addresses.get(number)) {
                    (_, Some(address)) => Some((address.to_string(), port)),
                    (Host::Tcp(name), None) => Some((name.clone(), port)),
                    (Host::Unix(_), None) => None, // on this machine: taken for awake
                }
            })
            .collect();
        let (answer, answered) = mpsc::channel();
        // A thread of its own, since looking up a name has no limit that we could set.
        let knocking = std::thread::Builder::new().name("knock".into()).spawn(move || {
            let awake = doors.iter().any(|it| it.as_ref().is_none_or(|door| knock(door, limit).is_ok()));
            if answer.send(awake).is_err() {
                log::debug!("the database answered a knock too late: awake={awake}");
            }
        });
        knocking.is_ok() && answered.recv_timeout(limit).unwrap_or(false)
    }
}

/// Asks for encryption: a server answers with one byte, whatever it thinks of it.
fn knock((host, port): &(String, u16), limit: Duration) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in (host.as_str(), *port).to_socket_addrs()? {
        let answered = TcpStream::connect_timeout(&address, limit).and_then(|mut socket| {
            socket.set_read_timeout(Some(limit))?;
            socket.write_all(&SSL_REQUEST)?;
            socket.read_exact(&mut [0])
        });
        match answered {
            Ok(()) => return Ok(()),
            Err(err) => last = err,
        }
    }
    Err(last)
}

/// What `sslmode` asks for.
#[derive(Debug, PartialEq, Eq)]
enum Encryption {
    /// Never.
    Off,
    /// Where the server offers it, unverified.
    Preferred,
    /// Always.
    Required(Verify),
}

/// The query part of a database URL, sorted by who understands it.
struct Parameters {
    /// What goes on to rust-postgres, still encoded.
    kept: Vec<String>,
    /// From `sslmode` and `sslrootcert`.
    encryption: Encryption,
    /// File of trusted certificates.
    root_file: Option<String>,
}

impl Parameters {
    /// Splits `a=b&c=d`. Unknown names are run-time parameters of the session, as in lib/pq.
    fn parse(query: &str) -> Result<Parameters, String> {
        let (mut kept, mut options, mut mode, mut root_file) = (Vec::new(), Vec::new(), None, None);
        for pair in query.split('&').filter(|it| !it.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or("has a parameter without a value")?;
            let decoded = percent_encoding::percent_decode_str(value)
                .decode_utf8()
                .map_err(|_| "has a parameter that is not UTF-8")?
                .into_owned();
            match name {
                "sslmode" => mode = Some(decoded),
                "sslrootcert" => root_file = Some(decoded),
                "sslcert" | "sslkey" => {
                    return Err("asks for a client certificate; use a password".to_owned());
                }
                _ if KNOWN_PARAMETERS.contains(&name) => kept.push(pair.to_owned()),
                _ if IGNORED_PARAMETERS.contains(&name) => {}
                _ => options.push(format!("-c%20{name}={}", value.replace("%20", "%5C%20"))),
            }
        }
        if !options.is_empty() {
            kept.push(format!("options={}", options.join("%20")));
        }
        let encryption = match (mode.as_deref(), &root_file) {
            (Some("disable"), _) => Encryption::Off,
            (Some("allow" | "prefer"), _) => Encryption::Preferred,
            (Some("require") | None, None) => Encryption::Required(Verify::Nothing),
            (Some("require") | None, Some(_)) | (Some("verify-ca"), _) => Encryption::Required(Verify::Chain),
            (Some("verify-full"), _) => Encryption::Required(Verify::ChainAndName),
            (Some(_), _) => {
                return Err(
                    "has an unknown sslmode; known are disable, prefer, require, verify-ca, verify-full"
                        .into(),
                );
            }
        };
        Ok(Parameters { kept, encryption, root_file })
    }

    /// The TLS side of a connection, `None` without encryption.
    fn connector(&self, ssl_cert_file: Option<&Path>) -> Result<Option<Connector>, String> {
        let verify = match self.encryption {
            Encryption::Off => return Ok(None),
            Encryption::Preferred => Verify::Nothing,
            Encryption::Required(verify) => verify,
        };
        let roots = match (verify, &self.root_file) {
            (Verify::Nothing, _) => Vec::new(),
            (Verify::Chain | Verify::ChainAndName, Some(file)) => {
                tls::roots_from_file(Path::new(file)).map_err(|err| format!("sslrootcert: {err}"))?
            }
            (Verify::Chain | Verify::ChainAndName, None) => tls::system_roots(ssl_cert_file)
                .map_err(|err| format!("sslmode verifies, but {err}; give sslrootcert"))?,
        };
        let config = tls::client_config(&roots, verify).map_err(|err| err.to_string())?;
        Ok(Some(Connector(Arc::new(config))))
    }
}

/// Makes rustls connections for rust-postgres.
#[derive(Clone)]
struct Connector(Arc<rustls::ClientConfig>);

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Encrypted;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Handshake> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| io::Error::other("the database's host name cannot be used with TLS"))?;
        Ok(Handshake { config: Arc::clone(&self.0), name })
    }
}

/// One TLS handshake that is about to happen.
struct Handshake {
    /// How to verify.
    config: Arc<rustls::ClientConfig>,
    /// Whom to expect.
    name: ServerName<'static>,
}

impl TlsConnect<Socket> for Handshake {
    type Stream = Encrypted;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            tokio_rustls::TlsConnector::from(self.config).connect(self.name, socket).await.map(Encrypted)
        })
    }
}

/// An encrypted connection. No channel binding: SCRAM works without.
struct Encrypted(tokio_rustls::client::TlsStream<Socket>);

impl postgres::tls::TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Target, String> {
        Target::parse(&Secret::new(url), Duration::from_secs(5), None)
    }

    #[test]
    fn sslmode_means_what_lib_pq_means() {
        for (query, expected) in [
            ("sslmode=disable", Encryption::Off),
            ("sslmode=prefer", Encryption::Preferred),
            ("", Encryption::Required(Verify::Nothing)),
            ("sslmode=require", Encryption::Required(Verify::Nothing)),
            ("sslmode=require&sslrootcert=/ca.pem", Encryption::Required(Verify::Chain)),
            ("sslmode=verify-ca", Encryption::Required(Verify::Chain)),
            ("sslmode=verify-full", Encryption::Required(Verify::ChainAndName)),
        ] {
            assert_eq!(Parameters::parse(query).map(|it| it.encryption), Ok(expected), "{query}");
        }
    }

    #[test]
    fn unknown_parameters_become_session_options() {
        let parameters = Parameters::parse("search_path=my%20app&sslmode=disable&connect_timeout=3").unwrap();
        assert_eq!(parameters.kept, ["connect_timeout=3", "options=-c%20search_path=my%5C%20app"]);
    }

    #[test]
    fn good_urls_parse() {
        for url in ["postgres://u:p%40@h:5432/d?sslmode=disable", "postgresql://u@h/d?sslmode=require"] {
            assert!(parse(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn bad_urls_are_refused_without_showing_them() {
        for url in [
            "mysql://u:hush@h/d",
            "host=h password=hush",
            "postgres://u:hush@h/d?sslmode=maybe",
            "postgres://u:hush@h:port/d?sslmode=disable",
            "postgres://u:hush@h/d?sslmode=verify-full&sslrootcert=/nowhere.pem",
            "postgres://u:hush@h/d?sslcert=/c.pem",
            "postgres:///d?sslmode=disable",
        ] {
            let complaint = parse(url).err().unwrap_or_else(|| panic!("{url} was accepted"));
            assert!(!complaint.contains("hush"), "{complaint}");
        }
    }

    #[test]
    fn only_a_server_that_answers_is_awake() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let limit = Duration::from_millis(200);
        let target = parse(&format!("postgres://u@{address}/d?sslmode=disable")).unwrap();
        assert!(!target.answers(limit), "it accepts and says nothing");
        let answering = std::thread::spawn(move || {
            let mut asked = [0; 8];
            for mut socket in listener.incoming().skip(1).take(1).map_while(Result::ok) {
                socket.read_exact(&mut asked).unwrap();
                socket.write_all(b"N").unwrap();
            }
            asked
        });
        assert!(target.answers(Duration::from_secs(10)));
        assert_eq!(answering.join().unwrap(), SSL_REQUEST);
        assert!(!target.answers(limit), "nobody listens");
    }
}
