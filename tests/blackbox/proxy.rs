//! A test double before PostgreSQL: names, counts and records the statements, and disturbs them or the
//! connections that they come on.
//!
//! It reads the frontend's messages one by one, without TLS. A statement counts when it is about to be
//! executed: a simple Query is one, an Execute is one. What is held back is passed on in whole messages,
//! and what prepares an Execute together with it, so that "before" means that nothing reached the server.
//!
//! Source: PostgreSQL manual, "Frontend/Backend Protocol" ("Message Flow", "Message Formats").

mod statement;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

pub(crate) use statement::{Filter, Statement, steps_of_a_request, steps_of_a_task};

/// What the proxy does with all that comes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Mood {
    /// Passes it on.
    Open,
    /// Keeps it until the mood is another.
    Held,
    /// Swallows it; a connection that it came on stays silent for ever.
    Frozen,
    /// Has cut all connections, and cuts each new one.
    Down,
    /// Passes on each statement so much later.
    Slow(Duration),
}

/// What happens at a [`Point`], once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    /// The connection is cut; the statement never reaches the server.
    Before,
    /// The server carries it out; the connection is cut instead of answering.
    After,
    /// It reaches the server so much later.
    Delay(Duration),
    /// It never reaches the server; from here on the connection is silent for ever.
    Hang,
    /// The server carries it out; instead of answering, the connection is silent for ever.
    Swallow,
    /// It reaches the server when [`Proxy::release`] says so.
    Hold,
    /// The server carries it out; its answer comes when [`Proxy::release`] says so.
    HoldAnswer,
}

/// One of the statements that count.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Point {
    /// By name and occurrence, as `commit#2`, counted from 1.
    Name(String),
    /// By its place among all, counted from 1.
    Number(usize),
}

/// A running proxy. All its sockets end with it.
pub(crate) struct Proxy {
    url: String,
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    mood: Mood,
    /// The proxy is gone.
    ended: bool,
    /// Without one, all statements count.
    filter: Option<Filter>,
    statements: Vec<Statement>,
    armed: Option<(Point, Fault)>,
    struck: bool,
    released: bool,
    links: Vec<Arc<Link>>,
    /// Clients that came while all was swallowed: the server never hears of them. A server process that
    /// waits for a start-up message would hold up `drop database`.
    unheard: Vec<TcpStream>,
}

/// A client's connection and its own to the server.
struct Link {
    number: usize,
    client: TcpStream,
    server: TcpStream,
    shared: Arc<Shared>,
    silent: AtomicBool,
    /// Messages sent to the server that it ends its answer to with ReadyForQuery.
    asked: AtomicUsize,
    /// The number of the one among them whose answer is withheld; 0: of none.
    withheld: AtomicUsize,
    /// Whether it is silent instead, and not cut.
    swallowed: AtomicBool,
    /// The number of the one among them whose answer comes late; 0: of none.
    held: AtomicUsize,
}

impl Proxy {
    /// Starts one before the database at `url`.
    pub(crate) fn before(url: &str) -> Proxy {
        let (user, place) = url.split_once('@').unwrap();
        let (target, rest) = place.split_once('/').unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = State {
            mood: Mood::Open,
            ended: false,
            filter: None,
            statements: Vec::new(),
            armed: None,
            struck: false,
            released: false,
            links: Vec::new(),
            unheard: Vec::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let (target, accepting) = (target.to_owned(), Arc::clone(&shared));
        std::thread::spawn(move || accept(&listener, &target, &accepting));
        Proxy { url: format!("{user}@{address}/{rest}"), address, shared }
    }

    /// Where the broker finds its database.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Changes the mood; connections that fell silent stay so.
    pub(crate) fn turn(&self, mood: Mood) {
        let mut state = self.shared.lock();
        state.mood = mood;
        if mood == Mood::Down {
            state.cut();
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Begins to count anew: all statements, or those that `filter` lets through and the commits and
    /// rollbacks behind them. A `begin` never counts with a filter: nobody knows yet what for it is.
    pub(crate) fn count(&self, filter: Option<Filter>) {
        let mut state = self.shared.lock();
        (state.filter, state.armed, state.struck) = (filter, None, false);
        state.statements.clear();
    }

    /// What was counted, in order.
    pub(crate) fn statements(&self) -> Vec<Statement> {
        self.shared.lock().statements.clone()
    }

    /// Their points.
    pub(crate) fn points(&self) -> Vec<String> {
        self.statements().iter().map(Statement::point).collect()
    }

    /// Lets `fault` happen at `point`, counted from the last [`Proxy::count`].
    pub(crate) fn arm(&self, point: Point, fault: Fault) {
        let mut state = self.shared.lock();
        (state.armed, state.struck, state.released) = (Some((point, fault)), false, false);
    }

    /// Lets a statement go that is held.
    pub(crate) fn release(&self) {
        self.shared.lock().released = true;
        self.shared.changed.notify_all();
    }

    /// Waits until the fault has happened; a delay or a silence when it begins.
    pub(crate) fn wait_until_struck(&self, limit: Duration) {
        let waiting = self.shared.changed.wait_timeout_while(self.shared.lock(), limit, |it| !it.struck);
        let struck = waiting.unwrap().0.struck;
        assert!(struck, "no fault within {limit:?}; counted: {:?}", self.points());
    }

    /// Whether the fault has happened.
    pub(crate) fn has_struck(&self) -> bool {
        self.shared.lock().struck
    }

    /// Connections that are open now, silent ones included.
    pub(crate) fn connections(&self) -> usize {
        let state = self.shared.lock();
        state.links.len() + state.unheard.len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.ended = true;
        state.cut();
        drop(state);
        self.shared.changed.notify_all();
        drop(TcpStream::connect(self.address)); // wakes who accepts
    }
}

/// Accepts until the proxy is gone.
fn accept(listener: &TcpListener, target: &str, shared: &Arc<Shared>) {
    for (number, client) in (1..).zip(listener.incoming().map_while(Result::ok)) {
        let mut state = shared.lock();
        match state.mood {
            _ if state.ended => return,
            Mood::Down => continue,
            Mood::Frozen => {
                state.unheard.push(client);
                continue;
            }
            Mood::Open | Mood::Held | Mood::Slow(_) => drop(state),
        }
        let Ok(server) = TcpStream::connect(target) else { continue };
        // Small messages follow each other: none may wait for an acknowledgement.
        for socket in [&client, &server] {
            socket.set_nodelay(true).unwrap();
        }
        let (asked, withheld) = (AtomicUsize::new(1), AtomicUsize::new(0)); // the start-up is answered too
        let (silent, swallowed, held) = (AtomicBool::new(false), AtomicBool::new(false), AtomicUsize::new(0));
        let shared = Arc::clone(shared);
        let link =
            Arc::new(Link { number, client, server, shared, silent, asked, withheld, swallowed, held });
        let mut state = link.shared.lock();
        if state.ended || state.mood == Mood::Down {
            link.cut();
        }
        state.links.push(Arc::clone(&link));
        drop(state);
        let answering = Arc::clone(&link);
        std::thread::spawn(move || link.finish(link.carry_questions()));
        std::thread::spawn(move || answering.finish(answering.carry_answers()));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The mood; waits while it is to hold everything.
    fn mood(&self) -> Mood {
        let held = |state: &mut State| state.mood == Mood::Held && !state.ended;
        self.changed.wait_while(self.lock(), held).unwrap().mood
    }

    /// Lets time pass, unless the proxy ends.
    fn wait(&self, limit: Duration) {
        drop(self.changed.wait_timeout_while(self.lock(), limit, |it| !it.ended).unwrap());
    }

    /// Waits until what is held may go.
    fn wait_for_release(&self) {
        let waits = |state: &mut State| !state.released && !state.ended;
        drop(self.changed.wait_while(self.lock(), waits).unwrap());
    }

    /// Does what the fault is, and says that it has happened: who sees the one sees the other.
    fn strike(&self, fault: impl FnOnce()) {
        let mut state = self.lock();
        state.struck = true;
        fault();
        drop(state);
        self.changed.notify_all();
    }
}

impl State {
    /// Ends all connections.
    fn cut(&mut self) {
        self.links.iter().for_each(|it| it.cut());
        self.links.retain(|it| !it.silent.load(Ordering::SeqCst)); // the others leave by themselves
        self.unheard.clear();
    }

    /// Takes in a statement that counts; the fault that waits for it.
    fn record(&mut self, sql: &str, connection: usize) -> Option<Fault> {
        let name = statement::name(sql);
        let occurrence = self.statements.iter().filter(|it| it.name == name).count() + 1;
        let statement = Statement { name, occurrence, connection };
        let point = statement.point();
        self.statements.push(statement);
        let number = self.statements.len();
        let meets = |armed: &mut (Point, Fault)| match &armed.0 {
            Point::Name(name) => *name == point,
            Point::Number(wanted) => *wanted == number,
        };
        self.armed.take_if(meets).map(|(_, fault)| fault)
    }
}

impl Link {
    /// Ends both sides; they may have ended before.
    fn cut(&self) {
        drop(self.client.shutdown(Shutdown::Both));
        drop(self.server.shutdown(Shutdown::Both));
    }

    /// One side has ended: the other ends too, unless the connection is silent.
    fn finish(&self, _ended: io::Result<()>) {
        if !self.silent.load(Ordering::SeqCst) {
            self.cut();
            self.shared.lock().links.retain(|it| it.number != self.number);
        }
    }

    fn fall_silent(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }

    /// Carries messages from the client to the server.
    fn carry_questions(&self) -> io::Result<()> {
        let mut client = BufReader::new(&self.client);
        self.start_up(&mut client)?;
        let (mut prepared, mut portals) = (HashMap::new(), HashMap::new());
        let (mut kept, mut is_step) = (Vec::new(), false);
        loop {
            let message = Message::read(&mut client)?;
            let text = |start: usize| text(message.body.get(start..).unwrap_or_default());
            kept.extend_from_slice(&message.bytes());
            let sql = match message.kind {
                b'P' => {
                    let name = text(0);
                    prepared.insert(name.clone(), text(name.len() + 1));
                    continue;
                }
                b'B' => {
                    let portal = text(0);
                    let sql = prepared.get(&text(portal.len() + 1)).cloned().unwrap_or_default();
                    portals.insert(portal, sql);
                    continue;
                }
                b'D' | b'C' => continue, // goes with the Execute, Sync or Flush behind it
                b'Q' => Some(text(0)),
                b'E' => Some(portals.get(&text(0)).cloned().unwrap_or_default()),
                _ => None,
            };
            if let Some(sql) = sql
                && let Some(fault) = self.meet(&sql, &mut is_step)
            {
                self.suffer(fault)?;
            }
            if matches!(message.kind, b'Q' | b'S' | b'F') {
                self.asked.fetch_add(1, Ordering::SeqCst);
            }
            self.pass_on(&std::mem::take(&mut kept))?;
        }
    }

    /// The first message has no type; one that asks for encryption is told that there is none.
    fn start_up(&self, client: &mut impl Read) -> io::Result<()> {
        const ASKS_FOR_ENCRYPTION: [u32; 2] = [80_877_103, 80_877_104];
        loop {
            let mut head = [0; 8];
            client.read_exact(&mut head)?;
            let (length, code) = head.split_at(4);
            let [length, code] = [length, code].map(|it| u32::from_be_bytes(it.try_into().unwrap()));
            if ASKS_FOR_ENCRYPTION.contains(&code) {
                (&self.client).write_all(b"N")?;
                continue;
            }
            let mut bytes = head.to_vec();
            client.take(u64::from(length) - 8).read_to_end(&mut bytes)?;
            return self.pass_on(&bytes);
        }
    }

    /// Counts a statement, and waits where all are slow.
    fn meet(&self, sql: &str, is_step: &mut bool) -> Option<Fault> {
        let mood = self.shared.mood();
        if mood == Mood::Frozen || self.silent.load(Ordering::SeqCst) {
            return None; // it will never be executed
        }
        if let Mood::Slow(delay) = mood {
            self.shared.wait(delay);
        }
        let mut state = self.shared.lock();
        let counts = match (state.filter, statement::name(sql).as_str()) {
            (None, _) => true,
            (Some(_), "begin") => {
                *is_step = false;
                false
            }
            (Some(_), "commit" | "rollback") => *is_step,
            (Some(filter), _) => {
                *is_step = filter(sql);
                *is_step
            }
        };
        if counts { state.record(sql, self.number) } else { None }
    }

    /// Lets a fault happen to the statement that is about to be passed on.
    fn suffer(&self, fault: Fault) -> io::Result<()> {
        match fault {
            Fault::Before => {
                self.shared.strike(|| self.cut());
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            // carried out by the side that sees the server's answer
            Fault::After | Fault::Swallow => {
                self.swallowed.store(fault == Fault::Swallow, Ordering::SeqCst);
                self.withheld.store(self.asked.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
            }
            Fault::Delay(delay) => {
                self.shared.strike(|| {});
                self.shared.wait(delay);
            }
            Fault::Hang => {
                self.shared.strike(|| self.fall_silent());
            }
            Fault::Hold => {
                self.shared.strike(|| {});
                self.shared.wait_for_release();
            }
            Fault::HoldAnswer => self.held.store(self.asked.load(Ordering::SeqCst) + 1, Ordering::SeqCst),
        }
        Ok(())
    }

    /// Sends bytes to the server as the mood is.
    fn pass_on(&self, bytes: &[u8]) -> io::Result<()> {
        if self.shared.mood() == Mood::Frozen {
            self.fall_silent();
        }
        if self.silent.load(Ordering::SeqCst) { Ok(()) } else { (&self.server).write_all(bytes) }
    }

    /// Carries messages from the server to the client, and withholds the answer that is to be withheld.
    fn carry_answers(&self) -> io::Result<()> {
        let mut server = BufReader::new(&self.server);
        let mut client = BufWriter::new(&self.client);
        let mut answered = 0;
        loop {
            let message = Message::read(&mut server)?;
            if self.shared.mood() == Mood::Frozen {
                self.fall_silent();
            }
            let is_withheld = self.withheld.load(Ordering::SeqCst) == answered + 1;
            if message.kind == b'Z' {
                answered += 1;
                if is_withheld && self.swallowed.load(Ordering::SeqCst) {
                    self.shared.strike(|| self.fall_silent());
                } else if is_withheld {
                    self.shared.strike(|| self.cut());
                    return Ok(());
                }
            }
            if is_withheld || self.silent.load(Ordering::SeqCst) {
                continue;
            }
            if message.kind == b'Z' && self.held.load(Ordering::SeqCst) == answered {
                self.shared.strike(|| {}); // nothing of the answer has been sent: it is still in our buffer
                self.shared.wait_for_release();
            }
            client.write_all(&message.bytes())?;
            if server.buffer().is_empty() {
                client.flush()?;
            }
        }
    }
}

/// A message after the first: a type, and what follows its length.
struct Message {
    kind: u8,
    body: Vec<u8>,
}

impl Message {
    fn read(from: &mut impl Read) -> io::Result<Message> {
        let mut head = [0; 5];
        from.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        let mut body = Vec::new();
        let length = u64::from(u32::from_be_bytes(length)) - 4;
        if from.take(length).read_to_end(&mut body)? as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Message { kind, body })
    }

    fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.body.len() + 4).unwrap();
        [&[self.kind], length.to_be_bytes().as_slice(), &self.body].concat()
    }
}

/// A text that ends with a zero byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|it| *it == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
