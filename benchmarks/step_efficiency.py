"""How much of its peers' compute a whole swarm turns into committed samples: python -m benchmarks.step_efficiency [--json]

Compute is emulated by sleeping, everything else is real: reports, plans, rounds, commits, optimizer steps. `efficiency` is the
share of the ideal samples/s, counting at most the target batch per epoch; samples that are drawn while a batch is full
already are worth nothing. hivemind.Optimizer runs the same job after dugnad.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import tables
from benchmarks.crew import Crew, CrewError
from benchmarks.engines.training import Job
from benchmarks.links import Link
from benchmarks.stage import Stage, add_peers, links_of, parser_of

ENGINES = ("dugnad", "hivemind")
CODECS = ("fp32", "fp16", "bf16", "int8", "int4")
WARM_UP_EPOCHS = 3
LOOK_S = 0.25
# An epoch that takes this many times its ideal length will not come.
PATIENCE = 20.0
MIN_PATIENCE_S = 90.0


@dataclass(frozen=True)
class Options:
    links: tuple[Link, ...]
    engines: tuple[str, ...]
    samples_per_second: tuple[float, ...]
    target_batch: int
    params: int
    codec: str
    epochs: int
    overlap: bool
    matchmaking_s: float

    @property
    def ideal(self) -> float:
        """Samples/s of all who draw."""
        return sum(rate for rate, link in zip(self.samples_per_second, self.links, strict=True) if not link.auxiliary)

    @property
    def job(self) -> Job:
        return Job(self.samples_per_second, self.target_batch, self.overlap, self.matchmaking_s)


def measure(options: Options, crew: Crew, say: Callable[[str], None]) -> dict[str, Any]:
    say(f"starting {len(crew.setups)} processes of {crew.engine}")
    crew.meet()
    crew.all("begin")
    ideal_s = options.target_batch / options.ideal
    epochs: list[list[float]] = []
    grown_at = time.monotonic()
    while len(epochs) <= WARM_UP_EPOCHS + options.epochs:
        seen = crew.all("epochs")[0]
        if len(seen) > len(epochs):
            grown_at = time.monotonic()
            for number, (ended, samples) in enumerate(seen[len(epochs) :], len(epochs) + 1):
                what = (
                    "warming up"
                    if number <= WARM_UP_EPOCHS + 1
                    else f"{ended - seen[number - 2][0]:.2f} s (ideal: {ideal_s:.2f})"
                )
                say(f"{crew.engine}: epoch {number}, {samples} samples, {what}")
            epochs = seen
        elif time.monotonic() - grown_at > max(MIN_PATIENCE_S, PATIENCE * ideal_s):
            raise CrewError(f"{crew.engine}: no epoch ended in {time.monotonic() - grown_at:.0f} s{crew.complaint}")
        time.sleep(LOOK_S)
    counted = epochs[
        WARM_UP_EPOCHS : WARM_UP_EPOCHS + options.epochs + 1
    ]  # what the first holds was drawn before the clock started
    took_s = counted[-1][0] - counted[0][0]
    useful = sum(min(samples, options.target_batch) for _, samples in counted[1:])
    lengths = [after - before for (before, _), (after, _) in itertools.pairwise(counted)]
    return {
        "efficiency": round(useful / took_s / options.ideal, 4),
        "samples_per_second": round(useful / took_s, 1),
        "epochs": options.epochs,
        "median_epoch_s": round(statistics.median(lengths), 3),
        "slowest_epoch_s": round(max(lengths), 3),
        "seconds": round(took_s, 2),
    }


def benchmark(options: Options) -> dict[str, Any]:
    found = {}
    with Stage(options.links, tables.say) as stage:
        for engine in options.engines:
            setups = stage.setups(options.params, options.codec, "ours")
            more = [options.job.to_json()]
            with Crew(engine, setups, stage.under, module="benchmarks.engines.training", more=more) as crew:
                found[engine] = measure(options, crew, tables.say)
    return {
        "benchmark": "step_efficiency",
        "efficiency": {engine: it["efficiency"] for engine, it in found.items()},
        "engines": found,
        "ideal_samples_per_second": options.ideal,
        "ideal_epoch_s": round(options.target_batch / options.ideal, 3),
        "peers": len(options.links),
        "samples_each": list(options.samples_per_second),
        "target_batch": options.target_batch,
        "params": options.params,
        "codec": options.codec,
        "overlap": options.overlap,
        "network": stage.network,
        "machine": tables.machine(),
    }


def parser() -> argparse.ArgumentParser:
    it = parser_of(
        "step_efficiency",
        __doc__,
        "python -m benchmarks.step_efficiency --peers 4 --samples-per-second 100 --target-batch 1024 --params 4000000",
        "python -m benchmarks.step_efficiency --samples-per-second 160,120,80,40",
        "sudo python -m benchmarks.step_efficiency --links 100/100x4 --engines dugnad",
    )
    add_peers(it)
    it.add_argument("--samples-per-second", default="100", help="of each peer: one number for all, or one for each, as in 160,80")
    it.add_argument("--target-batch", type=int, default=1024)
    it.add_argument("--params", type=int, default=4_000_000)
    it.add_argument("--codec", choices=CODECS, default="fp16", help="hivemind has its fp16 beside any but fp32")
    it.add_argument("--engines", default=",".join(ENGINES), help="of dugnad, hivemind")
    it.add_argument("--epochs", type=int, default=12, help=f"counted ones, at least 10; {WARM_UP_EPOCHS} and one more come first")
    it.add_argument("--overlap", action="store_true", help="average an epoch while the next accumulates")
    it.add_argument("--matchmaking-s", type=float, default=3.0, help="hivemind's matchmaking_time; its guide says 3 to 5 locally")
    return it


def options_of(arguments: Sequence[str] | None = None) -> tuple[Options, bool]:
    """(options, whether JSON is wanted). Ends the process with a sentence and code 2 when they make no sense."""
    it = parser()
    asked = it.parse_args(arguments)
    try:
        rates = tuple(float(rate) for rate in asked.samples_per_second.split(","))
    except ValueError:
        it.error(f"argument --samples-per-second: {asked.samples_per_second!r} is no number, nor numbers with commas between")
    if len(rates) > 1 and not asked.links:
        asked.peers = len(rates)
    links = links_of(it, asked)
    if len(rates) == 1:
        rates *= len(links)
    if len(rates) != len(links) or min(rates) <= 0:
        it.error(f"argument --samples-per-second: one number above 0 for all, or one for each of the {len(links)} peers")
    engines = tuple(dict.fromkeys(name.strip() for name in asked.engines.split(",")))
    unknown = [name for name in engines if name not in ENGINES]
    if unknown:
        it.error(f"argument --engines: no engine {unknown[0]!r}; there are {', '.join(ENGINES)}")
    if asked.epochs < 10 or asked.target_batch < 1 or asked.params < 2:
        it.error("at least 10 epochs, 1 sample a batch and 2 parameters")
    options = Options(
        links, engines, rates, asked.target_batch, asked.params, asked.codec, asked.epochs, asked.overlap, asked.matchmaking_s
    )
    return options, asked.json


def main() -> None:
    options, as_json = options_of()
    result = benchmark(options)
    rows = [
        [
            engine,
            f"{it['efficiency']:.3f}",
            f"{it['samples_per_second']:.0f}",
            f"{it['median_epoch_s']:.2f}",
            f"{it['slowest_epoch_s']:.2f}",
        ]
        for engine, it in result["engines"].items()
    ]
    ideal = f"{result['ideal_samples_per_second']:.0f} samples/s at best, ideal epoch {result['ideal_epoch_s']} s"
    title = f"{result['peers']} peers, {ideal}"
    drawn = tables.table(title, ["engine", "efficiency", "samples/s", "median epoch s", "slowest s"], rows)
    tables.show(result, [drawn], as_json=as_json)


if __name__ == "__main__":
    tables.run(main)
