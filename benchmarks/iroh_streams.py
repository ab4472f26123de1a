"""One stream of bulk data by iroh (QUIC) and by dugnad's TLS sockets, in turns: python -m benchmarks.iroh_streams [--json]

Two processes on loopback, relays off. Both streams carry the same frames through the same interface (FrameStream), so the only
difference is what moves the bytes. iroh is no dependency of dugnad: `pip install iroh` first.

iroh's Python binding copies what it is given byte by byte, in Python. `iroh-memmove` is iroh with that copy made at once, here in
the benchmark: what a better binding would give.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from benchmarks.tables import machine, run, say, show, table
from protocols.errors import UnreachableError, UsageError
from protocols.identity import Authority, Credentials, Key
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.bulk import BulkConnections, BulkServer
from protocols.transport.frames import FrameStream, Kind

ENGINES = ("tls", "iroh", "iroh-memmove")
CHUNK_BYTES = 1 << 20  # as the all-reduce's chunks are at most
HOST, RUN = "127.0.0.1", "ab" * 32
ALPN = b"dugnad/benchmark"
START_S = 60.0


def cpu_s() -> float:
    """CPU seconds of this process so far, all threads."""
    times = os.times()
    return times.user + times.system


async def receive(stream: FrameStream, length: int) -> None:
    """Take frames, the first of which has `length` bytes and is announced already, until an empty one; then say so."""
    scratch = memoryview(bytearray(CHUNK_BYTES))
    while length:
        await stream.receive_into(scratch[:length])
        _, length = await stream.header()
    await stream.send(Kind.DONE)


async def send(stream: FrameStream, chunk: memoryview, chunks: int) -> None:
    for _ in range(chunks):
        await stream.send(Kind.CHUNK, chunk)
    await stream.send(Kind.CHUNK)
    await stream.header()


# -- iroh ------------------------------------------------------------------------------------------------------------------------


class IrohStream(FrameStream):
    """A stream both ways of an iroh connection. Its library takes and gives bytes objects, so each byte is copied once more."""

    def __init__(self, stream: Any, peer: str) -> None:
        self.peer = peer
        self._incoming, self._outgoing = stream.recv(), stream.send()

    async def write(self, view: memoryview) -> None:
        await self._outgoing.write_all(bytes(view))

    async def read_some(self, view: memoryview) -> int:
        data = await self._incoming.read(len(view))
        if not data:
            raise UnreachableError(f"{self.peer[:8]} ended the stream")
        view[: len(data)] = data
        return len(data)

    async def drain(self) -> None:
        raise NotImplementedError("the benchmark refuses nobody")

    def set_rate(self, bytes_s: float | None) -> None:
        """QUIC paces by itself."""

    def close(self) -> None:
        """The endpoint closes all its streams."""


@contextlib.contextmanager
def binding_of(engine: str) -> Iterator[None]:
    """Within, iroh's binding is as it comes, or copies at once."""
    from iroh import iroh_ffi

    def write(self: Any, value: bytes) -> None:
        with self._reserve(len(value)):
            ctypes.memmove(ctypes.addressof(self.rbuf.data.contents) + self.rbuf.len, value, len(value))

    builder = iroh_ffi._UniffiRustBufferBuilder
    as_it_comes = builder.write
    if engine == "iroh-memmove":
        builder.write = write
    try:
        yield
    finally:
        builder.write = as_it_comes


async def iroh_endpoint() -> Any:
    import iroh

    options = iroh.EndpointOptions(
        preset=iroh.preset_minimal(), bind_addr=f"{HOST}:0", alpns=[ALPN], relay_mode=iroh.RelayMode.disabled()
    )
    return await iroh.Endpoint.bind(options)


async def iroh_receiver(endpoint: Any) -> None:
    connection = await (await (await endpoint.accept_next()).accept()).connect()
    stream = IrohStream(await connection.accept_bi(), "sender")
    while True:
        _, length = await stream.header()
        await receive(stream, length)


@contextlib.asynccontextmanager
async def iroh_sender(peer: str, addresses: list[str]) -> AsyncIterator[FrameStream]:
    import iroh

    endpoint = await iroh_endpoint()
    try:
        where = iroh.EndpointAddr(iroh.EndpointId.from_string(peer), None, addresses)
        connection = await endpoint.connect(where, ALPN)
        yield IrohStream(await connection.open_bi(), peer)
    finally:
        await endpoint.close()


# -- the receiver's process ------------------------------------------------------------------------------------------------------


def credentials(folder: Path) -> Credentials:
    authority, key = Authority.load_or_create(folder), Key.generate()
    return Credentials(key, authority.admit(key.request()), authority.pem)


async def receiver(folder: Path) -> None:
    """Says where it is on standard output, and its CPU time for each line of standard input; ends with that."""
    mine = credentials(folder)
    server = BulkServer(mine, RUN, Bandwidth(), HOST, 0)

    async def serve(stream: FrameStream, kind: Kind, length: int) -> None:
        await receive(stream, length)

    server.start(serve)
    endpoint = await iroh_endpoint()
    serving = asyncio.create_task(iroh_receiver(endpoint))
    where = {"tls": [mine.peer_id, [f"{HOST}:{server.port}"]], "iroh": [str(endpoint.id()), endpoint.bound_sockets()]}
    print(json.dumps(where), flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(cpu_s()), flush=True)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await endpoint.close()
    await server.aclose()


class Receiver:
    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.iroh_streams", "--receive-in", str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.where: dict[str, Any] = self._line()

    def cpu_s(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise UnreachableError("the receiving process ended", remedy="Its error is above.")
        return json.loads(line)

    def end(self) -> None:
        """Its standard input ends."""
        self._process.communicate(timeout=START_S)


# -- measuring -------------------------------------------------------------------------------------------------------------------


async def measure(folder: Path, receiver: Receiver, megabytes: int, rounds: int) -> list[dict[str, Any]]:
    connections = BulkConnections(credentials(folder), RUN, Bandwidth())
    chunk, chunks = memoryview(os.urandom(CHUNK_BYTES)), megabytes
    results: list[dict[str, Any]] = []
    peer, (address,) = receiver.where["tls"]
    try:
        async with connections.to(peer, address) as tls, iroh_sender(*receiver.where["iroh"]) as iroh:
            for number in range(rounds + 1):
                for engine in ENGINES if number % 2 else ENGINES[::-1]:
                    theirs, mine, began = receiver.cpu_s(), cpu_s(), time.perf_counter()
                    with binding_of(engine):
                        await send(tls if engine == "tls" else iroh, chunk, chunks)
                    took, mine, theirs = time.perf_counter() - began, cpu_s() - mine, receiver.cpu_s() - theirs
                    if number:  # the first round opens windows and warms up
                        gigabytes = chunks * CHUNK_BYTES / 1e9
                        result = {"engine": engine, "mb_s": 1e3 * gigabytes / took, "sender": mine / gigabytes}
                        results.append({**result, "receiver": theirs / gigabytes})
                        say(f"{engine}: {results[-1]['mb_s']:.0f} MB/s")
    finally:
        connections.close()
    return results


def summary(results: list[dict[str, Any]], engine: str) -> dict[str, float]:
    rows = [result for result in results if result["engine"] == engine]
    return {what: statistics.median(row[what] for row in rows) for what in ("mb_s", "sender", "receiver")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.iroh_streams", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=512, help="MiB in one transfer")
    parser.add_argument("--rounds", type=int, default=3, help="transfers by each, after one that does not count")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--receive-in", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.receive_in is not None:
        asyncio.run(receiver(asked.receive_in))
        return
    if asked.megabytes < 1 or asked.rounds < 1:
        raise UsageError("nothing would be measured", remedy="Give --megabytes and --rounds of 1 or more.")
    try:
        version = importlib.metadata.version("iroh")
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError("iroh is not installed", remedy="pip install iroh (an environment of its own will do)") from error
    with tempfile.TemporaryDirectory() as folder:
        other = Receiver(Path(folder))
        try:
            results = asyncio.run(measure(Path(folder), other, asked.megabytes, asked.rounds))
        finally:
            other.end()
    medians = {engine: summary(results, engine) for engine in ENGINES}
    found = {"machine": machine(), "iroh": version, "megabytes": asked.megabytes, "medians": medians, "transfers": results}
    rows = [
        [engine, f"{row['mb_s']:.0f}", *(f"{row[side]:.2f}" for side in ("sender", "receiver"))]
        for engine, row in medians.items()
    ]
    title = f"{asked.megabytes} MiB in one stream on loopback, median of {asked.rounds}; iroh {version}"
    show(found, [table(title, ["", "MB/s", "CPU s/GB sending", "CPU s/GB receiving"], rows)], as_json=asked.json)


if __name__ == "__main__":
    run(main)
