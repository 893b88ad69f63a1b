//! Every setting of both processes, checked before the first socket opens.
//!
//! Not here: what the settings mean to the rooms that get them; the text of a
//! database URL or an AWS endpoint is understood by `store` and `aws`, and `main`
//! adds what they find wrong to the problems collected here.
//!
//! Invariants
//! - Nothing else reads arguments or environment; both come in as values.
//! - All problems are reported at once; none is replaced by a default.
//! - A [`Secret`] cannot be printed.
//!
//! Sources: the old binary's `-help` (flags of Go's `flag` package and of glog).

mod flags;
mod inherited;
mod key_sources;
mod listen;
mod reconcile;
mod variables;
mod webhooks;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

#[cfg(test)]
pub(crate) use key_sources::WebIdentity;
pub(crate) use key_sources::{KeySources, SharedFile};

use flags::Flags;
pub(crate) use reconcile::Errand;
use variables::Reader;
pub(crate) use webhooks::WebhookHost;

/// Text that must never be printed: a password, a secret key, a token.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub(crate) fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself; whoever calls this must not print it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// One thing wrong with the settings: which one, and what is expected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The variable or flag.
    pub(crate) setting: String,
    /// What is wrong with it, without its value (it may be a secret).
    pub(crate) complaint: String,
}

impl Problem {
    /// A problem of `setting`.
    pub(crate) fn new(setting: impl Into<String>, complaint: impl Into<String>) -> Problem {
        Problem { setting: setting.into(), complaint: complaint.into() }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.setting, self.complaint)
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Command {
    /// Serve, work, or both.
    Run(Box<Config>),
    /// Compare AWS with the database, with the settings of a worker.
    Reconcile(Box<Config>, Errand),
    /// Print the version.
    Version,
    /// Print how it, or a command of it, is used.
    Help(&'static str),
}

/// What a process runs with.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Where PostgreSQL is, with its password.
    pub(crate) database_url: Secret,
    /// Connections kept to PostgreSQL.
    pub(crate) database_connections: usize,
    /// How long one statement may run.
    pub(crate) statement_timeout: Duration,
    /// Where the system's trusted certificates are, if not in the usual places.
    pub(crate) ssl_cert_file: Option<String>,
    /// What the names of buckets and users begin with.
    pub(crate) name_prefix: String,
    /// Where metrics are served beside the api's own port, if anywhere.
    pub(crate) metrics_address: Option<SocketAddr>,
    /// Log verbosity: 0 info, 1 debug, 2 trace.
    pub(crate) verbosity: u8,
    /// Settings that have no effect, in words for the log.
    pub(crate) warnings: Vec<String>,
    /// Settings of the api, in a process that answers the platform.
    pub(crate) api: Option<ApiConfig>,
    /// Settings of the worker, in a process that works on AWS.
    pub(crate) worker: Option<WorkerConfig>,
}

/// Settings that only the api uses. None of them is an AWS credential.
#[derive(Debug, Clone)]
pub(crate) struct ApiConfig {
    /// Address to listen on.
    pub(crate) listen_address: IpAddr,
    /// Port to listen on; 0 takes a free one and says which.
    pub(crate) port: u16,
    /// Name and password pairs that are let in.
    pub(crate) basic: Vec<(String, Secret)>,
    /// Bearer tokens that are let in.
    pub(crate) tokens: Vec<Secret>,
    /// First part of a path that opens the actions of instances.
    pub(crate) actions_token: Option<Secret>,
    /// Opens the actions to everyone.
    pub(crate) open_actions: bool,
    /// How long a request may wait for its task.
    pub(crate) wait: Duration,
    /// Answers to the letter of the specification instead of as Akkeris needs them.
    pub(crate) strict_osb: bool,
    /// Connections served at once.
    pub(crate) connections_max: usize,
    /// Connections served at once for one client address.
    pub(crate) connections_per_address_max: usize,
    /// Largest request body, in bytes.
    pub(crate) body_bytes_max: usize,
    /// The hosts that webhooks may go to.
    pub(crate) webhook_hosts: Vec<WebhookHost>,
}

/// Settings that only the worker uses.
#[derive(Debug, Clone)]
pub(crate) struct WorkerConfig {
    /// Tasks worked on at once.
    pub(crate) threads: usize,
    /// How long a claim holds without a sign of life.
    pub(crate) lease: Duration,
    /// How long a provision may take from its request.
    pub(crate) provision_deadline: Duration,
    /// How long the access key before the present one works on.
    pub(crate) rotation_grace: Duration,
    /// AWS region of the buckets.
    pub(crate) region: String,
    /// AWS account id, where known.
    pub(crate) account_id: Option<String>,
    /// Where the broker's own key may come from.
    pub(crate) key_sources: KeySources,
    /// Endpoint for all AWS services instead of AWS' own.
    pub(crate) endpoint_url: Option<String>,
    /// Endpoint for S3.
    pub(crate) endpoint_url_s3: Option<String>,
    /// Endpoint for IAM.
    pub(crate) endpoint_url_iam: Option<String>,
    /// Endpoint for STS.
    pub(crate) endpoint_url_sts: Option<String>,
    /// PEM file that replaces the system's trusted certificates for AWS.
    pub(crate) ca_bundle: Option<String>,
    /// KMS key of encrypted plans: ARN, id or alias.
    pub(crate) kms_key_id: Option<String>,
    /// IAM path of the users.
    pub(crate) iam_path: Option<String>,
    /// Permissions boundary of the users: a policy's ARN.
    pub(crate) iam_permissions_boundary: Option<String>,
    /// The hosts that webhooks may go to.
    pub(crate) webhook_hosts: Vec<WebhookHost>,
    /// Whether a webhook that was not delivered is tried again.
    pub(crate) retry_webhooks: bool,
}

/// What `help` prints.
const USAGE: &str = "\
usage: servicebroker [flags]            answer the platform (api)
       servicebroker -background-tasks  work on AWS (worker)
       servicebroker -with-worker       both in one process
       servicebroker reconcile          report what AWS and the database do not share
       servicebroker version | help [reconcile]

flags, as -flag value, -flag=value or with two dashes:
  -database-url URL   PostgreSQL (or DATABASE_URL)
  -name-prefix TEXT   first part of bucket and user names (or NAME_PREFIX)
  -port N             port to listen on, 8443 (PORT is stronger)
  -insecure           plain HTTP, the default
  -strict-osb         the specification to the letter instead of Akkeris' habits
  -v N                log level: 0 info, 1 debug, 2 trace
  -logtostderr, -stderrthreshold, ... glog's flags are accepted; logs go to stderr
  -tls-cert-file, -tls-private-key-file, -tlsCert, -tlsKey, -kube-config
                      accepted in pairs, without effect in this version

All other settings are environment variables; README lists them.
";

/// Reads arguments (without the program's name) and variables.
///
/// The second value lists what is wrong; unless it is empty the configuration must not be used.
pub(crate) fn parse(
    program: &str,
    arguments: Vec<String>,
    variable: impl Fn(&'static str) -> Option<String>,
) -> (Command, Vec<Problem>) {
    let mut reader = Reader { variable: &variable, problems: Vec::new() };
    let mut flags = Flags::parse(arguments, &mut reader.problems);
    let subcommand = flags.subcommand.take();
    let of_reconcile = |word: Option<&str>| if word == Some("reconcile") { reconcile::USAGE } else { USAGE };
    match subcommand.as_deref() {
        Some("help") => return (Command::Help(of_reconcile(flags.first_word())), reader.problems),
        other if flags.help => return (Command::Help(of_reconcile(other)), reader.problems),
        Some("version") => return (Command::Version, reader.problems),
        Some("reconcile") | None => {}
        Some(_) => {
            // not repeated: it may be a database URL whose flag was forgotten
            let complaint = "holds a word that is no command; known are reconcile, version and help";
            reader.problems.push(Problem::new("command line", complaint));
        }
    }
    let errand = (subcommand.as_deref() == Some("reconcile")).then(|| reader.errand(&mut flags));
    if !flags.words.is_empty() {
        reader.problems.push(Problem::new("command line", "holds more than one word that is no flag"));
    }
    let background = flags.boolean("--background-tasks", &mut reader.problems).unwrap_or(false)
        || program.ends_with("start-background.sh");
    let both = flags.boolean("--with-worker", &mut reader.problems).unwrap_or(false);
    let hosts = reader.webhook_hosts();
    let mut warnings = reader.log_of_the_old_broker(&mut flags);
    if errand.is_none() {
        warnings.extend(reader.door_of_the_old_broker(&mut flags));
    }
    let api = errand.is_none().then(|| reader.api(&mut flags, hosts.clone()));
    let metrics_address = api.as_ref().and_then(|it| reader.metrics_address(it, both || !background));
    let config = Config {
        database_url: Secret::new(reader.flag_or_required(
            flags.value("--database-url"),
            "DATABASE_URL",
            DATABASE,
        )),
        database_connections: reader.number("DATABASE_CONNECTIONS", 8, 1, 64),
        statement_timeout: Duration::from_secs(reader.number("STATEMENT_TIMEOUT_SECONDS", 5, 1, 60)),
        ssl_cert_file: reader.optional("SSL_CERT_FILE"),
        name_prefix: reader.name_prefix(flags.value("--name-prefix")),
        metrics_address,
        verbosity: reader.verbosity(&mut flags),
        warnings,
        api: api.filter(|_| both || !background),
        worker: (both || background || errand.is_some()).then(|| reader.worker(hosts)),
    };
    flags.finish(&mut reader.problems);
    let config = Box::new(config);
    let command = match errand {
        Some(errand) => Command::Reconcile(config, errand),
        None => Command::Run(config),
    };
    (command, reader.problems)
}

/// What is said of a missing database URL.
const DATABASE: &str = "for example postgres://user:password@host:5432/name?sslmode=disable";

impl<V: Fn(&'static str) -> Option<String>> Reader<'_, V> {
    /// `NAME_PREFIX`: bucket and user names are made of it, so it must fit both.
    fn name_prefix(&mut self, flag: Option<String>) -> String {
        let prefix = self.flag_or_required(flag, "NAME_PREFIX", "a few characters, for example prod");
        if !prefix.is_empty()
            && let Err(complaint) = check_name_prefix(&prefix)
        {
            self.problems.push(Problem::new("NAME_PREFIX", complaint));
        }
        prefix
    }

    /// The settings of the api.
    fn api(&mut self, flags: &mut Flags, webhook_hosts: Vec<WebhookHost>) -> ApiConfig {
        if flags.boolean("--insecure", &mut self.problems) == Some(false) {
            let complaint = "this version serves plain HTTP only; put TLS in front of it";
            self.problems.push(Problem::new("--insecure", complaint));
        }
        let flag_port = flags.number("--port", &mut self.problems).unwrap_or(8443);
        let connections_max = self.number("MAX_CONNECTIONS", 512, 1, 65_536);
        ApiConfig {
            listen_address: self.listen_address(),
            port: self.number("PORT", flag_port, 0, u16::MAX),
            basic: [("BROKER_USERNAME", "BROKER_PASSWORD"), ("BROKER_USERNAME_2", "BROKER_PASSWORD_2")]
                .into_iter()
                .filter_map(|(name, password)| self.pair(name, password))
                .collect(),
            tokens: ["BROKER_TOKEN", "BROKER_TOKEN_2"]
                .into_iter()
                .filter_map(|it| self.optional(it))
                .map(Secret::new)
                .collect(),
            actions_token: self.actions_token(),
            open_actions: self.switch("ACTIONS_WITHOUT_PASSWORD"),
            wait: Duration::from_secs(self.number("WAIT_SECONDS", 25, 0, 50)),
            strict_osb: flags.boolean("--strict-osb", &mut self.problems).unwrap_or(false),
            connections_max,
            connections_per_address_max: self.number(
                "MAX_CONNECTIONS_PER_ADDRESS",
                (connections_max / 2).max(1),
                1,
                connections_max,
            ),
            body_bytes_max: self.number("MAX_BODY_BYTES", 1 << 20, 1 << 10, 1 << 26),
            webhook_hosts,
        }
    }

    /// `ACTIONS_TOKEN`: stands in the path of a URL, so it must be one word of it, and hard to guess.
    fn actions_token(&mut self) -> Option<Secret> {
        let token = self.optional("ACTIONS_TOKEN")?;
        let is_plain = token.bytes().all(|it| it.is_ascii_alphanumeric() || b"-_.~".contains(&it));
        if !is_plain || !(16..=128).contains(&token.len()) {
            let complaint = "must be 16 to 128 letters, digits or -_.~";
            self.problems.push(Problem::new("ACTIONS_TOKEN", complaint));
        }
        Some(Secret::new(token))
    }

    /// A name and its password: both or neither.
    fn pair(&mut self, name: &'static str, password: &'static str) -> Option<(String, Secret)> {
        match (self.optional(name), self.optional(password)) {
            (Some(name), Some(password)) => Some((name, Secret::new(password))),
            (None, None) => None,
            (Some(_), None) => {
                self.problems.push(Problem::new(password, format!("is missing, {name} is set")));
                None
            }
            (None, Some(_)) => {
                self.problems.push(Problem::new(name, format!("is missing, {password} is set")));
                None
            }
        }
    }

    /// The settings of the worker. Read only where one runs: an api must not even see the keys.
    fn worker(&mut self, webhook_hosts: Vec<WebhookHost>) -> WorkerConfig {
        let region = self.optional("AWS_REGION").or_else(|| self.optional("AWS_DEFAULT_REGION"));
        let region = region.unwrap_or_else(|| self.required("AWS_REGION", "for example us-west-2"));
        let iam_path = self.optional("IAM_PATH");
        if iam_path.as_ref().is_some_and(|it| !is_iam_path(it)) {
            self.problems
                .push(Problem::new("IAM_PATH", "must begin and end with /, for example /s3-broker/"));
        }
        WorkerConfig {
            threads: self.number("WORKER_THREADS", 4, 1, 64),
            lease: Duration::from_secs(self.number("LEASE_SECONDS", 60, 4, 600)),
            provision_deadline: self.span(
                "PROVISION_DEADLINE",
                Duration::from_secs(20 * 60),
                Duration::from_secs(1),
                Duration::from_secs(24 * 3_600),
            ),
            rotation_grace: self.span(
                "ROTATION_GRACE",
                Duration::from_secs(3_600),
                Duration::ZERO,
                Duration::from_secs(7 * 24 * 3_600),
            ),
            region,
            account_id: self.optional("AWS_ACCOUNT_ID"),
            key_sources: self.key_sources(),
            endpoint_url: self.optional("AWS_ENDPOINT_URL"),
            endpoint_url_s3: self.optional("AWS_ENDPOINT_URL_S3"),
            endpoint_url_iam: self.optional("AWS_ENDPOINT_URL_IAM"),
            endpoint_url_sts: self.optional("AWS_ENDPOINT_URL_STS"),
            ca_bundle: self.optional("AWS_CA_BUNDLE"),
            kms_key_id: self.optional("AWS_KMS_KEY_ID"),
            iam_path,
            iam_permissions_boundary: self.optional("IAM_PERMISSIONS_BOUNDARY"),
            webhook_hosts,
            retry_webhooks: self.old_switch("RETRY_WEBHOOKS"),
        }
    }
}

/// Whether buckets `<prefix>-u<16 hex>` and IAM users of that name may exist.
///
/// Source: S3 User Guide, "General purpose bucket naming rules": 3 to 63 characters.
fn check_name_prefix(prefix: &str) -> Result<(), &'static str> {
    let letter_or_digit = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit();
    if prefix.len() > NAME_PREFIX_MAX {
        return Err("must be at most 45 characters, to leave room for the rest of a bucket's name");
    }
    if !prefix.bytes().all(|it| letter_or_digit(it) || it == b'-') {
        return Err("may hold a-z, 0-9 and - only: bucket names begin with it");
    }
    if !prefix.bytes().next().is_some_and(letter_or_digit) {
        return Err("must begin with a letter or digit");
    }
    if ["xn--", "sthree-", "amzn-s3-demo-"].iter().any(|it| format!("{prefix}-").starts_with(it)) {
        return Err("begins with text that AWS keeps for itself (xn--, sthree-, amzn-s3-demo-)");
    }
    Ok(())
}

/// A bucket's 63 characters less the `-u` and 16 digits that follow the prefix.
const NAME_PREFIX_MAX: usize = 63 - 2 - 16;

/// IAM API Reference, CreateUser, Path.
fn is_iam_path(text: &str) -> bool {
    text.len() <= 512
        && text.starts_with('/')
        && text.ends_with('/')
        && text.bytes().all(|it| it.is_ascii_graphic())
}

#[cfg(test)]
mod tests;
