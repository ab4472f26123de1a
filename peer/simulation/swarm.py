"""A swarm in the simulator: its machines, the processes on them, what their disks hold, and how both come and go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from peer.settings import RunSettings
from peer.simulation.clock import Clock
from peer.simulation.faults import Injector
from peer.simulation.network import Machine, Network
from peer.simulation.observer import Observer
from peer.simulation.problem import MAX_NORM, REGRESSION, Problem
from peer.simulation.process import SimulatedPeer
from peer.simulation.transport import STRANGER, ban_list_by_the_organiser
from peer.simulation.world import World
from protocols.ban_list import NO_BANS, BanList
from protocols.round.planner import WINDOW_BYTES
from protocols.round.records import Candidate, Tip
from protocols.run_spec import AveragingSpec
from protocols.snapshot.format import StateHeader, capture, parameters_sha256

# A batch takes the swarm about this long to draw.
EPOCH_S = 2.0
RUN = "ab" * 32
# Discovery misses a peer in one of so many looks.
MISSED_LOOKS = 10
# Of the machines after the first two: how many of them accept connections.
REACHABLE = (0.1, 0.5, 0.9)
# One machine in so many has an upload that takes nearly as long as a batch takes to draw.
SLOW_UPLOADS, SLOW_BYTES_S = 8, 8e4
# Of the runs: one in three leaves the choice to measured rates, so that it changes between epochs.
CODEC_CHOICES = ("fp64", "fp64", "fp32", "fp16", "bf16", "int8", "int4", "int4", "auto", "auto", "auto", "auto")
SAVE_EVERY = 2  # commits between two snapshots on disk


T = TypeVar("T", bound="Swarm")


class Swarm:
    """The first machine is the coordinator's: its process is auxiliary and reachable, starts the run, and keeps its disk.

    Leave it (it is a context manager) when the simulation is over.
    """

    def __init__(
        self,
        world: World,
        peers: int,
        make: Callable[..., SimulatedPeer] = SimulatedPeer,
        *,
        problem: Problem = REGRESSION,
        overlap: bool = False,
        codec: str = "",
        max_epochs: int | None = None,
        liars: Mapping[str, str] = {},
    ) -> None:
        """`codec`: as a run spec names it, or fp64; '' for one drawn from the seed.

        `liars`: peer -> its lie, a name of `liars.LIES`. With any, the run averages as runs do that strangers join.
        """
        random = world.random
        self.world, self.problem, self._make, self.liars = world, problem, make, liars
        share = random.choice(REACHABLE)
        machines = [self._machine(index, index < 2 or random.random() < share) for index in range(peers)]
        self.names = [machine.name for machine in machines]
        self.network = Network(world, machines)
        # Unchecked: no run spec may name fp64.
        averaging = AveragingSpec.model_construct(codec=codec or random.choice(CODEC_CHOICES))
        # (samples of a micro-batch, its seconds); 0 samples: an auxiliary peer
        self.speeds = {name: (random.randint(1, 3), random.uniform(0.2, 0.8)) for name in self.names}
        first = self.names[0]
        self.speeds[first] = (0, 0.2)
        drawn_s = sum(count / step_s for count, step_s in self.speeds.values())
        device = problem.device()
        header = StateHeader(RUN, epoch=0, lineage="", samples=0, commit="", scheduler={})
        parameters = parameters_sha256(capture(device.model, device.optimizer, header))
        genesis = Tip.genesis(RUN, parameters, Candidate(first, f"{first}:1"), averaging.first_codec)
        self.settings = RunSettings(
            run_digest=RUN,
            target_batch_size=max(4, round(drawn_s * EPOCH_S)),
            max_epochs=max_epochs,
            codecs=averaging.codecs,
            genesis=genesis,
            genesis_sha256=parameters,
            overlap=overlap,
            max_grad_norm=MAX_NORM,
            rule=averaging.rule if liars else "mean",
            max_share=averaging.max_share if liars else 1.0,
            **problem.settings,
        )
        self.observer = Observer(world, self.settings, problem, self.network.reached_at, liars.keys())
        self.injector = Injector(world, self)
        self.processes: dict[str, SimulatedPeer] = {}
        self.disks: dict[str, bytes] = {first: genesis_snapshot(problem, self.settings)}  # the newest snapshot of each machine
        self.restarts = True
        self.bans = NO_BANS  # the organiser's newest list
        self._ever: list[SimulatedPeer] = []
        self._phases: dict[SimulatedPeer, str] = {}
        world.after = self._after

    def _machine(self, index: int, reachable: bool) -> Machine:
        random = self.world.random
        latency_s = random.uniform(0.002, 0.04)
        up = random.uniform(1e5, 2e6)
        down = up * random.uniform(1, 5)
        if random.randrange(SLOW_UPLOADS) == 0:
            up = random.uniform(2e4, SLOW_BYTES_S)
        memory_bytes = random.choice((0, random.randint(1, 8) * WINDOW_BYTES))
        jitter_s = latency_s * random.random()
        listens = reachable or random.random() < 0.5
        return Machine(f"p{index}", reachable, latency_s, jitter_s, up, down, Clock(self.world), memory_bytes, listens=listens)

    @property
    def alive(self) -> list[SimulatedPeer]:
        return [process for process in self.processes.values() if process.alive]

    @property
    def honest(self) -> list[SimulatedPeer]:
        """Those of them that tell the truth."""
        return [process for process in self.alive if process.lie is None]

    # -- processes -------------------------------------------------------------------------------------------------------------

    def start(self, name: str, *, memory: bool = True) -> None:
        earlier = self.processes.get(name)
        if earlier is not None and earlier.alive:
            return
        machine = self.network.machines[name]
        machine.powered = True
        if earlier is not None:  # an operating system that starts again knows nothing of the old connections
            self._reset(earlier)
        known = tuple(process.candidate for process in self.alive if process.machine.reachable)
        first = self.settings.genesis.leader
        bootstrap = {candidate.peer: candidate for candidate in (first, *known) if candidate.peer != name}
        process = self._make(self, machine, len(self._ever) + 1, tuple(bootstrap.values()))
        self._ever.append(process)
        self.processes[name] = self.network.processes[name] = process
        disk = self.disks.get(name) if memory else None
        process.observer.started(process, on_disk=disk is not None)
        if disk is not None:
            process.replica.restore(disk)
        process.begin()

    def kill(self, process: SimulatedPeer, *, tell: bool, reason: str = "") -> None:
        """`tell`: the operating system lives on and closes the process's connections."""
        if not process.alive:
            return
        process.alive, process.died_at = False, self.world.now
        process.machine.powered = tell
        self.observer.ended(process, reason or ("killed" if tell else "power cut"))
        if tell:
            self._reset(process)
        random = self.world.random
        memory = process.name == self.names[0] or random.random() < 0.5
        if self.restarts and (process.name == self.names[0] or random.random() < 0.9):
            self.world.at(random.uniform(0.3, 6), None, lambda: self.restart(process.name, memory=memory))

    def restart(self, name: str, *, memory: bool = True) -> None:
        """A restart counts as a fault. Does nothing while the machine's process is alive."""
        if not self.processes[name].alive:
            kind = "restart with memory" if memory and name in self.disks else "restart without memory"
            self.injector.by_kind[kind] += 1
            self.start(name, memory=memory)

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *exception: object) -> None:
        """The simulation is over: nothing of any process runs any more."""
        for process in self._ever:
            process.alive = False
            process.loop.dispose()

    def _reset(self, dead: SimulatedPeer) -> None:
        for stream in self.network.streams_of(dead.name):
            if dead in (stream.client, stream.up.target):
                stream.reset_by(dead)

    def applied(self, process: SimulatedPeer) -> None:
        tip = process.replica.tip
        if tip is not None and tip.epoch % SAVE_EVERY == 0:
            process.trainer.jobs.put(lambda: self._save(process))

    def _save(self, process: SimulatedPeer) -> None:
        """On the training thread, some time later."""
        if process.replica.tip is not None and not self.observer.is_drifted(process):
            self.disks[process.name] = process.replica.capture()[0]

    def look(self, process: SimulatedPeer) -> list[Candidate]:
        """Discovery's records: they outlive their peers, and now and then one is missed."""
        there = [other.candidate for other in self.processes.values() if other is not process and other.machine.reachable]
        if all(self.network.is_blocked(process.name, other.peer) for other in there):
            return []
        return [other for other in there if self.world.random.randrange(MISSED_LOOKS)]

    def ban_a_stranger(self) -> None:
        """The organiser signs a new list, of one who is not here, and only one honest peer is told of it."""
        self.bans = ban_list_by_the_organiser(BanList(self.bans.bans.version + 1, (STRANGER,)))
        if self.honest:
            told = self.world.random.choice(self.honest)
            with told.loop.running():
                told.engine.bans.hear(self.bans, "coordinator")

    # -- lines -----------------------------------------------------------------------------------------------------------------

    def block(self, ways: list[tuple[str, str]], *, both: bool, seconds: float) -> None:
        ways = sorted({*ways, *((b, a) for a, b in ways if both)})
        for source, target in ways:
            self.network.block(source, target)

        def heal() -> None:
            self.world.trace("the lines are whole again", notable=True)
            for source, target in ways:
                self.network.unblock(source, target)

        self.world.at(seconds, None, heal)

    # -- after every event -----------------------------------------------------------------------------------------------------

    def _after(self, owner: Any) -> None:
        if isinstance(owner, SimulatedPeer):
            owner.observer.after_event(owner)
            attempt = owner.engine.leader.attempt
            phase = "majority" if attempt is not None and attempt.majority_at is not None else owner.engine.member.phase.value
            if self._phases.get(owner) != phase:
                self._phases[owner] = phase
                self.injector.entered(owner, phase)


def genesis_snapshot(problem: Problem, settings: RunSettings) -> bytes:
    """The state that a run with these settings begins with."""
    device = problem.device()
    optimizer = device.strategy(settings).optimizer
    header = StateHeader(RUN, 0, settings.genesis.lineage, 0, commit="", scheduler=device.schedule.state_dict())
    return capture(device.model, optimizer, header)
