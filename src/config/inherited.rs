//! Flags and variables of the old binary that this one reads only to say what has become of them.
//!
//! Nothing that would leave a site less protected than its operator believes is passed over:
//! that is a problem. What merely has no effect is told once, at the start.
//!
//! Sources: the old binary's `-help`; golang/glog, "flags"; the old README, "Debugging".

use super::Problem;
use super::flags::Flags;
use super::variables::Reader;

/// Flags that come in pairs: a certificate and its key.
const TLS_PAIRS: [(&str, &str); 2] =
    [("--tls-cert-file", "--tls-private-key-file"), ("--tlsCert", "--tlsKey")];
/// glog's flags that have a value and no effect here: the log goes to standard error.
const GLOG_FLAGS: [&str; 3] = ["--vmodule", "--log_dir", "--log_backtrace_at"];
/// The same as variables.
const GLOG_VARIABLES: [&str; 4] =
    ["GLOG_alsologtostderr", "GLOG_vmodule", "GLOG_log_dir", "GLOG_log_backtrace_at"];

impl<V: Fn(&'static str) -> Option<String>> Reader<'_, V> {
    /// The log level: `-v`, or else `GLOG_v`.
    pub(super) fn verbosity(&mut self, flags: &mut Flags) -> u8 {
        let flag = flags.number::<i64>("--v", &mut self.problems);
        let level = flag.unwrap_or_else(|| self.number("GLOG_v", 0, i64::MIN, i64::MAX));
        u8::try_from(level.clamp(0, 2)).unwrap_or(0)
    }

    /// Certificate and key for the port, and the users of a Kubernetes cluster. Says what has no effect.
    pub(super) fn door_of_the_old_broker(&mut self, flags: &mut Flags) -> Vec<String> {
        let mut said = Vec::new();
        for (certificate, key) in TLS_PAIRS {
            let mut is_set = |name| flags.value(name).is_some_and(|it| !it.is_empty());
            match (is_set(certificate), is_set(key)) {
                (true, true) => said.push(format!(
                    "{certificate} and {key} have no effect: -insecure is on by default, and this version serves \
                     plain HTTP only"
                )),
                (false, false) => {}
                (true, false) => self.missing(key, certificate),
                (false, true) => self.missing(certificate, key),
            }
        }
        if flags.boolean("--authenticate-k8s-token", &mut self.problems) == Some(true) {
            let complaint = "this version cannot ask Kubernetes, so no token would be checked; set BROKER_TOKEN, \
                or BROKER_USERNAME and BROKER_PASSWORD, instead";
            self.problems.push(Problem::new("--authenticate-k8s-token", complaint));
        }
        if flags.value("--kube-config").is_some_and(|it| !it.is_empty()) {
            said.push("--kube-config has no effect: this version asks no Kubernetes".to_owned());
        }
        said
    }

    /// Half of a pair.
    fn missing(&mut self, name: &str, other: &str) {
        self.problems.push(Problem::new(name, format!("is missing, {other} is set")));
    }

    /// Where the old binary logged and sent its profiles. Says what has no effect.
    pub(super) fn log_of_the_old_broker(&mut self, flags: &mut Flags) -> Vec<String> {
        let (mut idle, mut said) = (Vec::new(), Vec::new());
        flags.boolean("--logtostderr", &mut self.problems); // as it is, whatever it says
        flags.value("--stderrthreshold");
        if flags.boolean("--alsologtostderr", &mut self.problems) == Some(true) {
            idle.push("--alsologtostderr");
        }
        idle.extend(GLOG_FLAGS.into_iter().filter(|name| flags.value(name).is_some_and(|it| !it.is_empty())));
        idle.extend(GLOG_VARIABLES.into_iter().filter(|name| self.optional(name).is_some()));
        if !idle.is_empty() {
            said.push(format!("the log goes to standard error; without effect: {}", idle.join(", ")));
        }
        if self.optional("STACKIMPACT").is_some() {
            said.push(
                "STACKIMPACT has no effect: that service does not exist any more; see GET /metrics"
                    .to_owned(),
            );
        }
        said
    }
}
