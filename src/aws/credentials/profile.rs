//! Keys from the files that AWS' command line and SDKs share.
//!
//! A profile may hold a key. What else it may say to get one (a role, single sign-on, a program) is refused by
//! name, also beside a key: passing over it would use another one than was meant. So is the absence of a file or
//! a profile that somebody chose; in the usual places nothing need be, or be readable.
//!
//! Source: AWS SDKs and Tools Reference Guide, "Shared config and credentials files".

use std::collections::BTreeMap;
use std::io;

use super::{Credentials, KeySources, Secret};
use crate::config::SharedFile;

/// What else a profile may say to get a key, and is refused.
const UNSUPPORTED: [&str; 5] =
    ["credential_process", "login_session", "role_arn", "sso_session", "sso_start_url"];

/// What a section says, by names in lower case.
type Section = BTreeMap<String, String>;

/// The key of the profile; `None` when nobody chose file or profile and there is none, or it says nothing of keys.
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
    let is_chosen = |it: &&SharedFile| it.is_chosen;
    match (&sources.profile, sources.credentials_file.as_ref().filter(is_chosen)) {
        (None, None) => Ok(None),
        (Some(_), _) => Err(format!("profile {name:?} holds no key")),
        (None, Some(file)) => Err(format!("{} holds no key of profile {name:?}", file.path)),
    }
}

/// The profile that a section of the file of settings is about: `[default]`, `[profile name]`.
fn profile_of(title: &str) -> Option<&str> {
    let name = title.strip_prefix("profile").filter(|it| it.starts_with([' ', '\t']));
    let name = name.map(|it| it.trim().trim_matches(['"', '\'']));
    name.or(Some(title).filter(|it| *it == "default"))
}

/// A file's text; one in the usual place that is not there or not for us is as good as empty.
fn read(file: &Option<SharedFile>) -> Result<String, String> {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    let Some(SharedFile { path, is_chosen }) = file else {
        return Ok(String::new());
    };
    match std::fs::read_to_string(path) {
        Err(err) if !is_chosen && matches!(err.kind(), NotFound | PermissionDenied | NotADirectory) => {
            log::debug!("no shared file: path={path} cause={:?}", err.kind().to_string());
            Ok(String::new())
        }
        text => text.map_err(|err| format!("{path} cannot be read: {}", err.kind())),
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
        } else if let Some((name, value)) = line.split_once(['=', ':']) {
            nested = value.trim().is_empty();
            if let Some(section) = found.as_mut().filter(|_| inside) {
                section.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tests::{File, shared};
    use super::*;

    /// Looks at shared files only; nobody is asked.
    fn in_files(credentials: &str, config: &str, profile: Option<&str>) -> Result<Option<String>, String> {
        let (credentials, config) = (File::new(credentials), File::new(config));
        let sources = KeySources {
            credentials_file: shared(credentials.path(), false),
            config_file: shared(config.path(), false),
            profile: profile.map(str::to_owned),
            ..KeySources::default()
        };
        find(&sources).map(|key| {
            key.map(|it| {
                let token = it.session_token.as_ref().map_or("", |it| it.expose());
                format!("{} {} {token}", it.access_key_id, it.secret_access_key.expose())
            })
        })
    }

    /// The two files, the profile, and the key or the complaint.
    type FilesCase =
        (&'static str, &'static str, Option<&'static str>, Result<Option<&'static str>, &'static str>);

    #[test]
    fn profiles_are_read_as_aws_reads_them() {
        let plain = "# c\n[default]\nAWS_ACCESS_KEY_ID = A1\naws_secret_access_key=s=1\n\n[two]\n\
            aws_access_key_id=A2\r\naws_secret_access_key= s2 \r\naws_session_token=t2==\n";
        let nested = "[default]\nregion = x\ns3 =\n  aws_access_key_id = no\nendpoint_url = y\n\n[profile two]\n\
            aws_access_key_id=A3\naws_secret_access_key=s3\n[services two]\naws_access_key_id=no\n";
        let quoted = "[profile \"two words\"]\naws_access_key_id=A4\naws_secret_access_key=s4\n[two]\naws_access_key_id=no";
        let colons = "[default]\naws_access_key_id: A5\naws_secret_access_key : s=5:\naws_session_token= t:5";
        let cases: [FilesCase; 19] = [
            (colons, "", None, Ok(Some("A5 s=5: t:5"))),
            ("", "[profile two]\nregion = x", Some("two"), Err("profile \"two\" holds no key")),
            (plain, "", None, Ok(Some("A1 s=1 "))),
            (plain, "", Some("two"), Ok(Some("A2 s2 t2=="))),
            (plain, nested, Some("two"), Ok(Some("A2 s2 t2=="))),
            ("", nested, Some("two"), Ok(Some("A3 s3 "))),
            ("", nested, None, Ok(None)),
            ("", quoted, Some("two words"), Ok(Some("A4 s4 "))),
            ("", quoted, Some("two"), Err("the shared files have no profile \"two\"")),
            ("", "", None, Ok(None)),
            (
                "[default]\naws_access_key_id=A",
                nested,
                None,
                Err("profile \"default\" lacks aws_secret_access_key"),
            ),
            (
                "[default]\naws_secret_access_key=hush",
                "",
                None,
                Err("profile \"default\" lacks aws_access_key_id"),
            ),
            (
                "",
                "[default]\nsso_session = x",
                None,
                Err("profile \"default\": sso_session is not supported"),
            ),
            (
                "",
                "[default]\nsso_start_url = x",
                None,
                Err("profile \"default\": sso_start_url is not supported"),
            ),
            (
                "",
                "[profile p]\ncredential_process = x",
                Some("p"),
                Err("profile \"p\": credential_process is not supported"),
            ),
            (
                plain,
                "[default]\nsso_session = x",
                None,
                Err("profile \"default\": sso_session is not supported"),
            ),
            (plain, "[default]\nrole_arn = r", None, Err("profile \"default\": role_arn is not supported")),
            (
                "",
                "[default]\nrole_arn = r\nsource_profile = x",
                None,
                Err("profile \"default\": role_arn is not supported"),
            ),
            (plain, "", Some("three"), Err("the shared files have no profile \"three\"")),
        ];
        for (credentials, config, profile, expected) in cases {
            let found = in_files(credentials, config, profile);
            let expected = expected.map(|it| it.map(str::to_owned)).map_err(str::to_owned);
            assert_eq!(found, expected, "{credentials}\n---\n{config}\n--- {profile:?}");
        }
    }

    #[test]
    fn a_file_that_somebody_chose_must_be_there_and_hold_a_key() {
        let (empty, keyless) =
            (File::new(""), File::new("[default]\nregion = x\n[two]\naws_access_key_id = A"));
        let beyond = format!("{}/credentials", empty.path()); // below what is no directory
        let nowhere = "/nonexistent/credentials".to_owned();
        let find = |credentials_file, config_file| {
            let found = find(&KeySources { credentials_file, config_file, ..KeySources::default() });
            found.map(|it| it.is_some())
        };
        for path in [&nowhere, &beyond, &keyless.path()] {
            assert_eq!(find(shared(path.clone(), false), None), Ok(false), "{path}");
        }
        assert_eq!(find(None, shared(keyless.path(), true)), Ok(false)); // settings need not hold keys
        let unreadable = |path: &str, why: &str| Err(format!("{path} cannot be read: {why}"));
        assert_eq!(find(shared(nowhere.clone(), true), None), unreadable(&nowhere, "entity not found"));
        assert_eq!(find(None, shared(nowhere.clone(), true)), unreadable(&nowhere, "entity not found"));
        assert_eq!(find(shared(beyond.clone(), true), None), unreadable(&beyond, "not a directory"));
        for path in [keyless.path(), empty.path()] {
            let complaint = format!("{path} holds no key of profile \"default\"");
            assert_eq!(find(shared(path, true), None), Err(complaint));
        }
    }
}
