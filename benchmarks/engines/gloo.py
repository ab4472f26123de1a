"""torch.distributed over gloo: what an ordinary data-parallel job does. It encrypts nothing, and averages fp32 only."""

from __future__ import annotations

import datetime
import os
import uuid

import torch
import torch.distributed

from benchmarks.engines.base import Greeting, PeerSetup
from benchmarks.vectors import Vector


class Gloo:
    """Auxiliary peers have no part in it, and client mode means nothing to it."""

    def __init__(self, setup: PeerSetup) -> None:
        self._setup = setup
        self._tensor = torch.zeros(0 if setup.link.auxiliary else setup.params)

    def start(self, first: Greeting | None) -> Greeting:
        os.environ["GLOO_SOCKET_IFNAME"] = self._setup.device
        return {"meeting": str(self._setup.folder / f"gloo-{uuid.uuid4().hex}")}

    def connect(self, greetings: list[Greeting]) -> None:
        if not self._setup.link.auxiliary:
            contributors = self._setup.contributors
            torch.distributed.init_process_group(
                "gloo",
                init_method=f"file://{greetings[0]['meeting']}",
                rank=contributors.index(self._setup.rank),
                world_size=len(contributors),
                timeout=datetime.timedelta(minutes=30),
            )

    def prepare(self, turn: int, vector: Vector) -> None:
        if not self._setup.link.auxiliary:
            self._tensor.copy_(torch.from_numpy(vector))

    def prepared(self) -> bool:
        return True

    def run(self) -> None:
        if not self._setup.link.auxiliary:
            torch.distributed.all_reduce(self._tensor)
            self._tensor /= len(self._setup.contributors)

    def result(self) -> Vector | None:
        return None if self._setup.link.auxiliary else self._tensor.numpy()
