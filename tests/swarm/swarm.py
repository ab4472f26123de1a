"""A real swarm for tests: a coordinator and peers as processes on loopback, watched through their own event logs.

Nothing is left behind: every process is ended by its id, and leaving the block fails if any child of theirs (hivemind's
daemon included) is still there.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import psutil

from protocols.errors import RefusedError
from protocols.host.event_log import read_events
from protocols.identity import Key, Ticket
from protocols.round.records import Candidate
from protocols.snapshot.fetch import SnapshotFetch
from protocols.transport.enrolling import Enrolment, enrol
from protocols.transport.network import NetworkTransport
from protocols.transport.network_thread import NetworkThread
from tests.factories import CORPUS

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parents[2]
HOOKS = Path(__file__).parent / "hooks"
# For processes that can be told to fail at a phase of a round.
HOOKED = {
    "DUGNAD_TEST_FAULTS": "1",
    "PYTHONPATH": os.pathsep.join([str(HOOKS), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
}
POLL_S = 0.05
START_S = 90.0
FIRST_PORT = 16384
_pause = threading.Event().wait

SPEC = """
[run]
name = "test"
seed = {seed}

[task]
sequence_length = 64

[task.model]
model_type = "gpt2"
n_embd = 64
n_layer = 2
n_head = 2
n_positions = 64
resid_pdrop = 0.0
embd_pdrop = 0.0
attn_pdrop = 0.0

[task.data]
source = "files"
paths = ["{text}/*.txt"]
held_out_bytes = 16384

[task.tokenizer]
vocab_size = 400

[optimizer]
learning_rate = 3e-3

[training]
target_batch_size = {batch}
{limit}

[averaging]
codec = "{codec}"
overlap = {overlap}

[checkpoint]
every_epochs = 4
keep = 2

[evaluation]
every_epochs = 4
max_samples = 32
"""


def free_port(span: int = 4) -> int:
    """A port such that it and the next ones are free now.

    It lies below those that the kernel gives to outgoing connections, one of which could take it before its process listens.
    """
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(FIRST_PORT, first_outgoing - span)
        if all(_is_free(port + offset) for offset in range(span)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_until(there: Callable[[], Any], what: str, limit_s: float = 60.0) -> Any:
    """The first true value of `there()`; fails the test when none comes in time."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found = there()
        if found:
            return found
        _pause(POLL_S)
    raise AssertionError(f"after {limit_s:.0f} s still waiting: {what}")


def run_dugnad(*arguments: str, limit_s: float = 60.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """A dugnad command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "dugnad", *arguments],
        capture_output=True,
        text=True,
        timeout=limit_s,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )


class Logged(Protocol):
    def events(self, name: str = "") -> list[dict[str, Any]]: ...


class Process:
    """A dugnad process with its folder and its event log."""

    def __init__(self, name: str, folder: Path, arguments: list[str], *, under: tuple[str, ...] = (), **environment: str) -> None:
        """`under` comes before the command: what runs it."""
        self.name = name
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "test-output.log"
        self._family: dict[int, psutil.Process] = {}
        with self.output.open("ab") as log:
            self._process = subprocess.Popen(
                [*under, sys.executable, "-m", "dugnad", *arguments, "--end-with-standard-input"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )
        self.pid = self._process.pid

    def events(self, name: str = "") -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        return [record for record in read_events(path) if not name or record["event"] == name] if path.exists() else []

    def epoch(self) -> int:
        return max((int(record["epoch"]) for record in self.events("committed")), default=0)

    def family(self) -> list[psutil.Process]:
        """Every descendant ever seen by calling this."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._family.update({child.pid: child for child in psutil.Process(self.pid).children(recursive=True)})
        return list(self._family.values())

    def send(self, number: signal.Signals) -> None:
        self.family()
        self._process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self._process.wait()

    def wait(self, limit_s: float = 60.0) -> int:
        deadline = time.monotonic() + limit_s
        while self._process.poll() is None and time.monotonic() < deadline:
            self.family()
            _pause(POLL_S)
        assert self._process.poll() is not None, f"{self.name} still runs:\n{self.tail()}"
        return int(self._process.returncode)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def tail(self) -> str:
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-25:])

    def end(self) -> None:
        self.family()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self.running:
            self._process.kill()
        self._process.wait()


class Swarm:
    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        batch: int = 192,
        max_epochs: int | None = None,
        codec: str = "fp32",
        overlap: bool = False,
        faults: bool = False,
        pace_s: float = 0.0,
        fresh_s: float = 0.0,
        host: str = "127.0.0.1",
        under: tuple[str, ...] = (),
    ) -> None:
        """`faults`: its processes can be told to fail at a phase of a round (tests/swarm/hooks).

        `pace_s`: each micro-batch takes so much longer, so that epochs have a least length on any machine; needs `faults`.
        `fresh_s`: certificates are fresh for so long, instead of a week; needs `faults`.

        `host`: where the coordinator listens; `under`: what runs it, and peers for which nothing else is named.
        """
        print(f"seed {seed}")
        hooks = {"DUGNAD_TEST_PACE_S": str(pace_s), "DUGNAD_TEST_FRESH_S": str(fresh_s)}
        self._environment = {**HOOKED, **hooks} if faults else {}
        self._host, self._under = host, under
        self.folder = folder
        limit = f"max_epochs = {max_epochs}" if max_epochs is not None else ""
        self.run_file = folder / "run.toml"
        overlaps = str(overlap).lower()
        spec = SPEC.format(seed=seed, text=CORPUS, batch=batch, limit=limit, codec=codec, overlap=overlaps)
        self.run_file.write_text(spec)
        self.port = free_port()
        self.everybody: list[Process] = []
        self._network = NetworkThread()
        self._visitor: Enrolment | None = None

    def __enter__(self) -> Swarm:
        with contextlib.ExitStack() as unwinding:
            unwinding.push(self.__exit__)
            self._network.__enter__()
            self.coordinator = self.start_coordinator()
            unwinding.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self.everybody:
            process.end()
        self._network.__exit__(kind, error, trace)
        families = [child for process in self.everybody for child in process.family()]
        if error is not None:
            for process in self.everybody:
                print(f"--- {process.name}\n{process.tail()}")
            return
        wait_until(lambda: not any(map(_alive, families)), f"these to end with their parents: {families}", 15)

    # -- processes -------------------------------------------------------------------------------------------------------------

    def start_coordinator(self) -> Process:
        arguments = ["coordinator", str(self.run_file), "--dir", str(self.folder / "run"), "--host", self._host]
        known = self.ticket if (self.folder / "run" / "ticket.txt").exists() else ""
        (self.folder / "run" / "ticket.txt").unlink(missing_ok=True)
        process = self._started(self._process("coordinator", self.folder / "run", [*arguments, "--port", str(self.port)]))
        wait_until(lambda: (self.folder / "run" / "ticket.txt").exists() or not process.running, "the ticket", START_S)
        assert process.running, process.tail()
        assert not known or self.ticket == known, "a ticket survives its coordinator"
        return process

    @property
    def ticket(self) -> str:
        return (self.folder / "run" / "ticket.txt").read_text().strip()

    def start_peer(self, name: str, *options: str, under: tuple[str, ...] | None = None) -> Process:
        arguments = ["peer", self.ticket, "--home", str(self.folder / name), "--name", name, "--threads", "1", *options]
        arguments += ["--yes", "--data", f"{CORPUS}/*.txt"]
        return self._started(self._process(name, self.folder / name, [*arguments, "--micro-batch", "4"], under))

    def _process(self, name: str, folder: Path, arguments: list[str], under: tuple[str, ...] | None = None) -> Process:
        return Process(name, folder, arguments, under=self._under if under is None else under, **self._environment)

    def _started(self, process: Process) -> Process:
        self.everybody.append(process)
        return process

    # -- waiting ---------------------------------------------------------------------------------------------------------------

    def commits_by(self, watcher: Process, epoch: int, limit_s: float = 60.0) -> None:
        def there() -> bool:
            assert watcher.running, f"{watcher.name} ended:\n{watcher.tail()}"
            return watcher.epoch() >= epoch

        wait_until(there, f"{watcher.name} to commit epoch {epoch}", limit_s)

    def contributes(self, process: Process, watcher: Process | None = None, limit_s: float = START_S) -> None:
        """A commit names this peer."""

        def there() -> bool:
            assert process.running, f"{process.name} ended:\n{process.tail()}"
            return self.id_of(process) in {c["peer"] for e in (watcher or process).events("committed") for c in e["contributors"]}

        wait_until(there, f"a contribution of {process.name}", limit_s)

    # -- looking ---------------------------------------------------------------------------------------------------------------

    def id_of(self, process: Process) -> str:
        path = process.folder / "identity.key"
        return Key.load_or_create(path).peer_id if path.exists() else ""

    def visit(self) -> Enrolment:
        """An outsider's credentials; taken once, so that they outlive the coordinator."""
        if self._visitor is None:
            self._visitor = self.enrol(self.ticket)
        return self._visitor

    def enrol(self, ticket: str) -> Enrolment:
        """As somebody new."""
        return self._network.call(enrol(Ticket.parse(ticket), Key.generate()))

    def call(self, work: Callable[[NetworkTransport], Any], run_digest: str = "") -> Any:
        """Run `await work(transport)` as an outsider."""
        visitor = self.visit()

        async def visiting() -> Any:
            transport = NetworkTransport(visitor.credentials, run_digest or visitor.spec.digest)
            try:
                return await work(transport)
            finally:
                await transport.aclose()

        return self._network.call(visiting())

    def now(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result, on the network's thread."""
        return self._network.call(work)

    def snapshot_of(self, process: Process) -> bytes:
        candidate = Candidate(self.id_of(process), address_of(process))

        async def fetch(transport: NetworkTransport) -> bytes:
            return await SnapshotFetch(transport, 1 << 30, lambda done, total: None, lambda peer, error: None).run([candidate])

        def offered() -> bytes | None:
            try:
                return bytes(self.call(fetch))
            except RefusedError:
                return None  # it catches up just now

        return bytes(wait_until(offered, f"{process.name} to give its state"))


def address_of(process: Process) -> str:
    """Where a peer accepts connections: the port that is its own process's, not its DHT daemon's."""
    listening = [c for c in psutil.Process(process.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    (port,) = (it.laddr.port for it in listening if _speaks_grpc(it.laddr.port))
    return f"127.0.0.1:{port}"


def _speaks_grpc(port: int) -> bool:
    """The other port is for shards."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain, context.wrap_socket(plain) as connection:
        return connection.selected_alpn_protocol() == "h2"


def committed_ranges(processes: list[Process]) -> dict[tuple[str, int], list[tuple[int, int, int]]]:
    """(peer, incarnation) -> [(first, end, epoch)] over the logs of all of them, each commit once."""
    commits: dict[str, dict[str, Any]] = {}
    for process in processes:
        for record in process.events("committed"):
            commits[record["lineage"]] = record
    ranges: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
    for record in commits.values():
        for c in record["contributors"]:
            ranges.setdefault((c["peer"], c["incarnation"]), []).append((c["first"], c["end"], record["epoch"]))
    return {who: sorted(spans) for who, spans in ranges.items()}


def assert_disjoint(processes: list[Process]) -> None:
    """No sample is in two commits."""
    ranges = committed_ranges(processes)
    assert ranges, "nothing was committed"
    for who, spans in ranges.items():
        for (_, end, epoch), (first, _, later) in itertools.pairwise(spans):
            assert end <= first, f"samples of {who} are in epochs {epoch} and {later}"


def assert_one_history(processes: Sequence[Logged]) -> None:
    """No two of them committed different lineages at one epoch."""
    seen: dict[int, str] = {}
    for process in processes:
        for record in process.events("committed"):
            lineage = seen.setdefault(record["epoch"], record["lineage"])
            assert lineage == record["lineage"], f"epoch {record['epoch']} was committed twice"


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def as_json(text: str) -> Any:
    return json.loads(text.strip().splitlines()[-1])
