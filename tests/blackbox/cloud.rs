//! The emulator of AWS as tests see it: its administrator, a tenant's command line, a relay to break calls.

use std::process::{Command, Output};

use serde_json::Value;

use crate::relay::{Options, Relay};
use crate::support::{Setup, setting};

/// Whether the emulator of AWS checks signatures and policies.
pub(crate) fn checks_permissions() -> bool {
    setting("TEST_AWS_ENGINE") == "ministack"
}

/// A relay of the test's own before the common one, to break calls of one setup.
pub(crate) fn relay() -> Relay {
    let endpoint = setting("TEST_AWS_ENDPOINT_URL");
    let engine = endpoint.trim_start_matches("http://").to_owned();
    Relay::start(Options { engine, ..Options::default() }).unwrap()
}

impl Setup {
    /// Buckets, users and policies of this setup that AWS still has.
    pub(crate) fn left_in_aws(&self) -> Vec<String> {
        let mut names = texts(&ask("GET", "/", ""), "Name");
        names.extend(all_pages("ListUsers", "", "UserName"));
        names.extend(all_pages("ListPolicies", "&Scope=Local", "PolicyName"));
        names.retain(|it| it.starts_with(&format!("{}-", self.prefix)));
        names
    }

    /// One bucket, one user, one key, and that key is the row's.
    pub(crate) fn check_one_of_each(&self) {
        let name = self.database.text("select name from resources").unwrap();
        assert_eq!(self.left_in_aws(), [name.clone(), name.clone()]);
        assert_eq!(keys_of(&name), [self.database.text("select username from resources").unwrap()]);
    }

    /// Nothing in AWS, no secret in the row.
    pub(crate) fn check_nothing_left(&self) {
        assert_eq!(self.left_in_aws(), Vec::<String>::new());
        assert_eq!(self.database.text("select max(coalesce(username, password)) from resources"), None);
    }
}

/// Puts an empty object into a bucket.
pub(crate) fn put_object(bucket: &str, key: &str) {
    assert!(!ask("PUT", &format!("/{bucket}/{key}"), "").contains("<Error>"));
}

/// The access keys of a user.
pub(crate) fn keys_of(user: &str) -> Vec<String> {
    all_pages("ListAccessKeys", &format!("&UserName={user}"), "AccessKeyId")
}

/// The texts of an element on all pages of an IAM list.
fn all_pages(action: &str, parameters: &str, element: &str) -> Vec<String> {
    let (mut found, mut marker) = (Vec::new(), String::new());
    loop {
        let answer = ask("POST", "/", &format!("Action={action}&Version=2010-05-08{parameters}{marker}"));
        found.extend(texts(&answer, element));
        match texts(&answer, "Marker").first() {
            Some(next) => marker = format!("&Marker={next}"),
            None => return found,
        }
    }
}

/// What IAM answers to a form.
pub(crate) fn ask_iam(form: &str) -> String {
    ask("POST", "/", form)
}

/// What S3 answers to a GET.
pub(crate) fn ask_s3(path: &str) -> String {
    ask("GET", path, "")
}

/// Asks as the administrator. Emulators let this key in without looking at the signature, and the command line takes
/// a second for each question.
fn ask(method: &str, path: &str, form: &str) -> String {
    let service = if form.is_empty() { "s3" } else { "iam" };
    let config = ureq::Agent::config_builder().proxy(None).http_status_as_error(false);
    let agent: ureq::Agent = config.build().into();
    let request = ureq::http::Request::builder()
        .method(method)
        .uri(format!("{}{path}", setting("TEST_AWS_ENDPOINT_URL")))
        .header("content-type", "application/x-www-form-urlencoded")
        .header("x-amz-date", "20260101T000000Z")
        .header(
            "authorization",
            format!(
                "AWS4-HMAC-SHA256 Credential={}/20260101/{}/{service}/aws4_request, \
                 SignedHeaders=host;x-amz-date, Signature={}",
                setting("TEST_AWS_ADMIN_ACCESS_KEY_ID"),
                setting("TEST_AWS_REGION"),
                "0".repeat(64)
            ),
        );
    let mut response = agent.run(request.body(form).unwrap()).unwrap();
    response.body_mut().read_to_string().unwrap()
}

/// What stands in the elements of a name.
fn texts(xml: &str, element: &str) -> Vec<String> {
    let opening = format!("<{element}>");
    let parts = xml.split(&opening).skip(1);
    parts.filter_map(|it| it.split('<').next()).map(str::to_owned).collect()
}

/// AWS' command line with a key.
fn command_line(endpoint: &str, key: &str, secret: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(setting("TEST_AWS_CLI"));
    command
        .args(arguments)
        .env("AWS_ENDPOINT_URL", endpoint)
        .env("AWS_DEFAULT_REGION", setting("TEST_AWS_REGION"))
        .env("AWS_ACCESS_KEY_ID", key)
        .env("AWS_SECRET_ACCESS_KEY", secret)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        .env_remove("AWS_PROFILE")
        .env_remove("AWS_CA_BUNDLE");
    command
}

/// Runs AWS' command line with a key.
pub(crate) fn aws(key: &str, secret: &str, arguments: &[&str]) -> Output {
    let endpoint = setting("TEST_AWS_ENDPOINT_URL");
    command_line(&endpoint, key, secret, arguments).output().expect("AWS' command line")
}

/// AWS' command line as an app would run it with its credentials, endpoint included.
pub(crate) fn tenant(credentials: &Value, arguments: &[&str]) -> Command {
    let text = |name: &str| credentials[name].as_str().unwrap();
    command_line(text("S3_ENDPOINT"), text("S3_ACCESS_KEY"), text("S3_SECRET_KEY"), arguments)
}

/// Asks AWS as its administrator; the answer as JSON.
pub(crate) fn admin(arguments: &[&str]) -> Value {
    let output = try_admin(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "aws {arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// The same, where a refusal is an answer too.
pub(crate) fn try_admin(arguments: &[&str]) -> Output {
    let (key, secret) =
        (setting("TEST_AWS_ADMIN_ACCESS_KEY_ID"), setting("TEST_AWS_ADMIN_SECRET_ACCESS_KEY"));
    aws(&key, &secret, arguments)
}

/// AWS says that the broker may not.
pub(crate) fn access_denied() -> crate::relay::Fault {
    let error = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
    crate::relay::Fault::Status(403, format!("<ErrorResponse>{error}</ErrorResponse>"))
}
