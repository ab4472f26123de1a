"""dugnad's production path: mutual TLS, replica, jobs for a training thread, a planner's plan, every check."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from benchmarks.empty_directory import EmptyDirectory
from benchmarks.engines.base import Greeting, NotAveragedError, PeerSetup
from benchmarks.namespaces import PAYLOAD_SHARE
from benchmarks.splits import SPLITS
from benchmarks.splits import shards as cut
from benchmarks.vectors import Vector
from peer.assembly import Peer
from peer.environment import Environment, EventSink
from peer.epoch.engine import Engine
from peer.epoch.round_traffic import DriftedError
from peer.epoch.shard_server import AllReduceError
from peer.settings import RunSettings
from peer.training.gradient_pass import GradientPass
from peer.training.job_queue import JobQueue
from peer.training.replica import Replica
from peer.training.strategies import build_strategy
from peer.training.strategies.accumulate import Accumulate
from peer.training.trainer import Trainer
from protocols.gradients.codecs import CODECS
from protocols.gradients.error_feedback import ErrorFeedback
from protocols.identity import Authority, Credentials, Key
from protocols.optimization import build_optimizer, build_scheduler
from protocols.round import planner
from protocols.round.plans import MemberPlan, Plan, member_plan_of
from protocols.round.records import Ballot, Candidate, Contribution, Hello, Tip
from protocols.run_spec import RunSpec
from protocols.signing import CertificateSigner
from protocols.tasks.base import Batches, Task
from protocols.transport.network import NetworkTransport
from protocols.transport.network_thread import NetworkThread

RUN = "ab" * 32
GENESIS = "cd" * 32
INCARNATION = 1
PATIENCE_S = 30.0
SPEC = """
[run]
name = "benchmark"
[optimizer]
name = "{optimizer}"
[training]
target_batch_size = 1024
"""


def model_of(params: int) -> nn.Module:
    """`params` parameters of small noise, the same in every process, in tensors of at most a million.

    The first tensor has one parameter, so that a sleeping loss can depend on it at no cost.
    """
    rest, noise = params - 1, torch.Generator().manual_seed(1)
    sizes = [1, *[1 << 20] * (rest >> 20), rest % (1 << 20)]
    return nn.ParameterList([nn.Parameter(torch.randn(size, generator=noise) * 0.02) for size in sizes if size])


class Sleeper:
    """A task whose micro-batches of `samples` take a fixed time and no compute."""

    def __init__(self, samples: int, samples_per_second: float) -> None:
        self._samples = samples
        self._step_s = samples / samples_per_second
        self._pause = threading.Event().wait

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self._pause(self._step_s)
        return next(model.parameters()).sum() * 0.0 + float(self._samples)

    def samples_in(self, batch: dict[str, torch.Tensor]) -> int:
        return self._samples


def _ignore(event: str, /, **fields: object) -> None:
    pass


class Member:
    """A whole peer without DHT and coordinator. Its training loop runs on a thread of its own."""

    def __init__(
        self,
        setup: PeerSetup,
        *,
        task: Sleeper | None = None,
        optimizer: str = "sgd",
        target_batch: int = 1024,
        overlap: bool = False,
        events: EventSink = _ignore,
    ) -> None:
        """With a `task` it draws samples; without, it only does the engine's jobs."""
        authority = Authority.load_or_create(setup.folder)
        key = Key.generate()
        self.credentials = Credentials(key, authority.admit(key.request()), authority.pem)
        self.setup = setup
        self._signer = CertificateSigner(self.credentials)
        self._events = events
        self.settings = RunSettings(
            run_digest=RUN,
            target_batch_size=target_batch,
            max_epochs=None,
            codecs=(setup.codec,),
            genesis=Tip(0, GENESIS, 0, Candidate(self.credentials.peer_id, ""), setup.codec),
            genesis_sha256="",
            overlap=overlap,
        )
        self.replica = self._make_replica(RunSpec.from_toml(SPEC.format(optimizer=optimizer)))
        self.jobs = JobQueue()
        self.trainer = Trainer(
            self.replica,
            self.jobs,
            gradient_pass=GradientPass(cast(Task, task), self.replica.model, torch.device("cpu")) if task is not None else None,
            batches=cast(Batches, itertools.repeat({"nothing": torch.zeros(1)})) if task is not None else None,
            progressed=self._progressed,
        )
        self.network = NetworkThread()
        self.network.__enter__()  # it ends with the process
        self._transport = NetworkTransport(self.credentials, RUN)
        self._addresses = ("", "")
        self.engine: Engine | None = None

    def _make_replica(self, spec: RunSpec) -> Replica:
        model = model_of(self.setup.params)
        optimizer = build_optimizer(spec, model)
        return Replica(
            model,
            build_strategy(self.settings, model, optimizer, build_scheduler(spec, optimizer)),
            self.settings,
            error_feedback=ErrorFeedback(self.credentials.peer_id, INCARNATION),
            verify=self._signer.verify,
        )

    def listen(self) -> Greeting:
        """Bind the ports. The greeting says who this is and where, '' in client mode."""
        if not self.setup.link.client_mode:
            self._addresses = self.network.call(self._listen())
        address, bulk_address = self._addresses
        return {"peer": self.credentials.peer_id, "address": address, "bulk_address": bulk_address}

    async def _listen(self) -> tuple[str, str]:
        host = self.setup.address
        port, bulk_port = self._transport.listen(host, 0)
        return f"{host}:{port}", f"{host}:{bulk_port}"

    def meet(self, everybody: Sequence[Greeting]) -> None:
        """Serve from now on. `everybody` comes by rank; the first peer that can be dialled leads."""
        candidates = [Candidate(it["peer"], it["address"]) for it in everybody if it["address"]]
        self.replica.tip = Tip(0, GENESIS, 0, candidates[0], self.setup.codec, tuple(candidates[1:]))
        me = self.credentials.peer_id
        others = tuple(candidate for candidate in candidates if candidate.peer != me)
        self.engine = self.network.call(self._serve(others))
        threading.Thread(target=self.trainer.run, name="training", daemon=True).start()

    async def _serve(self, others: tuple[Candidate, ...]) -> Engine:
        setup, me = self.setup, self.credentials.peer_id
        hello = Hello(INCARNATION, setup.link.auxiliary, *self._addresses, f"rank {setup.rank}")
        environment = Environment(me, self._transport, EmptyDirectory(), self._signer, events=self._events)
        peer = Peer(hello, environment, self.settings, self.trainer, others)
        await self._transport.serve(peer.service)
        return peer.engine

    def train(self) -> concurrent.futures.Future[None]:
        """Take part in the swarm from now on; the future ends when this peer does."""
        assert self.engine is not None
        return self.network.start(self.engine.run())

    def _progressed(self, first: int, end: int, samples_per_second: float, step_s: float) -> None:
        if self.engine is not None:
            self.network.loop.call_soon_threadsafe(self.engine.progressed, first, end, samples_per_second, step_s)


class Dugnad:
    """dugnad as one of the engines that average vectors."""

    def __init__(self, setup: PeerSetup) -> None:
        self._setup = setup
        self._member = Member(setup)
        self._present: dict[str, planner.Present] = {}
        self._leader = ""
        self._turn = 0
        self._averaged: Vector | None = None
        self._decoded = torch.zeros(setup.params)

    def start(self, first: Greeting | None) -> Greeting:
        return self._member.listen()

    def connect(self, greetings: list[Greeting]) -> None:
        self._present = {
            it["peer"]: planner.Present(
                it["bulk_address"],
                0 if link.auxiliary else 1,
                link.upload_bytes_s * PAYLOAD_SHARE,  # what probing finds
                link.download_bytes_s * PAYLOAD_SHARE,
            )
            for it, link in zip(greetings, self._setup.links, strict=True)
        }
        self._leader = next(it["peer"] for it in greetings if it["address"])
        self._member.meet(greetings)

    def prepare(self, turn: int, vector: Vector) -> None:
        self._turn, self._averaged = turn, None
        if not self._setup.link.auxiliary:
            self._member.jobs.put(lambda: self._accumulate(vector)).result()

    def _accumulate(self, vector: Vector) -> None:
        """As if one sample had been drawn, whose gradient this is."""
        strategy = self._member.replica.strategy
        assert isinstance(strategy, Accumulate)
        strategy.restart()
        strategy.gradient.flat.copy_(torch.from_numpy(vector))
        strategy.after_backward(1, 1.0)

    def prepared(self) -> bool:
        return True

    def run(self) -> None:
        try:
            self._averaged = self._member.network.call(self._round(self._plan()))
        except (AllReduceError, DriftedError) as error:
            raise NotAveragedError(str(error)) from error

    def _plan(self) -> MemberPlan:
        elements, codec = self._setup.params, CODECS[self._setup.codec]
        due = planner.Round(1, elements, codec.encoded_bytes(elements), target_batch_size=1)
        layout = planner.fresh(self._present, self._leader, due)
        assert layout is not None
        shards = layout.shards
        if self._setup.split != "ours":
            fractions = SPLITS[self._setup.split](self._setup.links, elements, due.vector_bytes)
            reducers = {peer: it.address for peer, it in self._present.items() if it.address}
            shards = cut(elements, reducers, dict(zip(self._present, fractions, strict=True)))
        ballot = Ballot(1, GENESIS, self._turn + 1, self._leader)
        plan = Plan(RUN, ballot, layout.contributors, layout.members, shards, codec.name, PATIENCE_S, INCARNATION)
        plan = replace(plan, planned_s=planner.planned_seconds(plan, self._present, due.vector_bytes))
        return member_plan_of(plan, self._member.credentials.peer_id)

    async def _round(self, plan: MemberPlan) -> Vector:
        """What the engine does in a round: freeze, average, and the first half of applying."""
        member, engine = self._member, self._member.engine
        assert engine is not None
        frozen = await member.jobs.run(member.trainer.freeze)
        contribution = None
        if frozen is not None:
            me = member.credentials.peer_id
            contribution = Contribution(me, INCARNATION, frozen.first, frozen.end, frozen.base, frozen.loss, frozen.norm)
        averages = await engine.round_traffic.run(plan, contribution, frozen.encoded if frozen is not None else b"")
        averaged = engine.round_traffic.result(averages)[: member.replica.layout(1).averaged_bytes]
        await member.jobs.run(lambda: member.replica.decode(averaged, self._decoded))
        engine.round_traffic.committed(plan.digest)
        return self._decoded.numpy()

    def result(self) -> Vector | None:
        return self._averaged
