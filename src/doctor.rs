//! Operator commands. `reconcile` reports what AWS and the database do not share, and removes from AWS what an
//! operator names.
//!
//! Not here: what counts as a finding (`compare`), how something is removed (`steps`).
//!
//! Invariants
//! - A report changes nothing. What could not be looked at is an error, never "nothing found".
//! - Removal takes exact names. Before each of its AWS calls the database is asked whether it has come to
//!   name the thing; then nothing more is called.

mod compare;

use std::io::{BufRead, IsTerminal, Write};
use std::time::{Duration, SystemTime};

use crate::aws::{Aws, AwsError, Bucket, Caller, Permit};
use crate::config::Errand;
use crate::steps::{self, Removal, StepError};
use crate::store::{InstanceStatus, Store};

use compare::{Books, Form, Held, Kind, Mark, Thing, Usable, compare};

/// What is younger is not removed: until then a mistake, such as the wrong database, may still show.
const AGE_MIN: Duration = Duration::from_secs(3_600);

/// Looks at both sides for an operator.
pub(crate) struct Doctor<'a> {
    /// The database.
    pub(crate) store: &'a Store,
    /// AWS.
    pub(crate) aws: &'a Aws,
    /// The settings of a worker.
    pub(crate) settings: &'a steps::Settings,
}

/// For calls that only read.
struct Always;

impl Permit for Always {
    fn may_call(&self, _operation: &'static str) -> bool {
        true
    }
}

/// For calls that remove: as long as the database does not name what is removed.
struct Unnamed<'a> {
    /// The database.
    store: &'a Store,
    /// What is removed.
    name: &'a str,
}

impl Permit for Unnamed<'_> {
    fn may_call(&self, _operation: &'static str) -> bool {
        read_books(self.store).is_ok_and(|books| !books.names.contains(self.name))
    }
}

/// What bears one name in AWS.
struct Found {
    /// The bucket.
    bucket: Option<Bucket>,
    /// Whether there is a user.
    user: bool,
    /// Whether there is a managed policy of the old broker.
    policy: bool,
    /// Marks of bucket and user.
    marks: Vec<Mark>,
    /// When bucket and user were made; `None` where the store does not say.
    created: Vec<Option<SystemTime>>,
}

impl Doctor<'_> {
    /// `servicebroker reconcile`; true when nothing was found, or all was removed.
    ///
    /// # Errors
    /// AWS or the database could not be asked; what was printed may not be all.
    pub(crate) fn reconcile(&self, errand: &Errand, out: &mut dyn Write) -> Result<bool, StepError> {
        if errand.remove.is_empty() {
            return self.report(out);
        }
        if !errand.yes && !std::io::stdin().is_terminal() {
            say(out, "refused: reason=\"there is no terminal to ask on, and no --yes\"")?;
            return Ok(false);
        }
        let mut all = true;
        for name in &errand.remove {
            if let Some(reason) = self.remove(name, errand, out)? {
                say(out, &format!("refused: name={name:?} reason={reason:?}"))?;
                all = false;
            }
        }
        Ok(all)
    }

    /// AWS, asked with the broker's own key.
    fn caller<'c>(&'c self, permit: &'c dyn Permit) -> Caller<'c> {
        self.aws.caller(permit)
    }

    /// Compares, and prints a line for each finding and one with the numbers.
    fn report(&self, out: &mut dyn Write) -> Result<bool, StepError> {
        let before = read_books(self.store)?;
        let held = self.look(&before)?;
        let after = read_books(self.store)?;
        let report = compare(&self.settings.name_prefix, &held, &before, &after);
        for finding in &report.findings {
            say(out, &finding.to_string())?;
        }
        let (findings, instances) = (report.findings.len(), after.usable.len());
        let (others, unmarked) = (report.others, report.unmarked);
        say(
            out,
            &format!(
                "reconciled: findings={findings} instances={instances} of_other_brokers={others} \
                 untagged_left_out={unmarked}"
            ),
        )?;
        Ok(report.findings.is_empty())
    }

    /// What AWS holds that may be ours.
    fn look(&self, before: &Books) -> Result<Held, StepError> {
        let caller = self.caller(&Always);
        let prefix = format!("{}-u", self.settings.name_prefix);
        let mut buckets: Vec<String> = caller.list_buckets(&prefix)?.into_iter().map(|it| it.name).collect();
        // The prefix was another one when these were made.
        for usable in before.usable.iter().filter(|it| !it.name.starts_with(&prefix)) {
            buckets.extend(caller.owns_bucket(&usable.name)?.then(|| usable.name.clone()));
        }
        let policies = match caller.list_policies() {
            Err(err) if err.is_unsupported() => Vec::new(),
            other => other?,
        };
        let mut held = Held::default();
        for (kind, names) in
            [(Kind::Bucket, buckets), (Kind::User, caller.list_users()?), (Kind::Policy, policies)]
        {
            for name in names {
                let thing = Thing { kind, name, mark: Mark::Nobodys };
                let known = thing.known_as(&self.settings.name_prefix);
                let marked = match known.filter(|(name, _)| !before.names.contains(*name)) {
                    Some(_) => read_mark(&caller, kind, &thing.name, &before.broker)?,
                    None => Some(Mark::Nobodys), // it does not matter
                };
                held.things.extend(marked.map(|mark| Thing { mark, ..thing }));
            }
        }
        for usable in &before.usable {
            held.keys.insert(usable.name.clone(), caller.list_access_keys(&usable.name)?);
        }
        Ok(held)
    }

    /// Removes what bears the name; says why, if it does not.
    fn remove(
        &self,
        name: &str,
        errand: &Errand,
        out: &mut dyn Write,
    ) -> Result<Option<&'static str>, StepError> {
        if Form::of(name, &self.settings.name_prefix).is_none() {
            return Ok(Some("not a name that this broker gives"));
        }
        let books = read_books(self.store)?;
        if books.names.contains(name) {
            return Ok(Some("the database names it"));
        }
        let permit = Unnamed { store: self.store, name };
        let caller = self.caller(&permit);
        let account = match &self.settings.account_id {
            Some(account) => account.clone(),
            None => caller.get_caller_identity()?.account,
        };
        let report = |progress: String| {
            log::info!("{progress}: bucket={name}");
            Ok(())
        };
        let account = Some(account.as_str());
        let removal = Removal { caller, partition: self.aws.partition(), account, report: &report };
        let found = find(&removal, name, &books.broker)?;
        if let Some(reason) = found.refusal(&removal.caller.expecting_owner(account), errand)? {
            return Ok(Some(reason));
        }
        if !errand.yes && !is_confirmed(name, &found)? {
            return Ok(Some("not confirmed"));
        }
        found.remove(&removal, name, errand.with_objects, out)
    }
}

impl Found {
    /// Why it must stay.
    fn refusal(&self, caller: &Caller<'_>, errand: &Errand) -> Result<Option<&'static str>, StepError> {
        if self.bucket.is_none() && !self.user && !self.policy {
            return Ok(Some("AWS holds nothing of that name"));
        }
        if self.marks.contains(&Mark::Others) {
            return Ok(Some("it carries the id of another broker"));
        }
        let age = |made: &Option<SystemTime>| made.and_then(|it| SystemTime::now().duration_since(it).ok());
        if !errand.young && self.created.iter().any(|it| age(it).is_none_or(|it| it < AGE_MIN)) {
            return Ok(Some("younger than an hour"));
        }
        match &self.bucket {
            Some(bucket) if !errand.with_objects && !is_empty(caller, &bucket.name)? => {
                Ok(Some("the bucket is not empty"))
            }
            _ => Ok(None),
        }
    }

    /// Removes it, the user first: nobody shall write into a bucket that is going.
    fn remove(
        &self,
        removal: &Removal<'_>,
        name: &str,
        with_objects: bool,
        out: &mut dyn Write,
    ) -> Result<Option<&'static str>, StepError> {
        if self.user || self.policy {
            removal.remove_user(name)?;
        }
        if self.user {
            say(out, &format!("removed: kind=user name={name}"))?;
        }
        if self.policy {
            say(out, &format!("removed: kind=policy name={name}policy"))?;
        }
        if self.bucket.is_none() {
            return Ok(None);
        }
        let removed = match with_objects {
            true => remove_full_bucket(removal, name),
            // What was written since it was found empty makes AWS refuse this.
            false => {
                removal.caller.expecting_owner(removal.account).delete_bucket(name).map_err(StepError::Aws)
            }
        };
        match removed {
            Err(StepError::Stuck(reason)) => {
                log::error!("bucket not removed: bucket={name} cause={reason:?}");
                return Ok(Some("AWS will not let some of its objects go"));
            }
            Err(StepError::Aws(err)) if err.code() == Some("BucketNotEmpty") => {
                return Ok(Some("the bucket is not empty"));
            }
            other => other?,
        }
        say(out, &format!("removed: kind=bucket name={name}"))?;
        Ok(None)
    }
}

/// Empties a bucket to its end and removes it.
fn remove_full_bucket(removal: &Removal<'_>, name: &str) -> Result<(), StepError> {
    loop {
        match removal.remove_bucket(name) {
            Err(StepError::Wait { .. }) => {} // a task would let others work meanwhile
            other => return other,
        }
    }
}

/// Looks at all that may bear a name.
fn find(removal: &Removal<'_>, name: &str, broker: &str) -> Result<Found, StepError> {
    let caller = removal.caller;
    let bucket = caller.list_buckets(name)?.into_iter().find(|it| it.name == name);
    let user = caller.get_user(name)?;
    let policy = match removal.old_policy(name)? {
        Some(arn) => !caller.list_policy_versions(&arn)?.is_empty(),
        None => false,
    };
    let mut marks: Vec<Mark> = user.iter().map(|it| Mark::of(&it.tags, broker)).collect();
    if bucket.is_some() {
        marks.extend(read_mark(&caller, Kind::Bucket, name, broker)?);
    }
    let created = bucket.iter().map(|it| it.created).chain(user.iter().map(|it| it.created)).collect();
    Ok(Found { bucket, user: user.is_some(), policy, marks, created })
}

/// Whose something is; `None` when it is gone. A store that knows no tags has marked nothing.
fn read_mark(caller: &Caller<'_>, kind: Kind, name: &str, broker: &str) -> Result<Option<Mark>, AwsError> {
    let tags = match kind {
        Kind::Bucket => caller.get_bucket_tagging(name),
        Kind::User => caller.get_user(name).map(|user| user.map(|it| it.tags)),
        Kind::Policy => Ok(Some(Vec::new())), // the old broker, which made them, wrote no tags
    };
    match tags {
        Err(err) if err.is_unsupported() => Ok(Some(Mark::Nobodys)),
        other => Ok(other?.map(|tags| Mark::of(&tags, broker))),
    }
}

/// Whether a bucket holds neither versions nor unfinished uploads.
fn is_empty(caller: &Caller<'_>, bucket: &str) -> Result<bool, AwsError> {
    let versions = caller.list_object_versions(bucket)?;
    let uploads = caller.list_multipart_uploads(bucket)?;
    Ok(versions.is_none_or(|it| it.objects.is_empty() && !it.truncated)
        && uploads.is_none_or(|it| it.is_empty()))
}

/// Asks on the terminal.
fn is_confirmed(name: &str, found: &Found) -> Result<bool, StepError> {
    let parts = [(found.user, "user"), (found.policy, "policy"), (found.bucket.is_some(), "bucket")];
    let parts: Vec<&str> = parts.iter().filter(|it| it.0).map(|it| it.1).collect();
    let whose = if found.marks.contains(&Mark::Ours) { "carries our tag" } else { "carries no tag" };
    let mut screen = std::io::stderr();
    let mut answer = String::new();
    write!(screen, "Remove {} {name} ({whose}) from AWS? Type yes: ", parts.join(", "))
        .and_then(|()| screen.flush())
        .and_then(|()| std::io::stdin().lock().read_line(&mut answer))
        .map_err(|err| StepError::Unfixable(format!("the terminal: {err}")))?;
    Ok(answer.trim() == "yes")
}

/// What the database says now.
fn read_books(store: &Store) -> Result<Books, StepError> {
    let (broker, rows) = store.transaction(|tx| Ok::<_, StepError>((tx.broker_id()?, tx.named()?)))?;
    let mut books = Books { broker, ..Books::default() };
    for row in rows {
        let is_settled = row.open_tasks.is_empty();
        books.names.extend(row.open_tasks.iter().filter_map(|it| steps::name_in(it)));
        books.names.insert(row.name.clone());
        if is_settled && matches!(row.status, InstanceStatus::Available | InstanceStatus::Modifying) {
            books.usable.insert(Usable { id: row.id, name: row.name, key: row.access_key_id });
        }
    }
    Ok(books)
}

/// Prints a line.
fn say(out: &mut dyn Write, line: &str) -> Result<(), StepError> {
    writeln!(out, "{line}").map_err(|err| StepError::Unfixable(format!("standard output: {err}")))
}
