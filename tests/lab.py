"""Throw-away servers for the tests and the sandbox: PostgreSQL, and an emulator of AWS behind a relay.

Everything lives in one temporary directory, listens on 127.0.0.1 only, and ends with the Lab, whatever happens:

    lab.stop_on_signals()
    with lab.Lab() as here:
        engine = here.start_engine()
        postgres = here.start_postgres()
        key = engine.make_broker("t*")

The file has a second use: run as a program by the Python of the emulator's environment (the one that has
botocore), it carries out one request to the emulator. See `Engine.ask`.
"""

import ctypes
import http.client
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
TOOLS = TARGET / "tools"
AWS_CLI = TOOLS / "awscli" / "bin" / "aws"

REGION = "us-west-2"
ACCOUNT = "123456789012"
BROKER_USER = "servicebroker"

START_SECONDS = 60
"""How long a server may take to start; far more than it needs, for machines that are busy."""


class LabError(Exception):
    """Something is not as it should be; the text is meant for a person."""


class TimeIsUp(LabError):
    """What was waited for did not happen in time."""


class Died(LabError):
    """A server ended by itself; the text has the end of its log."""


class Stopped(BaseException):
    """Raised by a signal that asks the program to end."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


def say(text):
    """Prints a line of progress."""
    print(text, file=sys.stderr, flush=True)


# --- Signals and processes -------------------------------------------------------------------------------------

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_on_signals():
    """Turns the signals that end a program into the exception Stopped, so that everything is cleaned up."""

    def stop(number, _frame):
        raise Stopped(number)

    for number in ENDING:
        signal.signal(number, stop)


def ignore_signals():
    """For the clean-up: it takes seconds at most, and half of it is worse than a second of waiting."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def clean_environment(**more):
    """What a server needs of the caller's environment, so that nobody's own settings change what is tested."""
    kept = ("PATH", "LANG", "LC_ALL", "TZ", "RUST_BACKTRACE")
    return {**{name: os.environ[name] for name in kept if name in os.environ}, **more}


def _linux():
    """The C library, for the calls that only Linux has; None elsewhere."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None


LIBC = _linux()


def _ends_with_us(number):
    """A function for the child: the kernel sends it `number` if this program is killed and cannot tidy up."""
    pr_set_pdeathsig = 1

    def ask():
        if LIBC:
            LIBC.prctl(pr_set_pdeathsig, int(number))

    return ask


def adopt_orphans():
    """Makes this program the parent of what its children leave behind, so that it can be found and ended."""
    pr_set_child_subreaper = 36
    if LIBC:
        LIBC.prctl(pr_set_child_subreaper, 1)


def _children():
    """The ids of this program's children; empty where the kernel does not tell."""
    try:
        return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    except OSError:
        return set()


def _gone(pid):
    """Whether the child has ended; takes its exit code if so."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def end_orphans(known):
    """Ends children other than `known`: what a command left running when it ended. Returns how many there were."""
    found = set()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        strangers = _children() - known
        if not strangers:
            break
        for pid in [pid for pid in strangers if not _gone(pid)]:
            if pid not in found:
                os.kill(pid, signal.SIGTERM)
            elif time.monotonic() > deadline - 7:
                os.kill(pid, signal.SIGKILL)
            found.add(pid)
        time.sleep(0.02)
    return len(found)


class Process:
    """A server that we started, with its log."""

    def __init__(self, name, command, log, stop_signal=signal.SIGTERM, **options):
        self.name = name
        self.log = log
        self.stop_signal = stop_signal
        with open(log, "ab") as output:
            # A session of its own: Ctrl-C must reach us alone, who end the servers in the right order.
            self.popen = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_ends_with_us(stop_signal),
                **options,
            )

    def tail(self, lines=25):
        """The end of its log."""
        text = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join([f"--- end of the log of {self.name} ---", *text, "---"])

    def check(self):
        """Raises Died if it is no longer running."""
        code = self.popen.poll()
        if code is not None:
            raise Died(f"{self.name} ended by itself, exit code {code}\n{self.tail()}")

    def wait_until(self, ready):
        """Returns once it is ready. Raises Died, or LabError with the end of its log when it takes too long."""
        try:
            return wait_until(self.name, ready, self.check)
        except TimeIsUp as error:
            raise LabError(f"{error}\n{self.tail()}") from None

    def stop(self, seconds=30):
        """Ends it, with force if it does not end in time. Returns its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(self.stop_signal)
            try:
                self.popen.wait(seconds)
            except subprocess.TimeoutExpired:
                say(f"{self.name}: does not end within {seconds} s, killed")
                self.popen.kill()
                self.popen.wait()
        return self.popen.returncode


def wait_until(what, ready, check=lambda: None, seconds=START_SECONDS):
    """Calls `ready` until it returns something true, which is returned.

    Raises TimeIsUp when the time is over, and what `check` raises when there is no point in waiting on.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = ready()
        if value:
            return value
        check()
        if time.monotonic() > deadline:
            raise TimeIsUp(f"{what}: not within {seconds} s")
        time.sleep(0.05)


def free_port():
    """A port of 127.0.0.1 that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_free(port):
    """Whether a server could listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def http_status(port, path):
    """The status of a GET, or None while nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class Lab:
    """The temporary directory and the servers in it. A context manager: leaving it removes all."""

    def __init__(self):
        self.directory = Path(tempfile.mkdtemp(prefix="servicebroker-lab-"))
        # PostgreSQL may run as another user, who must be able to reach its own directory below this one.
        self.directory.chmod(0o711)
        self.processes = []
        adopt_orphans()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        ignore_signals()
        end_orphans({process.popen.pid for process in self.processes})
        for process in reversed(self.processes):
            process.stop()
        # Whatever a server did not take with it.
        end_orphans(set())
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self, name, command, **options):
        """Starts a server whose log is NAME.log in the directory."""
        process = Process(name, command, self.directory / f"{name}.log", **options)
        self.processes.append(process)
        return process

    def check(self):
        """Raises Died if a server has ended by itself."""
        for process in self.processes:
            process.check()

    def start_postgres(self, **options):
        """Starts a new PostgreSQL; returns once it answers."""
        return Postgres(self, **options)

    def start_engine(self, name="ministack", relay_options=()):
        """Starts an emulator of AWS without waiting for it: `Engine.make_broker` waits."""
        return ENGINES[name](self, relay_options)


# --- PostgreSQL ------------------------------------------------------------------------------------------------


def postgres_bin():
    """The directory with PostgreSQL's server programs. Debian keeps them off the PATH, one for each version."""
    candidates = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    candidates.sort(key=lambda path: [int(part) for part in path.parent.name.split(".") if part.isdigit()])
    if candidates:
        return candidates[-1]
    try:
        said = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True)
        return Path(said.stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        raise LabError("PostgreSQL is not installed; run tests/setup") from None


def unprivileged():
    """How to start a program as another user, for root only: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise LabError("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


class Postgres:
    """A running PostgreSQL with a superuser `postgres` and an unprivileged role `broker`.

    What was committed outlives a crash of the server only with `synchronous_commit`.
    """

    def __init__(self, lab, synchronous_commit="off"):
        started = time.monotonic()
        self.lab = lab
        self.synchronous_commit = synchronous_commit
        self.bin = postgres_bin()
        self.home = lab.directory / "postgres"
        self.password = secrets.token_hex(16)
        self.superuser_password = secrets.token_hex(16)
        self._make_cluster()
        self.port, self.process = self._start()
        self.sql(
            f"create role broker login createdb password '{self.password}'",
            superuser=True,
        )
        say(f"postgres: ready in {time.monotonic() - started:.1f} s")

    def _make_cluster(self):
        """Runs initdb, in a directory of the user that it runs as."""
        other = unprivileged()
        self.home.mkdir(mode=0o700)
        secret = self.home / "password"
        secret.touch(mode=0o600)
        secret.write_text(self.superuser_password)
        if other:
            os.chown(self.home, other["user"], other["group"])
            os.chown(secret, other["user"], other["group"])
        made = subprocess.run(
            [self.bin / "initdb", "--pgdata", self.home / "data", "--username", "postgres", "--auth", "scram-sha-256"]
            + ["--pwfile", secret, "--encoding", "UTF8", "--locale", "C", "--no-sync"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=self.home, env=clean_environment(), start_new_session=True, **other,
        )
        secret.unlink()
        if made.returncode != 0:
            raise LabError(f"initdb failed:\n{made.stdout}")

    def _start(self):
        """Starts the server for the first time, on a free port; it may be taken by then, so more than one is tried."""
        for attempt in range(3):
            port = free_port()
            process = self._launch(port)
            try:
                process.wait_until(lambda: self._answers(port))
                return port, process
            except Died:
                if attempt == 2:
                    raise
                self.lab.processes.remove(process)
        raise AssertionError("unreachable")

    def stop(self, how=signal.SIGINT):
        """Stops the server: SIGINT ends all connections and shuts down, SIGQUIT is as a crash."""
        self.process.stop_signal = how
        self.process.stop()
        self.lab.processes.remove(self.process)

    def start(self):
        """Starts the stopped server again, where it was; returns once it answers."""
        self.process = self._launch(self.port)
        self.process.wait_until(lambda: self._answers(self.port))

    def _launch(self, port):
        """Starts the server's process."""
        return self.lab.start("postgres", self._command(port), stop_signal=signal.SIGINT, cwd=self.home,
                              env=clean_environment(), **unprivileged())

    def _command(self, port):
        """The server's command line. Nothing has to survive a power cut, so nothing is synced."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": self.home,
            "max_connections": 600,
            "fsync": "off",
            "synchronous_commit": self.synchronous_commit,
            "full_page_writes": "off",
            # Its processes belong to the superuser: who may not end them may not drop a database that they look at.
            "autovacuum": "off",
        }
        words = [self.bin / "postgres", "-D", self.home / "data"]
        for name, value in settings.items():
            words += ["-c", f"{name}={value}"]
        return words

    def _answers(self, port):
        """Whether the server takes connections."""
        asked = [self.bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port), "-d", "postgres"]
        return subprocess.run(asked, env=clean_environment(), start_new_session=True).returncode == 0

    def url(self, database="postgres"):
        """The address of a database, for the role broker."""
        return f"postgres://broker:{self.password}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def sql(self, statement, database="postgres", superuser=False):
        """Runs a statement, returns its rows: lists of strings, with None for null."""
        null = "\\N"
        plain = ["-X", "-q", "-A", "-t", "-F", "\x1f", "-P", f"null={null}", "-v", "ON_ERROR_STOP=1"]
        answer = subprocess.run(
            [self.bin / "psql", *plain, "-c", statement],
            capture_output=True, text=True, start_new_session=True, timeout=60,
            env=clean_environment(
                PGHOST="127.0.0.1",
                PGPORT=str(self.port),
                PGDATABASE=database,
                PGUSER="postgres" if superuser else "broker",
                PGPASSWORD=self.superuser_password if superuser else self.password,
            ),
        )
        if answer.returncode != 0:
            raise LabError(f"psql failed: {answer.stderr.strip()}")
        rows = [line.split("\x1f") for line in answer.stdout.splitlines()]
        return [[None if value == null else value for value in row] for row in rows]


# --- AWS -------------------------------------------------------------------------------------------------------


def broker_policy(prefix):
    """The policy of the broker's own IAM user for names that begin with `prefix` (a pattern) and a dash."""
    text = (ROOT / "tests" / "broker-policy.json").read_text()
    for placeholder, value in (("PREFIX", prefix), ("ACCOUNT", ACCOUNT), ("PARTITION", "aws")):
        text = text.replace(placeholder, value)
    return json.dumps(json.loads(text), separators=(",", ":"))


class Engine:
    """A running emulator of AWS behind a strict relay, which refuses what AWS would and the emulator does not.

    The root key may do anything, so the broker gets an IAM user of its own.
    """

    name = ""
    health = ""
    checks_permissions = False

    def __init__(self, lab, relay_options=()):
        self.lab = lab
        self.relay_options = relay_options
        self.started = time.monotonic()
        self.python = TOOLS / self.name / "bin" / "python"
        if not self.python.exists():
            raise LabError(f"the emulator {self.name} is not installed; run tests/setup {self.setup_flag}".rstrip())
        self.home = lab.directory / "aws"
        self.home.mkdir(mode=0o700)
        self.root = {"access_key_id": f"LABROOT{secrets.token_hex(6).upper()}", "secret": secrets.token_hex(20)}
        self._start()

    setup_flag = ""

    def _start(self):
        """Starts the process on a free port."""
        self.port = free_port()
        self.process = self.lab.start(self.name, self._command(), cwd=self.home, env=self._environment())

    def wait(self):
        """Returns once the engine answers. Like PostgreSQL it may have lost its port, so it may try again."""
        def ready():
            return http_status(self.port, self.health) == 200

        for attempt in range(3):
            try:
                return self.process.wait_until(ready)
            except Died:
                if attempt == 2:
                    raise
                self.lab.processes.remove(self.process)
                self._start()
        raise AssertionError("unreachable")

    def start_relay(self):
        """Starts the relay, whose address becomes the engine's."""
        program = build_relay()
        command = [program, "--engine", f"127.0.0.1:{self.port}", "--strict", "--account", ACCOUNT]
        command += ["--key", self.root["access_key_id"], *self.relay_options]
        self.relay = self.lab.start("relay", command, env=clean_environment())
        self.relay.wait_until(lambda: self.relay.log.read_text().endswith("\n"))
        self.endpoint = self.relay.log.read_text().splitlines()[0]

    def violations(self):
        """Calls that no right client makes, as the relay saw them."""
        return [line for line in self.relay.log.read_text().splitlines() if "VIOLATION" in line]

    def ask(self, request, key=None, **arguments):
        """Has one of the functions in REQUESTS carried out by the emulator's own Python, which has botocore.

        `key` is who asks: the root when missing. The command line would do, but takes a second for each call.
        """
        question = {"endpoint": self.endpoint, "region": REGION, "key": key or self.root, "arguments": arguments}
        answer = subprocess.run(
            [self.python, __file__, request], input=json.dumps(question), capture_output=True, text=True,
            start_new_session=True, env=aws_environment(),
        )
        if answer.returncode != 0:
            self.process.check()
            last = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise LabError(f"{request}: {last}")
        return json.loads(answer.stdout)

    def make_broker(self, prefix):
        """Makes the broker's IAM user for names `prefix`-*; proves that its key, and only its key, is let in."""
        self.wait()
        self.start_relay()
        key = self.ask("make_user", name=BROKER_USER, policy=broker_policy(prefix))
        if self.checks_permissions:
            self.ask("prove_key", key=key)
        say(f"{self.name}: ready in {time.monotonic() - self.started:.1f} s")
        return key


class Ministack(Engine):
    """Checks signatures and policies."""

    name = "ministack"
    health = "/_ministack/health"
    checks_permissions = True

    def _command(self):
        """Its command line."""
        return [self.python, "-m", "ministack"]

    def _environment(self):
        """Its settings. It keeps a pid file in TMPDIR and asks Docker for its containers if it finds it."""
        return clean_environment(
            AUTH="true",
            BIND_HOST="127.0.0.1",
            GATEWAY_PORT=str(self.port),
            SERVICES="s3,iam,sts",
            LOG_LEVEL="WARNING",
            MINISTACK_ACCOUNT_ID=ACCOUNT,
            MINISTACK_REGION=REGION,
            AWS_ACCESS_KEY_ID=self.root["access_key_id"],
            AWS_SECRET_ACCESS_KEY=self.root["secret"],
            HOME=str(self.home),
            TMPDIR=str(self.home),
            S3_DATA_DIR=str(self.home / "s3"),
            STATE_DIR=str(self.home / "state"),
            DOCKER_HOST=f"unix://{self.home}/no-docker",
        )


class Moto(Engine):
    """Checks limits and the order of deletions, but neither signatures nor policies."""

    name = "moto"
    health = "/moto-api/"
    setup_flag = "--moto"

    def _command(self):
        """Its command line."""
        return [self.python.with_name("moto_server"), "-H", "127.0.0.1", "-p", str(self.port)]

    def _environment(self):
        """Its settings."""
        return clean_environment(
            MOTO_S3_ALLOW_CROSSACCOUNT_ACCESS="false", HOME=str(self.home), TMPDIR=str(self.home)
        )


ENGINES = {engine.name: engine for engine in (Ministack, Moto)}


def build_relay():
    """The relay's program, built if it is not up to date."""
    command = ["cargo", "build", "--locked", "--quiet", "--example", "relay"]
    if subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode != 0:
        raise LabError(f"failed: {' '.join(command)}")
    return TARGET / "debug" / "examples" / "relay"


def aws_environment(key=None, endpoint=None):
    """The environment for a client of AWS: none of the caller's files, variables and proxies."""
    environment = clean_environment(
        AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull, AWS_EC2_METADATA_DISABLED="true"
    )
    if key:
        environment.update(AWS_ACCESS_KEY_ID=key["access_key_id"], AWS_SECRET_ACCESS_KEY=key["secret"])
    if endpoint:
        environment.update(AWS_ENDPOINT_URL=endpoint, AWS_REGION=REGION, AWS_DEFAULT_REGION=REGION)
    return environment


# --- Requests: from here on, what runs in the emulator's environment ---------------------------------------------


class Account:
    """Clients of AWS' services for one key."""

    def __init__(self, question):
        self.question = question

    def client(self, service, secret=None):
        """A client of a service, with another secret if one is given."""
        import botocore.config
        import botocore.session

        key = self.question["key"]
        return botocore.session.get_session().create_client(
            service,
            region_name=self.question["region"],
            endpoint_url=self.question["endpoint"],
            aws_access_key_id=key["access_key_id"],
            aws_secret_access_key=secret or key["secret"],
            config=botocore.config.Config(
                connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 2}, max_pool_connections=16,
                s3={"addressing_style": "path"},
            ),
        )


def refusal(call, **arguments):
    """The code of the error that AWS answers a call with, or None when it does as asked."""
    import botocore.exceptions

    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"]
    return None


def make_user(account, name, policy):
    """Makes an IAM user with an inline policy; returns its key."""
    iam = account.client("iam")
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=policy)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return {"access_key_id": key["AccessKeyId"], "secret": key["SecretAccessKey"]}


def prove_key(account):
    """Fails unless the key works, a wrong secret does not, and the policy forbids what it does not allow.

    Without this a test could pass only because the engine checks nothing.
    """
    wait_until("the broker's key", lambda: refusal(account.client("sts").get_caller_identity) is None)
    wrong = refusal(account.client("sts", secret="not-the-secret").get_caller_identity)
    if wrong != "SignatureDoesNotMatch":
        raise LabError(f"a wrong secret must be refused as SignatureDoesNotMatch, the answer is {wrong}")
    beyond = refusal(account.client("iam").create_user, UserName="beyond-the-policy")
    if beyond != "AccessDenied":
        raise LabError(f"what the broker's policy does not allow must be AccessDenied, the answer is {beyond}")


def count_versions(account, bucket):
    """How many object versions and delete markers the bucket holds."""
    pages = account.client("s3").get_paginator("list_object_versions").paginate(Bucket=bucket)
    return sum(len(page.get("Versions", [])) + len(page.get("DeleteMarkers", [])) for page in pages)


def fill(account, bucket, versions):
    """Adds objects, newer versions of them and delete markers until the bucket holds `versions` of all together."""
    from concurrent.futures import ThreadPoolExecutor

    s3 = account.client("s3")

    def add(number):
        name = f"filling/{number // 10:05}"
        if number % 10 == 9:
            s3.delete_object(Bucket=bucket, Key=name)
        else:
            s3.put_object(Bucket=bucket, Key=name, Body=b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(versions - count_versions(account, bucket))))
    return count_versions(account, bucket)


def holdings(account, prefix):
    """The names of buckets, users and policies that begin with `prefix`."""
    iam = account.client("iam")
    users = [user for page in iam.get_paginator("list_users").paginate() for user in page["Users"]]
    pages = iam.get_paginator("list_policies").paginate(Scope="Local")
    policies = [policy for page in pages for policy in page["Policies"]]
    names = {
        "bucket": [bucket["Name"] for bucket in account.client("s3").list_buckets().get("Buckets", [])],
        "user": [user["UserName"] for user in users],
        "policy": [policy["PolicyName"] for policy in policies],
    }
    return [f"{kind} {name}" for kind, found in names.items() for name in found if name.startswith(prefix)]


REQUESTS = {function.__name__: function for function in (make_user, prove_key, fill, holdings)}


def main():
    """Carries out the request named on the command line, with the question on standard input."""
    question = json.load(sys.stdin)
    answer = REQUESTS[sys.argv[1]](Account(question), **question["arguments"])
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
