"""Peers that train, with compute emulated by sleeping: one process of the benchmark of whole steps."""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from benchmarks.engines.base import Greeting, PeerSetup
from benchmarks.serving import serve_forever

MICRO_BATCH_S = 0.02
Epoch = tuple[float, int]  # when it was over (monotonic), and the samples that its update averaged


@dataclass(frozen=True)
class Job:
    samples_per_second: tuple[float, ...]  # by rank; auxiliary peers draw none
    target_batch: int
    overlap: bool
    matchmaking_s: float

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        fields = json.loads(text)
        return cls(**{**fields, "samples_per_second": tuple(fields["samples_per_second"])})

    def micro_batch(self, rank: int) -> int:
        return max(1, round(self.samples_per_second[rank] * MICRO_BATCH_S))


class Training(Protocol):
    """Called in this order."""

    def start(self, first: Greeting | None) -> Greeting:
        """Listen."""

    def connect(self, greetings: list[Greeting]) -> None:
        """Be ready to train."""

    def begin(self) -> None:
        """Train, from now on."""

    def epochs(self) -> list[Epoch]:
        """Those that this peer saw the end of. Raises what ended its training."""


class DugnadTraining:
    def __init__(self, setup: PeerSetup, job: Job) -> None:
        from benchmarks.engines.dugnad import Member, Sleeper

        auxiliary = setup.link.auxiliary
        rate = job.samples_per_second[setup.rank]
        task = None if auxiliary else Sleeper(job.micro_batch(setup.rank), rate)
        self._epochs: list[Epoch] = []
        self._member = Member(setup, task=task, target_batch=job.target_batch, overlap=job.overlap, events=self._happened)
        self._running: Any = None

    def start(self, first: Greeting | None) -> Greeting:
        return self._member.listen()

    def connect(self, greetings: list[Greeting]) -> None:
        self._member.meet(greetings)

    def begin(self) -> None:
        self._running = self._member.train()

    def epochs(self) -> list[Epoch]:
        if self._running.done():
            self._running.result()
        return self._epochs

    def _happened(self, event: str, /, **fields: Any) -> None:
        if event == "applied":
            self._epochs.append((time.monotonic(), fields["signed"].commit.samples))
        elif event in ("attempt_failed", "given_up", "left_alone", "donor_failed"):
            print(event, fields, file=sys.stderr, flush=True)


class HivemindTraining:
    """hivemind.Optimizer. That an epoch is over says nothing of how many took part: it is counted as a full batch."""

    def __init__(self, setup: PeerSetup, job: Job) -> None:
        self._setup = setup
        self._job = job
        self._epochs: list[Epoch] = []
        self._optimizer: Any = None
        self._failure: BaseException | None = None

    def start(self, first: Greeting | None) -> Greeting:
        import hivemind

        from benchmarks.engines.dugnad import model_of

        setup, job = self._setup, self._job
        self._model = model_of(setup.params)
        dht = hivemind.DHT(
            initial_peers=first["maddrs"] if first else None,
            host_maddrs=[f"/ip4/{setup.address}/tcp/0"],
            client_mode=setup.link.client_mode,
            start=True,
            startup_timeout=120.0,
        )
        compression = hivemind.compression
        narrow = compression.NoCompression() if setup.codec == "fp32" else compression.Float16Compression()
        self._optimizer = hivemind.Optimizer(
            dht=dht,
            run_id="benchmark",
            params=list(self._model.parameters()),
            optimizer=lambda params: torch.optim.SGD(params, lr=1e-3),
            target_batch_size=job.target_batch,
            batch_size_per_step=None if setup.link.auxiliary else job.micro_batch(setup.rank),
            matchmaking_time=job.matchmaking_s,
            averaging_timeout=120.0,
            reuse_grad_buffers=not job.overlap,
            offload_optimizer=True,
            delay_optimizer_step=job.overlap,
            delay_grad_averaging=job.overlap,
            grad_compression=narrow,
            state_averaging_compression=narrow,
            client_mode=setup.link.client_mode,
            auxiliary=setup.link.auxiliary,
        )
        self._dht = dht
        return {"maddrs": [str(address) for address in dht.get_visible_maddrs()] if setup.rank == 0 else []}

    def connect(self, greetings: list[Greeting]) -> None:
        pass

    def begin(self) -> None:
        threading.Thread(target=self._train, daemon=True).start()

    def epochs(self) -> list[Epoch]:
        if self._failure is not None:
            raise self._failure
        return self._epochs

    def _train(self) -> None:
        try:
            self._steps()
        except BaseException as error:
            self._failure = error
            raise

    def _steps(self) -> None:
        job, rank = self._job, self._setup.rank
        step_s = job.micro_batch(rank) / job.samples_per_second[rank]
        pause = threading.Event().wait
        epoch = self._optimizer.local_epoch
        while True:
            pause(step_s)
            if self._setup.link.auxiliary:
                self._optimizer.step()
                continue
            (next(self._model.parameters()).sum() * 0.0).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            if job.overlap:
                self._optimizer.zero_grad()
            if self._optimizer.local_epoch != epoch:
                epoch = self._optimizer.local_epoch
                self._epochs.append((time.monotonic(), job.target_batch))


def training_of(engine: str, setup: PeerSetup, job: Job) -> Training:
    return DugnadTraining(setup, job) if engine == "dugnad" else HivemindTraining(setup, job)


if __name__ == "__main__":
    serve_forever(lambda: training_of(sys.argv[1], PeerSetup.from_json(sys.argv[2]), Job.from_json(sys.argv[3])))
