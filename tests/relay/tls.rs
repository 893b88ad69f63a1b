//! TLS towards the broker, with a certificate authority that lives as long as the test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate authority, and a server's certificate for 127.0.0.1, in a directory of their own.
pub(crate) struct Authority {
    /// Where the files are.
    directory: PathBuf,
}

impl Authority {
    /// Makes both with the `openssl` command.
    pub(crate) fn create(directory: &Path) -> Authority {
        std::fs::create_dir(directory).unwrap();
        let authority = Authority { directory: directory.to_owned() };
        let (ca, ca_key) = (authority.file("ca.pem"), authority.file("ca.key"));
        let new = [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ];
        let make = |subject: &str, names: [&PathBuf; 2], more: &[&str]| {
            let [key, certificate] = names;
            let status = Command::new("openssl")
                .args(new)
                .args(["-subj", subject, "-keyout"])
                .arg(key)
                .arg("-out")
                .arg(certificate)
                .args(more)
                .output()
                .expect("the command openssl");
            assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
        };
        make("/CN=relay test authority", [&ca_key, &ca], &[]);
        let (ca, ca_key) = (ca.to_str().unwrap().to_owned(), ca_key.to_str().unwrap().to_owned());
        let server = [
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ];
        make("/CN=127.0.0.1", [&authority.file("server.key"), &authority.file("server.pem")], &server);
        authority
    }

    /// What clients must trust.
    pub(crate) fn bundle(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// What a server needs.
    pub(crate) fn server(&self) -> Arc<rustls::ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(self.file("server.pem")).unwrap().collect();
        let key = PrivateKeyDer::from_pem_file(self.file("server.key")).unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        Arc::new(config.unwrap().with_no_client_auth().with_single_cert(chain.unwrap(), key).unwrap())
    }

    /// A file of it.
    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.directory)); // a test that fails has said so already
    }
}
