//! The relay as a program, for the tests as a whole and for the sandbox.

#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a program of its own")]

#[path = "mod.rs"]
mod relay;

use std::process::ExitCode;
use std::time::Duration;

use relay::{Fault, Options, Point, Relay, When};

/// What `--help` prints.
const USAGE: &str = "\
Stands between clients of AWS and an emulator of it. Prints its address, then serves until it is ended.

    relay --engine HOST:PORT [OPTION...]

  --listen HOST:PORT       where to listen (a free port of 127.0.0.1)
  --strict                 refuse what AWS refuses and emulators let pass
  --small-pages            give lists in small pages
  --account NUMBER         refuse calls that expect another bucket owner
  --key ID                 a key that exists already, may be repeated; with any, unknown keys are refused
  --verbose                name each call on standard error
  --latency-ms N           each call takes so much longer
  --refuse-new-keys-s N    access keys do not work until they are so old
  --fault POINT=[after:]WHAT
                           break a call, may be repeated. POINT is CreateUser, CreateUser#2 or a number;
                           WHAT is fin, reset, half-body, hang, delay:MS, status:N or an answer of AWS:
";

/// What the command line asks for beside the options.
struct Plan {
    /// How long each call takes more.
    latency: Duration,
    /// How long a new key is unknown.
    refuse_new_keys: Duration,
    /// What goes wrong.
    faults: Vec<(Point, When, Fault)>,
}

/// Reads the command line; `None` when help is wanted.
fn read_arguments() -> Result<Option<(Options, Plan)>, String> {
    let mut arguments = pico_args::Arguments::from_env();
    if arguments.contains(["-h", "--help"]) {
        return Ok(None);
    }
    let wrong = |err: pico_args::Error| err.to_string();
    let plan = Plan {
        latency: Duration::from_millis(
            arguments.opt_value_from_str("--latency-ms").map_err(wrong)?.unwrap_or(0),
        ),
        refuse_new_keys: Duration::from_secs(
            arguments.opt_value_from_str("--refuse-new-keys-s").map_err(wrong)?.unwrap_or(0),
        ),
        faults: arguments.values_from_fn("--fault", read_fault).map_err(wrong)?,
    };
    let options = Options {
        engine: arguments.value_from_str("--engine").map_err(wrong)?,
        listen: arguments.opt_value_from_str("--listen").map_err(wrong)?.unwrap_or_default(),
        account: arguments.opt_value_from_str("--account").map_err(wrong)?.unwrap_or_default(),
        keys: arguments.values_from_str("--key").map_err(wrong)?.into_iter().collect(),
        is_strict: arguments.contains("--strict"),
        has_small_pages: arguments.contains("--small-pages"),
        is_verbose: arguments.contains("--verbose"),
        tls: None,
    };
    match arguments.finish().first() {
        Some(unknown) => Err(format!("unknown argument {}", unknown.display())),
        None => Ok(Some((options, plan))),
    }
}

/// `CreateUser#2=after:reset`.
fn read_fault(text: &str) -> Result<(Point, When, Fault), String> {
    let (point, fault) = text.split_once('=').ok_or("a fault is POINT=WHAT")?;
    let (when, fault) = match fault.strip_prefix("after:") {
        Some(fault) => (When::After, fault),
        None => (When::Before, fault),
    };
    Ok((point.parse()?, when, fault.parse()?))
}

/// Starts the relay and says where it is.
fn start(options: Options, plan: Plan) -> Result<Relay, String> {
    let relay = Relay::start(options).map_err(|err| err.to_string())?;
    relay.slow_down(plan.latency);
    relay.refuse_new_keys(plan.refuse_new_keys);
    for (point, when, fault) in plan.faults {
        relay.plan(point, when, fault);
    }
    println!("{}", relay.endpoint);
    Ok(relay)
}

fn main() -> ExitCode {
    let started = match read_arguments() {
        Ok(None) => {
            print!("{USAGE}");
            for name in relay::names() {
                println!("                             {name}");
            }
            return ExitCode::SUCCESS;
        }
        Ok(Some((options, plan))) => start(options, plan),
        Err(complaint) => Err(complaint),
    };
    if let Err(complaint) = started {
        eprintln!("relay: {complaint}");
        return ExitCode::from(2);
    }
    loop {
        std::thread::park();
    }
}
