//! Keys from services beside the process: the container's endpoint (ECS, EKS) and EC2's instance metadata.
//!
//! Invariants
//! - Tokens and keys go over plain HTTP only to the hosts that AWS names and to this machine.
//! - Requests are short, follow no redirect and pass through no proxy.
//! - Instance metadata is asked in its second version only (IMDSv2).
//!
//! Sources: AWS SDKs and Tools Reference Guide, "Container credential provider" and "IMDS credential
//! provider"; EC2 User Guide, "Use the Instance Metadata Service".

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::AsSendBody;
use ureq::http::{Request, request};
use url::{Host, Url};

use super::super::send::describe_transport;
use super::super::{Caller, SettingsError, endpoints, sigv4};
use super::{Credentials, KeySources, Secret, read_file};

/// Where ECS gives credentials.
const ECS_ENDPOINT: &str = "http://169.254.170.2";
/// Hosts to which a container's request may go without TLS, beside loopback addresses.
const CONTAINER_HOSTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];
/// The same for requests to the metadata.
const METADATA_HOSTS: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];
/// How long the container's endpoint may take.
const CONTAINER_LIMIT: Duration = Duration::from_secs(2);
/// How long each request to the metadata may take: where there are none, nobody answers.
const METADATA_LIMIT: Duration = Duration::from_secs(1);
/// How long a token for the metadata is good. A new one is fetched for each look.
const METADATA_TOKEN_TTL_S: &str = "300";
/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// The container's endpoint that was set. The path at the usual host is stronger than a URL.
pub(super) fn choose_container(sources: &KeySources) -> Result<Option<Url>, SettingsError> {
    let (variable, text) = match (&sources.container_relative_uri, &sources.container_full_uri) {
        (Some(path), _) => {
            let path = path.trim_start_matches('/');
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", format!("{ECS_ENDPOINT}/{path}"))
        }
        (None, Some(url)) => ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.clone()),
        (None, None) => return Ok(None),
    };
    let fault = |fault| SettingsError::Url { variable, fault };
    let url = Url::parse(&text).map_err(|_| fault("not a URL"))?;
    if url.scheme() == "https" || (url.scheme() == "http" && is_near(&url, &CONTAINER_HOSTS)) {
        return Ok(Some(url));
    }
    Err(fault("must be https, or http to this machine or to the container's own service"))
}

/// Asks the container's endpoint for the key. A token in a file may have changed.
pub(super) fn ask_container(
    url: &Url,
    sources: &KeySources,
    caller: &Caller<'_>,
    deadline: Instant,
) -> Result<Credentials, String> {
    let token = match &sources.container_token_file {
        Some(file) => Some(Secret::new(read_file(file)?.trim_end())),
        None => sources.container_token.clone(),
    };
    let mut request = Request::get(url.as_str()).header("accept", "application/json");
    if let Some(token) = token {
        request = request.header("authorization", token.expose());
    }
    let what = "container credentials";
    read_document(what, &fetch(what, caller, request, (), CONTAINER_LIMIT, deadline)?)
}

/// The metadata's endpoint, without a slash at its end.
pub(super) fn check_metadata(text: &str) -> Result<String, SettingsError> {
    let variable = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
    let base = endpoints::custom(variable, text, "")?.base;
    match Url::parse(&base) {
        Ok(url) if url.scheme() == "https" || is_near(&url, &METADATA_HOSTS) => Ok(base),
        _ => {
            let fault = "must be https, or http to this machine or to the metadata's own address";
            Err(SettingsError::Url { variable, fault })
        }
    }
}

/// Whether a URL leads to this machine or to one of these addresses.
fn is_near(url: &Url, hosts: &[&str]) -> bool {
    let address = match url.host() {
        Some(Host::Domain(name)) => return name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address),
        None => return false,
    };
    address.is_loopback() || hosts.contains(&address.to_string().as_str())
}

/// Asks the machine's metadata for the key of its role.
pub(super) fn ask_metadata(
    base: &str,
    caller: &Caller<'_>,
    deadline: Instant,
) -> Result<Credentials, String> {
    let what = "instance metadata";
    let request = Request::put(format!("{base}/latest/api/token"))
        .header("x-aws-ec2-metadata-token-ttl-seconds", METADATA_TOKEN_TTL_S);
    let token = fetch(what, caller, request, [].as_slice(), METADATA_LIMIT, deadline)?;
    let get = |path: &str| {
        let url = format!("{base}/latest/meta-data/iam/security-credentials/{path}");
        let request = Request::get(url).header("x-aws-ec2-metadata-token", token.trim());
        fetch(what, caller, request, (), METADATA_LIMIT, deadline)
    };
    let roles = get("")?;
    let role = roles.lines().next().filter(|it| !it.is_empty()).ok_or(format!("{what}: no role"))?;
    read_document(what, &get(&sigv4::encode(role))?)
}

/// Sends a request and returns the text of a good answer.
fn fetch(
    what: &'static str,
    caller: &Caller<'_>,
    request: request::Builder,
    body: impl AsSendBody,
    limit: Duration,
    deadline: Instant,
) -> Result<String, String> {
    let words = |error: ureq::Error| describe_transport(what, &error).to_string();
    let request = request.body(body).map_err(|error| words(error.into()))?;
    let limit = deadline.saturating_duration_since(Instant::now()).min(limit);
    let agent = &caller.aws.agent;
    let request = agent.configure_request(request).timeout_global(Some(limit)).build();
    let response = agent.run(request).map_err(words)?;
    let status = response.status().as_u16();
    if status != 200 {
        return Err(format!("{what}: answered {status}"));
    }
    response.into_body().into_with_config().limit(ANSWER_BYTES_MAX).read_to_string().map_err(words)
}

/// Reads the document that both services write.
fn read_document(what: &str, text: &str) -> Result<Credentials, String> {
    let document: Value = serde_json::from_str(text).unwrap_or_default();
    let field = |name: &str| document.get(name)?.as_str().filter(|it| !it.is_empty()).map(str::to_owned);
    let good = field("Code").is_none_or(|code| code == "Success");
    let key = Credentials::read(field, "Token").filter(|_| good);
    key.ok_or_else(|| format!("{what}: the answer holds no key"))
}
