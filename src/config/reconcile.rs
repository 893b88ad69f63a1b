//! `servicebroker reconcile`: its flags and words.

use super::Problem;
use super::flags::Flags;
use super::variables::Reader;

/// What `reconcile` is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Errand {
    /// The names to remove; without any it only reports.
    pub(crate) remove: Vec<String>,
    /// Whether buckets may be emptied.
    pub(crate) with_objects: bool,
    /// Whether nobody is asked.
    pub(crate) yes: bool,
    /// Whether what was made just now may be removed too.
    pub(crate) young: bool,
    /// Whether what does not carry our tag may be removed too.
    pub(crate) untagged: bool,
}

/// What `reconcile --help` prints.
pub(crate) const USAGE: &str = "\
usage: servicebroker reconcile                       report what AWS and the database do not share
       servicebroker reconcile --delete NAME...      remove from AWS what is named and nobody needs

  --delete                  the words are names of users and buckets to remove; each is asked for
  --yes                     do not ask
  --with-objects            empty buckets too, with all versions and unfinished uploads
  --younger-than-an-hour    remove also what was made less than an hour ago
  --untagged                remove also what does not carry this broker's tag
  -database-url, -name-prefix, -v and the logging flags as for the broker

Settings are those of the worker. One line for each finding, on standard output.
Exit code: 0 nothing found, or all removed; 1 findings, or something refused; 2 wrong usage or
settings; 70 AWS or the database could not be asked, or something was not removed to its end.
";

impl<V: Fn(&'static str) -> Option<String>> Reader<'_, V> {
    /// Reads the flags of `reconcile`.
    pub(super) fn errand(&mut self, flags: &mut Flags) -> Errand {
        let deletes = match flags.value("--delete").as_deref() {
            None => false,
            Some("true") => true,
            Some(_) => {
                self.problems.push(Problem::new("--delete", "takes no =; the names follow as words"));
                true
            }
        };
        let mut switch = |name| flags.boolean(name, &mut self.problems).unwrap_or(false);
        let (with_objects, yes) = (switch("--with-objects"), switch("--yes"));
        let (young, untagged) = (switch("--younger-than-an-hour"), switch("--untagged"));
        let remove = std::mem::take(&mut flags.words);
        if deletes && remove.is_empty() {
            self.problems.push(Problem::new("--delete", "needs names; it removes nothing in bulk"));
        }
        if !deletes && (with_objects || yes || young || untagged || !remove.is_empty()) {
            let complaint =
                "names, --yes, --with-objects, --younger-than-an-hour and --untagged go with --delete only";
            self.problems.push(Problem::new("reconcile", complaint));
        }
        Errand { remove, with_objects, yes, young, untagged }
    }
}
