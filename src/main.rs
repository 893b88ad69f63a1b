//! `servicebroker`: sells S3 buckets through the Open Service Broker API.
//!
//! Arguments and environment become a [`Config`]; from it come an api, a worker, or both. This file
//! alone reads the environment and ends the process. See README, "Architecture", for the rooms.

mod aws;
mod broker;
mod census;
mod config;
mod doctor;
mod event;
mod http;
mod metrics;
mod osb;
mod outgoing;
mod random;
mod steps;
mod store;
mod tls;
mod worker;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use config::{Command, Config, Errand, Problem, WorkerConfig};
use event::Event;
use http::Api;
use metrics::Metrics;
use outgoing::Outgoing;
use store::{Store, Target};
use worker::{Limits, Outfit, Webhooks, Worker};

/// A command has found something, or refused something.
const EXIT_FINDINGS: u8 = 1;
/// The settings are wrong (sysexits' EX_USAGE is taken by shells; 2 is what flag parsers use).
const EXIT_USAGE: u8 = 2;
/// Something that must live has died; the supervisor shall start the process again.
const EXIT_BROKEN: u8 = 70;
/// How long requests may take to end after SIGTERM.
const FINISH_TIMEOUT: Duration = Duration::from_secs(20);
/// How soon the tables are tried again while the database is away.
const SCHEMA_RETRY: Duration = Duration::from_secs(1);

/// Why the process ends.
enum End {
    /// A signal asked for it.
    Asked,
    /// It cannot go on.
    Broken(String),
}

fn main() -> ExitCode {
    let mut not_text = Vec::new();
    let mut arguments = std::env::args_os().enumerate().map(|(number, it)| {
        it.into_string().unwrap_or_else(|_| {
            not_text.push(Problem::new(format!("argument {number}"), "is not UTF-8"));
            String::new()
        })
    });
    let program = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments.collect();
    let not_text = std::cell::RefCell::new(not_text);
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    let variable = |name: &'static str| {
        let text = std::env::var_os(name)?.into_string();
        text.map_err(|_| not_text.borrow_mut().push(Problem::new(name, "is not UTF-8"))).ok()
    };
    let (command, mut problems) = config::parse(&program, arguments, variable);
    let mut not_text = not_text.into_inner();
    problems.retain(|it| not_text.iter().all(|other| other.setting != it.setting));
    problems.append(&mut not_text);
    let (config, errand) = match command {
        Command::Version => return print(concat!("servicebroker/", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Help(text) => return print(text),
        Command::Run(config) => (*config, None),
        Command::Reconcile(config, errand) => (*config, Some(errand)),
    };
    let cert_file = config.ssl_cert_file.as_deref().map(Path::new);
    let mut keep = |problem: Problem| {
        if problems.iter().all(|it| it.setting != problem.setting) {
            problems.push(problem);
        }
    };
    let target = Target::parse(&config.database_url, config.statement_timeout, cert_file);
    let target = target.map_err(|complaint| keep(Problem::new("DATABASE_URL", complaint))).ok();
    let shop = config.worker.as_ref().map(|it| outfit(it, &config.name_prefix, cert_file));
    let shop = shop.and_then(|made| made.map_err(&mut keep).ok());
    let webhooks = config.worker.as_ref().map(|it| webhooks(it, cert_file));
    let webhooks = webhooks.and_then(|made| made.map_err(&mut keep).ok());
    let Some(target) = target.filter(|_| problems.is_empty()) else {
        for problem in problems {
            eprintln!("servicebroker: {problem}");
        }
        return ExitCode::from(EXIT_USAGE);
    };
    if let Err(complaint) = start_logging(config.verbosity) {
        eprintln!("servicebroker: {complaint}");
        return ExitCode::from(EXIT_BROKEN);
    }
    config.warnings.iter().for_each(|it| log::warn!("{it}"));
    let ended = match errand {
        Some(errand) => reconcile(&config, target, shop, &errand),
        None => {
            let shop = shop.zip(webhooks);
            let outfit = shop.map(|((aws, settings), webhooks)| Outfit { aws, settings, webhooks });
            run(config, target, outfit).map(|()| true)
        }
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FINDINGS),
        Err(complaint) => {
            log::error!("process ends: cause={complaint}");
            ExitCode::from(EXIT_BROKEN)
        }
    }
}

/// Prints what was asked for.
fn print(text: &str) -> ExitCode {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(EXIT_BROKEN),
    }
}

/// Sends our own lines to standard error. Of others only warnings: they may log URLs, and a signed
/// URL is a key for minutes.
fn start_logging(verbosity: u8) -> Result<(), String> {
    let level = match verbosity {
        0 => log::LevelFilter::Info,
        1 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    };
    let logger = simple_logger::SimpleLogger::new()
        .with_level(log::LevelFilter::Warn)
        .with_module_level("servicebroker", level);
    log::set_max_level(logger.max_level());
    log::set_boxed_logger(Box::new(Steadfast(logger))).map_err(|err| err.to_string())
}

/// A logger that panics when nobody reads standard error, kept from doing so: the work goes on.
struct Steadfast(simple_logger::SimpleLogger);

impl log::Log for Steadfast {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        let logged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.0.log(record)));
        drop(logged); // there is no place left to tell of it
    }

    fn flush(&self) {}
}

/// What a worker needs beside the database.
fn outfit(
    config: &WorkerConfig,
    name_prefix: &str,
    cert_file: Option<&Path>,
) -> Result<(aws::Aws, steps::Settings), Problem> {
    let text = |it: &Option<String>| it.clone();
    let roots = match (&config.ca_bundle, cert_file) {
        (Some(bundle), _) => tls::roots_from_file(Path::new(bundle))
            .map_err(|err| Problem::new("AWS_CA_BUNDLE", err.to_string()))?,
        (None, Some(file)) => {
            tls::system_roots(Some(file)).map_err(|err| Problem::new("SSL_CERT_FILE", err.to_string()))?
        }
        (None, None) => tls::system_roots(None).unwrap_or_default(), // none is needed for plain HTTP
    };
    let aws = aws::Aws::new(aws::Settings {
        region: config.region.clone(),
        endpoint_url: text(&config.endpoint_url),
        endpoint_url_s3: text(&config.endpoint_url_s3),
        endpoint_url_iam: text(&config.endpoint_url_iam),
        endpoint_url_sts: text(&config.endpoint_url_sts),
        roots,
        call_deadline: worker::call_deadline(config.lease),
        max_idle_per_host: config.threads,
        key_sources: config.key_sources.clone(),
    });
    let aws = aws.map_err(|err| Problem::new(err.variable(), err.to_string()))?;
    let settings = steps::Settings {
        account_id: text(&config.account_id),
        name_prefix: name_prefix.to_owned(),
        kms_key_id: text(&config.kms_key_id),
        iam_path: text(&config.iam_path),
        iam_permissions_boundary: text(&config.iam_permissions_boundary),
        provision_deadline: config.provision_deadline,
        rotation_grace: config.rotation_grace,
    };
    Ok((aws, settings))
}

/// What a worker needs to call webhooks. Whom it trusts there is the system's affair, not AWS'.
fn webhooks(config: &WorkerConfig, cert_file: Option<&Path>) -> Result<Webhooks, Problem> {
    let roots = match cert_file {
        _ if config.webhook_hosts.is_empty() => Vec::new(), // none is called
        Some(_) => {
            tls::system_roots(cert_file).map_err(|err| Problem::new("SSL_CERT_FILE", err.to_string()))?
        }
        None => tls::system_roots(None).unwrap_or_default(), // none is needed for plain HTTP
    };
    let (hosts, retry) = (config.webhook_hosts.clone(), config.retry_webhooks);
    Ok(Webhooks { outgoing: Outgoing::new(&roots), hosts, retry })
}

/// Compares AWS with the database, or removes what was named; true when all is well.
fn reconcile(
    config: &Config,
    target: Target,
    shop: Option<(aws::Aws, steps::Settings)>,
    errand: &Errand,
) -> Result<bool, String> {
    let (aws, settings) = shop.ok_or("no settings of a worker")?;
    let store = Store::new(target, config.database_connections, config.statement_timeout);
    let doctor = doctor::Doctor { store: &store, aws: &aws, settings: &settings };
    doctor.reconcile(errand, &mut std::io::stdout()).map_err(|err| err.to_string())
}

/// Runs what the settings ask for until a signal comes.
fn run(config: Config, target: Target, outfit: Option<Outfit>) -> Result<(), String> {
    let (ended, end) = mpsc::channel();
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|err| err.to_string())?;
    let asked = ended.clone();
    spawn("signals", move || {
        if signals.forever().next().is_some() && asked.send(End::Asked).is_err() {
            log::debug!("signal came after the end");
        }
    })?;
    let (stop, ready) = (Arc::new(Event::default()), Arc::new(Event::default()));
    let store = Store::new(target, config.database_connections, config.statement_timeout);
    let (tables, tables_ready, tables_stop) = (store.clone(), Arc::clone(&ready), Arc::clone(&stop));
    spawn("schema", move || prepare_database(&tables, &tables_ready, &tables_stop))?;
    let metrics = start_metrics(&config, &store, &ready, &stop)?;
    let worker = match (outfit, config.worker) {
        (Some(outfit), Some(worker)) => {
            log::info!("working: region={} threads={}", worker.region, worker.threads);
            let limits = Limits { threads: worker.threads, lease: worker.lease };
            Some(Worker::start(store.clone(), outfit, limits, &ready, &stop, &metrics)?)
        }
        (_, _) => None,
    };
    let give_up = move |cause: &str| {
        if ended.send(End::Broken(cause.to_owned())).is_err() {
            log::debug!("server ended after the process: cause={cause}");
        }
    };
    let api = config
        .api
        .map(|api| Api::start(store, config.name_prefix, api, &ready, &stop, &metrics, give_up))
        .transpose()?;
    if let Some(api) = &api {
        log::info!("listening: address={}", api.address);
    }
    let end = end.recv().unwrap_or(End::Asked);
    log::info!("stopping");
    stop.set();
    if let Some(api) = api {
        api.finish(FINISH_TIMEOUT);
    }
    if let Some(worker) = worker {
        worker.finish();
    }
    match end {
        End::Asked => Ok(()),
        End::Broken(cause) => Err(cause),
    }
}

/// What is counted from now on, and the port where it is shown if there is one.
fn start_metrics(
    config: &Config,
    store: &Store,
    ready: &Arc<Event>,
    stop: &Arc<Event>,
) -> Result<Arc<Metrics>, String> {
    let metrics = Arc::new(Metrics::new(match (&config.api, &config.worker) {
        (Some(_), Some(_)) => "both",
        (Some(_), None) => "api",
        (None, _) => "worker",
    }));
    if let Some(wanted) = config.metrics_address {
        let address = http::serve_metrics(wanted, Arc::clone(&metrics))?;
        log::info!("metrics: address={address}");
    }
    let (store, ready, stop, shown) =
        (store.clone(), Arc::clone(ready), Arc::clone(stop), Arc::clone(&metrics));
    spawn("census", move || census::keep(&store, &shown, &ready, &stop))?;
    Ok(metrics)
}

/// Creates or upgrades the tables, as often as it takes until the database is there.
fn prepare_database(store: &Store, ready: &Event, stop: &Event) {
    while !stop.is_set() {
        match store.ensure_schema() {
            Ok(changed) => {
                log::info!("database ready: tables_changed={changed}");
                ready.set();
                return look_for_the_old_broker(store);
            }
            Err(err) => log::warn!("database not ready: cause={err}"),
        }
        stop.wait(SCHEMA_RETRY);
    }
}

/// Warns when the old broker may be at work beside this one: its sessions have no name.
fn look_for_the_old_broker(store: &Store) {
    match store.nameless_sessions() {
        Ok(0) => {}
        Ok(sessions) => log::warn!(
            "others use the database with the broker's role; is the old broker stopped? sessions={sessions}"
        ),
        Err(err) => log::warn!("sessions not looked at: cause={err}"),
    }
}

/// Starts a thread that lives as long as the process.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop).map_err(|err| format!("no thread for {name}: {err}"))
}
