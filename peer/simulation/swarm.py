"""A swarm in the simulator: its machines, the processes on them, what their disks hold, and how both come and go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peer.simulation.clock import Clock
from peer.simulation.faults import Injector
from peer.simulation.messages import Snapshot
from peer.simulation.network import Machine, Network
from peer.simulation.observer import Observer
from peer.simulation.process import RUN, SimulatedPeer
from peer.simulation.replica import genesis_state
from peer.simulation.world import World
from protocols.round.planner import WINDOW_BYTES
from protocols.round.records import Candidate, Tip
from protocols.run_spec import AveragingSpec

# A batch takes the swarm about this long to draw.
EPOCH_S = 2.0
# Discovery misses a peer in one of so many looks.
MISSED_LOOKS = 10
# Of the machines after the first two: how many of them accept connections.
REACHABLE = (0.1, 0.5, 0.9)
# One machine in so many has an upload that takes nearly as long as a batch takes to draw.
SLOW_UPLOADS = 8
# Of the runs: one in three leaves the choice to measured rates, so that it changes between epochs.
CODEC_CHOICES = ("fp64", "fp64", "fp32", "fp16", "bf16", "int8", "int4", "int4", "auto", "auto", "auto", "auto")
SAVE_EVERY = 2  # commits between two snapshots on disk


class Swarm:
    """The first machine is the coordinator's: its process is auxiliary and reachable, starts the run, and keeps its disk."""

    def __init__(
        self,
        world: World,
        peers: int,
        make: Callable[..., SimulatedPeer] = SimulatedPeer,
        *,
        overlap: bool = False,
        codec: str = "",
    ) -> None:
        """`codec`: as a run spec names it, or fp64; '' for one drawn from the seed."""
        random = world.random
        self.world, self._make = world, make
        share = random.choice(REACHABLE)
        machines = [self._machine(index, index < 2 or random.random() < share) for index in range(peers)]
        self.names = [machine.name for machine in machines]
        self.network = Network(world, machines)
        self.codec = codec or random.choice(CODEC_CHOICES)
        averaging = AveragingSpec(codec="auto") if self.codec == "auto" else None
        self.codecs = averaging.codecs if averaging is not None else (self.codec,)
        first_codec = averaging.first_codec if averaging is not None else self.codec
        self.overlap = overlap
        self.speeds = {name: (random.randint(1, 3), random.uniform(0.2, 0.8)) for name in self.names}
        first = self.names[0]
        self.speeds[first] = (0, 0.2)
        drawn_s = sum(count / step_s for count, step_s in self.speeds.values())
        self.target_batch_size = max(4, round(drawn_s * EPOCH_S))
        self.genesis = Tip.genesis(RUN, "00" * 32, Candidate(first, f"{first}:1"), first_codec)
        self.observer = Observer(world, self.genesis.lineage, overlap=overlap)
        self.injector = Injector(world, self)
        self.processes: dict[str, SimulatedPeer] = {}
        self.disks: dict[str, Snapshot] = {first: Snapshot(self.genesis, None, genesis_state())}
        self.restarts = True
        self._incarnation = 0
        self._phases: dict[SimulatedPeer, str] = {}
        world.after = self._after

    def _machine(self, index: int, reachable: bool) -> Machine:
        random = self.world.random
        latency_s = random.uniform(0.002, 0.04)
        up = random.uniform(1e5, 2e6)
        down = up * random.uniform(1, 5)
        if random.randrange(SLOW_UPLOADS) == 0:
            up = random.uniform(2e4, 8e4)
        memory_bytes = random.choice((0, random.randint(1, 8) * WINDOW_BYTES))
        jitter_s = latency_s * random.random()
        return Machine(f"p{index}", reachable, latency_s, jitter_s, up, down, Clock(self.world), memory_bytes)

    @property
    def alive(self) -> list[SimulatedPeer]:
        return [process for process in self.processes.values() if process.alive]

    # -- processes -------------------------------------------------------------------------------------------------------------

    def start(self, name: str, *, memory: bool = True) -> None:
        earlier = self.processes.get(name)
        if earlier is not None and earlier.alive:
            return
        machine = self.network.machines[name]
        machine.powered = True
        if earlier is not None:  # an operating system that starts again knows nothing of the old connections
            self._reset(earlier)
        self._incarnation += 1
        known = tuple(process.candidate for process in self.alive if process.machine.reachable)
        first = self.genesis.leader
        micro_batch, step_s = self.speeds[name]
        process = self._make(
            self.network,
            self.observer,
            machine,
            self._incarnation,
            genesis=self.genesis,
            codecs=self.codecs,
            overlap=self.overlap,
            target_batch_size=self.target_batch_size,
            micro_batch=micro_batch,
            step_s=step_s,
            bootstrap=tuple({candidate.peer: candidate for candidate in (first, *known) if candidate.peer != name}.values()),
        )
        process.at_phase = self.injector.entered
        process.look, process.save, process.give_up = self._look, self._save, self._gave_up
        self.processes[name] = self.network.processes[name] = process
        disk = self.disks.get(name) if memory else None
        self.observer.started(process, disk.tip if disk is not None else None)
        if disk is not None:
            process.replica.restore(disk)
            self.observer.restored(process, disk.tip)
        process.begin()

    def kill(self, process: SimulatedPeer, *, tell: bool) -> None:
        """`tell`: the operating system lives on and closes the process's connections."""
        if not process.alive:
            return
        process.alive, process.died_at = False, self.world.now
        process.machine.powered = tell
        self.observer.ended(process, "killed" if tell else "power cut")
        if tell:
            self._reset(process)
        random = self.world.random
        memory = process.name == self.names[0] or random.random() < 0.5
        if self.restarts and (process.name == self.names[0] or random.random() < 0.9):
            self.world.at(random.uniform(0.3, 6), None, lambda: self._restart(process.name, memory))

    def _restart(self, name: str, memory: bool) -> None:
        if not self.processes[name].alive:
            self.injector.count("restart with memory" if memory and name in self.disks else "restart without memory")
            self.start(name, memory=memory)

    def _gave_up(self, process: SimulatedPeer) -> None:
        self.kill(process, tell=True)

    def _reset(self, dead: SimulatedPeer) -> None:
        for stream in self.network.streams_of(dead.name):
            if dead in (stream.client, stream.up.target):
                stream.reset_by(dead)

    def _save(self, process: SimulatedPeer) -> None:
        tip, snapshot = process.replica.tip, process.replica.capture()
        if snapshot is not None and tip is not None and tip.epoch % SAVE_EVERY == 0:

            def written() -> None:
                self.disks[process.name] = snapshot

            self.world.at(0.05 * process.trainer.slowness, process, written)

    def _look(self, process: SimulatedPeer) -> list[Candidate]:
        """Discovery's records: they outlive their peers, and now and then one is missed."""
        there = [other.candidate for other in self.processes.values() if other is not process and other.machine.reachable]
        if all(self.network.is_blocked(process.name, other.peer) for other in there):
            return []
        return [other for other in there if self.world.random.randrange(MISSED_LOOKS)]

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
            self.observer.after_event(owner)
            attempt = owner.leader.attempt
            phase = "majority" if attempt is not None and attempt.majority_at is not None else owner.member.phase.value
            if self._phases.get(owner) != phase:
                self._phases[owner] = phase
                self.injector.entered(owner, phase)
