"""Whole peers over real connections, all in this process, without DHT and coordinator."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from benchmarks.empty_directory import EmptyDirectory
from peer.assembly import Peer
from peer.environment import Environment
from peer.epoch.engine import Engine
from peer.training.gradient_pass import GradientPass
from peer.training.job_queue import JobQueue
from peer.training.trainer import Trainer
from protocols.identity import Authority, Credentials, Key
from protocols.round.records import Candidate, Hello, Tip
from protocols.run_spec import RunSpec
from protocols.signing import CertificateSigner
from protocols.tasks.base import Batches, Task
from protocols.transport.network import NetworkTransport
from tests.factories import RUN
from tests.replicas import make_replica

SPEC = RunSpec.from_toml('[run]\nname = "test"\n[optimizer]\nname = "sgd"\n[training]\ntarget_batch_size = 1024\n')
HOST = "127.0.0.1"
LINEAGE = "cd" * 32


@dataclass(frozen=True)
class LocalPeer:
    """One of them, at genesis. Its training loop runs on a thread of its own, its engine once somebody calls `run`."""

    engine: Engine
    trainer: Trainer
    signer: CertificateSigner


async def local_peers(
    folder: Path, make_model: Callable[[], nn.Module], codec: str, *, count: int, task: object = None, **change: Any
) -> list[LocalPeer]:
    """Peers that know each other, the leader first.

    `folder` is where the authority keeps its key. With a `task` they draw samples. `change`: fields of RunSettings.
    """
    authority = Authority.load_or_create(folder)
    keys = [Key.generate() for _ in range(count)]
    everybody = [Credentials(key, authority.admit(key.request()), authority.pem) for key in keys]
    transports = [NetworkTransport(credentials, RUN) for credentials in everybody]
    hellos = [_hello(*transport.listen(HOST, 0)) for transport in transports]
    known = tuple(Candidate(it.peer_id, hello.address) for it, hello in zip(everybody, hellos, strict=True))
    genesis = Tip(0, LINEAGE, 0, known[0], codec, known[1:])
    loop = asyncio.get_running_loop()

    async def start(credentials: Credentials, transport: NetworkTransport, hello: Hello) -> LocalPeer:
        def progressed(*progress: Any) -> None:
            loop.call_soon_threadsafe(peer.engine.progressed, *progress)

        me, signer = credentials.peer_id, CertificateSigner(credentials)
        replica = make_replica(make_model(), SPEC, genesis, peer=me, verify=signer.verify, **change)
        trainer = Trainer(
            replica,
            JobQueue(),
            gradient_pass=GradientPass(cast(Task, task), replica.model, torch.device("cpu")) if task is not None else None,
            batches=cast(Batches, itertools.repeat({"nothing": torch.zeros(1)})) if task is not None else None,
            progressed=progressed,
        )
        others = tuple(candidate for candidate in known if candidate.peer != me)
        environment = Environment(me, transport, EmptyDirectory(), signer)
        peer = Peer(hello, environment, trainer.replica.settings, trainer, others)
        await transport.serve(peer.service)
        threading.Thread(target=trainer.run, name="training", daemon=True).start()
        return LocalPeer(peer.engine, trainer, signer)

    return [await start(*parts) for parts in zip(everybody, transports, hellos, strict=True)]


def _hello(port: int, bulk_port: int) -> Hello:
    return Hello(1, auxiliary=False, address=f"{HOST}:{port}", bulk_address=f"{HOST}:{bulk_port}", name="local")
