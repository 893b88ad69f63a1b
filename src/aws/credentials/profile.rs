//! Keys from the files that AWS' command line and SDKs share.
//!
//! A profile may hold a key. What else it may say to get one (a role, single sign-on, a program) is refused by
//! name, also beside a key: passing over it would use another one than was meant.
//!
//! Source: AWS SDKs and Tools Reference Guide, "Shared config and credentials files".

use std::collections::BTreeMap;
use std::io;

use super::{Credentials, KeySources, Secret};

/// What else a profile may say to get a key, and is refused.
const UNSUPPORTED: [&str; 5] =
    ["credential_process", "login_session", "role_arn", "sso_session", "sso_start_url"];

/// What a section says, by names in lower case.
type Section = BTreeMap<String, String>;

/// The key of the profile; `None` when there is no profile, or it says nothing of keys.
pub(super) fn find(sources: &KeySources) -> Result<Option<Credentials>, String> {
    let name = sources.profile.as_deref().unwrap_or("default");
    let of_credentials = section(&read(&sources.credentials_file)?, |title| title == name);
    let of_config = section(&read(&sources.config_file)?, |title| profile_of(title) == Some(name));
    let sections: Vec<Section> = [of_credentials, of_config].into_iter().flatten().collect();
    if let (true, Some(name)) = (sections.is_empty(), &sources.profile) {
        return Err(format!("the shared files have no profile {name:?}"));
    }
    if let Some(it) = UNSUPPORTED.iter().find(|it| sections.iter().any(|section| section.contains_key(**it)))
    {
        return Err(format!("profile {name:?}: {it} is not supported"));
    }
    for section in &sections {
        let text = |name: &str| section.get(name).filter(|it| !it.is_empty());
        match (text("aws_access_key_id"), text("aws_secret_access_key")) {
            (None, None) => {}
            (Some(id), Some(secret)) => {
                let session_token = text("aws_session_token").map(Secret::new);
                let key = Credentials::lasting(id, &Secret::new(secret));
                return Ok(Some(Credentials { session_token, ..key }));
            }
            (_, None) => return Err(format!("profile {name:?} lacks aws_secret_access_key")),
            (None, _) => return Err(format!("profile {name:?} lacks aws_access_key_id")),
        }
    }
    Ok(None)
}

/// The profile that a section of the file of settings is about: `[default]`, `[profile name]`.
fn profile_of(title: &str) -> Option<&str> {
    let name = title.strip_prefix("profile").filter(|it| it.starts_with([' ', '\t']));
    let name = name.map(|it| it.trim().trim_matches(['"', '\'']));
    name.or(Some(title).filter(|it| *it == "default"))
}

/// A file's text; one that is not there is as good as empty.
fn read(path: &Option<String>) -> Result<String, String> {
    let path = path.as_deref().unwrap_or_default();
    match std::fs::read_to_string(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            Err(format!("{path} cannot be read: {}", err.kind()))
        }
        text => Ok(text.unwrap_or_default()),
    }
}

/// What the sections with such a title say. Lines that are indented below a name without value belong to that
/// name and say nothing of keys.
fn section(text: &str, is_meant: impl Fn(&str) -> bool) -> Option<Section> {
    let (mut found, mut inside, mut nested) = (None, false, false);
    for line in text.trim_start_matches('\u{feff}').lines() {
        let indented = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) || (indented && nested) {
            continue;
        }
        nested = false;
        if let Some(title) = line.strip_prefix('[') {
            inside = is_meant(title.split(']').next().unwrap_or_default().trim());
            if inside {
                found.get_or_insert_with(Section::new);
            }
        } else if let Some((name, value)) = line.split_once('=') {
            nested = value.trim().is_empty();
            if let Some(section) = found.as_mut().filter(|_| inside) {
                section.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
            }
        }
    }
    found
}
