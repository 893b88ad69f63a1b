//! One request as the endpoints see it: decoded path, query, headers, body.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;

use crate::broker::BrokerError;
use crate::config::Secret;
use crate::osb::Id;

/// A request whose body is there. It has no `Debug`: its headers hold a password.
pub(super) struct Call {
    /// As sent, upper case.
    pub(super) method: String,
    /// Where it goes.
    pub(super) route: Route,
    /// The first part of a path that leads nowhere by itself: perhaps the token that opens the actions.
    pub(super) token: Option<Secret>,
    /// Names and values, decoded, in order.
    query: Vec<(String, String)>,
    /// Names in lower case, and values.
    headers: Vec<(String, String)>,
    /// The body.
    body: Vec<u8>,
}

/// The actions that are counted, by the names that the old broker counted them under; it knew no `get_binding`.
pub(super) const ACTIONS: [&str; 10] = [
    "action_schema",
    "bind",
    "deprovision",
    "get_binding",
    "get_catalog",
    "last_operation",
    "provision",
    "rotate_credentials",
    "unbind",
    "update",
];

/// The resources that there are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// `/healthz`
    Healthz,
    /// `/readyz`
    Readyz,
    /// `/metrics`
    Metrics,
    /// `/v2/catalog`
    Catalog,
    /// `/v2/service_instances/{instance_id}`
    Instance(Id),
    /// `/v2/service_instances/{instance_id}/last_operation`
    LastOperation(Id),
    /// `/v2/service_instances/{instance_id}/service_bindings/{binding_id}`
    Binding(Id, Id),
    /// `/v2/service_instances/{instance_id}/actions/credentials`
    Credentials(Id),
    /// `/v2/service_instances/{instance_id}/actions/rotate_credentials/schema`
    ActionSchema(Id),
    /// A path with an id that cannot be one; says why.
    BadId(&'static str),
    /// Anything else.
    Unknown,
}

impl Route {
    /// The name under which it is logged.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Route::Healthz => "healthz",
            Route::Readyz => "readyz",
            Route::Metrics => "metrics",
            Route::Catalog => "catalog",
            Route::Instance(_) => "instance",
            Route::LastOperation(_) => "last_operation",
            Route::Binding(..) => "binding",
            Route::Credentials(_) => "credentials",
            Route::ActionSchema(_) => "action_schema",
            Route::BadId(_) => "bad_id",
            Route::Unknown => "unknown",
        }
    }

    /// The instance that it is about.
    pub(super) fn instance(&self) -> Option<&Id> {
        match self {
            Route::Instance(id)
            | Route::LastOperation(id)
            | Route::Binding(id, _)
            | Route::Credentials(id)
            | Route::ActionSchema(id) => Some(id),
            Route::Healthz
            | Route::Readyz
            | Route::Metrics
            | Route::Catalog
            | Route::BadId(_)
            | Route::Unknown => None,
        }
    }

    /// Whether Akkeris sends it as its user's browser would: without a password and a version.
    pub(super) fn is_action(&self) -> bool {
        matches!(self, Route::Credentials(_) | Route::ActionSchema(_))
    }

    /// Where a path leads. Each segment is decoded by itself, so an id may hold any character.
    fn parse(path: &str) -> Route {
        let segments: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
        let with_id = |id: &str, build: fn(Id) -> Route| match decode_id(id) {
            Ok(id) => build(id),
            Err(why) => Route::BadId(why),
        };
        match segments.as_slice() {
            ["healthz"] => Route::Healthz,
            ["readyz"] => Route::Readyz,
            ["metrics"] => Route::Metrics,
            ["v2", "catalog"] => Route::Catalog,
            ["v2", "service_instances", id] => with_id(id, Route::Instance),
            ["v2", "service_instances", id, "last_operation"] => with_id(id, Route::LastOperation),
            ["v2", "service_instances", id, "actions", "credentials"] => with_id(id, Route::Credentials),
            ["v2", "service_instances", id, "actions", "rotate_credentials", "schema"] => {
                with_id(id, Route::ActionSchema)
            }
            ["v2", "service_instances", id, "service_bindings", binding] => {
                match (decode_id(id), decode_id(binding)) {
                    (Ok(id), Ok(binding)) => Route::Binding(id, binding),
                    (Err(why), _) | (_, Err(why)) => Route::BadId(why),
                }
            }
            _ => Route::Unknown,
        }
    }
}

impl Call {
    /// Takes a request apart.
    pub(super) fn new(method: &str, target: &str, headers: Vec<(String, String)>, body: Vec<u8>) -> Call {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (token, path) = split_token(path);
        Call {
            method: method.to_owned(),
            route: Route::parse(path),
            token,
            query: query.split('&').filter(|it| !it.is_empty()).map(decode_pair).collect(),
            headers,
            body,
        }
    }

    /// What the platform asks for, be it granted or not: one of [`ACTIONS`].
    pub(super) fn action(&self) -> Option<&'static str> {
        match (&self.route, self.method.as_str()) {
            (Route::Catalog, "GET") => Some("get_catalog"),
            (Route::Instance(_), "PUT") => Some("provision"),
            (Route::Instance(_), "PATCH") => Some("update"),
            (Route::Instance(_), "DELETE") => Some("deprovision"),
            (Route::LastOperation(_), "GET") => Some("last_operation"),
            (Route::Binding(..), "PUT") => Some("bind"),
            (Route::Binding(..), "GET") => Some("get_binding"),
            (Route::Binding(..), "DELETE") => Some("unbind"),
            (Route::Credentials(_), "PUT") => Some("rotate_credentials"),
            (Route::ActionSchema(_), "GET") => Some("action_schema"),
            (Route::Catalog | Route::Instance(_) | Route::LastOperation(_) | Route::Binding(..), _) => None,
            (Route::Credentials(_) | Route::ActionSchema(_), _) => None,
            (Route::Healthz | Route::Readyz | Route::Metrics, _) => None,
            (Route::BadId(_) | Route::Unknown, _) => None,
        }
    }

    /// A query parameter; the first of that name counts.
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A header by its name in lower case; the first of that name counts.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether the platform lets us go on after the answer.
    pub(super) fn accepts_incomplete(&self) -> bool {
        self.query("accepts_incomplete") == Some("true")
    }

    /// The body, which must be a JSON object.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, BrokerError> {
        // serde would take an array for a struct; the specification means objects only.
        let first = self.body.iter().find(|it| !it.is_ascii_whitespace());
        if first != Some(&b'{') {
            return Err(BrokerError::BadRequest("the body must be a JSON object"));
        }
        serde_json::from_slice(&self.body).map_err(|err| {
            BrokerError::BadRequest(match err.classify() {
                serde_json::error::Category::Data => "a field of the body has the wrong type",
                serde_json::error::Category::Eof => "the body ends in the middle of its JSON",
                serde_json::error::Category::Syntax | serde_json::error::Category::Io => {
                    "the body is not JSON"
                }
            })
        })
    }
}

/// A path, and what stands before its `/v2`.
fn split_token(path: &str) -> (Option<Secret>, &str) {
    match path.strip_prefix('/').and_then(|it| it.split_once('/')) {
        Some((token, rest)) if token != "v2" && rest.starts_with("v2/") => {
            let start = path.len() - rest.len() - 1; // with the slash
            (Some(Secret::new(token)), path.get(start..).unwrap_or_default())
        }
        _ => (None, path),
    }
}

/// An id out of a path.
fn decode_id(segment: &str) -> Result<Id, &'static str> {
    let text = percent_decode_str(segment).decode_utf8().map_err(|_| "an id is not UTF-8")?;
    Id::parse(text.into_owned())
}

/// `name=value` as forms encode it.
fn decode_pair(pair: &str) -> (String, String) {
    let decode = |text: &str| {
        let spaced =
            if text.contains('+') { Cow::Owned(text.replace('+', " ")) } else { Cow::Borrowed(text) };
        percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
    };
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    (decode(name), decode(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::osb::ProvisionRequest;

    fn id(text: &str) -> Id {
        Id::parse(text.to_owned()).unwrap()
    }

    #[test]
    fn paths_lead_where_they_should() {
        for (path, route) in [
            ("/healthz", Route::Healthz),
            ("/metrics", Route::Metrics),
            ("/v2/catalog", Route::Catalog),
            ("/v2/service_instances/a", Route::Instance(id("a"))),
            ("/v2/service_instances/a%2Fb%20c", Route::Instance(id("a/b c"))),
            (
                "/v2/service_instances/last_operation/last_operation",
                Route::LastOperation(id("last_operation")),
            ),
            ("/v2/service_instances/a/service_bindings/b%3F", Route::Binding(id("a"), id("b?"))),
            ("/v2/service_instances/", Route::BadId("an id is empty")),
            ("/v2/service_instances/%00", Route::BadId("an id holds a control character")),
            ("/v2/service_instances/%ff", Route::BadId("an id is not UTF-8")),
            ("/v2/service_instances/a/service_bindings/", Route::BadId("an id is empty")),
            ("/v2/catalog/", Route::Unknown),
            ("//v2/catalog", Route::Unknown),
            ("/", Route::Unknown),
            ("", Route::Unknown),
        ] {
            assert_eq!(Route::parse(path), route, "{path}");
        }
    }

    #[test]
    fn a_token_before_the_path_is_split_off() {
        for (target, token, route) in [
            ("/secret/v2/catalog?x=1", Some("secret"), Route::Catalog),
            (
                "/secret/v2/service_instances/a/actions/credentials",
                Some("secret"),
                Route::Credentials(id("a")),
            ),
            ("/v2/service_instances/a/actions/credentials", None, Route::Credentials(id("a"))),
            ("/v2/service_instances/a/actions/rotate_credentials/schema", None, Route::ActionSchema(id("a"))),
            ("//v2/catalog", Some(""), Route::Catalog),
            ("/a/b/v2/catalog", None, Route::Unknown),
            ("/secret/healthz", None, Route::Unknown),
            ("/v2/v2/catalog", None, Route::Unknown),
        ] {
            let call = Call::new("GET", target, vec![], vec![]);
            assert_eq!((call.token.as_ref().map(Secret::expose), call.route), (token, route), "{target}");
        }
    }

    #[test]
    fn every_action_is_one_of_those_that_show() {
        let mut seen = Vec::new();
        for path in [
            "/healthz",
            "/metrics",
            "/v2/catalog",
            "/v2/service_instances/a",
            "/v2/service_instances/",
            "/v2/service_instances/a/last_operation",
            "/v2/service_instances/a/service_bindings/b",
            "/v2/service_instances/a/actions/credentials",
            "/v2/service_instances/a/actions/rotate_credentials/schema",
            "/v2/nothing",
        ] {
            for method in ["GET", "PUT", "PATCH", "DELETE", "POST"] {
                seen.extend(Call::new(method, path, vec![], vec![]).action());
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, ACTIONS);
    }

    #[test]
    fn queries_are_decoded_and_the_first_of_a_name_counts() {
        let call = Call::new("PUT", "/x?a=1%20+2&a=3&flag&accepts_incomplete=true", vec![], vec![]);
        assert_eq!((call.query("a"), call.query("flag"), call.query("b")), (Some("1  2"), Some(""), None));
        assert!(call.accepts_incomplete());
        assert!(!Call::new("PUT", "/x?accepts_incomplete=True", vec![], vec![]).accepts_incomplete());
    }

    #[test]
    fn bodies_that_are_no_object_of_the_right_shape_are_refused() {
        for body in [
            "",
            "  ",
            "[]",
            "null",
            "{",
            "{\"service_id\":1}",
            "{} x",
            "[\"s\"]",
            "{\"plan_id\":\"\\ud800\"}",
        ] {
            let call = Call::new("PUT", "/x", vec![], body.into());
            assert!(call.json::<ProvisionRequest>().is_err(), "{body}");
        }
        assert!(Call::new("PUT", "/x", vec![], b" {} ".to_vec()).json::<ProvisionRequest>().is_ok());
    }
}
