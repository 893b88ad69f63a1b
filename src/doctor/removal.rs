//! `reconcile --delete`: what may be removed, and in which order it goes.
//!
//! Invariants
//! - Removal takes exact names. Before each attempt of each of its AWS calls the database is asked whether
//!   it has come to name the thing; then nothing more is called.
//! - Without leave to empty the bucket nothing goes before the bucket has gone: AWS itself refuses a full one.
//! - What was judged before somebody was asked is judged again after the answer.

use std::io::{BufRead, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::compare::{Kind, Mark, form_of};
use super::{Doctor, READ_PAUSES_S, ask, patiently, read_mark, say};
use crate::aws::{AwsError, Caller, Permit};
use crate::config::Errand;
use crate::steps::{Removal, StepError};
use crate::store::Store;

/// What is younger is not removed: until then a mistake, such as the wrong database, may still show.
const AGE_MIN: Duration = Duration::from_secs(3_600);
/// Pauses before a removal is tried again, in seconds: what was taken off a user a moment ago may still be in the way.
const REMOVAL_PAUSES_S: &[u64] = &[1, 1, 2, 4, 8, 16, 30];

/// For calls that remove: as long as the database does not name what is removed.
struct Unnamed<'a> {
    /// The database.
    store: &'a Store,
    /// What is removed.
    name: &'a str,
    /// Why a call was not allowed.
    objection: Mutex<Option<String>>,
}

impl Permit for Unnamed<'_> {
    fn may_call(&self, operation: &'static str) -> bool {
        let name = self.name.to_owned();
        let objection = match ask(self.store, move |tx| Ok(tx.is_named(&name)?)) {
            Ok(false) => return true,
            Ok(true) => "the database names it now".to_owned(),
            Err(err) => err.to_string(),
        };
        log::warn!("call not begun: operation={operation} bucket={} cause={objection:?}", self.name);
        *self.objection.lock().unwrap_or_else(PoisonError::into_inner) = Some(objection);
        false
    }
}

impl Unnamed<'_> {
    /// A failure, with the reason if it was ours.
    fn explain(&self, err: StepError) -> StepError {
        let objection = self.objection.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (err, objection) {
            (StepError::Aws(AwsError::Halted { .. }), Some(objection)) => StepError::Unfixable(objection),
            (err, _) => err,
        }
    }
}

/// One of the things that bear a name in AWS.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    /// What it is.
    kind: Kind,
    /// Whose it is.
    mark: Mark,
    /// When it was made; `None` where the store does not say.
    created: Option<SystemTime>,
}

impl Doctor<'_> {
    /// Removes what bears the name; says why, if it does not.
    pub(super) fn remove(
        &self,
        name: &str,
        errand: &Errand,
        out: &mut dyn Write,
    ) -> Result<Option<String>, StepError> {
        if form_of(name, &self.settings.name_prefix).is_none() {
            return Ok(Some("not a name that this broker gives".to_owned()));
        }
        let wanted = name.to_owned();
        let (broker, is_named) = ask(self.store, move |tx| Ok((tx.broker_id()?, tx.is_named(&wanted)?)))?;
        if is_named {
            return Ok(Some("the database names it".to_owned()));
        }
        let permit = Unnamed { store: self.store, name, objection: Mutex::default() };
        self.remove_with(&permit, &broker, errand, out).map_err(|err| permit.explain(err))
    }

    /// The same with a permit.
    fn remove_with(
        &self,
        permit: &Unnamed<'_>,
        broker: &str,
        errand: &Errand,
        out: &mut dyn Write,
    ) -> Result<Option<String>, StepError> {
        let (name, caller) = (permit.name, self.aws.caller(permit));
        let account = match &self.settings.account_id {
            Some(account) => account.clone(),
            None => patiently(READ_PAUSES_S, || Ok(caller.identity()?))?.account,
        };
        let report = |progress: String| {
            log::info!("{progress}: bucket={name}");
            Ok(())
        };
        let account = Some(account.as_str());
        let removal = Removal { caller, partition: self.aws.partition(), account, report: &report };
        let examine = || -> Result<(Vec<Part>, Option<String>), StepError> {
            let parts = patiently(READ_PAUSES_S, || find(&removal, name, broker))?;
            let refusal = match refuse(&parts, self.aws.now(), errand) {
                None if !errand.with_objects => refuse_full(&removal, name, &parts)?,
                other => other,
            };
            Ok((parts, refusal))
        };
        let (parts, refusal) = examine()?;
        if refusal.is_some() {
            return Ok(refusal);
        }
        if !errand.yes {
            if !is_confirmed(name, &parts)? {
                return Ok(Some("not confirmed".to_owned()));
            }
            let (now, refusal) = examine()?; // the answer may have taken its time
            if refusal.is_some() || now != parts {
                return Ok(refusal.or(Some("it has changed since it was asked for".to_owned())));
            }
        }
        remove_parts(&removal, name, &parts, errand, out)
    }
}

/// Why it must stay.
fn refuse(parts: &[Part], now: SystemTime, errand: &Errand) -> Option<String> {
    // Of the future counts as just now.
    let age = |made: SystemTime| now.duration_since(made).unwrap_or_default();
    let reason = if parts.is_empty() {
        "AWS holds nothing of that name".to_owned()
    } else if parts.iter().any(|it| it.mark == Mark::Others) {
        "it carries the id of another broker".to_owned()
    } else if !errand.untagged && parts.iter().any(|it| it.mark != Mark::Ours) {
        format!("not all of it carries our tag ({}), and no --untagged", describe(parts))
    } else if !errand.young && parts.iter().any(|it| it.created.is_none()) {
        "AWS does not say when it was made, and no --younger-than-an-hour".to_owned()
    } else if !errand.young && parts.iter().any(|it| it.created.is_some_and(|it| age(it) < AGE_MIN)) {
        "younger than an hour".to_owned()
    } else {
        return None;
    };
    Some(reason)
}

/// Why a bucket must stay that may not be emptied.
fn refuse_full(removal: &Removal<'_>, name: &str, parts: &[Part]) -> Result<Option<String>, StepError> {
    let caller = removal.caller.expecting_owner(removal.account);
    let has_bucket = parts.iter().any(|it| it.kind == Kind::Bucket);
    let is_full = has_bucket && !patiently(READ_PAUSES_S, || Ok(is_empty(&caller, name)?))?;
    Ok(is_full.then(|| "the bucket is not empty".to_owned()))
}

/// Removes the parts. A bucket that may not be emptied goes first, for AWS refuses that if anything was written
/// meanwhile; one that may be emptied goes last, so that nobody writes into it while it is going.
fn remove_parts(
    removal: &Removal<'_>,
    name: &str,
    parts: &[Part],
    errand: &Errand,
    out: &mut dyn Write,
) -> Result<Option<String>, StepError> {
    let has = |kind| parts.iter().any(|it| it.kind == kind);
    let mut removed = |kind: Kind| say(out, &format!("removed: kind={} name={name}", kind.as_str()));
    let caller = removal.caller.expecting_owner(removal.account);
    if has(Kind::Bucket) && !errand.with_objects {
        let is_gone = patiently(REMOVAL_PAUSES_S, || match caller.delete_bucket(name) {
            Err(err) if err.code() == Some("BucketNotEmpty") => Ok(false),
            other => Ok(other.map(|()| true)?),
        })?;
        if !is_gone {
            return Ok(Some("the bucket is not empty".to_owned()));
        }
        removed(Kind::Bucket)?;
    }
    if has(Kind::User) || has(Kind::Policy) {
        patiently(REMOVAL_PAUSES_S, || removal.remove_user(name))?;
        for kind in [Kind::User, Kind::Policy].into_iter().filter(|it| has(*it)) {
            removed(kind)?;
        }
    }
    if has(Kind::Bucket) && errand.with_objects {
        match patiently(REMOVAL_PAUSES_S, || removal.remove_bucket(name)) {
            Err(StepError::Stuck(reason)) => return Ok(Some(reason)),
            Err(StepError::Aws(err)) if err.code() == Some("BucketNotEmpty") => {
                return Ok(Some("somebody keeps writing into the bucket".to_owned()));
            }
            other => other?,
        }
        removed(Kind::Bucket)?;
    }
    Ok(None)
}

/// Looks at all that may bear a name.
fn find(removal: &Removal<'_>, name: &str, broker: &str) -> Result<Vec<Part>, StepError> {
    let (caller, mut parts) = (removal.caller, Vec::new());
    if let Some(user) = caller.get_user(name)? {
        parts.push(Part { kind: Kind::User, mark: Mark::of(&user.tags, broker), created: user.created });
    }
    if let Some(arn) = removal.old_policy(name)? {
        let versions = caller.list_policy_versions(&arn)?;
        let created: Option<Vec<SystemTime>> = versions.iter().map(|it| it.created).collect();
        let newest = created.and_then(|it| it.into_iter().max());
        let part = Part { kind: Kind::Policy, mark: Mark::Nobodys, created: newest };
        parts.extend(Some(part).filter(|_| !versions.is_empty()));
    }
    if let Some(bucket) = caller.list_buckets(name)?.into_iter().find(|it| it.name == name) {
        let mark = read_mark(&caller, Kind::Bucket, name, broker)?;
        parts.extend(mark.map(|mark| Part { kind: Kind::Bucket, mark, created: bucket.created }));
    }
    Ok(parts)
}

/// Whether a bucket holds neither versions nor unfinished uploads.
fn is_empty(caller: &Caller<'_>, bucket: &str) -> Result<bool, AwsError> {
    let versions = caller.list_object_versions(bucket)?;
    let uploads = caller.list_multipart_uploads(bucket)?;
    Ok(versions.is_none_or(|it| it.objects.is_empty() && !it.truncated)
        && uploads.is_none_or(|it| it.is_empty()))
}

/// What there is and whose.
fn describe(parts: &[Part]) -> String {
    let words: Vec<String> =
        parts.iter().map(|it| format!("{} tag={}", it.kind.as_str(), it.mark.as_str())).collect();
    words.join(", ")
}

/// Asks on the terminal.
fn is_confirmed(name: &str, parts: &[Part]) -> Result<bool, StepError> {
    let mut screen = std::io::stderr();
    let mut answer = String::new();
    write!(screen, "Remove {name} from AWS ({})? Type yes: ", describe(parts))
        .and_then(|()| screen.flush())
        .and_then(|()| std::io::stdin().lock().read_line(&mut answer))
        .map_err(|err| StepError::Unfixable(format!("the terminal: {err}")))?;
    Ok(answer.trim() == "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 1_000_000;

    /// Parts with their ages in seconds, the flags, the beginning of the refusal.
    type Case<'a> = (&'a [(Kind, Mark, Option<i64>)], &'a str, Option<&'a str>);

    /// Something made so many seconds ago; a negative number lies ahead.
    fn part(kind: Kind, mark: Mark, age_s: Option<i64>) -> Part {
        let made = age_s.map(|it| NOW_S.checked_add_signed(-it).unwrap());
        let created = made.map(|it| SystemTime::UNIX_EPOCH + Duration::from_secs(it));
        Part { kind, mark, created }
    }

    #[test]
    fn only_what_is_ours_and_old_goes_unless_told() {
        let (bucket, user, policy) = (Kind::Bucket, Kind::User, Kind::Policy);
        let (ours, others, nobodys) = (Mark::Ours, Mark::Others, Mark::Nobodys);
        let old = Some(3_600);
        #[rustfmt::skip]
        let cases: &[Case<'_>] = &[
            (&[], "", Some("AWS holds nothing")),
            (&[(user, ours, old), (bucket, ours, old)], "", None),
            (&[(user, ours, old), (bucket, ours, Some(3_599))], "", Some("younger than an hour")),
            (&[(user, ours, Some(3_599)), (bucket, ours, old)], "", Some("younger than an hour")),
            (&[(user, ours, Some(-7_200))], "", Some("younger than an hour")),
            (&[(user, ours, Some(0))], "young", None),
            (&[(user, ours, Some(0))], "untagged", Some("younger than an hour")),
            (&[(user, ours, old), (bucket, ours, None)], "", Some("AWS does not say when")),
            (&[(bucket, ours, None)], "young", None),
            (&[(policy, nobodys, Some(60))], "untagged", Some("younger than an hour")),
            (&[(policy, nobodys, old)], "untagged", None),
            (&[(user, ours, old), (bucket, nobodys, old)], "", Some("not all of it carries our tag (user tag=ours, bucket tag=none)")),
            (&[(user, ours, old), (bucket, nobodys, old)], "young", Some("not all of it")),
            (&[(user, nobodys, old)], "untagged", None),
            (&[(user, nobodys, None)], "untagged young", None),
            (&[(user, ours, old), (bucket, others, old)], "untagged young", Some("it carries the id of another")),
            (&[(user, others, old), (bucket, nobodys, old)], "untagged", Some("it carries the id of another")),
        ];
        for (parts, flags, expected) in cases {
            let parts: Vec<Part> = parts.iter().map(|it| part(it.0, it.1, it.2)).collect();
            let (young, untagged) = (flags.contains("young"), flags.contains("untagged"));
            let errand = Errand { remove: Vec::new(), with_objects: true, yes: true, young, untagged };
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_S);
            let refusal = refuse(&parts, now, &errand);
            let fits = match expected {
                None => refusal.is_none(),
                Some(beginning) => refusal.as_ref().is_some_and(|it| it.starts_with(beginning)),
            };
            assert!(fits, "{parts:?} {flags}: {refusal:?}");
        }
    }
}
