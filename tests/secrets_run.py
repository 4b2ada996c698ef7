"""A full run with failures and unmistakable secrets, and a search for them in all it wrote."""

from __future__ import annotations

import binascii
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, quote_plus, unquote_to_bytes

import requests
from redis import Redis

from sandbox.process import RunningSandbox, running_sandbox
from worker.demo.redis_server import free_port, redis_server, stop

USER, OPERATOR = "billing", "ana"
SECRETS = {
    "webhook password": "wh00k/Pa+ss&7f31=é",
    "former password": "f0rmer/Pa+ss&82ac=x",
    "platform token": "t0ken/Of+Platform=93bd",
    "database password": "d4tabase/Pa+ss@11ce",
    "redis password": "r3dis/Pa+ss@55ef",
    "password of a stranger's source": "str4nger/Pa+ss@77aa",
    "operator's password": "0perat0r/Pa+ss&14bd=ü",
    "session key": "sess1on/K+y&" + "9b" * 16,
}
TOKEN = SECRETS["platform token"]
ECHO = {"changedBy": f"Authorization: Bearer {TOKEN}"}  # in every good answer of the platform
START, END = "2015-11-02T12:18:51Z", "2015-12-02T12:18:51Z"
LEAKY = """
import os
from dataclasses import dataclass, field

BUILT = []

@dataclass
class Leaky:
    url: str = field(metadata={"secret": True})

    def __post_init__(self):
        BUILT.append(self)
        if len(BUILT) > int(os.environ.get("LEAKY_BUILDS", "99")):
            raise RuntimeError(f"no second connection to {self.url}")

    def count(self, queries):
        address = self.url
        try:
            raise ConnectionError(address)
        except ConnectionError as error:
            raise RuntimeError(f"cannot connect to {address}") from error

    def watermark(self):
        return None

    def check(self):
        raise RuntimeError(self.url)
"""
# the component of each invoice, and how the platform fails on it
FAULTS: Mapping[int, tuple[str, Mapping[str, Any] | None]] = {
    1: ("Leaky", None),
    2: ("Down", None),
    3: ("Good", {"kind": "error", "status": 401, "error_type": "Oauth", "message": TOKEN}),
    4: ("Good", {"kind": "error", "status": 500, "message": f"bad token {TOKEN}"}),
    5: ("Good", {"kind": "html", "body": f"<html>Bearer {TOKEN}</html>"}),
    6: ("Good", {"kind": "drop_before"}),
    7: ("Nothing", None),
    8: ("Good", None),
    9: ("Good", {"kind": "error", "status": 400, "error_type": "X", "message": f"no {TOKEN}"}),
}


def invoice_id(number: int) -> str:
    """Name an invoice."""
    return f"INV-00000000-0000-4000-8000-{number:08X}"


def forms(secret: str) -> set[bytes]:
    """Return how a secret may be written: plain, escaped, in URLs, in hex, inside base64."""
    raw = secret.encode()
    texts = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), repr(raw)[2:-1]}
    texts.add(json.dumps(secret)[1:-1])
    found = {text.encode() for text in texts}
    found |= {text.encode("unicode_escape") for text in texts} | {raw.hex().encode()}
    for before in range(3):  # what base64 makes of it depends on how much stands before it
        whole = b64encode(b"\0" * before + raw).rstrip(b"=")
        found.add(whole[(before * 8 + 5) // 6 : -1])
    return found


def leaks(traces: Mapping[str, bytes]) -> set[tuple[str, str]]:
    """Return in which place which secret was found, in any form."""
    return {
        (place, name)
        for name, secret in SECRETS.items()
        for place, text in traces.items()
        if any(form in view for view in (text, unquote_to_bytes(text)) for form in forms(secret))
    }


def unpacked(value: bytes) -> bytes:
    """Return a value of Redis with what RQ compressed in it."""
    texts = [value]
    for packed in (value, *_decoded(value)):
        with suppress(zlib.error):
            texts.append(zlib.decompress(packed))
    return b"\n".join(texts)


def _decoded(value: bytes) -> Iterator[bytes]:
    with suppress(binascii.Error, ValueError):
        yield b64decode(value, validate=True)


def everything_in(redis: Redis) -> dict[str, bytes]:
    """Return every key of a Redis with its whole value."""
    return {
        f"redis {key!r}": b"\n".join((key, *map(unpacked, _values(redis, key))))
        for key in cast(Iterator[bytes], redis.scan_iter())
    }


def _values(redis: Redis, key: bytes) -> list[bytes]:
    client: Any = redis
    match client.type(key):
        case b"string":
            return [client.get(key)]
        case b"hash":
            return [part for pair in client.hgetall(key).items() for part in pair]
        case b"list":
            return list(client.lrange(key, 0, -1))
        case b"set":
            return list(client.smembers(key))
        case b"zset":
            return list(client.zrange(key, 0, -1))
        case b"stream":
            fields = [fields for _, fields in client.xrange(key)]
            return [part for each in fields for pair in each.items() for part in pair]
    raise AssertionError(f"a key of another type: {key!r}")


@dataclass
class Run:
    """The stage of a run and what it has left so far, by its place."""

    folder: Path
    sandbox: RunningSandbox
    redis: Redis
    environ: dict[str, str]
    port: int
    traces: dict[str, bytes] = field(default_factory=dict)
    states: dict[int, tuple[str, str]] = field(default_factory=dict)

    @contextmanager
    def running(self, name: str, *arguments: str, **changed: str) -> Iterator[None]:
        """Keep a process running; its log is a file of the folder."""
        command = [sys.executable, "-m", "worker", *arguments]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=self.environ | changed, stdout=log, stderr=log, cwd=self.folder
            )
        try:
            yield
            self._note_command_lines(name, process.pid)
        finally:
            stop(process)

    def ask(self, *arguments: str, **changed: str) -> None:
        """Run a command to its end, and keep its output."""
        command = [sys.executable, "-m", "worker", *arguments]
        done = subprocess.run(
            command, env=self.environ | changed, capture_output=True, timeout=60, cwd=self.folder
        )
        name = " ".join((*arguments, *changed))
        self.traces[f"output of {name} ({done.returncode})"] = done.stdout + done.stderr

    def _note_command_lines(self, name: str, pid: int) -> None:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (str(pid), *children):
            self.traces[f"ps {name} {one}"] = Path(f"/proc/{one}/cmdline").read_bytes()

    def send(self, name: str, **given: Any) -> None:
        """Send a request to the endpoint and keep the answer."""
        path = given.pop("path", "/webhooks/billforward")
        url = f"http://127.0.0.1:{self.port}{path}"
        answer = requests.request(given.pop("method", "POST"), url, timeout=10, **given)
        text = f"{answer.status_code} {answer.headers}\n".encode() + answer.content
        self.traces[f"answer to {name}"] = text

    def send_broken(self, text: str) -> None:
        """Send what is no HTTP; its echo goes to the sender only, and is not kept."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(text.encode())
            connection.recv(65536)

    def look(self) -> None:
        """Read how each invoice stands."""
        with closing(sqlite3.connect(self.folder / "journal.db")) as db:
            rows = db.execute("SELECT invoice_id, state, reason FROM invoices").fetchall()
        self.states = {int(one[-8:], 16): (state, reason) for one, state, reason in rows}

    def wait(self, states: Mapping[int, str], seconds: float = 25) -> None:
        """Wait until invoices stand as they shall."""
        deadline = time.monotonic() + seconds
        while True:
            self.look()
            found = {number: state for number, (state, _) in self.states.items()}
            if all(found.get(number) == state for number, state in states.items()):
                return
            assert time.monotonic() < deadline, f"they stand otherwise: {self.states}"
            time.sleep(0.1)

    def collect(self, when: str = "") -> None:
        """Read all files of the folder and all of Redis."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                self.traces[f"{when}file {path.relative_to(self.folder)}"] = path.read_bytes()
        values = everything_in(self.redis)
        self.traces |= {f"{when}{key}": value for key, value in values.items()}


@contextmanager
def prepared(folder: Path) -> Iterator[Run]:
    """Start Redis and a sandbox with passwords of ours, and write the configuration."""
    with ExitStack() as stack:
        sandbox = stack.enter_context(running_sandbox(token=TOKEN))
        redis = Redis.from_url(stack.enter_context(redis_server(folder / "redis", environ={})))
        stack.enter_context(redis)
        redis.config_set("requirepass", SECRETS["redis password"])
        redis_port = redis.connection_pool.connection_kwargs["port"]
        quoted = {name: quote(secret, safe="") for name, secret in SECRETS.items()}
        port = free_port()
        (folder / "leaky.py").write_text(LEAKY)
        (folder / "config.toml").write_text(_config(folder, sandbox, port))
        stranger = quoted["password of a stranger's source"]
        clean = {name: value for name, value in os.environ.items() if "RECONCILER" not in name}
        root = str(Path(__file__).parents[1])
        prefix = "RECONCILER__"
        redis_url = f"redis://:{quoted['redis password']}@127.0.0.1:{redis_port}/0"
        environ = {
            **clean,
            "PYTHONPATH": os.pathsep.join((root, str(folder))),
            "RECONCILER_CONFIG": str(folder / "config.toml"),
            f"{prefix}WEBHOOK__PASSWORD": SECRETS["webhook password"],
            f"{prefix}OPS__SESSION_KEY": SECRETS["session key"],
            f"{prefix}OPS__USERS__{OPERATOR.upper()}__PASSWORD": SECRETS["operator's password"],
            f"{prefix}WEBHOOK__PREVIOUS_PASSWORD": SECRETS["former password"],
            f"{prefix}PLATFORMS__BILLFORWARD__TOKEN": TOKEN,
            f"{prefix}QUEUE__REDIS_URL": redis_url,
            f"{prefix}USAGE_SOURCES__DOWN__URL": "postgresql+psycopg://meter:"
            f"{quoted['database password']}@127.0.0.1:9/usage",
            f"{prefix}USAGE_SOURCES__LEAKY__URL": f"leaky://meter:{stranger}@127.0.0.1:9/usage",
        }
        _put_usage_and_invoices(folder, sandbox)
        with Redis(port=redis_port, password=SECRETS["redis password"]) as ours:
            yield Run(folder, sandbox, ours, environ, port)


def _config(folder: Path, sandbox: RunningSandbox, port: int) -> str:
    table = 'kind = "sql"\ntable = "usage"\nsubject_column = "subject"\ntime_column = "at"\n'
    return (
        f'[webhook]\nusername = "{USER}"\nport = {port}\nprocesses = 1\n'
        f'[ops]\nenabled = true\n[ops.users.{OPERATOR}]\nrole = "operator"\n'
        f'[platforms.billforward]\nbase_url = "{sandbox.base_url}"\n'
        "connect_timeout_seconds = 1\nread_timeout_seconds = 1\ntotal_timeout_seconds = 0.1\n"
        f'[journal]\nurl = "sqlite:///{folder}/journal.db"\n'
        "[rules]\ngrace_seconds = 0\nsettle_seconds = 2.5\nretry_delays_seconds = [0.1]\n"
        'max_attempts = 3\n[sweep]\ninterval_seconds = 0.3\n[log]\nlevel = "debug"\n'
        f'[usage_sources.events]\n{table}url = "sqlite:///{folder}/usage.db"\ntime_format = "iso"\n'
        f'[usage_sources.down]\n{table}time_format = "native"\ntimeout_seconds = 1\n'
        '[usage_sources.leaky]\nkind = "leaky:Leaky"\n'
        '[components.Good]\nsource = "events"\n[components.Down]\nsource = "down"\n'
        '[components.Leaky]\nsource = "leaky"\n'
    )


def _put_usage_and_invoices(folder: Path, sandbox: RunningSandbox) -> None:
    with closing(sqlite3.connect(folder / "usage.db")) as db, db:
        db.execute("CREATE TABLE usage (subject TEXT, at TEXT)")
        rows = [(f"SUB-00000000-0000-4000-8000-{number:08X}", START) for number in FAULTS]
        db.executemany("INSERT INTO usage VALUES (?, ?)", rows)
    for number, (component, fault) in FAULTS.items():
        charge = {
            "id": invoice_id(number).replace("INV", "CHG"),
            "name": component,
            "pricingComponentName": component,
            "pricingComponentType": "usage",
            "pricingComponentValue": 0,
            "periodStart": START,
            "periodEnd": END,
            "extra": ECHO,
            "price": {
                "model": "tiered",
                "tiers": [{"lower": 0, "upper": None, "type": "unit", "price": 1}],
            },
        }
        sandbox.control.put_invoice(
            id=invoice_id(number),
            type="Subscription",
            state="Pending",
            subscriptionID=f"SUB-00000000-0000-4000-8000-{number:08X}",
            periodStart=END,
            periodEnd="2016-01-02T12:18:51Z",
            charges=[charge],
            extra=ECHO,
            notify=False,
        )
        if fault is not None:
            match = {"path": f"{number:08X}", **({"method": "POST"} if number in (6, 9) else {})}
            rule = dict(fault)
            sandbox.control.add_fault(
                rule.pop("kind"), times=1 if number == 6 else None, match=match, **rule
            )


def asked(run: Run) -> None:
    """Run each command that people use, in both forms, also where it must fail."""
    redis_url = "RECONCILER__QUEUE__REDIS_URL"
    wrong = {redis_url: run.environ[redis_url].replace("@", "x@")}
    database = quote(SECRETS["database password"], safe="")
    lost = {"RECONCILER__JOURNAL__URL": f"postgresql://meter:{database}@127.0.0.1:9/journal"}
    refused = {"RECONCILER__WEBHOOK__PORT": TOKEN, "RECONCILER__LOG__LEVEL": TOKEN}
    commands: list[tuple[str, dict[str, str]]] = [
        *((f"show {invoice_id(number)} --json", {}) for number in (1, 4)),
        *((f"show {invoice_id(number)}", {}) for number in (2, 8)),
        *((each, {}) for each in ("doctor", "doctor --json", "list", "list --json")),
        (f"replay {invoice_id(1)} --reason again --wait 9", {}),
        (f"replay {invoice_id(4)} --reason again --wait 0 --json", {}),
        *((each, lost) for each in ("list", "work", "serve")),
        ("doctor", refused),
        *((each, wrong) for each in ("doctor", "work")),
    ]
    with ThreadPoolExecutor(3) as pool:
        for waiting in [pool.submit(run.ask, *text.split(), **more) for text, more in commands]:
            waiting.result()
