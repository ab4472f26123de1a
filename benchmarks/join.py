"""How long it takes to join: python -m benchmarks.join [--links 100/100x3] [--json]

A real coordinator with its auxiliary peer, and a peer that trains; newcomers join one after another with `dugnad peer TICKET`,
each with a new identity and an empty folder, and leave again. Measured from the start of the process to the first commit that
names the newcomer. Its own log says how long each step on the way kept it, and how fast its state came down.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.crew import CrewError
from benchmarks.links import Link
from benchmarks.namespaces import PAYLOAD_SHARE, Shaped
from benchmarks.stage import add_links, checked_links, parser_of
from peer.milestones import Step
from protocols.transport.bandwidth import MBIT_BYTES
from tests.swarm.swarm import REPOSITORY, Process, Swarm

STEPS: dict[Step, str] = {
    "called": "interpreter, arguments, folder",
    "enrolled": "enrolling at the coordinator",
    "files_fetched": "the run's files",
    "imported": "importing torch",
    "agreed": "opening the task, importing transformers",
    "model_built": "building the model",
    "tuned": "reading text, trying out how to train",
    "reachability_known": "asking others whether they reach it",
    "discovery_started": "discovery (hivemind and its daemon)",
}
"""A peer's milestones, in their order, and what it does on the way to each."""
LATER = ("finding who gives the state", "downloading the state", "catching up", "first contribution, to its commit")
PLACES = 3  # the coordinator's, that of the peer that is there already, the newcomer's
SPEC = """
[run]
name = "join"

[task]
sequence_length = 32

[task.model]
model_type = "gpt2"
n_embd = {width}
n_layer = {layers}
n_head = 4
n_positions = 64

[task.data]
source = "files"
paths = ["{text}/protocols/**/*.py", "{text}/peer/*.py"]
held_out_bytes = 16384

[task.tokenizer]
vocab_size = 400

[training]
target_batch_size = {batch}

[evaluation]
every_epochs = 1000
max_samples = 8

[checkpoint]
every_epochs = 1000
"""


@dataclass(frozen=True)
class Options:
    links: tuple[Link, ...]  # none: loopback
    joins: int
    width: int
    layers: int
    batch: int
    limit_s: float


@dataclass(frozen=True)
class Joined:
    """How one newcomer joined."""

    seconds: float
    """From the start of its process to the first commit that holds a contribution of its own."""
    steps: dict[str, float]
    """Seconds by step; together they are `seconds`."""
    state_bytes: int
    state_s: float


@contextlib.contextmanager
def places(options: Options, say: Callable[[str], None]) -> Iterator[tuple[list[tuple[str, ...]], str, dict[str, Any]]]:
    """(what runs a command in each place, the coordinator's address, what the links carry)"""
    if not options.links:
        yield [()] * PLACES, "127.0.0.1", {}
        return
    with Shaped(options.links) as shaped:
        yield [shaped.inside(place) for place in range(PLACES)], shaped.addresses[0], shaped.verify(say)


def join(swarm: Swarm, name: str, under: tuple[str, ...], options: Options) -> Joined:
    """One newcomer, from its start to its first commit. Raises CrewError."""
    client = ("--client-mode",) if options.links and options.links[-1].client_mode else ()
    began = time.time()
    newcomer = swarm.start_peer(name, *client, under=under)
    try:
        committed = _first_commit(swarm, newcomer, began + options.limit_s)
        if not newcomer.events("fetched"):
            raise CrewError(f"{name} fetched no state; its output ends with\n{newcomer.tail()}")
        started, fetched, caught_up = (newcomer.events(event)[0] for event in ("started", "fetched", "caught_up"))
        downloaded = fetched["time"]
        ends = [*(started[step] for step in STEPS), downloaded - fetched["seconds"], downloaded, caught_up["time"], committed]
        steps = dict(zip((*STEPS.values(), *LATER), _between(began, ends), strict=True))
        return Joined(committed - began, steps, fetched["bytes"], fetched["seconds"])
    finally:
        newcomer.end()


def _between(began: float, ends: Sequence[float]) -> Iterator[float]:
    """Seconds from each moment to the next."""
    return (end - begin for begin, end in zip([began, *ends], ends, strict=False))


def _first_commit(swarm: Swarm, newcomer: Process, deadline: float) -> float:
    while time.time() < deadline:
        me = swarm.id_of(newcomer)
        for record in newcomer.events("committed"):
            if me in {contributor["peer"] for contributor in record["contributors"]}:
                return float(record["time"])
        if not newcomer.running:
            raise CrewError(f"{newcomer.name} ended; its output ends with\n{newcomer.tail()}")
        time.sleep(0.1)
    raise CrewError(f"{newcomer.name} contributed nothing in time; its output ends with\n{newcomer.tail()}")


def benchmark(options: Options) -> dict[str, Any]:
    joins = []
    with (
        tempfile.TemporaryDirectory(prefix="dugnad-benchmark-") as folder,
        places(options, tables.say) as (under, host, network),
        contextlib.redirect_stdout(None),  # the swarm prints its seed
    ):
        swarm = Swarm(Path(folder), seed=1, host=host, under=under[0])
        swarm.run_file.write_text(SPEC.format(text=REPOSITORY, width=options.width, layers=options.layers, batch=options.batch))
        try:
            with swarm:
                tables.say("the coordinator runs; starting a peer")
                settled = swarm.start_peer("settled", under=under[1])
                swarm.contributes(settled, limit_s=options.limit_s)
                for number in range(1, options.joins + 1):
                    joined = join(swarm, f"newcomer-{number}", under[2], options)
                    joins.append(joined)
                    tables.say(
                        f"newcomer {number} of {options.joins}: first commit after {joined.seconds:.1f} s;"
                        f" {joined.state_bytes / 1e6:.1f} MB of state in {joined.state_s:.2f} s"
                    )
        except AssertionError as error:  # the swarm is one of the tests
            raise CrewError(str(error)) from error
    return report(options, joins, network)


def report(options: Options, joins: Sequence[Joined], network: dict[str, Any]) -> dict[str, Any]:
    median = statistics.median
    rate = median(joined.state_bytes / joined.state_s for joined in joins)
    result: dict[str, Any] = {
        "benchmark": "join",
        "seconds": round(median(joined.seconds for joined in joins), 2),
        "steps_s": {step: round(median(joined.steps[step] for joined in joins), 2) for step in joins[0].steps},
        "state_mb": round(median(joined.state_bytes for joined in joins) / 1e6, 2),
        "state_mbit_s": round(rate / MBIT_BYTES, 1),
        "joins": [{"seconds": round(joined.seconds, 2), **_rounded(joined.steps)} for joined in joins],
    }
    if options.links:
        coordinator, settled, newcomer = options.links
        # Two donors, and what tc counts as headers is no state.
        carries = min(newcomer.down_mbit, coordinator.up_mbit + settled.up_mbit) * PAYLOAD_SHARE
        result |= {"link_mbit_s": round(carries, 1), "of_link": round(rate / MBIT_BYTES / carries, 3), "network": network}
    return {**result, "machine": tables.machine()}


def _rounded(steps: dict[str, float]) -> dict[str, float]:
    return {step: round(seconds, 2) for step, seconds in steps.items()}


def parser() -> argparse.ArgumentParser:
    it = parser_of(
        "join",
        __doc__,
        "python -m benchmarks.join",
        "sudo python -m benchmarks.join --links 100/100x3",
        "sudo python -m benchmarks.join --links 200/200x2,20/100x1c   (a newcomer behind a home router)",
    )
    add_links(it, "of the coordinator, the peer that is there already, and the newcomer; loopback when left out")
    it.add_argument("--joins", type=int, default=3, help="newcomers, one after another")
    it.add_argument("--width", type=int, default=256, help="of the model, a multiple of 4")
    it.add_argument("--layers", type=int, default=4)
    it.add_argument("--target-batch", type=int, default=96, help="samples of 32 tokens an epoch")
    it.add_argument("--limit-s", type=float, default=240.0, help="for each newcomer")
    return it


def options_of(arguments: Sequence[str] | None = None) -> tuple[Options, bool]:
    """(options, whether JSON is wanted). Ends the process with a sentence and code 2 when they make no sense."""
    it = parser()
    asked = it.parse_args(arguments)
    links = checked_links(it, asked.links) if asked.links else ()
    if links and len(links) != PLACES:
        it.error(f"argument --links: three peers: the coordinator's, one that trains, the newcomer; not {len(links)}")
    if any(link.auxiliary for link in links) or any(link.client_mode for link in links[:2]):
        it.error("argument --links: only the newcomer can be in client mode, and nobody auxiliary")
    if asked.joins < 1:
        it.error("--joins is at least 1")
    return Options(links, asked.joins, asked.width, asked.layers, asked.target_batch, asked.limit_s), asked.json


def main() -> None:
    options, as_json = options_of()
    result = benchmark(options)
    steps = [[step, f"{seconds:.2f}"] for step, seconds in result["steps_s"].items()]
    rows = [*steps, ["to the first commit", f"{result['seconds']:.2f}"]]
    rows += [[name, str(result[name])] for name in ("state_mb", "state_mbit_s", "link_mbit_s", "of_link") if name in result]
    tables.show(result, [tables.table(f"joining, medians of {options.joins}", ["", "s"], rows)], as_json=as_json)


if __name__ == "__main__":
    tables.run(main)
