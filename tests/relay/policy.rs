//! Policy documents, read as AWS reads them before it stores them.
//!
//! Source: IAM User Guide, "Grammar of the IAM JSON policy language"; S3 User Guide, "Policies and permissions in
//! Amazon S3".

use serde_json::Value;

use super::account::Account;

/// Longest bucket policy, in bytes.
const BUCKET_POLICY_BYTES_MAX: usize = 20 * 1024;
/// Words of a statement.
const WORDS: [&str; 9] = [
    "Sid",
    "Effect",
    "Action",
    "NotAction",
    "Resource",
    "NotResource",
    "Principal",
    "NotPrincipal",
    "Condition",
];
/// Operators of conditions, without `IfExists` and the words for sets.
const OPERATORS: [&str; 27] = [
    "StringEquals",
    "StringNotEquals",
    "StringEqualsIgnoreCase",
    "StringNotEqualsIgnoreCase",
    "StringLike",
    "StringNotLike",
    "NumericEquals",
    "NumericNotEquals",
    "NumericLessThan",
    "NumericLessThanEquals",
    "NumericGreaterThan",
    "NumericGreaterThanEquals",
    "DateEquals",
    "DateNotEquals",
    "DateLessThan",
    "DateLessThanEquals",
    "DateGreaterThan",
    "DateGreaterThanEquals",
    "Bool",
    "BinaryEquals",
    "IpAddress",
    "NotIpAddress",
    "ArnEquals",
    "ArnLike",
    "ArnNotEquals",
    "ArnNotLike",
    "Null",
];

/// A policy that hangs on a user.
pub(crate) fn check_identity_policy(text: &str) -> Result<(), String> {
    let allowed = |it: char| matches!(it, '\t' | '\n' | '\r' | ' '..='\u{FF}');
    if !text.chars().all(allowed) {
        return Err("characters that are not allowed".to_owned());
    }
    for statement in statements(text)? {
        if statement.get("Principal").or(statement.get("NotPrincipal")).is_some() {
            return Err("a principal in a user's policy".to_owned());
        }
        check_resources(&statement, |it| it == "*" || is_arn(it))?;
    }
    Ok(())
}

/// A policy that hangs on a bucket: about that bucket, for principals that there are.
pub(crate) fn check_bucket_policy(text: &str, bucket: &str, account: &Account) -> Result<(), String> {
    if text.len() > BUCKET_POLICY_BYTES_MAX {
        return Err("longer than 20 KB".to_owned());
    }
    for statement in statements(text)? {
        let principal = statement.get("Principal").or(statement.get("NotPrincipal"));
        check_principal(principal.ok_or("Missing required field Principal")?, account)?;
        let own = format!(":s3:::{bucket}");
        check_resources(&statement, |it| {
            let parts = it.strip_prefix("arn:").and_then(|it| it.split_once(own.as_str()));
            parts.is_some_and(|(partition, rest)| {
                is_partition(partition) && (rest.is_empty() || rest.starts_with('/'))
            })
        })?;
        let actions = statement.get("Action").or(statement.get("NotAction")).ok_or("Missing Action")?;
        if texts(actions)?.iter().any(|it| !it.starts_with("s3:") && it != "*") {
            return Err("Policy has invalid action".to_owned());
        }
    }
    Ok(())
}

/// The statements of a document, each of a form that AWS takes.
fn statements(text: &str) -> Result<Vec<Value>, String> {
    let document: Value = serde_json::from_str(text).map_err(|_| "This policy contains invalid Json")?;
    let words = ["Version", "Id", "Statement"];
    if document.as_object().is_none_or(|it| it.keys().any(|word| !words.contains(&word.as_str()))) {
        return Err("unknown fields".to_owned());
    }
    if !matches!(document["Version"].as_str(), Some("2012-10-17" | "2008-10-17")) {
        return Err("no version that there is".to_owned());
    }
    let statements = match &document["Statement"] {
        Value::Array(list) => list.clone(),
        one @ Value::Object(_) => vec![one.clone()],
        _ => Vec::new(),
    };
    if statements.is_empty() {
        return Err("no statement".to_owned());
    }
    let mut sids = Vec::new();
    for statement in &statements {
        check_statement(statement)?;
        sids.extend(statement["Sid"].as_str());
    }
    let count = sids.len();
    sids.sort_unstable();
    sids.dedup();
    if sids.len() == count { Ok(statements) } else { Err("Statement IDs (SID) must be unique".to_owned()) }
}

/// Effect, actions, conditions.
fn check_statement(statement: &Value) -> Result<(), String> {
    let map = statement.as_object().ok_or("a statement that is no object")?;
    if let Some(word) = map.keys().find(|it| !WORDS.contains(&it.as_str())) {
        return Err(format!("Unknown field {word}"));
    }
    if !matches!(statement["Effect"].as_str(), Some("Allow" | "Deny")) {
        return Err("Invalid effect".to_owned());
    }
    if map.get("Sid").is_some_and(|it| !it.is_string()) {
        return Err("a Sid that is no text".to_owned());
    }
    let sid = statement["Sid"].as_str().unwrap_or_default();
    if !sid.chars().all(|it| it.is_ascii_alphanumeric()) {
        return Err("Statement IDs (SID) must be alpha-numeric".to_owned());
    }
    let actions = texts(map.get("Action").or(map.get("NotAction")).ok_or("Missing Action")?)?;
    let is_action = |it: &String| match it.split_once(':') {
        Some((service, name)) => {
            let is_word = |it: &str, more: &str| {
                !it.is_empty() && it.chars().all(|it| it.is_ascii_alphanumeric() || more.contains(it))
            };
            is_word(service, "-") && is_word(name, "*?")
        }
        None => it == "*",
    };
    if actions.is_empty() || !actions.iter().all(is_action) {
        return Err("Policy has invalid action".to_owned());
    }
    match map.get("Condition") {
        None => Ok(()),
        Some(Value::Object(operators)) => operators.iter().try_for_each(check_condition),
        Some(_) => Err("a condition that is no object".to_owned()),
    }
}

/// One operator with its keys and values.
fn check_condition((name, keys): (&String, &Value)) -> Result<(), String> {
    let bare = ["ForAllValues:", "ForAnyValue:"].iter().find_map(|it| name.strip_prefix(it)).unwrap_or(name);
    let plain = bare.strip_suffix("IfExists").filter(|it| *it != "Null").unwrap_or(bare);
    if !OPERATORS.contains(&plain) {
        return Err(format!("Unknown condition operator {name}"));
    }
    let keys = keys.as_object().ok_or("an operator without keys")?;
    for (key, values) in keys {
        texts(values)?;
        if !key.contains(':') {
            return Err(format!("Unknown condition key {key}"));
        }
    }
    Ok(())
}

/// Every resource must be of a form.
fn check_resources(statement: &Value, is_good: impl Fn(&str) -> bool) -> Result<(), String> {
    let resources = statement.get("Resource").or(statement.get("NotResource")).ok_or("Missing Resource")?;
    let resources = texts(resources)?;
    if resources.is_empty() {
        return Err("no resource".to_owned());
    }
    match resources.iter().find(|it| !is_good(it)) {
        Some(wrong) => Err(format!("Policy has invalid resource {wrong}")),
        None => Ok(()),
    }
}

/// Everybody, this account, or a user that is there.
fn check_principal(principal: &Value, account: &Account) -> Result<(), String> {
    if principal == "*" {
        return Ok(());
    }
    let map = principal.as_object().filter(|it| !it.is_empty()).ok_or("Invalid principal in policy")?;
    for (kind, who) in map {
        let names = texts(who)?;
        if names.is_empty() || !["AWS", "Service", "Federated", "CanonicalUser"].contains(&kind.as_str()) {
            return Err("Invalid principal in policy".to_owned());
        }
        for name in names.iter().filter(|_| kind == "AWS") {
            let is_known = match name.split_once(":user/") {
                Some((arn, user)) => {
                    let user = user.rsplit('/').next().unwrap_or(user);
                    arn.ends_with(&format!(":iam::{}", account.id)) && account.has_user(user)
                }
                None => {
                    name == "*" || *name == account.id || name.ends_with(&format!("::{}:root", account.id))
                }
            };
            if !is_known {
                return Err(format!("Invalid principal in policy {name}"));
            }
        }
    }
    Ok(())
}

/// `arn:partition:service:region:account:resource`.
fn is_arn(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    parts.len() == 6 && parts[0] == "arn" && is_partition(parts[1])
}

/// `aws`, `aws-cn` and the others.
fn is_partition(text: &str) -> bool {
    text == "aws" || text.starts_with("aws-")
}

/// One text or a list of them.
fn texts(value: &Value) -> Result<Vec<String>, String> {
    let list = match value {
        Value::String(one) => return Ok(vec![one.clone()]),
        Value::Array(list) => list,
        _ => return Err("neither text nor list".to_owned()),
    };
    let texts =
        list.iter().map(|it| it.as_str().map(str::to_owned).ok_or("a list of other things than text"));
    Ok(texts.collect::<Result<_, _>>()?)
}
