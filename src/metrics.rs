//! What a process counts, and the page that shows it.
//!
//! Not here: who serves the page (`http`), what is counted when (`http`, `worker`), the figures of the tables
//! (`census`).
//!
//! Invariants
//! - No label holds an id, a name of a bucket or anything that a tenant or a stranger chose.
//! - Writing the page asks neither the database nor AWS.

mod family;
mod process;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use family::{Counter, Family, Gauge, Histogram, write_gauge};

/// The page's `Content-Type`.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The methods that are told apart.
const METHODS: [&str; 7] = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"];
/// The longest code of AWS that is repeated.
const CODE_BYTES_MAX: usize = 64;
/// Stands for what is not told apart.
const OTHER: &str = "other";

/// All that a process counts.
pub(crate) struct Metrics {
    /// What the process does: `api`, `worker` or `both`.
    role: &'static str,
    /// When it was started, in seconds since 1970.
    started_s: f64,
    /// What platforms asked for.
    actions: Family<Counter>,
    /// Requests that were answered.
    requests: Family<Counter>,
    /// How long they took.
    request_seconds: Family<Histogram>,
    /// What never became a request.
    refusals: Family<Counter>,
    /// Runs of tasks.
    task_runs: Family<Counter>,
    /// How long they took.
    task_run_seconds: Family<Histogram>,
    /// Attempts of calls to AWS.
    aws_calls: Family<Counter>,
    /// How long they took.
    aws_call_seconds: Family<Histogram>,
    /// Those of them that were not the first of their call.
    aws_retries: Family<Counter>,
    /// The figures of the tables.
    of_tables: [Family<Gauge>; 4],
    /// How the last look at the tables went.
    look: Mutex<Look>,
}

/// The last look at the tables.
#[derive(Default)]
struct Look {
    /// Whether the database answered.
    answered: bool,
    /// When the figures were counted, once there are any.
    counted: Option<Instant>,
}

/// A figure of the tables: what was counted, the values of its labels, how many.
pub(crate) struct Figure {
    /// The name of the metric without its prefix.
    pub(crate) what: String,
    /// The values of its labels.
    pub(crate) by: Vec<String>,
    /// The figure.
    pub(crate) value: f64,
}

impl Metrics {
    /// Nothing counted yet.
    #[rustfmt::skip]
    pub(crate) fn new(role: &'static str) -> Metrics {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Metrics {
            role,
            started_s: since_1970.as_secs_f64(),
            actions: Family::new("osb_actions_total", &["action"],
                "Total amount of actions requested."),
            requests: Family::new("servicebroker_http_requests_total", &["route", "method", "status"],
                "Requests that were answered."),
            request_seconds: Family::new("servicebroker_http_request_duration_seconds", &["route", "method"],
                "Time from a whole request to its answer, waits for tasks included."),
            refusals: Family::new("servicebroker_http_refused_total", &["status"],
                "Connections and requests that the door refused; they are no requests_total."),
            task_runs: Family::new("servicebroker_task_runs_total", &["kind", "outcome"],
                "Runs of tasks by this process."),
            task_run_seconds: Family::new("servicebroker_task_run_duration_seconds", &["kind"],
                "Time of a run of a task."),
            aws_calls: Family::new("servicebroker_aws_calls_total", &["service", "operation", "code"],
                "Attempts of calls to AWS by this process; the code is OK, AWS' own, or what came instead of one."),
            aws_call_seconds: Family::new("servicebroker_aws_call_duration_seconds", &["service", "operation"],
                "Time of an attempt of a call to AWS."),
            aws_retries: Family::new("servicebroker_aws_retries_total", &["service", "operation"],
                "Attempts of calls to AWS that were not the first of their call."),
            of_tables: [
                Family::new("servicebroker_tasks", &["kind", "state"],
                    "Tasks in the database."),
                Family::new("servicebroker_oldest_due_task_age_seconds", &[],
                    "How long the task has waited that waits longest for a worker; 0 when none waits."),
                Family::new("servicebroker_deletes_stuck", &[],
                    "Deletes that have failed several times and are still tried."),
                Family::new("servicebroker_instances", &["plan", "status", "claimed"],
                    "Service instances in the database that are not deleted."),
            ],
            look: Mutex::default(),
        }
    }

    /// Lets actions show that nobody has asked for yet.
    pub(crate) fn know_actions(&self, actions: &[&str]) {
        for action in actions {
            self.actions.change(&[action], |_| ());
        }
    }

    /// A platform asks for something.
    pub(crate) fn count_action(&self, action: &str) {
        self.actions.count(&[action]);
    }

    /// A request was answered.
    pub(crate) fn count_request(&self, route: &str, method: &str, status: u16, took: Duration) {
        let method = METHODS.iter().find(|it| **it == method).unwrap_or(&OTHER);
        self.requests.count(&[route, method, &status.to_string()]);
        self.request_seconds.observe(&[route, method], took);
    }

    /// The door sent somebody away.
    pub(crate) fn count_refusal(&self, status: u16) {
        self.refusals.count(&[&status.to_string()]);
    }

    /// Lets runs of tasks show that have not been: the first is then seen to be one more than before.
    pub(crate) fn know_task_runs(&self, kind: &str, outcomes: &[&str]) {
        for outcome in outcomes {
            self.task_runs.change(&[kind, outcome], |_| ());
        }
    }

    /// A task has run.
    pub(crate) fn count_task_run(&self, kind: &str, outcome: &str, took: Duration) {
        self.task_runs.count(&[kind, outcome]);
        self.task_run_seconds.observe(&[kind], took);
    }

    /// AWS was called once. Its code comes from outside and must look like one.
    pub(crate) fn count_aws_call(&self, service: &str, operation: &str, code: &str, took: Duration) {
        let is_code = |it: &str| {
            let of_codes = |it: u8| it.is_ascii_alphanumeric() || b"._-".contains(&it);
            (1..=CODE_BYTES_MAX).contains(&it.len()) && it.bytes().all(of_codes)
        };
        self.aws_calls.count(&[service, operation, if is_code(code) { code } else { OTHER }]);
        self.aws_call_seconds.observe(&[service, operation], took);
    }

    /// A call to AWS is made again.
    pub(crate) fn count_aws_retry(&self, service: &str, operation: &str) {
        self.aws_retries.count(&[service, operation]);
    }

    /// The tables were looked at, and were counted so long ago.
    pub(crate) fn show_tables(&self, age: Duration, figures: &[Figure]) {
        for family in &self.of_tables {
            let is_its = |it: &&Figure| {
                family.name().strip_prefix("servicebroker_") == Some(&it.what)
                    && it.by.len() == family.width()
            };
            family.replace(figures.iter().filter(is_its).map(|it| (it.by.clone(), it.value)));
        }
        *self.look() = Look { answered: true, counted: Instant::now().checked_sub(age) };
    }

    /// The tables could be looked at, but were never counted.
    pub(crate) fn show_no_tables(&self) {
        self.look().answered = true;
    }

    /// The tables could not be looked at; what was known stays.
    pub(crate) fn miss_tables(&self) {
        self.look().answered = false;
    }

    /// The page.
    pub(crate) fn page(&self) -> String {
        let mut out = String::new();
        for family in [&self.actions, &self.requests, &self.refusals, &self.task_runs] {
            family.write(&mut out);
        }
        for family in [&self.aws_calls, &self.aws_retries] {
            family.write(&mut out);
        }
        for family in [&self.request_seconds, &self.task_run_seconds, &self.aws_call_seconds] {
            family.write(&mut out);
        }
        self.write_look(&mut out);
        for family in &self.of_tables {
            family.write(&mut out);
        }
        let build: Family<Gauge> =
            Family::new("servicebroker_build_info", &["version", "role"], "Always 1; says what runs here.");
        build.change(&[env!("CARGO_PKG_VERSION"), self.role], |it| it.0 = 1.0);
        build.write(&mut out);
        let help = "When the process was started, in seconds since 1970.";
        write_gauge(&mut out, "process_start_time_seconds", help, self.started_s);
        process::write(&mut out);
        out
    }

    /// Writes what is known of the database itself.
    fn write_look(&self, out: &mut String) {
        let look = self.look();
        let help = "1 when the last look at the database, some seconds ago, succeeded; else 0.";
        write_gauge(out, "servicebroker_database_up", help, u8::from(look.answered));
        if let Some(counted) = look.counted {
            let help = "Time since tasks and instances were counted for all processes.";
            write_gauge(out, "servicebroker_census_age_seconds", help, counted.elapsed().as_secs_f64());
        }
    }

    /// The last look. A panic elsewhere cannot leave it half changed.
    fn look(&self) -> MutexGuard<'_, Look> {
        self.look.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the page has this line.
    fn has(metrics: &Metrics, line: &str) -> bool {
        metrics.page().lines().any(|it| it == line)
    }

    #[test]
    fn what_strangers_choose_is_no_label() {
        let metrics = Metrics::new("both");
        for method in ["GET", "GETS", "hush\"} 1\n"] {
            metrics.count_request("unknown", method, 404, Duration::ZERO);
        }
        for code in ["SlowDown", "Http503", "", "a b", "hush\n", &"x".repeat(65)] {
            metrics.count_aws_call("s3", "CreateBucket", code, Duration::ZERO);
        }
        let page = metrics.page();
        assert!(!page.contains("hush") && !page.contains("xxx"), "{page}");
        for line in [
            "servicebroker_http_requests_total{route=\"unknown\",method=\"GET\",status=\"404\"} 1",
            "servicebroker_http_requests_total{route=\"unknown\",method=\"other\",status=\"404\"} 2",
            "servicebroker_aws_calls_total{service=\"s3\",operation=\"CreateBucket\",code=\"SlowDown\"} 1",
            "servicebroker_aws_calls_total{service=\"s3\",operation=\"CreateBucket\",code=\"other\"} 4",
        ] {
            assert!(has(&metrics, line), "{line} is not in:\n{page}");
        }
    }

    #[test]
    fn figures_of_the_tables_stay_when_the_database_goes() {
        let metrics = Metrics::new("api");
        assert!(has(&metrics, "servicebroker_database_up 0"));
        assert!(!metrics.page().contains("census_age"), "nothing was counted yet");
        let figure = |what: &str, by: &[&str], value| Figure {
            what: what.to_owned(),
            by: by.iter().map(|it| (*it).to_owned()).collect(),
            value,
        };
        let stuck = figure("deletes_stuck", &[], 2.0);
        let figures = [
            figure("tasks", &["delete", "pending"], 3.0),
            stuck,
            figure("tasks", &["delete"], 9.0),
            figure("of_a_later_version", &[], 9.0),
        ];
        metrics.show_tables(Duration::from_secs(40), &figures);
        metrics.miss_tables();
        assert!(has(&metrics, "servicebroker_database_up 0"));
        assert!(has(&metrics, "servicebroker_tasks{kind=\"delete\",state=\"pending\"} 3"));
        assert!(has(&metrics, "servicebroker_deletes_stuck 2"));
        assert!(!metrics.page().contains(" 9\n"), "{}", metrics.page());
        metrics.show_tables(Duration::ZERO, &[]);
        assert!(has(&metrics, "servicebroker_database_up 1"));
        assert!(!metrics.page().contains("servicebroker_tasks"), "what is not there any more goes");
    }
}
