"""A quiet simulated swarm for tests: whole peers on chosen machines in virtual time. Nothing goes wrong but what a test asks for.

Peers, network and observer are those of `dugnad simulate`, so every test that runs one also checks the invariants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from peer.simulation.clock import Clock
from peer.simulation.faults import Fault
from peer.simulation.network import Machine
from peer.simulation.network import Stream as NetworkStream
from peer.simulation.observer import Observer, Source
from peer.simulation.problem import REGRESSION, Problem
from peer.simulation.process import SimulatedPeer
from peer.simulation.swarm import Swarm, genesis_snapshot
from peer.simulation.world import World
from protocols.reasons import Reason
from protocols.round.leader_actions import NoteFailure
from protocols.round.member import Answer
from protocols.round.plans import Plan
from protocols.round.records import Commit, Contribution

LATENCY_S, LINE_BYTES_S = 0.01, 4e6
LIMIT_S = 120.0  # of virtual time, for whatever a test waits for


@dataclass(frozen=True)
class Volunteer:
    """A machine, and the peer that its volunteer starts there. The defaults draw 7.5 samples a second."""

    name: str
    micro_batch: int = 3
    """0: an auxiliary peer."""

    step_s: float = 0.4
    reachable: bool = True


class Recorder(Observer):
    """Keeps what it is told, for tests to look at."""

    unlike_machines = False
    """Processes round in ways of their own: states at one lineage differ."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.plans: list[Plan] = []
        self.failures: list[NoteFailure] = []
        self.answers: list[tuple[str, Answer]] = []
        self.catch_ups: list[tuple[str, Reason]] = []
        self.given_up: list[tuple[str, Reason, int]] = []  # (peer, reason, samples)
        self.frozen: list[tuple[str, Contribution]] = []

    def planned(self, leader: Source, plan: Plan, absent: dict[str, Reason]) -> None:
        self.plans.append(plan)
        super().planned(leader, plan, absent)

    def attempt_failed(self, leader: Source, failure: NoteFailure) -> None:
        self.failures.append(failure)
        super().attempt_failed(leader, failure)

    def answered(self, process: Source, answer: Answer) -> None:
        self.answers.append((process.name, answer))
        super().answered(process, answer)

    def catching_up(self, process: Source, reason: Reason) -> None:
        self.catch_ups.append((process.name, reason))
        super().catching_up(process, reason)

    def gave_up(self, process: Source, reason: Reason, contribution: Contribution | None, samples: int) -> None:
        self.given_up.append((process.name, reason, contribution.weight if contribution is not None else samples))
        super().gave_up(process, reason, contribution, samples)

    def froze(self, process: Source, contribution: Contribution, encoded: bytes, codec: Any) -> None:
        self.frozen.append((process.name, contribution))
        super().froze(process, contribution, encoded, codec)

    def _anybody_drifted(self) -> bool:
        return self.unlike_machines or super()._anybody_drifted()


class QuietSwarm(Swarm):
    """The first volunteer's peer starts the run: it has the genesis, leads at first, and has to be reachable.

    Use it as a context: leaving ends what never ended.
    """

    observer: Recorder

    def __init__(
        self,
        *volunteers: Volunteer,
        seed: int = 0,
        target: int = 24,
        codec: str = "fp64",
        overlap: bool = False,
        max_epochs: int | None = None,
        problem: Problem = REGRESSION,
        make: Callable[..., SimulatedPeer] = SimulatedPeer,
        recorder: type[Recorder] = Recorder,
        **settings: Any,
    ) -> None:
        """`target` samples make a batch; `settings` are fields of RunSettings."""
        print(f"seed {seed}")
        self._volunteers = list(volunteers)
        world = World(seed)
        super().__init__(world, len(volunteers), make, problem=problem, overlap=overlap, codec=codec, max_epochs=max_epochs)
        self.restarts = False
        self.speeds = {volunteer.name: (volunteer.micro_batch, volunteer.step_s) for volunteer in volunteers}
        self.settings = replace(self.settings, target_batch_size=target, **settings)
        self.disks[self.names[0]] = genesis_snapshot(problem, self.settings)
        self.observer = recorder(world, self.settings, problem, self.network.reached_at)
        self.broken: set[tuple[str, str]] = set()  # (from, to): no bulk connection comes about
        self._dial, self.network.dial = self.network.dial, self._maybe_dial  # type: ignore[method-assign]

    def _machine(self, index: int, reachable: bool) -> Machine:
        volunteer = self._volunteers[index]
        line = LINE_BYTES_S
        return Machine(
            volunteer.name,
            volunteer.reachable,
            LATENCY_S,
            LATENCY_S / 2,
            line,
            line,
            Clock(self.world),
            listens=volunteer.reachable,
        )

    def _maybe_dial(self, client: Any, server: str, kind: str, *rest: Any) -> NetworkStream:
        stream = self._dial(client, server, kind, *rest)
        if kind == "bulk" and (client.name, server) in self.broken:
            stream.open = False  # refused as soon as it is tried
        return stream

    def __enter__(self) -> QuietSwarm:
        for name in self.names:
            self.start(name)
        return self

    # -- what happens ----------------------------------------------------------------------------------------------------------

    def join(self, volunteer: Volunteer) -> None:
        """One more machine, whose peer starts now."""
        self._volunteers.append(volunteer)
        self.names.append(volunteer.name)
        self.network.machines[volunteer.name] = self._machine(len(self._volunteers) - 1, volunteer.reachable)
        self.speeds[volunteer.name] = (volunteer.micro_batch, volunteer.step_s)
        self.start(volunteer.name)

    def end(self, name: str, *, silently: bool = False) -> None:
        """The process dies. `silently`: its machine loses power, so that nobody is told."""
        self.kill(self.processes[name], tell=not silently)

    def strike(self, kind: str, name: str, phase: str, seed: int = 0) -> None:
        """Let this fault (`peer.simulation.faults.KINDS`) happen to that peer, within 60 ms of its next coming to `phase`."""
        self.injector.arm(Fault(0, 0.0, kind, phase, name, seed))

    # -- waiting ---------------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        self.world.run_until(self.world.now + seconds)

    def until(self, there: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
        """Let time pass until `there()`; fails the test when that takes longer than the limit."""
        self.world.run_until(self.world.now + limit_s, there)
        assert there(), f"not within {limit_s:g} s:\n" + "\n".join(self.world.notable)

    def epochs(self, count: int = 1) -> None:
        """Until everybody alive has come so many epochs further than the furthest now, and stands on one lineage."""
        goal = max(self.epoch_of(process.name) for process in self.alive) + count
        self.until(lambda: self.is_together and min(self.epoch_of(process.name) for process in self.alive) >= goal)

    # -- looking ---------------------------------------------------------------------------------------------------------------

    def lineage_of(self, name: str) -> str:
        """'' while it holds no state."""
        tip = self.processes[name].replica.tip
        return tip.lineage if tip is not None else ""

    def epoch_of(self, name: str) -> int:
        tip = self.processes[name].replica.tip
        return tip.epoch if tip is not None else -1

    @property
    def is_together(self) -> bool:
        """Everybody alive is on one lineage."""
        lineages = {self.lineage_of(process.name) for process in self.alive}
        return len(lineages) == 1 and "" not in lineages

    @property
    def leader(self) -> str:
        (leading,) = [process.name for process in self.alive if process.engine.leader.active]
        return leading

    def history(self, name: str = "") -> list[Commit]:
        """The commits that led to where this peer stands (or the first alive), oldest first."""
        lineage, commits = self.lineage_of(name or self.alive[0].name), []
        while lineage in self.observer.commits:
            commits.append(self.observer.commits[lineage])
            lineage = commits[-1].ballot.parent
        return commits[::-1]

    def contributors(self, epoch: int) -> set[str]:
        return {contribution.peer for contribution in self.history()[epoch - 1].contributions}

    def reasons(self, name: str) -> list[Reason]:
        """Why that peer caught up, but for its joining."""
        return [reason for peer, reason in self.observer.catch_ups if peer == name and reason is not Reason.JOINED]
