"""How much a donor's training slows down while it serves its state: python -m benchmarks.donor_load [--json]

Three processes on loopback. The donor is a whole peer that leads a swarm of one (trainer with AdamW, rounds, gRPC with mutual
TLS, captures). Only its compute is emulated, by sleeping, and it has no DHT. The joiner fetches the snapshot over and over, as
newcomers do, through a proxy that lets 100 Mbit/s through. This process alternates windows in which the joiner fetches with
windows in which it does not, and compares the samples that the donor drew.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

import peer.catch_up.kept_state
from benchmarks import tables
from benchmarks.crew import Hand
from benchmarks.engines.base import Greeting, PeerSetup
from benchmarks.engines.dugnad import RUN, Member, Sleeper
from benchmarks.links import Link
from benchmarks.serving import serve_forever
from benchmarks.stage import parser_of
from peer.catch_up.pushed_snapshots import max_snapshot_bytes
from protocols.errors import RemoteError
from protocols.identity import Authority, Credentials, Key
from protocols.round.records import Candidate
from protocols.snapshot.fetch import SnapshotFetch
from protocols.transport import addresses
from protocols.transport.network import NetworkTransport
from protocols.transport.network_thread import NetworkThread

MICRO_BATCH = 4
SETTLE_S = 2.0  # after which the window before has no more effect
ANSWER_S = 120.0


@dataclass(frozen=True)
class Options:
    params: int
    samples_per_second: float
    target_batch: int
    mbit: float
    window_s: float
    pairs: int


# -- the donor -----------------------------------------------------------------------------------------------------------------


class Donor:
    """The donor's process."""

    def __init__(self, options: Options, folder: Path) -> None:
        peer.catch_up.kept_state.WANTED_S = 1.0  # so that windows without a joiner are without captures for one, too
        setup = PeerSetup(0, (Link(),), "127.0.0.1", "lo", options.params, "fp16", "ours", folder)
        task = Sleeper(MICRO_BATCH, options.samples_per_second)
        self._member = Member(setup, task=task, optimizer="adamw", target_batch=options.target_batch)
        self._running: concurrent.futures.Future[None] | None = None

    def start(self) -> Greeting:
        """Train from now on."""
        greeting = self._member.listen()
        self._member.meet([greeting])
        self._running = self._member.train()
        return greeting

    def count(self) -> dict[str, Any]:
        """Samples drawn and seconds of CPU used so far. `epoch` is -1 in the middle of a step. Raises what ended the training."""
        if self._running is not None and self._running.done():
            self._running.result()
        replica, cpu_s = self._member.replica, time.process_time()
        return {"samples": replica.strategy.end, "cpu_s": cpu_s, "epoch": replica.tip.epoch if replica.tip else -1}


# -- the joiner ----------------------------------------------------------------------------------------------------------------


class SlowLine:
    """A TCP proxy to `host`:`port` that lets `bytes_per_s` through towards the joiner."""

    def __init__(self, host: str, port: int, bytes_per_s: float) -> None:
        self._host, self._port = host, port
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0
        self.passed_bytes = 0

    async def start(self) -> int:
        """The port to connect to instead."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port, limit=1 << 16)
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


class Joiner:
    """The joiner's process: between `go` and `stop` it fetches the donor's snapshot over and over."""

    def __init__(self, options: Options, folder: Path, donor: Greeting) -> None:
        self._options = options
        self._authority = Authority.load_or_create(folder)
        self._network = NetworkThread()
        self._network.__enter__()  # it ends with the process
        self._line = SlowLine(*addresses.split(donor["address"]), options.mbit * 1e6 / 8)
        self._donor = Candidate(donor["peer"], f"127.0.0.1:{self._network.call(self._line.start())}")
        self._snapshots = 0
        self._fetching: concurrent.futures.Future[None] | None = None

    def go(self) -> dict[str, int]:
        self._fetching = self._network.start(self._fetch_for_ever())
        return self.count()

    def stop(self) -> dict[str, int]:
        """Raises what ended the fetching."""
        if self._fetching is not None and not self._fetching.cancel():
            self._fetching.result()
        self._fetching = None
        return self.count()

    def count(self) -> dict[str, int]:
        return {"bytes": self._line.passed_bytes, "snapshots": self._snapshots}

    async def _fetch_for_ever(self) -> None:
        while True:
            key = Key.generate()  # a newcomer each time
            credentials = Credentials(key, self._authority.admit(key.request()), self._authority.pem)
            transport = NetworkTransport(credentials, RUN)
            max_bytes = max_snapshot_bytes(self._options.params)
            try:
                await SnapshotFetch(transport, max_bytes, lambda done, total: None, _failed).run([self._donor])
                self._snapshots += 1
            finally:
                await transport.aclose()


def _failed(peer: str, problem: RemoteError) -> None:
    print(f"{peer[:8]}: {problem}", file=sys.stderr)


# -- the measurement -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(part: str, options: Options, folder: Path, *more: str) -> Iterator[Hand]:
    """A process of this module that serves `part`. It ends with the block."""
    arguments = ["--part", part, "--folder", str(folder), "--options", json.dumps(asdict(options)), *more]
    hand = Hand(part, "benchmarks.donor_load", arguments, folder / f"{part}.log")
    try:
        yield hand
    finally:
        hand.end()


def ask(hand: Hand, command: str) -> Any:
    """The answer. Raises CrewError."""
    hand.tell(command)
    return hand.answer(time.monotonic() + ANSWER_S)


def window(donor: Hand, seconds: float) -> dict[str, float]:
    """From one commit to the first one after `seconds`, so that no window has more than its share of rounds."""
    before, began = next_commit(donor)
    time.sleep(seconds)
    after, ended = next_commit(donor)
    return {
        "samples_per_second": (after["samples"] - before["samples"]) / (ended - began),
        "cpu_share": (after["cpu_s"] - before["cpu_s"]) / (ended - began),
        "epochs": after["epoch"] - before["epoch"],
    }


def next_commit(donor: Hand) -> tuple[dict[str, Any], float]:
    """What the donor counts right after its next commit, and when (monotonic)."""
    epoch = ask(donor, "count")["epoch"]
    while True:
        counted, now = ask(donor, "count"), time.monotonic()
        if counted["epoch"] not in (epoch, -1):
            return counted, now
        time.sleep(0.01)


def measure(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    pairs = []
    with tempfile.TemporaryDirectory(prefix="dugnad-benchmark-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        Authority.load_or_create(folder)
        donor = stack.enter_context(process("donor", options, folder))
        where = json.dumps(ask(donor, "start"))
        joiner = stack.enter_context(process("joiner", options, folder, "--donor", where))
        next_commit(donor), next_commit(donor)  # the optimizer's state exists, and the speed is steady
        moved, served_s = 0, 0.0
        for number in range(options.pairs):
            pair: dict[str, Any] = {"load_average": psutil.getloadavg()[0]}
            for serving in (number % 2 == 0, number % 2 == 1):
                begun, began = ask(joiner, "go" if serving else "stop"), time.monotonic()
                time.sleep(SETTLE_S)
                pair["serving" if serving else "alone"] = window(donor, options.window_s)
                moved += ask(joiner, "stop")["bytes"] - begun["bytes"]
                served_s += time.monotonic() - began if serving else 0.0
            pair["ratio"] = pair["serving"]["samples_per_second"] / pair["alone"]["samples_per_second"]
            pairs.append(pair)
            say(f"pair {number + 1}: {describe(pair)}")
        snapshots = ask(joiner, "count")["snapshots"]
    return {
        "benchmark": "donor_load",
        "ratio": statistics.median(pair["ratio"] for pair in pairs),
        "ratios": [round(pair["ratio"], 4) for pair in pairs],
        "samples_per_second_alone": statistics.median(pair["alone"]["samples_per_second"] for pair in pairs),
        "samples_per_second_serving": statistics.median(pair["serving"]["samples_per_second"] for pair in pairs),
        "cpu_share_alone": statistics.median(pair["alone"]["cpu_share"] for pair in pairs),
        "cpu_share_serving": statistics.median(pair["serving"]["cpu_share"] for pair in pairs),
        "served_mbit": moved * 8 / 1e6 / served_s,
        "snapshots": snapshots,
        "load_average": max(pair["load_average"] for pair in pairs),
        **asdict(options),
        "machine": tables.machine(),
    }


def describe(pair: dict[str, Any]) -> str:
    alone, serving = pair["alone"], pair["serving"]
    return (
        f"alone {alone['samples_per_second']:.1f}, serving {serving['samples_per_second']:.1f} samples/s, "
        f"ratio {pair['ratio']:.4f}; CPU {alone['cpu_share']:.2f} and {serving['cpu_share']:.2f} cores; "
        f"load {pair['load_average']:.1f}"
    )


def parser() -> argparse.ArgumentParser:
    it = parser_of("donor_load", __doc__)
    it.add_argument("--params", type=int, default=16_000_000)
    it.add_argument("--samples-per-second", type=float, default=100.0)
    it.add_argument("--target-batch", type=int, default=256)
    it.add_argument("--mbit", type=float, default=100.0, help="the joiner's line")
    it.add_argument("--window-s", type=float, default=12.0)
    it.add_argument("--pairs", type=int, default=10)
    for hidden in ("--part", "--folder", "--options", "--donor"):
        it.add_argument(hidden, help=argparse.SUPPRESS)
    return it


def part_of(asked: argparse.Namespace) -> Donor | Joiner:
    options, folder = Options(**json.loads(asked.options)), Path(asked.folder)
    return Donor(options, folder) if asked.part == "donor" else Joiner(options, folder, json.loads(asked.donor))


def main() -> None:
    asked = parser().parse_args()
    if asked.part:
        serve_forever(lambda: part_of(asked))
    else:
        tables.run(lambda: compare(asked))


def compare(asked: argparse.Namespace) -> None:
    options = Options(asked.params, asked.samples_per_second, asked.target_batch, asked.mbit, asked.window_s, asked.pairs)
    result = measure(options, tables.say)
    served_mbit = {"alone": "–", "serving": f"{result['served_mbit']:.0f}"}
    rows = [
        [how, f"{result[f'samples_per_second_{how}']:.1f}", f"{result[f'cpu_share_{how}']:.3f}", served_mbit[how]]
        for how in served_mbit
    ]
    drawn = tables.table(
        f"ratio {result['ratio']:.4f}, median of {options.pairs}", ["", "samples/s", "CPU cores", "Mbit/s"], rows
    )
    tables.show(result, [drawn], as_json=asked.json)


if __name__ == "__main__":
    main()
