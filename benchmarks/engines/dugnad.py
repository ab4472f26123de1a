"""dugnad's own production path: mutual TLS, replica, handover to a training thread, a planner's plan, every check.

Everything that a benchmark must know of how a peer is put together stands in this file.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from benchmarks.engines.base import Greeting, NotAveragedError, Seat
from benchmarks.namespaces import PAYLOAD_SHARE
from benchmarks.splits import SPLITS
from benchmarks.splits import shards as cut
from benchmarks.vectors import Vector
from peer.epoch.engine import Engine
from peer.epoch.observers import Observers
from peer.epoch.round_traffic import DriftedError
from peer.epoch.service import PeerService
from peer.epoch.shard_server import AllReduceError
from peer.settings import RunSettings
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
from protocols.signing import check_signed
from protocols.tasks.base import Batches, Task
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.bulk import BulkConnections, BulkServer
from protocols.transport.channels import Channels, listen, peer_server
from protocols.transport.discovery import Discovery
from protocols.transport.network_thread import NetworkThread
from protocols.wire.dugnad_pb2_grpc import add_PeerServicer_to_server

RUN = "ab" * 32
GENESIS = "cd" * 32
INCARNATION = 1
PATIENCE_S = 30.0
SPEC = """
[run]
name = "benchmark"
[model]
model_type = "gpt2"
n_embd = 64
n_layer = 1
n_head = 1
[optimizer]
name = "sgd"
[training]
target_batch_size = 1024
sequence_length = 64
"""


def model_of(params: int) -> nn.Module:
    """`params` parameters in tensors of at most a million; the first has one alone, which a sleeping loss can depend on."""
    rest = params - 1
    sizes = [1, *[1 << 20] * (rest >> 20), rest % (1 << 20)]
    return nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in sizes if size])


def accumulate(replica: Replica, gradient: torch.Tensor, *, samples: int) -> None:
    """As if `samples` more had been drawn whose gradients, (elements,), add up to this; earlier ones are discarded."""
    strategy = replica.strategy
    assert isinstance(strategy, Accumulate)
    strategy.restart()
    strategy.gradient.flat.copy_(gradient)
    strategy.after_backward(samples, 1.0)


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


class NoDiscovery:
    """Everybody is known from the start."""

    addresses = ()

    async def announce(self, me: str, signed: Any) -> None:
        pass

    async def peers(self) -> list[Any]:
        return []


class Member:
    """A whole peer but for the DHT and the coordinator, with its training loop on a thread of its own."""

    def __init__(
        self,
        seat: Seat,
        *,
        task: Sleeper | None = None,
        target_batch: int = 1024,
        events: Callable[..., None] = lambda event, /, **fields: None,
        **change: Any,
    ) -> None:
        """With a `task` it draws samples; without, it only does the engine's jobs. `change`: fields of RunSettings."""
        authority = Authority.load_or_create(seat.folder)
        key = Key.generate()
        self.credentials = Credentials(key, authority.admit(key.request()), authority.pem)
        self.seat = seat
        self.codec = CODECS[seat.codec]
        spec = RunSpec.from_toml(SPEC)
        model = model_of(seat.params)
        optimizer = build_optimizer(spec, model)
        self.settings = RunSettings(
            run_digest=RUN,
            target_batch_size=target_batch,
            max_epochs=None,
            codecs=(seat.codec,),
            genesis=Tip(0, GENESIS, 0, Candidate(self.credentials.peer_id, ""), seat.codec),
            genesis_sha256="",
            **change,
        )
        self.replica = Replica(
            model,
            build_strategy(self.settings, model, optimizer, build_scheduler(spec, optimizer)),
            self.settings,
            error_feedback=ErrorFeedback(self.credentials.peer_id, INCARNATION),
            verify=functools.partial(check_signed, authority=authority.pem),
        )
        self.jobs = JobQueue()
        self.network = NetworkThread()
        self.network.__enter__()
        self.traffic = Bandwidth()
        self.trainer = Trainer(
            self.replica,
            self.jobs,
            task=cast(Task, task),
            batches=cast(Batches, itertools.repeat({"nothing": torch.zeros(1)})) if task is not None else None,
            device=torch.device("cpu"),
            progressed=self._progressed,
        )
        self._events = events
        self.averaging: Engine | None = None
        self.server, self._tls = self.network.call(self._make_server())
        self.bulk_server = BulkServer(self.credentials, RUN, self.traffic)
        self.address = self.bulk_address = ""

    async def _make_server(self) -> Any:
        return peer_server(self.credentials)

    def listen(self) -> Greeting:
        """Binds the ports. Says who this is and where, '' in client mode."""
        host = self.seat.address
        ports = listen(self.server, self._tls, host, 0), self.bulk_server.listen(host, 0)
        if not self.seat.link.client_mode:
            self.address, self.bulk_address = (f"{host}:{port}" for port in ports)
        return {"peer": self.credentials.peer_id, "address": self.address, "bulk_address": self.bulk_address}

    def meet(self, everybody: Sequence[Greeting]) -> None:
        """By rank. Serves from now on; the first who can be dialled leads."""
        candidates = [Candidate(it["peer"], it["address"]) for it in everybody if it["address"]]
        self.replica.tip = Tip(0, GENESIS, 0, candidates[0], self.codec.name, tuple(candidates[1:]))
        self.averaging = self.network.call(self._serve(candidates))
        threading.Thread(target=self.trainer.run, name="training", daemon=True).start()

    async def _serve(self, candidates: list[Candidate]) -> Engine:
        link = self.seat.link
        averaging = Engine(
            hello=Hello(INCARNATION, link.auxiliary, self.address, self.bulk_address, f"rank {self.seat.rank}"),
            channels=Channels(self.credentials, RUN),
            bulk=BulkConnections(self.credentials, RUN, self.traffic),
            discovery=cast(Discovery, NoDiscovery()),
            bootstrap=tuple(candidate for candidate in candidates if candidate.peer != self.credentials.peer_id),
            coordinator="127.0.0.1:1",
            settings=self.settings,
            training=self.trainer,
            jobs=self.jobs,
            events=self._events,
        )
        averaging.succession.know(candidates)
        assert self.replica.tip is not None
        averaging.succession.follow(self.replica.tip)
        service = PeerService(averaging, Observers(averaging))
        add_PeerServicer_to_server(service, self.server)
        await self.server.start()
        self.bulk_server.start(service.bulk)
        return averaging

    def train(self) -> concurrent.futures.Future[None]:
        """Take part in the swarm from now on; the future ends when this peer does."""
        assert self.averaging is not None
        return self.network.start(self.averaging.run())

    def _progressed(self, first: int, end: int, samples_per_second: float, step_s: float) -> None:
        if self.averaging is not None:
            self.network.loop.call_soon_threadsafe(self.averaging.progressed, first, end, samples_per_second, step_s)


class Dugnad:
    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._member = Member(seat)
        self._present: dict[str, planner.Present] = {}
        self._leader = ""
        self._turn = 0
        self._averaged: Vector | None = None
        self._decoded = torch.zeros(seat.params)

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
            for it, link in zip(greetings, self._seat.links, strict=True)
        }
        self._leader = next(it["peer"] for it in greetings if it["address"])
        self._member.meet(greetings)

    def prepare(self, turn: int, vector: Vector) -> None:
        self._turn, self._averaged = turn, None
        if not self._seat.link.auxiliary:
            self._member.jobs.put(lambda: self._accumulate(vector)).result()

    def _accumulate(self, vector: Vector) -> None:
        accumulate(self._member.replica, torch.from_numpy(vector), samples=1)

    def prepared(self) -> bool:
        return True

    def run(self) -> None:
        try:
            self._averaged = self._member.network.call(self._round(self._plan()))
        except (AllReduceError, DriftedError) as error:
            raise NotAveragedError(str(error)) from error

    def _plan(self) -> MemberPlan:
        elements, codec = self._seat.params, self._member.codec
        due = planner.Round(1, elements, codec.encoded_bytes(elements), target_batch_size=1)
        layout = planner.fresh(self._present, self._leader, due)
        assert layout is not None
        shards = layout.shards
        if self._seat.split != "ours":
            fractions = SPLITS[self._seat.split](self._seat.links, elements, due.vector_bytes)
            reducers = {peer: it.address for peer, it in self._present.items() if it.address}
            shards = cut(elements, reducers, dict(zip(self._present, fractions, strict=True)))
        ballot = Ballot(1, GENESIS, self._turn + 1, self._leader)
        plan = Plan(RUN, ballot, layout.contributors, layout.members, shards, codec.name, PATIENCE_S, INCARNATION)
        plan = replace(plan, planned_s=planner.planned_seconds(plan, self._present, due.vector_bytes))
        return member_plan_of(plan, self._member.credentials.peer_id)

    async def _round(self, plan: MemberPlan) -> Vector:
        """As Averaging does it: freeze, exchange, and the first half of applying."""
        member, averaging = self._member, self._member.averaging
        assert averaging is not None
        frozen = await member.jobs.run(member.trainer.freeze)
        contribution = None
        if frozen is not None:
            me = member.credentials.peer_id
            contribution = Contribution(me, INCARNATION, frozen.first, frozen.end, frozen.base, frozen.loss)
        averages = await averaging.round_traffic.run(plan, contribution, frozen.encoded if frozen is not None else b"")
        result = averaging.round_traffic.averaged(averages)
        averaged = result[: member.replica.layout(1).averaged_bytes]
        await member.jobs.run(lambda: member.replica.decode(averaged, self._decoded))
        averaging.round_traffic.committed(plan.digest)
        return self._decoded.numpy()

    def result(self) -> Vector | None:
        return self._averaged
