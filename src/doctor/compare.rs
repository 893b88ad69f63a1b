//! What AWS holds against what the database names: plain values in, findings out.
//!
//! Not here: asking either of them (`doctor`).
//!
//! Invariants
//! - What the database named before or after AWS was asked is no orphan: it came or went in between.
//! - Only what the database said of an instance before and after can be missed.
//! - What carries the id of another broker is counted and not named.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::steps::{self, Form};

/// What bears a name in AWS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A bucket.
    Bucket,
    /// An IAM user.
    User,
    /// A managed policy `<name>policy`, as the old broker made them.
    Policy,
}

impl Kind {
    /// The word in a line.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kind::Bucket => "bucket",
            Kind::User => "user",
            Kind::Policy => "policy",
        }
    }
}

/// Whose something is, by its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// It carries the id of this broker.
    Ours,
    /// It carries another id.
    Others,
    /// It carries none.
    Nobodys,
}

impl Mark {
    /// The word in a line.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Mark::Ours => "ours",
            Mark::Others => "another's",
            Mark::Nobodys => "none",
        }
    }

    /// What the tags say to a broker of that id.
    pub(super) fn of(tags: &[(String, String)], broker: &str) -> Mark {
        match tags.iter().find(|(key, _)| key == steps::BROKER_TAG) {
            None => Mark::Nobodys,
            Some((_, id)) if id == broker => Mark::Ours,
            Some(_) => Mark::Others,
        }
    }
}

/// Something in AWS.
#[derive(Debug, Clone)]
pub(super) struct Thing {
    /// What it is.
    pub(super) kind: Kind,
    /// Its name in AWS.
    pub(super) name: String,
    /// Its mark; read only of what the database does not name.
    pub(super) mark: Mark,
}

/// What AWS holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Buckets, users and policies.
    pub(super) things: Vec<Thing>,
    /// The access keys of the users of usable instances.
    pub(super) keys: BTreeMap<String, Vec<String>>,
}

/// An instance that its platform uses, and on which nobody works.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Usable {
    /// The platform's id for it.
    pub(super) id: String,
    /// The name of its bucket and its user.
    pub(super) name: String,
    /// Its access key id.
    pub(super) key: Option<String>,
}

/// What the database says at one moment.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// The broker's id.
    pub(super) broker: String,
    /// All names that belong to an instance or to a task that has not ended.
    pub(super) names: BTreeSet<String>,
    /// The instances whose bucket, user and key must be there.
    pub(super) usable: BTreeSet<Usable>,
}

/// What one side has and the other has not.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// In AWS, with our tag, and not in the database. The name is the one that can be removed, also of a policy.
    Orphan(Kind, String),
    /// The same without a tag, under a name of the old broker's form.
    Untagged(Kind, String),
    /// In the database and not in AWS: `bucket`, `user` or `access_key`.
    Missing(&'static str, Usable),
}

impl Finding {
    /// Whether AWS lacks something: its lists may only be late.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Finding::Missing(..))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Orphan(kind, name) => {
                write!(
                    f,
                    "not in the database: kind={} name={name} tag={}",
                    kind.as_str(),
                    Mark::Ours.as_str()
                )
            }
            Finding::Untagged(kind, name) => write!(
                f,
                "not in the database: kind={} name={name} tag={} \
                 hint=\"may belong to the old broker or to another installation\"",
                kind.as_str(),
                Mark::Nobodys.as_str()
            ),
            Finding::Missing(kind, Usable { id, name, key }) => {
                write!(f, "not in AWS: kind={kind} name={name} instance={id:?}")?;
                match key.as_ref().filter(|_| *kind == "access_key") {
                    Some(key) => write!(f, " key={key}"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// The outcome of a comparison.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// What was found, in the order of AWS' lists and then of the instances' ids.
    pub(super) findings: Vec<Finding>,
    /// Things of our pattern that carry another broker's id.
    pub(super) others: usize,
    /// Things of the pattern of today's names without any tag: nobody can tell whose they are.
    pub(super) unmarked: usize,
}

impl Thing {
    /// The name by which the database would know it, and its form.
    pub(super) fn known_as(&self, prefix: &str) -> Option<(&str, Form)> {
        let name = match self.kind {
            Kind::Bucket | Kind::User => self.name.as_str(),
            Kind::Policy => self.name.strip_suffix("policy")?,
        };
        form_of(name, prefix).filter(|it| self.kind != Kind::Policy || *it == Form::Old).map(|it| (name, it))
    }
}

/// The form of a name; `None`: not one that a broker with this prefix gives.
pub(super) fn form_of(name: &str, prefix: &str) -> Option<Form> {
    Form::read(name).filter(|(of, _)| *of == prefix).map(|(_, form)| form)
}

/// Compares what AWS held with what the database said before and after.
pub(super) fn compare(prefix: &str, held: &Held, before: &Books, after: &Books) -> Report {
    let mut report = Report::default();
    for thing in &held.things {
        let Some((name, form)) = thing.known_as(prefix) else {
            continue;
        };
        if before.names.contains(name) || after.names.contains(name) {
            continue;
        }
        let (kind, name) = (thing.kind, name.to_owned());
        match (thing.mark, form) {
            (Mark::Ours, _) => report.findings.push(Finding::Orphan(kind, name)),
            (Mark::Nobodys, Form::Old) => report.findings.push(Finding::Untagged(kind, name)),
            (Mark::Nobodys, Form::New) => report.unmarked += 1,
            (Mark::Others, _) => report.others += 1,
        }
    }
    let there: BTreeSet<(Kind, &str)> = held.things.iter().map(|it| (it.kind, it.name.as_str())).collect();
    for usable in before.usable.intersection(&after.usable) {
        let keys = held.keys.get(&usable.name).map(Vec::as_slice).unwrap_or_default();
        if !there.contains(&(Kind::Bucket, &usable.name)) {
            report.findings.push(Finding::Missing("bucket", usable.clone()));
        }
        if !there.contains(&(Kind::User, &usable.name)) {
            report.findings.push(Finding::Missing("user", usable.clone()));
        } else if usable.key.as_ref().is_none_or(|key| !keys.contains(key)) {
            report.findings.push(Finding::Missing("access_key", usable.clone()));
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = "tst-u0123456789abcdef";
    const OLD: &str = "tst-u4b36b824";

    /// What, kind, name, mark, names before, names after, the line; of others, left out.
    type Orphan<'a> = (&'a str, Kind, &'a str, Mark, &'a [&'a str], &'a [&'a str], &'a str, usize, usize);
    /// What, things, keys, the key afterwards, the lines.
    type Missed<'a> = (&'a str, &'a [Kind], &'a [&'a str], Option<&'a str>, &'a [&'a str]);

    fn books(names: &[&str], usable: &[(&str, &str, Option<&str>)]) -> Books {
        let usable = usable.iter().map(|(id, name, key)| Usable {
            id: (*id).to_owned(),
            name: (*name).to_owned(),
            key: key.map(str::to_owned),
        });
        let usable: BTreeSet<Usable> = usable.collect();
        let names = names.iter().map(|it| (*it).to_owned());
        let names = names.chain(usable.iter().map(|it| it.name.clone())).collect();
        Books { broker: "id".into(), names, usable }
    }

    fn thing(kind: Kind, name: &str, mark: Mark) -> Thing {
        Thing { kind, name: name.to_owned(), mark }
    }

    #[test]
    fn tags_tell_whose_it_is() {
        let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        for (tags, mark) in [
            (vec![], Mark::Nobodys),
            (vec![tag("instance", "id")], Mark::Nobodys),
            (vec![tag("instance", "a"), tag("servicebroker", "id")], Mark::Ours),
            (vec![tag("servicebroker", "other")], Mark::Others),
            (vec![tag("servicebroker", "")], Mark::Others),
        ] {
            assert_eq!(Mark::of(&tags, "id"), mark, "{tags:?}");
        }
    }

    #[test]
    fn an_orphan_is_what_carries_our_tag_and_has_no_row() {
        let policy = &format!("{OLD}policy");
        #[rustfmt::skip]
        let cases: &[Orphan<'_>] = &[
            ("ours", Kind::Bucket, NEW, Mark::Ours, &[], &[], "kind=bucket name=tst-u0123456789abcdef tag=ours", 0, 0),
            ("ours", Kind::User, OLD, Mark::Ours, &[], &[], "kind=user name=tst-u4b36b824 tag=ours", 0, 0),
            ("named before", Kind::User, NEW, Mark::Ours, &[NEW], &[], "", 0, 0),
            ("named after", Kind::User, NEW, Mark::Ours, &[], &[NEW], "", 0, 0),
            ("another name is no help", Kind::User, NEW, Mark::Ours, &[OLD], &[OLD], "name=tst-u0123456789abcdef tag=ours", 0, 0),
            ("old, untagged", Kind::Bucket, OLD, Mark::Nobodys, &[], &[], "tag=none hint=", 0, 0),
            ("old, untagged, named", Kind::Bucket, OLD, Mark::Nobodys, &[OLD], &[OLD], "", 0, 0),
            ("old policy", Kind::Policy, policy, Mark::Nobodys, &[], &[], "kind=policy name=tst-u4b36b824 tag=none", 0, 0),
            ("policy of a row", Kind::Policy, policy, Mark::Nobodys, &[OLD], &[OLD], "", 0, 0),
            ("no policy of a broker", Kind::Policy, "tst-u0123456789abcdefpolicy", Mark::Nobodys, &[], &[], "", 0, 0),
            ("new, untagged", Kind::User, NEW, Mark::Nobodys, &[], &[], "", 0, 1),
            ("another's", Kind::User, NEW, Mark::Others, &[], &[], "", 1, 0),
            ("another's, old", Kind::Bucket, OLD, Mark::Others, &[], &[], "", 1, 0),
            ("another prefix", Kind::Bucket, "tst2-u4b36b824", Mark::Ours, &[], &[], "", 0, 0),
            ("no name of ours", Kind::Bucket, "tst-uploads", Mark::Ours, &[], &[], "", 0, 0),
        ];
        for (what, kind, name, mark, before, after, found, others, unmarked) in cases {
            let held = Held { things: vec![thing(*kind, name, *mark)], ..Held::default() };
            let report = compare("tst", &held, &books(before, &[]), &books(after, &[]));
            let lines: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
            assert_eq!(lines.len(), usize::from(!found.is_empty()), "{what}: {lines:?}");
            assert!(
                lines.iter().all(|it| it.starts_with("not in the database: ") && it.contains(found)),
                "{what}: {lines:?}"
            );
            assert_eq!((report.others, report.unmarked), (*others, *unmarked), "{what}");
        }
    }

    #[test]
    fn an_instance_misses_what_aws_does_not_hold() {
        let row = ("a1", NEW, Some("AK1"));
        let (bucket, user) = (Kind::Bucket, Kind::User);
        #[rustfmt::skip]
        let cases: &[Missed<'_>] = &[
            ("all there", &[bucket, user], &["AK0", "AK1"], Some("AK1"), &[]),
            ("no bucket", &[user], &["AK1"], Some("AK1"), &["kind=bucket name=tst-u0123456789abcdef instance=\"a1\""]),
            ("no user", &[bucket], &[], Some("AK1"), &["kind=user name=tst-u0123456789abcdef instance=\"a1\""]),
            ("no key", &[bucket, user], &["AK0"], Some("AK1"), &["kind=access_key name=tst-u0123456789abcdef instance=\"a1\" key=AK1"]),
            ("nothing", &[], &[], Some("AK1"), &["kind=bucket", "kind=user"]),
            ("nothing, but the key was replaced meanwhile", &[], &[], Some("AK2"), &[]),
            ("nothing, but the instance went meanwhile", &[], &[], None, &[]),
        ];
        for (what, kinds, keys, after, found) in cases {
            let things = kinds.iter().map(|kind| thing(*kind, NEW, Mark::Nobodys)).collect();
            let keys = keys.iter().map(|it| (*it).to_owned()).collect();
            let held = Held { things, keys: BTreeMap::from([(NEW.to_owned(), keys)]) };
            let after: Vec<_> = after.iter().map(|key| ("a1", NEW, Some(*key))).collect();
            let report = compare("tst", &held, &books(&[], &[row]), &books(&[], &after));
            let lines: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
            assert_eq!(lines.len(), found.len(), "{what}: {lines:?}");
            for (line, found) in lines.iter().zip(*found) {
                assert!(line.starts_with(&format!("not in AWS: {found}")), "{what}: {line}");
            }
        }
    }
}
