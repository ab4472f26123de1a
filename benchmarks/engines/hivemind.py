"""hivemind's DecentralizedAverager, as favourably as we know how: its group is complete before the clock starts."""

from __future__ import annotations

import functools
import time
from typing import Any

import scipy.optimize
import torch

from benchmarks.engines.base import Greeting, NotAveragedError, PeerSetup
from benchmarks.vectors import Vector

START_S = 120.0
# Of 2^17, 2^19 (its own), 2^20 and 2^21 bytes this was the fastest at fp32, and as fast as its own at fp16.
PART_BYTES = 1 << 20


class Hivemind:
    def __init__(self, setup: PeerSetup) -> None:
        _mend_linprog()
        import hivemind  # after mending, and only where it is measured: importing it takes seconds

        self._hivemind = hivemind
        self._setup = setup
        self._tensor = torch.zeros(setup.params)
        self._step: Any = None
        self._step_began = 0.0

    def start(self, first: Greeting | None) -> Greeting:
        """Here everything forks: the DHT, its daemon, and the averager."""
        setup, hivemind, compression = self._setup, self._hivemind, self._hivemind.compression
        dht = hivemind.DHT(
            initial_peers=first["maddrs"] if first else None,
            host_maddrs=[f"/ip4/{setup.address}/tcp/0"],
            client_mode=setup.link.client_mode,
            start=True,
            startup_timeout=START_S,
        )
        fp32 = setup.codec == "fp32"
        rate = min(setup.link.upload_bytes_s, setup.link.download_bytes_s)
        self._averager = hivemind.DecentralizedAverager(
            [self._tensor],
            dht,
            prefix="benchmark",
            start=True,
            target_group_size=setup.peers,
            min_group_size=setup.peers,
            min_matchmaking_time=5.0,
            request_timeout=3.0,
            part_size_bytes=PART_BYTES,
            compression=compression.NoCompression() if fp32 else compression.Float16Compression(),
            bandwidth=rate or None,
            auxiliary=setup.link.auxiliary,
            client_mode=setup.link.client_mode,
            allow_state_sharing=False,
        )
        self._dht = dht
        return {"maddrs": [str(address) for address in dht.get_visible_maddrs()] if setup.rank == 0 else []}

    def connect(self, greetings: list[Greeting]) -> None:
        pass

    def prepare(self, turn: int, vector: Vector) -> None:
        with self._averager.get_tensors() as (tensor,):
            tensor.copy_(torch.from_numpy(vector))
        self._step = self._averager.step(wait=False, require_trigger=True, allow_retries=False, timeout=3600.0)
        self._step_began = time.monotonic()

    def prepared(self) -> bool:
        stage = type(self._step.stage)
        while self._step.stage in (stage.IDLE, stage.LOOKING_FOR_GROUP) and not self._step.done():
            if time.monotonic() > self._step_began + 60:
                self._step.cancel()
                return False
            time.sleep(0.02)
        return bool(self._step.stage is stage.AWAITING_TRIGGER)

    def run(self) -> None:
        self._step.allow_allreduce()
        try:
            group = self._step.result(600.0)
        except Exception as error:  # it raises many kinds; the round is not counted, and the report says why
            raise NotAveragedError(repr(error)) from error
        if group is None or len(group) != self._setup.peers:
            raise NotAveragedError(f"a group of {len(group or ())} instead of {self._setup.peers}")

    def result(self) -> Vector | None:
        if self._step is not None and not self._step.done():
            self._step.cancel()
        with self._averager.get_tensors() as (tensor,):
            return None if self._setup.link.auxiliary else tensor.numpy().copy()


def _mend_linprog() -> None:
    """hivemind balances its load with a method that newer scipy has no more; without this, given bandwidths stop it."""
    linprog = scipy.optimize.linprog

    @functools.wraps(linprog)
    def mended(*arguments: Any, method: str = "highs", **options: Any) -> Any:
        return linprog(*arguments, method="highs" if method == "interior-point" else method, **options)

    scipy.optimize.linprog = mended
