//! AWS: the settings, one HTTP agent for S3, IAM and STS, and the [`Caller`] whose methods are the operations.
//!
//! Not here: what the calls are for (`steps`), which task is tried again (`worker`), where settings come
//! from (`config`), and the one door out (`send`).
//!
//! Invariants
//! - Nothing can be called without a [`Permit`], and only what gets a key without one.
//! - The agent follows no redirect, since a signature is good for one host (`cure` signs for the new one), and
//!   uses no proxy.
//! - Only the certificates in the settings are trusted.
//!
//! Sources: ureq 3, `Config`; what each setting is for stands beside it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::config::KeySources;
use crate::tls::{self, CertificateDer};

mod call;
mod credentials;
mod cure;
mod endpoints;
mod error;
mod iam;
mod policy;
mod query;
mod retry;
mod s3;
mod s3_configuration;
mod s3_objects;
mod send;
mod sigv4;
mod sts;
#[cfg(test)]
mod stub;
mod xml;

pub(crate) use credentials::Credentials;
pub(crate) use endpoints::SettingsError;
pub(crate) use error::AwsError;
pub(crate) use iam::AccessKey;
pub(crate) use policy::{KmsKey, tag_value, tenant_policy, tls_only_bucket_policy};
pub(crate) use s3::BucketCreation;
pub(crate) use s3_objects::{AbortedUpload, ObjectError};
use sts::CallerIdentity;

use credentials::Keyring;
use cure::{Clock, Regions};
use endpoints::{Chosen, Endpoints};

/// How long connecting and the TLS handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How we introduce ourselves.
const USER_AGENT: &str = concat!("servicebroker/", env!("CARGO_PKG_VERSION"));

/// What `config` knows about AWS.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The region of all buckets.
    pub(crate) region: String,
    /// The endpoint of every service that has none of its own.
    pub(crate) endpoint_url: Option<String>,
    /// The endpoint of S3.
    pub(crate) endpoint_url_s3: Option<String>,
    /// The endpoint of IAM.
    pub(crate) endpoint_url_iam: Option<String>,
    /// The endpoint of STS.
    pub(crate) endpoint_url_sts: Option<String>,
    /// Whom to trust; may be empty when every endpoint is plain http.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// How long one call may take with all its retries.
    pub(crate) call_deadline: Duration,
    /// Idle connections kept for each host; as many as there are workers.
    pub(crate) max_idle_per_host: usize,
    /// Where the broker's own key may come from.
    pub(crate) key_sources: KeySources,
}

/// The way to AWS, shared by all threads.
pub(crate) struct Aws {
    /// Holds the connections.
    agent: ureq::Agent,
    /// The region of all buckets.
    region: String,
    /// Where the services are.
    endpoints: Endpoints,
    /// How long one call may take with all its retries.
    call_deadline: Duration,
    /// The broker's own key.
    keyring: Keyring,
    /// Whose key was asked for last: its id, and the answer.
    identity: Mutex<Option<(String, CallerIdentity)>>,
    /// What is known of AWS' clock.
    clock: Clock,
    /// What is known of buckets in other regions.
    regions: Regions,
    /// Told of every call, if there is one.
    observer: Option<Arc<dyn Observer>>,
}

impl Aws {
    /// Checks the settings. Nothing is connected yet.
    pub(crate) fn new(settings: Settings) -> Result<Aws, SettingsError> {
        let chosen = Chosen {
            all: settings.endpoint_url.as_deref(),
            s3: settings.endpoint_url_s3.as_deref(),
            iam: settings.endpoint_url_iam.as_deref(),
            sts: settings.endpoint_url_sts.as_deref(),
        };
        let endpoints = Endpoints::choose(&settings.region, chosen)?;
        if endpoints.need_roots() && settings.roots.is_empty() {
            return Err(SettingsError::NoRoots);
        }
        let agent = build_agent(&settings);
        let Settings { region, call_deadline, key_sources, .. } = settings;
        let keyring = Keyring::new(key_sources)?;
        let (identity, clock, regions) = (Mutex::default(), Clock::default(), Regions::default());
        Ok(Aws { agent, region, endpoints, call_deadline, keyring, identity, clock, regions, observer: None })
    }

    /// The same, with somebody who is told of every call.
    pub(crate) fn observed_by(self, observer: Arc<dyn Observer>) -> Aws {
        Aws { observer: Some(observer), ..self }
    }

    /// The region of all buckets.
    pub(crate) fn region(&self) -> &str {
        &self.region
    }

    /// The partition: the second field of every ARN.
    pub(crate) fn partition(&self) -> &'static str {
        self.endpoints.partition
    }

    /// The time, by AWS' clock as far as we know it.
    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now().into()
    }

    /// Whether tenants reach S3 without TLS.
    pub(crate) fn s3_is_plain_http(&self) -> bool {
        self.endpoints.s3.is_plain_http()
    }

    /// The endpoint of S3, if it is not AWS' own.
    pub(crate) fn s3_endpoint(&self) -> Option<&str> {
        Some(&self.endpoints.s3).filter(|it| it.custom).map(|it| it.base.as_str())
    }

    /// Calls that the broker signs, as long as the permit is given.
    pub(crate) fn caller<'a>(&'a self, permit: &'a dyn Permit) -> Caller<'a> {
        Caller { aws: self, signer: Signer::Broker, permit, owner: None }
    }

    /// Calls signed with a tenant's key.
    pub(crate) fn tenant_caller<'a>(&'a self, key: &'a Credentials, permit: &'a dyn Permit) -> Caller<'a> {
        Caller { signer: Signer::Tenant(key), ..self.caller(permit) }
    }
}

/// The agent: no proxy, no redirects, statuses are answers, only the given certificates are trusted.
fn build_agent(settings: &Settings) -> ureq::Agent {
    let roots: Vec<Certificate<'static>> =
        settings.roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(tls::provider())
        .root_certs(RootCerts::new_with_certs(&roots))
        .build();
    let total_idle = settings.max_idle_per_host.saturating_mul(4); // S3 has a host per bucket
    ureq::Agent::config_builder()
        .tls_config(tls)
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false)
        .user_agent(USER_AGENT)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .max_idle_connections(total_idle)
        .max_idle_connections_per_host(settings.max_idle_per_host)
        .build()
        .new_agent()
}

/// Asked before every attempt of every call.
pub(crate) trait Permit: Sync {
    /// Whether the call may be sent. `false` where a lease is lost, the task cancelled, the process ending.
    fn may_call(&self, operation: &'static str) -> bool;
}

/// Told how calls went, to count them. Service and operation are as AWS writes them.
pub(crate) trait Observer: Send + Sync {
    /// An attempt of a call has ended. The code is `OK`, AWS' own, or a word for what came in place of an answer.
    fn attempted(&self, service: &'static str, operation: &'static str, code: &str, took: Duration);

    /// Another attempt of the call begins.
    fn repeated(&self, service: &'static str, operation: &'static str);
}

/// Whose key signs.
#[derive(Clone, Copy)]
enum Signer<'a> {
    /// The broker's own, whichever it has at the time.
    Broker,
    /// A tenant's, this one and no other.
    Tenant(&'a Credentials),
    /// None: the call proves itself otherwise.
    Nobody,
}

/// Makes calls with one key, as long as one permit is given.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a> {
    /// The way to AWS.
    aws: &'a Aws,
    /// Signs the calls.
    signer: Signer<'a>,
    /// Allows the calls.
    permit: &'a dyn Permit,
    /// The account that buckets are expected to belong to.
    owner: Option<&'a str>,
}

impl<'a> Caller<'a> {
    /// The same caller, whose calls about what is in a bucket, and DeleteBucket, are refused by AWS when the
    /// bucket belongs to another account.
    pub(crate) fn expecting_owner(self, account: Option<&'a str>) -> Caller<'a> {
        Caller { owner: account, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(region: &str, s3: Option<&str>) -> Settings {
        Settings {
            region: region.into(),
            endpoint_url: None,
            endpoint_url_s3: s3.map(str::to_owned),
            endpoint_url_iam: None,
            endpoint_url_sts: None,
            roots: vec![CertificateDer::from(vec![0])],
            call_deadline: Duration::from_secs(15),
            max_idle_per_host: 8,
            key_sources: KeySources::default(),
        }
    }

    #[test]
    fn tenants_are_told_where_their_bucket_is() {
        let cases = [
            ("eu-central-1", None, "b-1", "b-1.s3.eu-central-1.amazonaws.com"),
            ("cn-north-1", None, "b-1", "b-1.s3.cn-north-1.amazonaws.com.cn"),
            ("us-east-1", None, "b.1", "s3.us-east-1.amazonaws.com/b.1"),
            ("us-east-1", Some("http://localhost:9000/"), "b-1", "localhost:9000/b-1"),
            ("us-east-1", Some("https://store.test/s3"), "b-1", "store.test/s3/b-1"),
        ];
        for (region, s3, bucket, location) in cases {
            let aws = Aws::new(settings(region, s3)).unwrap();
            assert_eq!(aws.bucket_location(bucket, region), location);
            assert_eq!(aws.s3_endpoint(), s3.map(|url| url.trim_end_matches('/')));
            assert_eq!(aws.s3_is_plain_http(), s3.is_some_and(|url| url.starts_with("http:")));
            assert_eq!(aws.region(), region);
        }
    }

    #[test]
    fn https_without_anybody_to_trust_is_refused() {
        let without = |endpoint_url: Option<&str>| Settings {
            roots: Vec::new(),
            endpoint_url: endpoint_url.map(str::to_owned),
            ..settings("us-east-1", None)
        };
        assert_eq!(Aws::new(without(None)).err(), Some(SettingsError::NoRoots));
        assert_eq!(Aws::new(without(Some("http://127.0.0.1:1"))).err(), None);
        let err = Aws::new(without(Some("nonsense"))).err().unwrap();
        assert_eq!((err.variable(), err.to_string().as_str()), ("AWS_ENDPOINT_URL", "not a URL"));
    }
}
