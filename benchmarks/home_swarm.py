"""A quiet swarm in virtual time that trains a real task: production's peers on the simulator's network, on lines of given rates.

Real are the gradients, every step, what peers decide, and the bytes of contributions, averages and canonical values. Emulated is
time: a micro-batch takes what the rate of its peer says, a job of the training thread (freezing, applying) 1 to 30 ms, and bytes
take what the lines say. A control message counts as 200 bytes, a plan or a commit as 1500. Headers and TLS are not counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.links import Link
from peer.environment import Sizes
from peer.simulation.clock import Clock
from peer.simulation.network import Machine
from peer.simulation.problem import Device, Problem
from peer.simulation.process import SimulatedPeer
from peer.simulation.swarm import Swarm, genesis_snapshot
from peer.simulation.world import World
from protocols.gradients.slices import Slices
from protocols.run_spec import RunSpec
from protocols.tasks.base import Task

LATENCY_S = 0.02
SETTLE_S = 10.0  # from when everybody has the first parameters: lines are probed
STALLED_S = 600.0


class Unobserved:
    """Takes part as an observer and keeps nothing: at this size its record of every state would fill the memory."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **options: None


class _Peer(SimulatedPeer):
    sizes = Sizes()  # production's


@dataclass(frozen=True)
class Point:
    """A commit, as the first peer applied it."""

    seconds: float
    """Since training began, with everybody at once."""

    wire_bytes: float
    """Sent by all peers together since then."""

    samples: int
    """Of the run."""

    loss: float | None
    """On held-out data; None where it was not measured."""


class HomeSwarm(Swarm):
    """Peers that have the first parameters on disk. Use it as a context."""

    def __init__(
        self, spec: RunSpec, task: Task, links: Sequence[Link], *, seed: int, micro_batch: int, samples_per_second: float
    ) -> None:
        """`seed` draws the first weights, each peer's samples, and the network's jitter."""
        self._links, self._task, self._spec = links, task, spec
        self._batches = contextlib.ExitStack()

        def device() -> Device:
            torch.manual_seed(seed)
            return Device(task.build_model(), spec)

        def batches(peer: str, incarnation: int, count: int) -> Any:
            return self._batches.enter_context(task.batches(seed=seed, peer=f"{peer}:{seed}", micro_batch=count))

        slices = Slices.of(sum(parameter.numel() for parameter in device().model.parameters() if parameter.requires_grad))
        problem = Problem(device=device, task=task, batches=batches, slices=slices, value_bytes=0)
        super().__init__(World(seed), len(links), _Peer, problem=problem, codec=spec.averaging.codec)
        self.restarts = False
        training, averaging = spec.training, spec.averaging
        self.settings = replace(
            self.settings,
            target_batch_size=training.target_batch_size,
            overlap=averaging.overlap,
            max_grad_norm=training.max_grad_norm,
            strategy=training.strategy,
            local_batch_size=training.local_batch_size,
            outer_learning_rate=training.outer_learning_rate,
            outer_momentum=training.outer_momentum,
            rule=averaging.rule,
            max_share=averaging.max_share,
        )
        drawing = {name: 0 if link.auxiliary else micro_batch for name, link in zip(self.names, links, strict=True)}
        self.speeds = {name: (count, micro_batch / samples_per_second) for name, count in drawing.items()}
        self.disks = dict.fromkeys(self.names, genesis_snapshot(problem, self.settings))
        self.observer = Unobserved()  # type: ignore[assignment]
        self.wire_bytes = 0.0
        self.points: list[Point] = []
        self._evaluates: Callable[[int], bool] = lambda samples: False
        self._from = (0.0, 0.0)
        self._transmit, self.network.transmit = self.network.transmit, self._counted  # type: ignore[method-assign]

    def _machine(self, index: int, reachable: bool) -> Machine:
        link, name = self._links[index], f"p{index}"
        up, down = link.upload_bytes_s, link.download_bytes_s
        takes = not link.client_mode
        return Machine(name, takes, LATENCY_S, LATENCY_S / 4, up, down, Clock(self.world), listens=takes)

    def _counted(self, way: Any, message: Any, size: float, *rest: Any, **options: Any) -> None:
        self.wire_bytes += size
        self._transmit(way, message, size, *rest, **options)

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._batches.close()

    # -- a run -----------------------------------------------------------------------------------------------------------------

    def train(self, samples: int, evaluates: Callable[[int], bool]) -> list[Point]:
        """Until so many samples are committed. `evaluates(samples)`: whether the held-out loss is measured at that commit.

        Raises RuntimeError when nothing is committed for long."""
        for name in self.names:
            self.start(name)
            self.processes[name].thread.is_held = True
        self.world.run_until(STALLED_S, lambda: all(process.replica.tip is not None for process in self.alive))
        self.world.run_until(self.world.now + SETTLE_S)
        self._from, self._evaluates = (self.world.now, self.wire_bytes), evaluates
        for process in self.alive:
            process.thread.release()
        while not self.points or self.points[-1].samples < samples:
            known = len(self.points)
            self.world.run_until(self.world.now + STALLED_S, lambda known=known: len(self.points) > known)  # type: ignore[misc]
            if len(self.points) == known:
                raise RuntimeError(f"no commit in {STALLED_S:.0f} s:\n" + "\n".join(self.world.notable))
        return self.points

    def applied(self, process: SimulatedPeer) -> None:
        tip = process.replica.tip
        if process.name != self.names[0] or tip is None:
            return
        loss = None
        if self._evaluates(tip.total_samples):
            with process.replica.strategy.at_tip():
                loss = self._task.evaluate(process.replica.model, self._spec.evaluation.max_samples)
        began_s, before = self._from
        self.points.append(Point(self.world.now - began_s, self.wire_bytes - before, tip.total_samples, loss))
