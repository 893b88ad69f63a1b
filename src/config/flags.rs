//! The command line, in the forms of Go's `flag` package.

use std::ffi::OsString;

use super::Problem;

/// Flags that take no value unless one is given with `=`.
const BOOLEAN_FLAGS: [&str; 12] = [
    "authenticate-k8s-token",
    "background-tasks",
    "with-worker",
    "insecure",
    "strict-osb",
    "logtostderr",
    "alsologtostderr",
    "delete",
    "yes",
    "with-objects",
    "younger-than-an-hour",
    "untagged",
];

/// Stands before each value, so that pico-args takes empty and quoted ones as they are.
const MARK: char = ':';

/// The command line, in Go's forms.
pub(super) struct Flags {
    /// The first word that is no flag.
    pub(super) subcommand: Option<String>,
    /// The words after it.
    pub(super) words: Vec<String>,
    /// Whether help is asked for by a flag.
    pub(super) help: bool,
    /// The rest, each flag with two dashes and a value.
    arguments: pico_args::Arguments,
}

impl Flags {
    /// Brings `-x`, `--x`, `-x=v` and `-x v` to one form: every flag has two dashes and a value.
    /// After `--` come words only.
    pub(super) fn parse(arguments: Vec<String>, problems: &mut Vec<Problem>) -> Flags {
        let (mut subcommand, mut words, mut help) = (None, Vec::new(), false);
        let mut normalised: Vec<OsString> = Vec::new();
        let mut only_words = false;
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let name = argument.trim_start_matches('-');
            let dashes = argument.len() - name.len();
            if argument.is_empty() {
                continue; // a shell's variable that is not set
            } else if argument == "--" && !only_words {
                only_words = true;
            } else if only_words || dashes == 0 || dashes > 2 || name.is_empty() {
                match subcommand {
                    None => subcommand = Some(argument),
                    Some(_) => words.push(argument),
                }
            } else if matches!(name, "help" | "h") {
                help = true;
            } else if name == "version" {
                subcommand = Some(name.to_owned());
            } else if let Some((name, value)) = name.split_once('=') {
                normalised.push(format!("--{name}={MARK}{value}").into());
            } else if BOOLEAN_FLAGS.contains(&name) {
                normalised.push(format!("--{name}={MARK}true").into());
            } else if let Some(value) = arguments.next() {
                normalised.push(format!("--{name}={MARK}{value}").into());
            } else {
                problems.push(Problem::new(format!("-{}", name.escape_debug()), "needs a value"));
            }
        }
        Flags { subcommand, words, help, arguments: pico_args::Arguments::from_vec(normalised) }
    }

    /// The first word after the sub-command.
    pub(super) fn first_word(&self) -> Option<&str> {
        self.words.first().map(String::as_str)
    }

    /// The value of a flag; the last one given counts, as in Go.
    pub(super) fn value(&mut self, name: &'static str) -> Option<String> {
        let mut last = None;
        while let Ok(Some(value)) = self.arguments.opt_value_from_str::<_, String>(name) {
            last = value.strip_prefix(MARK).map(str::to_owned);
        }
        last
    }

    /// The value of a flag as Go reads booleans.
    pub(super) fn boolean(&mut self, name: &'static str, problems: &mut Vec<Problem>) -> Option<bool> {
        match self.value(name)?.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => {
                problems.push(Problem::new(name, "must be true or false"));
                None
            }
        }
    }

    /// The value of a flag as a number.
    pub(super) fn number<T: std::str::FromStr>(
        &mut self,
        name: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<T> {
        let parsed = self.value(name)?.parse();
        if parsed.is_err() {
            problems.push(Problem::new(name, "must be a number"));
        }
        parsed.ok()
    }

    /// Everything must have been asked for by now.
    pub(super) fn finish(self, problems: &mut Vec<Problem>) {
        for left in self.arguments.finish() {
            let left = left.to_string_lossy().into_owned();
            let name = left.trim_start_matches('-').split('=').next().unwrap_or_default();
            problems.push(Problem::new(format!("-{}", name.escape_debug()), "unknown flag; see help"));
        }
    }
}
