//! The protocol that IAM and STS share: a form in, XML out, lists in pages.
//!
//! Not here: the operations (`iam`, `sts`), the signature's arithmetic (`sigv4`).
//!
//! Invariants
//! - The body that is signed is the body that is sent.
//! - A list ends: the number of its pages is bounded.
//!
//! Sources: IAM User Guide, "Calling the IAM API using HTTP query requests".

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use rusty_s3::Method;
use url::{Position, Url};

use super::call::{Answer, Call, Signed, Signing};
use super::endpoints::Endpoint;
use super::error::none_if;
use super::sigv4::{self, Scope, Unsigned};
use super::xml::Element;
use super::{AwsError, Caller, Credentials};

/// How many pages of a list are read.
const PAGES_MAX: usize = 100;
/// What the form is sent as.
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// One of the services that speak this protocol.
pub(super) struct Service<'s> {
    /// Its name in signatures.
    pub(super) name: &'static str,
    /// The version of its interface.
    pub(super) version: &'static str,
    /// Where it is.
    pub(super) endpoint: &'s Endpoint,
}

/// An operation and its parameters, in the order in which they are sent.
#[derive(Clone)]
pub(super) struct Form {
    /// The operation, as AWS writes it.
    operation: &'static str,
    /// Names and values, not encoded.
    parameters: Vec<(String, String)>,
    /// Whether it may be sent again when it is not known what became of it.
    repeatable: bool,
}

impl Form {
    /// The operation, as AWS writes it.
    pub(super) fn operation(&self) -> &'static str {
        self.operation
    }

    /// A form for an operation that is safe to repeat.
    pub(super) fn new(operation: &'static str, parameters: &[(&str, &str)]) -> Form {
        parameters
            .iter()
            .fold(Form { operation, parameters: Vec::new(), repeatable: true }, |form, (name, value)| {
                form.with(*name, *value)
            })
    }

    /// Adds a parameter.
    pub(super) fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Form {
        self.parameters.push((name.into(), value.into()));
        self
    }

    /// The same form, sent once only.
    pub(super) fn only_once(self) -> Form {
        Form { repeatable: false, ..self }
    }

    /// The form as a call to a service.
    pub(super) fn call<'s>(&self, service: &Service<'s>) -> Result<Call<'s>, AwsError> {
        let operation = self.operation;
        let url = Url::parse(&format!("{}/", service.endpoint.base))
            .map_err(|_| AwsError::Malformed { operation, what: "the endpoint is not a URL" })?;
        let named = self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let pairs = [("Action", operation), ("Version", service.version)].into_iter().chain(named);
        Ok(Call {
            operation,
            method: Method::Post,
            url,
            query: BTreeMap::new(),
            headers: BTreeMap::from([("content-type", FORM.to_owned())]),
            body: Some(sigv4::encode_pairs(pairs)),
            region: Cow::Borrowed(&service.endpoint.region),
            bucket: None,
            signing: Signing::Header { service: service.name },
            repeatable: self.repeatable,
        })
    }
}

/// What stands under `<OperationResult>`.
pub(super) fn result(answer: Answer) -> Result<Element, AwsError> {
    let operation = answer.operation;
    let result = answer.root()?.into_child(&format!("{operation}Result"));
    result.ok_or(AwsError::Malformed { operation, what: "no result in the answer" })
}

impl Caller<'_> {
    /// Sends a form.
    pub(super) fn submit(&self, service: &Service<'_>, form: &Form) -> Result<Answer, AwsError> {
        self.send(&form.call(service)?)
    }

    /// Sends a form and returns what stands under `<OperationResult>`.
    pub(super) fn ask(&self, service: &Service<'_>, form: &Form) -> Result<Element, AwsError> {
        result(self.submit(service, form)?)
    }

    /// All members of the list called `name`, page by page; empty where AWS knows no such user or policy.
    pub(super) fn list<T>(
        &self,
        service: &Service<'_>,
        form: &Form,
        name: &str,
        read: fn(&Element) -> Option<T>,
    ) -> Result<Vec<T>, AwsError> {
        let operation = form.operation;
        let mut items = Vec::new();
        let mut page_form = form.clone();
        for _ in 0..PAGES_MAX {
            let Some(page) = none_if(self.ask(service, &page_form), &["NoSuchEntity"])? else {
                return Ok(items);
            };
            let members = page.find(&[name]).into_iter().flat_map(|list| list.children("member"));
            for member in members {
                let item = read(member)
                    .ok_or(AwsError::Malformed { operation, what: "a list item lacks a field" })?;
                items.push(item);
            }
            // The number of items says nothing: IAM may return short pages.
            if !page.is_true(&["IsTruncated"]) {
                return Ok(items);
            }
            page_form = form.clone().with("Marker", page.find_text(&["Marker"]).unwrap_or_default());
        }
        Err(AwsError::Malformed { operation, what: "the list does not end" })
    }
}

/// Signs a form in its `Authorization` header.
pub(super) fn sign(call: &Call<'_>, service: &str, credentials: &Credentials, now: Timestamp) -> Signed {
    let mut headers = call.headers.clone();
    headers.insert("host", call.url[Position::BeforeHost..Position::AfterPort].to_owned());
    let query: Vec<(&str, &str)> = call.query.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let request = Unsigned {
        method: call.method.to_str(),
        path: call.url.path(),
        query: &query,
        headers,
        body: call.body.as_deref().unwrap_or_default().as_bytes(),
    };
    let mut headers = sigv4::authorize(request, &Scope { region: &call.region, service }, credentials, now);
    headers.remove("host"); // the agent writes the same one from the URL
    Signed { url: call.url.to_string(), headers }
}

#[cfg(test)]
mod tests {
    use super::super::stub::{Reply, Stub, call};

    const FIRST: Reply = Reply::Answer(
        200,
        "<ListUserPoliciesResponse xmlns=\"https://iam.amazonaws.com/doc/2010-05-08/\"><ListUserPoliciesResult>\
         <PolicyNames><member>one</member></PolicyNames><IsTruncated>true</IsTruncated><Marker>m/1</Marker>\
         </ListUserPoliciesResult></ListUserPoliciesResponse>",
    );
    const LAST: Reply = Reply::Answer(
        200,
        "<ListUserPoliciesResponse><ListUserPoliciesResult><PolicyNames><member>two</member></PolicyNames>\
         <IsTruncated>false</IsTruncated></ListUserPoliciesResult></ListUserPoliciesResponse>",
    );
    const GONE: Reply =
        Reply::Answer(404, "<ErrorResponse><Error><Code>NoSuchEntity</Code></Error></ErrorResponse>");

    #[test]
    fn lists_are_read_to_their_end() {
        let cases: [(&'static [Reply], &[&str]); 4] = [
            (&[LAST], &["two"]),
            (&[FIRST, LAST], &["one", "two"]),
            (&[FIRST, FIRST, LAST], &["one", "one", "two"]),
            (&[GONE], &[]),
        ];
        for (script, names) in cases {
            let stub = Stub::start(script);
            let found = call(stub.port, 9, |caller| caller.list_user_policies("u")).unwrap();
            assert_eq!(found, names);
            for (number, request) in stub.requests().iter().enumerate() {
                let marker = if number == 0 { "" } else { "&Marker=m%2F1" };
                let form = format!("\r\n\r\nAction=ListUserPolicies&Version=2010-05-08&UserName=u{marker}");
                assert!(request.ends_with(&form), "{request}");
            }
        }
    }

    #[test]
    fn a_list_without_end_is_given_up() {
        let stub = Stub::start(&[FIRST]);
        let error = call(stub.port, 999, |caller| caller.list_user_policies("u")).unwrap_err();
        assert!(error.to_string().contains("the list does not end"), "{error}");
    }

    #[test]
    fn a_form_is_signed_with_all_its_headers() {
        let stub = Stub::start(&[GONE]);
        call(stub.port, 9, |caller| caller.delete_access_key("u", "AK")).unwrap();
        let request = stub.requests().remove(0);
        let lower = request.to_lowercase();
        assert!(request.starts_with("POST / HTTP/1.1\r\n"), "{request}");
        assert!(lower.contains(&format!("\r\nhost: 127.0.0.1:{}\r\n", stub.port)), "{request}");
        assert_eq!(lower.matches("\r\nhost:").count(), 1, "{request}");
        assert!(
            request.contains("SignedHeaders=content-type;host;x-amz-date;x-amz-security-token,"),
            "{request}"
        );
        assert!(request.contains("/eu-west-1/iam/aws4_request,"), "{request}");
        assert!(request.ends_with("&UserName=u&AccessKeyId=AK"), "{request}");
        assert!(!request.contains("planted-secret"), "{request}");
    }
}
