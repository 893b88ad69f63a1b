//! Stands between clients of AWS and an emulator of it: names and counts the calls, refuses what AWS would refuse and
//! the emulator does not, and breaks calls on request.
//!
//! Requests go on byte for byte, since the emulator computes their signatures again; answers are read whole and
//! passed on, so that they can be broken in a chosen way.

#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a tool of the tests, of which each of its users needs a part; where it cannot go on, the test fails"
)]

mod account;
mod call;
mod faults;
mod pages;
mod policy;
mod refusal;
mod strict;
mod stuffing;
mod tls;
mod weather;
mod wire;

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use account::Account;
use call::Call;
pub(crate) use faults::{Fault, Point, When, names};
use refusal::Refusal;
use stuffing::Stuffing;
pub(crate) use tls::Authority;
pub(crate) use weather::Weather;
use wire::{Answer, Request};

/// How long the emulator may take for an answer.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a silent client keeps its connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// How a relay is set up.
#[derive(Default)]
pub(crate) struct Options {
    /// `host:port` of what it forwards to.
    pub(crate) engine: String,
    /// Where it listens; a free port of 127.0.0.1 when empty.
    pub(crate) listen: String,
    /// The account's number, for the checks of owners.
    pub(crate) account: String,
    /// Keys that exist from the beginning. With any, unknown keys are refused.
    pub(crate) keys: HashSet<String>,
    /// Whether calls are checked as AWS would, beyond what the emulator does.
    pub(crate) is_strict: bool,
    /// Whether lists come in small pages.
    pub(crate) has_small_pages: bool,
    /// Encrypts the connections of clients.
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    /// Whether each call is written to standard error.
    pub(crate) is_verbose: bool,
}

/// A running relay. Its threads end with the process.
pub(crate) struct Relay {
    /// Where clients find it.
    pub(crate) endpoint: String,
    /// What its threads share.
    shared: Arc<Shared>,
}

/// What the threads of a relay share.
struct Shared {
    /// How it is set up.
    options: Options,
    /// What changes.
    state: Mutex<State>,
    /// Signalled when something planned happens.
    changed: Condvar,
}

/// What changes in a relay.
#[derive(Default)]
struct State {
    /// Names of the calls, in order.
    calls: Vec<String>,
    /// How many of each name.
    counts: HashMap<String, usize>,
    /// What is to go wrong.
    plans: Vec<(Point, When, Fault)>,
    /// How often something went wrong so far.
    struck: usize,
    /// What was held goes on.
    released: bool,
    /// How long a new key is unknown.
    refuse_new_keys: Duration,
    /// How long each call takes more.
    latency: Duration,
    /// Calls that no right client makes.
    violations: Vec<String>,
    /// What AWS would know.
    account: Account,
    /// What goes wrong by chance.
    weather: Option<Weather>,
    /// Buckets with more in them than the emulator holds.
    stuffed: HashMap<String, Stuffing>,
}

impl Relay {
    /// Starts one.
    pub(crate) fn start(mut options: Options) -> io::Result<Relay> {
        options.engine.parse::<SocketAddr>().map_err(io::Error::other)?;
        let listen = if options.listen.is_empty() { "127.0.0.1:0" } else { &options.listen };
        let listener = TcpListener::bind(listen)?;
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let endpoint = format!("{scheme}://{}", listener.local_addr()?);
        let account = Account::new(options.account.clone(), std::mem::take(&mut options.keys));
        let state = Mutex::new(State { account, ..State::default() });
        let shared = Arc::new(Shared { options, state, changed: Condvar::new() });
        let accepted = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&accepted);
                std::thread::spawn(move || shared.serve(client));
            }
        });
        Ok(Relay { endpoint, shared })
    }

    /// From now on `fault` happens at `point`.
    pub(crate) fn plan(&self, point: Point, when: When, fault: Fault) {
        self.shared.lock().plans.push((point, when, fault));
    }

    /// From now on things go wrong by chance, and nothing is fast.
    pub(crate) fn turn(&self, weather: Weather) {
        self.shared.lock().weather = Some(weather);
    }

    /// Nothing more goes wrong.
    pub(crate) fn calm_down(&self) {
        let mut state = self.shared.lock();
        state.plans.clear();
        state.weather = None;
        state.refuse_new_keys = Duration::ZERO;
        state.latency = Duration::ZERO;
    }

    /// Lets answers go that are held.
    pub(crate) fn release(&self) {
        self.shared.lock().released = true;
        self.shared.changed.notify_all();
    }

    /// Begins to count anew.
    pub(crate) fn count_anew(&self) {
        let mut state = self.shared.lock();
        state.calls.clear();
        state.counts.clear();
    }

    /// From now on access keys do not work until they are so old.
    pub(crate) fn refuse_new_keys(&self, age: Duration) {
        self.shared.lock().refuse_new_keys = age;
    }

    /// From now on each call takes so much longer.
    pub(crate) fn slow_down(&self, latency: Duration) {
        self.shared.lock().latency = latency;
    }

    /// From now on the bucket has so many versions in it, beside what the emulator knows.
    pub(crate) fn stuff(&self, bucket: &str, versions: u32) {
        self.shared.lock().stuffed.insert(bucket.to_owned(), Stuffing::new(versions));
    }

    /// How many of them are left.
    pub(crate) fn stuffing_left(&self, bucket: &str) -> usize {
        self.shared.lock().stuffed.get(bucket).map_or(0, Stuffing::left)
    }

    /// Waits until something planned has happened so often.
    pub(crate) fn wait_until_struck(&self, times: usize, limit: Duration) {
        let state = self.shared.lock();
        let waited = self.shared.changed.wait_timeout_while(state, limit, |it| it.struck < times).unwrap();
        assert!(!waited.1.timed_out(), "not struck: {:?} of {:?}", waited.0.plans, waited.0.calls);
    }

    /// How often something planned has happened.
    pub(crate) fn struck(&self) -> usize {
        self.shared.lock().struck
    }

    /// Names of all calls so far.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.shared.lock().calls.clone()
    }

    /// Calls that no right client makes, and why.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.shared.lock().violations.clone()
    }
}

/// Both directions of a connection, the one to read buffered.
struct Duplex<S: Read>(BufReader<S>);

impl<S: Read> Read for Duplex<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl<S: Read> BufRead for Duplex<S> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.0.consume(count);
    }
}

impl<S: Read + Write> Write for Duplex<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.get_mut().flush()
    }
}

/// What is planned for a call.
struct Planned {
    /// Before AWS sees the call, or after.
    when: When,
    /// What happens.
    fault: Fault,
}

impl Shared {
    /// What changes, for a moment.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Serves a connection to its end.
    fn serve(&self, socket: TcpStream) {
        let served = socket.set_read_timeout(Some(IDLE_TIMEOUT)).and_then(|()| {
            socket.set_nodelay(true)?;
            let raw = socket.try_clone()?;
            match &self.options.tls {
                None => self.answer_all(Duplex(BufReader::new(socket)), &raw),
                Some(config) => {
                    let session =
                        rustls::ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
                    let stream = rustls::StreamOwned::new(session, socket);
                    self.answer_all(Duplex(BufReader::new(stream)), &raw)
                }
            }
        });
        if let Err(err) = served
            && self.options.is_verbose
        {
            eprintln!("relay: connection ended: {err}"); // clients that are killed are what some tests are about
        }
    }

    /// One request after the other.
    fn answer_all(&self, mut client: Duplex<impl Read + Write>, raw: &TcpStream) -> io::Result<()> {
        while let Some(request) = Request::read(&mut client)? {
            let call = Call::read(&request);
            let plans = self.register(&call);
            let latency = self.lock().latency;
            std::thread::sleep(latency); // it stands for a network
            let planned = |when: When| plans.iter().filter(move |it| it.when == when);
            let mut broken = None;
            for plan in planned(When::Before) {
                broken = self.strike(&plan.fault, None, &call, &request).or(broken);
            }
            if broken.is_none() {
                let mut answer = self.answer(&call, &request)?;
                if self.options.has_small_pages {
                    pages::shorten(&call, &mut answer);
                }
                self.lock().account.learn(&call, &answer);
                broken = Some(Outcome::Answer(answer.clone()));
                for plan in planned(When::After) {
                    broken = self.strike(&plan.fault, Some(&answer), &call, &request).or(broken);
                }
            }
            match broken {
                Some(Outcome::Answer(answer)) => client.write_all(&answer.to_bytes(request.method()))?,
                Some(Outcome::Part(bytes)) => {
                    client.write_all(&bytes)?;
                    client.flush()?;
                    return raw.shutdown(Shutdown::Both);
                }
                Some(Outcome::Reset) => {
                    return socket2::SockRef::from(raw).set_linger(Some(Duration::ZERO));
                }
                // Held open until the client gives up or dies: the worst that a network can do.
                Some(Outcome::Silence) | None => {
                    return io::copy(&mut &*raw, &mut io::sink()).map(drop);
                }
            }
            client.flush()?;
        }
        Ok(())
    }

    /// Counts a call; what is planned for it.
    fn register(&self, call: &Call) -> Vec<Planned> {
        let mut state = self.lock();
        state.calls.push(call.operation.clone());
        let number = state.calls.len();
        let count = state.counts.entry(call.operation.clone()).or_default();
        *count += 1;
        let occurrence = *count;
        if self.options.is_verbose {
            let about = call.bucket.as_deref().unwrap_or_else(|| call.user());
            eprintln!("relay: {}#{occurrence} {about}", call.operation);
        }
        let meant = state.plans.iter().filter(|(point, _, _)| point.is(&call.operation, number, occurrence));
        let mut plans: Vec<Planned> =
            meant.map(|(_, when, fault)| Planned { when: *when, fault: fault.clone() }).collect();
        if let Some(weather) = &mut state.weather {
            let of_weather = weather.strike(call);
            plans.extend(of_weather.into_iter().map(|(when, fault)| Planned { when, fault }));
        }
        plans
    }

    /// Lets a planned fault happen; `None` when the call goes on after it.
    fn strike(
        &self,
        fault: &Fault,
        answer: Option<&Answer>,
        call: &Call,
        request: &Request,
    ) -> Option<Outcome> {
        self.lock().struck += 1;
        self.changed.notify_all();
        match fault {
            Fault::Replay(name) => Some(Outcome::Answer(faults::replay(name, call, &request.body))),
            Fault::Status(status, body) => Some(Outcome::Answer(Answer::new(*status, &[], body.as_str()))),
            Fault::Delay(delay) => {
                std::thread::sleep(*delay);
                None
            }
            Fault::Hold => {
                drop(self.changed.wait_while(self.lock(), |it| !it.released).unwrap());
                None
            }
            Fault::Fin => Some(Outcome::Part(Vec::new())),
            Fault::Reset => Some(Outcome::Reset),
            Fault::HalfBody => {
                let none = Answer::new(200, &[], "<Half/>");
                let answer = answer.unwrap_or(&none);
                let whole = answer.to_bytes(request.method());
                let end = whole.len() - answer.body.len().div_ceil(2).max(1);
                Some(Outcome::Part(whole[..end].to_vec()))
            }
            Fault::Hang => Some(Outcome::Silence),
        }
    }

    /// What AWS would answer.
    fn answer(&self, call: &Call, request: &Request) -> io::Result<Answer> {
        if let Err(refusal) = self.check(call, request) {
            if refusal.is_violation {
                let text = format!("{}: {} {}", call.operation, refusal.code, refusal.message);
                eprintln!("relay: VIOLATION {text}");
                self.lock().violations.push(text);
            }
            return Ok(refusal.to_answer(call));
        }
        let stuffing = call.bucket.as_ref().and_then(|bucket| {
            self.lock().stuffed.get_mut(bucket).and_then(|it| it.answer(call, &request.body))
        });
        match stuffing {
            Some(answer) => Ok(answer),
            None => self.forward(request).inspect_err(|err| {
                eprintln!("relay: no answer from the emulator: {}: {err}", call.operation);
            }),
        }
    }

    /// What stands in the way of a call before the emulator sees it.
    fn check(&self, call: &Call, request: &Request) -> Result<(), Refusal> {
        let state = self.lock();
        let age = call.access_key.as_deref().and_then(|it| state.account.age(it));
        if age.is_some_and(|it| it < state.refuse_new_keys) {
            let message = "The AWS Access Key Id you provided does not exist in our records.";
            return Err(Refusal::fair(403, account::unknown_key(call), message));
        }
        if !self.options.is_strict {
            return Ok(());
        }
        strict::check(call, request, &state.account)?;
        state.account.check(call, request)
    }

    /// The emulator's answer.
    fn forward(&self, request: &Request) -> io::Result<Answer> {
        let address: SocketAddr = self.options.engine.parse().map_err(io::Error::other)?;
        let engine = TcpStream::connect(address)?;
        engine.set_read_timeout(Some(ENGINE_TIMEOUT))?;
        let mut engine = Duplex(BufReader::new(engine));
        let encrypted: &[_] =
            if self.options.tls.is_some() { &[("X-Forwarded-Proto", "https")] } else { &[] };
        request.write(&mut engine, encrypted)?;
        Answer::read(&mut engine, request.method())
    }
}

/// How a call ends.
enum Outcome {
    /// With an answer.
    Answer(Answer),
    /// With these bytes, and the connection with them.
    Part(Vec<u8>),
    /// With a reset.
    Reset,
    /// Not at all.
    Silence,
}
