//! Where the broker's own AWS key may come from, as far as the environment says.
//!
//! Not here: looking there (`aws::credentials`).
//!
//! Sources: AWS SDKs and Tools Reference Guide, "Standardized credential providers" and the pages of each.

use super::Secret;
use super::variables::Reader;

/// All that was set; the first source that has a key is taken.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeySources {
    /// An access key's id and secret.
    pub(crate) key: Option<(String, Secret)>,
    /// What goes with it when it is temporary.
    pub(crate) session_token: Option<Secret>,
    /// A role that is assumed with a token from a file.
    pub(crate) web_identity: Option<WebIdentity>,
    /// The shared file of keys.
    pub(crate) credentials_file: Option<SharedFile>,
    /// The shared file of settings.
    pub(crate) config_file: Option<SharedFile>,
    /// The profile in them.
    pub(crate) profile: Option<String>,
    /// Path of the container's credentials at the usual host.
    pub(crate) container_relative_uri: Option<String>,
    /// URL of the container's credentials.
    pub(crate) container_full_uri: Option<String>,
    /// What to show there.
    pub(crate) container_token: Option<Secret>,
    /// A file that holds what to show there.
    pub(crate) container_token_file: Option<String>,
    /// Where the metadata of the machine is; `None`: it must not be asked.
    pub(crate) metadata_endpoint: Option<String>,
}

/// One of AWS' shared files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SharedFile {
    /// Where it is.
    pub(crate) path: String,
    /// Whether somebody chose it, so that it must be there; else it is looked for in the usual place.
    pub(crate) is_chosen: bool,
}

/// A role and the token with which it is assumed.
#[derive(Debug, Clone)]
pub(crate) struct WebIdentity {
    /// Holds the token; somebody renews it.
    pub(crate) token_file: String,
    /// The role.
    pub(crate) role_arn: String,
    /// Names the session in AWS' logs.
    pub(crate) session_name: Option<String>,
}

/// The name and address of EC2's metadata service.
const METADATA_ENDPOINT: &str = "http://169.254.169.254";

impl<V: Fn(&'static str) -> Option<String>> Reader<'_, V> {
    /// Where the key may come from. That there is none is no error: files and metadata may come later.
    pub(super) fn key_sources(&mut self) -> KeySources {
        let shared_file = |variable, name: &str| {
            let chosen = self.optional(variable).map(|path| SharedFile { path, is_chosen: true });
            let usual = || Some(format!("{}/.aws/{name}", self.optional("HOME")?));
            chosen.or_else(|| usual().map(|path| SharedFile { path, is_chosen: false }))
        };
        let credentials_file = shared_file("AWS_SHARED_CREDENTIALS_FILE", "credentials");
        let config_file = shared_file("AWS_CONFIG_FILE", "config");
        let metadata_endpoint = self.optional("AWS_EC2_METADATA_SERVICE_ENDPOINT");
        let metadata_disabled = self.switch("AWS_EC2_METADATA_DISABLED");
        KeySources {
            key: self.pair("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
            session_token: self.optional("AWS_SESSION_TOKEN").map(Secret::new),
            web_identity: self.web_identity(),
            credentials_file,
            config_file,
            profile: self.optional("AWS_PROFILE"),
            container_relative_uri: self.optional("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
            container_full_uri: self.optional("AWS_CONTAINER_CREDENTIALS_FULL_URI"),
            container_token: self.optional("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(Secret::new),
            container_token_file: self.optional("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
            metadata_endpoint: (!metadata_disabled)
                .then(|| metadata_endpoint.unwrap_or_else(|| METADATA_ENDPOINT.to_owned())),
        }
    }

    /// A role and the file of its token; a role alone means nothing.
    fn web_identity(&mut self) -> Option<WebIdentity> {
        let token_file = self.optional("AWS_WEB_IDENTITY_TOKEN_FILE")?;
        let role_arn = self.required("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE is set");
        Some(WebIdentity { token_file, role_arn, session_name: self.optional("AWS_ROLE_SESSION_NAME") })
    }
}
