"""How much a donor's training slows down while it serves its state: python -m benchmarks.donor_load [--json]

Three processes on loopback. The donor is a whole peer that leads a swarm of one (trainer, rounds, gRPC with mutual TLS,
captures); only its compute is emulated, by sleeping, and it has no DHT. The joiner fetches the snapshot over and over, as
newcomers do, through a proxy that lets 100 Mbit/s through. This process alternates windows in which the joiner fetches with
windows in which it does not, and compares the samples that the donor drew.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import grpc.aio
import psutil
import torch
from torch import nn

import peer.catch_up.kept_state
from peer.catch_up.pushed_snapshots import max_snapshot_bytes
from peer.epoch.engine import Engine
from peer.epoch.observers import Observers
from peer.epoch.service import PeerService
from peer.settings import RunSettings
from peer.training.job_queue import JobQueue
from peer.training.replica import Replica
from peer.training.strategies import build_strategy
from peer.training.trainer import Trainer
from protocols.gradients.error_feedback import ErrorFeedback
from protocols.identity import Authority, Credentials, Key
from protocols.optimization import build_optimizer, build_scheduler
from protocols.round.records import Candidate, Hello, Tip
from protocols.run_spec import RunSpec
from protocols.signing import check_signed
from protocols.snapshot.fetch import SnapshotFetch
from protocols.tasks.base import Batches, Task
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.bulk import BulkConnections
from protocols.transport.channels import Channels, listen, peer_server
from protocols.transport.discovery import Discovery
from protocols.transport.network_thread import NetworkThread
from protocols.wire.dugnad_pb2_grpc import add_PeerServicer_to_server

SPEC = """
[run]
name = "donor-load"
[model]
model_type = "gpt2"
n_embd = 64
n_layer = 1
n_head = 1
[training]
target_batch_size = {target_batch}
sequence_length = 64
"""
RUN = "ab" * 32
MICRO_BATCH = 4


@dataclass(frozen=True)
class Options:
    params: int
    samples_per_second: float
    target_batch: int
    mbit: float
    window_s: float
    pairs: int


# -- the donor -----------------------------------------------------------------------------------------------------------------


class Sleeper:
    """A task whose micro-batches take a fixed time and no compute."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        time.sleep(self._step_s)
        return next(model.parameters()).sum() * 0.0 + float(MICRO_BATCH)

    @staticmethod
    def samples_in(batch: dict[str, torch.Tensor]) -> int:
        return MICRO_BATCH


class NoDiscovery:
    addresses = ()

    async def announce(self, me: str, signed: Any) -> None:
        pass

    async def peers(self) -> list[Any]:
        return []


def model_of(params: int) -> nn.Module:
    width = 1024
    model = nn.ParameterList([nn.Parameter(torch.zeros(1))])
    for _ in range(max(1, params // (width * width))):
        model.append(nn.Parameter(torch.randn(width, width) * 0.02))
    return model


def donate(options: Options, folder: Path) -> None:
    """Train until standard input ends; answer each line there with the samples drawn and the seconds of CPU used so far."""
    torch.set_num_threads(1)
    peer.catch_up.kept_state.WANTED_S = 1.0  # so that windows without a joiner are without captures for one, too
    authority = Authority.load_or_create(folder)
    key = Key.load_or_create(folder / "donor.key")
    credentials = Credentials(key, authority.admit(key.request()), authority.pem)
    spec = RunSpec.from_toml(SPEC.format(target_batch=options.target_batch))
    model = model_of(options.params)
    optimizer = build_optimizer(spec, model)
    genesis = Tip(0, "c" * 64, 0, Candidate(credentials.peer_id, ""), "fp16")
    settings = RunSettings(
        run_digest=RUN,
        target_batch_size=options.target_batch,
        max_epochs=None,
        codecs=("fp16",),
        genesis=genesis,
        genesis_sha256="",
    )
    replica = Replica(
        model,
        build_strategy(settings, model, optimizer, build_scheduler(spec, optimizer)),
        settings,
        error_feedback=ErrorFeedback(credentials.peer_id, 1),
        verify=functools.partial(check_signed, authority=authority.pem),
    )
    replica.tip = genesis
    jobs = JobQueue()
    with NetworkThread() as network:

        def progressed(first: int, end: int, samples_per_second: float, step_s: float) -> None:
            network.loop.call_soon_threadsafe(averaging.progressed, first, end, samples_per_second, step_s)

        trainer = Trainer(
            replica,
            jobs,
            task=cast(Task, Sleeper(MICRO_BATCH / options.samples_per_second)),
            batches=cast(Batches, itertools.repeat({"input_ids": torch.zeros(MICRO_BATCH, 1)})),
            device=torch.device("cpu"),
            progressed=progressed,
        )

        async def take_part() -> tuple[Engine, int, grpc.aio.Server]:
            server, tls = peer_server(credentials)
            port = listen(server, tls, "127.0.0.1", 0)
            hello = Hello(1, False, f"127.0.0.1:{port}", f"127.0.0.1:{port}", "donor")
            part = Engine(
                hello=hello,
                channels=Channels(credentials, RUN),
                bulk=BulkConnections(credentials, RUN, Bandwidth()),
                discovery=cast(Discovery, NoDiscovery()),
                bootstrap=(),
                coordinator="127.0.0.1:1",
                settings=settings,
                training=trainer,
                jobs=jobs,
                events=lambda event, /, **fields: None,
            )
            part.succession.know([Candidate(credentials.peer_id, hello.address)])
            add_PeerServicer_to_server(PeerService(part, Observers(part)), server)
            await server.start()
            return part, port, server

        averaging, port, server = network.call(take_part())
        running = network.start(averaging.run())
        say({"peer": credentials.peer_id, "port": port})

        def answer() -> None:
            for _ in sys.stdin:
                cpu = time.process_time()
                say({"samples": replica.strategy.end, "cpu_s": cpu, "epoch": replica.tip.epoch if replica.tip else -1})
            trainer.stop()

        threading.Thread(target=answer, daemon=True).start()
        trainer.run()
        running.cancel()
        network.call(server.stop(None))


# -- the joiner ----------------------------------------------------------------------------------------------------------------


class SlowLine:
    """A TCP proxy that lets `bytes_per_s` through towards the joiner."""

    def __init__(self, port: int, bytes_per_s: float) -> None:
        self._port = port
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0
        self.passed_bytes = 0

    async def start(self) -> int:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 16)
        await asyncio.gather(self._copy(reader, up_writer, 0.0), self._copy(up_reader, writer, self._bytes_per_s))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bytes_per_s: float) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if bytes_per_s:
                    now = time.monotonic()
                    self._free_at = max(now - 0.01, self._free_at) + len(data) / bytes_per_s
                    self.passed_bytes += len(data)
                    await asyncio.sleep(max(0.0, self._free_at - now))
                writer.write(data)
                await writer.drain()
        writer.close()


async def join(options: Options, folder: Path, kept_state: str, port: int) -> None:
    """Fetch the donor's snapshot over and over between the lines "go" and "stop" on standard input."""
    authority = Authority.load_or_create(folder)
    line = SlowLine(port, options.mbit * 1e6 / 8)
    there = Candidate(kept_state, f"127.0.0.1:{await line.start()}")
    loop = asyncio.get_running_loop()

    async def fetch_for_ever() -> None:
        while True:
            key = Key.generate()  # a newcomer each time
            links = Channels(Credentials(key, authority.admit(key.request()), authority.pem), RUN)
            fetch = SnapshotFetch(links, max_snapshot_bytes(options.params), lambda done, total: None, fail)
            try:
                await fetch.run([there])
                fetched.append(1)
            finally:
                await links.aclose()

    def fail(peer: str, problem: Exception) -> None:
        print(f"{peer[:8]}: {problem}", file=sys.stderr)

    fetched: list[int] = []
    fetching: asyncio.Task[None] | None = None
    while (command := (await loop.run_in_executor(None, sys.stdin.readline)).strip()) != "":
        if command == "go":
            fetching = asyncio.create_task(fetch_for_ever())
        elif fetching is not None:
            fetching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await fetching
        say({"bytes": line.passed_bytes, "snapshots": len(fetched)})


def say(fields: dict[str, Any]) -> None:
    print(json.dumps(fields), flush=True)


# -- the measurement -------------------------------------------------------------------------------------------------------------


class Child:
    def __init__(self, part: str, options: Options, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "benchmarks.donor_load", "--part", part, "--folder", str(folder)]
        command += ["--options", json.dumps(asdict(options)), *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a part of the benchmark ended early; its error stands above")
        return dict(json.loads(line))

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self.read()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def child(part: str, options: Options, folder: Path, *arguments: str) -> Iterator[Child]:
    it = Child(part, options, folder, *arguments)
    try:
        yield it
    finally:
        it.end()


def window(kept_state: Child, seconds: float) -> dict[str, float]:
    """From one commit to the first one after `seconds`, so that no window has more than its share of rounds."""
    before, began = next_commit(kept_state)
    time.sleep(seconds)
    after, ended = next_commit(kept_state)
    return {
        "samples_per_second": (after["samples"] - before["samples"]) / (ended - began),
        "cpu_share": (after["cpu_s"] - before["cpu_s"]) / (ended - began),
        "epochs": after["epoch"] - before["epoch"],
    }


def next_commit(kept_state: Child) -> tuple[dict[str, Any], float]:
    epoch = kept_state.ask("count")["epoch"]
    while True:
        counted, now = kept_state.ask("count"), time.monotonic()
        if counted["epoch"] not in (epoch, -1):  # -1 in the middle of a step
            return counted, now
        time.sleep(0.01)


def measure(options: Options) -> dict[str, Any]:
    pairs = []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        Authority.load_or_create(folder)
        kept_state = stack.enter_context(child("donor", options, folder))
        where = kept_state.read()
        joiner = stack.enter_context(child("joiner", options, folder, where["peer"], str(where["port"])))
        next_commit(kept_state), next_commit(kept_state)  # the optimizer's state exists, and the speed is steady
        moved, served_s = 0, 0.0
        for number in range(options.pairs):
            pair: dict[str, Any] = {"load_average": psutil.getloadavg()[0]}
            for serving in (number % 2 == 0, number % 2 == 1):
                begun, began = joiner.ask("go" if serving else "stop"), time.monotonic()
                time.sleep(2.0)  # what the last window left behind is over
                pair["serving" if serving else "alone"] = window(kept_state, options.window_s)
                moved += joiner.ask("stop")["bytes"] - begun["bytes"]
                served_s += time.monotonic() - began if serving else 0.0
            pair["ratio"] = pair["serving"]["samples_per_second"] / pair["alone"]["samples_per_second"]
            pairs.append(pair)
            print(f"pair {number + 1}: {describe(pair)}", file=sys.stderr)
        snapshots = joiner.ask("stop")["snapshots"]
    ratios = [pair["ratio"] for pair in pairs]
    return {
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "samples_per_second_alone": statistics.median(pair["alone"]["samples_per_second"] for pair in pairs),
        "samples_per_second_serving": statistics.median(pair["serving"]["samples_per_second"] for pair in pairs),
        "cpu_share_alone": statistics.median(pair["alone"]["cpu_share"] for pair in pairs),
        "cpu_share_serving": statistics.median(pair["serving"]["cpu_share"] for pair in pairs),
        "served_mbit": moved * 8 / 1e6 / served_s,
        "snapshots": snapshots,
        "load_average": max(pair["load_average"] for pair in pairs),
        **asdict(options),
        "cores": os.cpu_count(),
    }


def describe(pair: dict[str, Any]) -> str:
    alone, serving = pair["alone"], pair["serving"]
    return (
        f"alone {alone['samples_per_second']:.1f}, serving {serving['samples_per_second']:.1f} samples/s, "
        f"ratio {pair['ratio']:.4f}; CPU {alone['cpu_share']:.2f} and {serving['cpu_share']:.2f} cores; "
        f"load {pair['load_average']:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.donor_load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=int, default=16_000_000)
    parser.add_argument("--samples-per-second", type=float, default=100.0)
    parser.add_argument("--target-batch", type=int, default=256)
    parser.add_argument("--mbit", type=float, default=100.0, help="the joiner's line")
    parser.add_argument("--window-s", type=float, default=12.0)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    for hidden in ("--part", "--folder", "--options"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("where", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        options = Options(**json.loads(asked.options))
        if asked.part == "donor":
            donate(options, Path(asked.folder))
        else:
            asyncio.run(join(options, Path(asked.folder), asked.where[0], int(asked.where[1])))
        return
    result = measure(Options(asked.params, asked.samples_per_second, asked.target_batch, asked.mbit, asked.window_s, asked.pairs))
    if asked.json:
        print(json.dumps(result))
        return
    print(f"samples/s alone     {result['samples_per_second_alone']:8.1f}   CPU {result['cpu_share_alone']:.2f} cores")
    print(f"samples/s serving   {result['samples_per_second_serving']:8.1f}   CPU {result['cpu_share_serving']:.2f} cores")
    print(f"ratio (median of {result['pairs']})  {result['ratio']:.4f}   served at {result['served_mbit']:.0f} Mbit/s")


if __name__ == "__main__":
    main()
