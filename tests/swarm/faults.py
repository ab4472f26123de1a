"""A swarm in which processes fail at a phase of a round, one after the other, and are healed; and what must hold after each."""

from __future__ import annotations

import itertools
import json
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from protocols.host.event_log import read_events
from protocols.identity import Key
from protocols.round.leader import DETECTION_S
from tests.swarm.swarm import Logged, Process, Swarm, assert_one_history, wait_until

PHASES = ("before-sending", "mid-shard", "ready-before-commit", "after-commit-before-apply")
ACTS = ("kill", "stop", "cut")
ROLES = ("contributor", "reducer", "leader", "auxiliary", "coordinator")
# From the fault to the next commit of every survivor, beyond one ordinary epoch.
RECOVERY_S = 5.0
EPOCHS_TIMED = 8
BATCH = 1024  # an epoch of about a second: one of 0.1 s would measure the machine's scheduler
ROUND_S = 90.0  # the armed phase comes within this


@dataclass(frozen=True)
class Cell:
    role: str
    phase: str
    act: str

    def __str__(self) -> str:
        return f"{self.role} / {self.phase} / {self.act}"


@dataclass(frozen=True)
class Recovery:
    """Seconds from the fault to the next commit, of the survivor that took longest; and an ordinary epoch before it."""

    cell: Cell
    victim: str
    led: bool
    seconds: float
    epoch_s: float

    def __str__(self) -> str:
        role = f"{self.cell.role}{' (leading)' if self.led else ''}"
        return f"| {role} | {self.cell.phase} | {self.cell.act} | {self.seconds:.2f} s | {self.epoch_s:.2f} s |"


class Auxiliary:
    """The coordinator's auxiliary peer, looked at as if it were a process of the test's own."""

    name = "auxiliary"

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self.folder = swarm.folder / "run" / "auxiliary"

    def events(self, name: str = "") -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        return [record for record in read_events(path) if not name or record["event"] == name] if path.exists() else []

    def epoch(self) -> int:
        return max((int(record["epoch"]) for record in self.events("committed")), default=0)

    def send(self, number: signal.Signals) -> None:
        auxiliary_process(self._swarm).send_signal(number)


def auxiliary_process(swarm: Swarm) -> psutil.Process:
    (found,) = [child for child in swarm.coordinator.family() if _is_auxiliary(child)]
    return found


def _is_auxiliary(process: psutil.Process) -> bool:
    try:
        return "auxiliary" in process.cmdline()  # empty once it has ended
    except psutil.Error:
        return False


Node = Process | Auxiliary


class FaultySwarm:
    """A coordinator with its auxiliary peer, two reachable peers and one in client mode."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self.swarm = Swarm(folder, seed=seed, batch=BATCH, faults=True)
        self._zombies: set[str] = set()  # a leader that wakes may finish its old attempt, alone: a fork, which it gives up

    def __enter__(self) -> FaultySwarm:
        self.swarm.__enter__()
        self.auxiliary = Auxiliary(self.swarm)
        self.peers = {name: self._start(name) for name in ("north", "south", "hidden")}
        for peer in self.peers.values():
            self.swarm.contributes(peer)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self.swarm.everybody:
            if process.running:
                process.send(signal.SIGCONT)
        if kind is not None:
            for name, records in [(node.name, node.events()[-12:]) for node in (self.auxiliary, *self.peers.values())]:
                print(f"--- {name}", *(_short(record) for record in records), sep="\n")
        self.swarm.__exit__(kind, error, trace)

    def _start(self, name: str) -> Process:
        return self.swarm.start_peer(name, *(["--client-mode"] if name == "hidden" else []))

    @property
    def nodes(self) -> list[Node]:
        return [self.auxiliary, *self.peers.values()]

    def id_of(self, node: Node) -> str:
        return Key.load_or_create(node.folder / "identity.key").peer_id

    # -- one fault -------------------------------------------------------------------------------------------------------------

    def strike(self, cell: Cell) -> Recovery:
        """Let it happen, see the survivors go on, heal what can be healed, and check what must hold."""
        if cell.role == "leader" and self._leader() is self.auxiliary:
            self._depose_the_auxiliary_peer()
        victim = self._cast(cell.role)
        epoch_s = self._epoch_s()
        survivors = self._survivors(cell, victim)
        fired = self._fire(cell, victim)
        seconds = max(self._recovered_after(node, fired) for node in survivors)
        if victim not in survivors:
            self._explained(victim, survivors, fired)
        self._heal(cell, victim, survivors, fired)
        self.check()
        attempt = (fired["epoch"], fired["attempt"])
        led = attempt in {(record["epoch"], record["attempt"]) for record in victim.events("planned")}
        return Recovery(cell, victim.name, led, seconds, epoch_s)

    def _cast(self, role: str) -> Node:
        if role == "contributor":
            return self.peers["hidden"]  # it reduces nothing
        if role in ("auxiliary", "coordinator"):
            return self.auxiliary  # a coordinator sees no phases: its auxiliary peer sees them for it
        leader = self._leader()
        return leader if role == "leader" else next(p for n, p in self.peers.items() if n != "hidden" and p is not leader)

    def _survivors(self, cell: Cell, victim: Node) -> list[Node]:
        if cell.role == "coordinator" and cell.act != "kill":
            return self.nodes
        return [node for node in self.nodes if node is not victim or cell.act == "cut"]

    def _fire(self, cell: Cell, victim: Node) -> dict[str, Any]:
        said = victim.folder / "fired.json"
        said.unlink(missing_ok=True)
        target = "parent" if cell.role == "coordinator" else "self"
        aside = victim.folder / "fault.tmp"
        aside.write_text(json.dumps({"phase": cell.phase, "act": cell.act, "target": target}))
        aside.rename(victim.folder / "fault.json")
        wait_until(said.exists, f"{victim.name} to come to {cell.phase}", ROUND_S)
        return dict(json.loads(said.read_text()))

    def _recovered_after(self, node: Node, fired: dict[str, Any]) -> float:
        """Until its next commit; one whose averages were all there when the fault came does not count."""
        least = fired["epoch"] + (fired["phase"] == "after-commit-before-apply")

        def first() -> dict[str, Any] | None:
            return next((r for r in node.events("committed") if r["time"] > fired["time"] and r["epoch"] >= least), None)

        return float(wait_until(first, f"{node.name} to commit after the fault", 60)["time"] - fired["time"])

    def _explained(self, victim: Node, survivors: list[Node], fired: dict[str, Any]) -> None:
        """The first commit without the victim says why it gave nothing."""
        announced = [r for node in survivors for r in node.events("announced") if r["time"] > fired["time"]]
        who = self.id_of(victim)
        without = [r for r in announced if who not in {c["peer"] for c in r["contributors"]}]
        if without:
            absent = min(without, key=lambda record: float(record["time"]))["absent"]
            assert absent.get(who), f"{victim.name} is absent without a reason: {absent}"

    # -- and after -------------------------------------------------------------------------------------------------------------

    def _heal(self, cell: Cell, victim: Node, survivors: list[Node], fired: dict[str, Any]) -> None:
        swarm = self.swarm
        if cell.act == "kill" and cell.role == "coordinator":
            swarm.coordinator.wait(10)
            swarm.coordinator = swarm.start_coordinator()
        elif cell.act == "kill" and isinstance(victim, Process):
            victim.wait(10)
            self.peers[victim.name] = self._start(victim.name)
        elif cell.act == "stop":
            self._zombies.add(victim.name)
            wait_until(lambda: time.time() > fired["time"] + 1.25 * DETECTION_S, "more time than detection takes")
            (swarm.coordinator if cell.role == "coordinator" else victim).send(signal.SIGCONT)
        at = max(node.epoch() for node in survivors)
        # A zombie that comes back, a process that starts again, one whose connections were cut: it must be with the others again.
        for node in self.nodes:
            self._takes_part(node, at, time.time())

    def _takes_part(self, node: Node, epoch: int, since: float) -> None:
        def there() -> bool:
            return any(r["epoch"] > epoch and r["time"] > since for r in node.events("committed"))

        wait_until(there, f"{node.name} to commit with the others after epoch {epoch}", 90)

    def _depose_the_auxiliary_peer(self) -> None:
        self.auxiliary.send(signal.SIGKILL)
        wait_until(lambda: self._last_commit()["leader"] != self.id_of(self.auxiliary), "another leader", 60)
        for node in self.nodes:
            self._takes_part(node, self.peers["hidden"].epoch(), time.time())

    # -- looking ---------------------------------------------------------------------------------------------------------------

    def _last_commit(self) -> dict[str, Any]:
        return max((r for p in self.peers.values() for r in p.events("committed")), key=lambda record: int(record["epoch"]))

    def _leader(self) -> Node:
        leader = self._last_commit()["leader"]
        return next(node for node in self.nodes if self.id_of(node) == leader)

    def _epoch_s(self) -> float:
        """An ordinary epoch, gathering included: the median of the last ones."""
        enough = "enough epochs to tell how long one takes"
        times = wait_until(lambda: self._commit_times(), enough)
        return statistics.median(after - before for before, after in itertools.pairwise(times))

    def _commit_times(self) -> list[float]:
        times = [float(record["time"]) for record in self.peers["hidden"].events("committed")]
        return times[-EPOCHS_TIMED:] if len(times) >= EPOCHS_TIMED else []

    def check(self) -> None:
        assert_no_sample_twice_on_a_lineage(self.nodes)
        assert_one_history([node for node in self.nodes if node.name not in self._zombies])
        assert_identical([node.folder for node in self.nodes])


def assert_no_sample_twice_on_a_lineage(nodes: Sequence[Logged]) -> None:
    commits = {record["lineage"]: record for node in nodes for record in node.events("committed")}
    for tip in commits.keys() - {record["parent"] for record in commits.values()}:
        seen: dict[tuple[str, int], tuple[int, int]] = {}  # (peer, incarnation) -> (first, epoch) of the range after
        record = commits.get(tip)
        while record is not None:
            for c in record["contributors"]:
                after, epoch = seen.get((c["peer"], c["incarnation"]), (c["end"], 0))
                assert c["end"] <= after, f"samples of {c['peer'][:8]} are in epochs {record['epoch']} and {epoch} of one lineage"
                seen[c["peer"], c["incarnation"]] = c["first"], record["epoch"]
            record = commits.get(record["parent"])


def assert_identical(folders: list[Path]) -> None:
    """Whoever came to a lineage, by a step or by a snapshot, holds the same bytes there."""
    seen: dict[str, tuple[str, Path]] = {}
    compared = 0
    for folder in folders:
        for state in _states(folder):
            digest, first = seen.setdefault(state["lineage"], (state["state"], folder))
            assert digest == state["state"], f"{first.name} and {folder.name} differ at epoch {state['epoch']}"
            compared += first != folder
    assert compared, "no two replicas were ever at the same lineage"


def _states(folder: Path) -> Iterator[dict[str, Any]]:
    for line in (folder / "states.jsonl").read_text().splitlines():
        if line.endswith("}"):  # else torn by a kill
            yield json.loads(line)


def _short(record: dict[str, Any]) -> str:
    return " ".join(
        f"{key}={value[:12] if isinstance(value, str) else value}" for key, value in record.items() if key != "contributors"
    )
