//! The hosts that webhooks may go to.
//!
//! Not here: whether a URL goes to one of them (`outgoing`).

use super::Problem;
use super::variables::Reader;

/// A host that webhooks may go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WebhookHost {
    /// Its name or IPv4 address, in lower case.
    pub(crate) name: String,
    /// Its port; `None` is the usual one of the URL's scheme.
    pub(crate) port: Option<u16>,
}

/// Longest name of a host (RFC 1035, section 2.3.4), in bytes.
const NAME_BYTES_MAX: usize = 253;

impl<V: Fn(&'static str) -> Option<String>> Reader<'_, V> {
    /// `WEBHOOK_HOSTS`: none means that webhooks are off.
    pub(super) fn webhook_hosts(&mut self) -> Vec<WebhookHost> {
        let text = self.optional("WEBHOOK_HOSTS").unwrap_or_default();
        if text.is_empty() {
            return Vec::new();
        }
        let hosts: Option<Vec<WebhookHost>> = text.split(',').map(|it| parse_host(it.trim())).collect();
        hosts.unwrap_or_else(|| {
            let complaint = "must be exact host names separated by commas, each with :port where it is not \
                the usual one; no scheme, path or *";
            self.problems.push(Problem::new("WEBHOOK_HOSTS", complaint));
            Vec::new()
        })
    }
}

/// One entry: a name, and a port where one is named.
fn parse_host(entry: &str) -> Option<WebhookHost> {
    let (name, port) = match entry.split_once(':') {
        Some((name, digits)) => {
            let port = digits.bytes().all(|it| it.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
            (name, Some(port.filter(|it| *it != 0)?))
        }
        None => (entry, None),
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-' || it == b'_')
    };
    (name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label))
        .then(|| WebhookHost { name: name.to_ascii_lowercase(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hosts of a setting, or what is complained of.
    fn hosts(text: &'static str) -> Result<Vec<(String, Option<u16>)>, Vec<Problem>> {
        let variable = |name: &'static str| (name == "WEBHOOK_HOSTS").then(|| text.to_owned());
        let mut reader = Reader { variable: &variable, problems: Vec::new() };
        let hosts = reader.webhook_hosts();
        if reader.problems.is_empty() {
            Ok(hosts.into_iter().map(|it| (it.name, it.port)).collect())
        } else {
            Err(reader.problems)
        }
    }

    #[test]
    fn hosts_are_exact_names_with_or_without_a_port() {
        let host = |name: &str, port| (name.to_owned(), port);
        assert_eq!(hosts(""), Ok(vec![]));
        assert_eq!(hosts("hooks.example.com"), Ok(vec![host("hooks.example.com", None)]));
        let two = vec![host("a.example", Some(8080)), host("127.0.0.1", None)];
        assert_eq!(hosts("A.example:8080 , 127.0.0.1"), Ok(two));
        for wrong in [
            ",",
            "a,",
            "a,,b",
            "*.example.com",
            "https://a",
            "a/",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a:http",
            "a b",
            "a@b",
            ".",
            "a.",
            ".a",
            "a..b",
            "-a",
            "a-",
            "[::1]",
            "ä.example",
            "a?b",
        ] {
            let problems = hosts(wrong).unwrap_err();
            let about: Vec<&str> = problems.iter().map(|it| it.setting.as_str()).collect();
            assert_eq!(about, ["WEBHOOK_HOSTS"], "{wrong}");
        }
    }
}
