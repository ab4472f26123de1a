"""Held-out loss against time, bytes on the wire and samples, by strategy: python -m benchmarks.time_to_loss --links 20/100x4

Production's peers train the demo's job in virtual time (benchmarks/home_swarm.py says what is real). Compute is emulated:
`--samples-per-second` of each peer. All strategies draw equally many samples, and the schedule ends with the last one.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import tables
from benchmarks.home_swarm import HomeSwarm
from benchmarks.links import Link, parse_links
from benchmarks.stage import parser_of
from protocols.run_spec import RunSpec
from protocols.tasks.registry import open_task, prepare

RUN_FILE = Path(__file__).parents[1] / "examples" / "python_lm" / "run.toml"
STRATEGIES = {"accumulate": 0, "local-steps": 4096}
"""Samples of an epoch; 0: what the run file says."""
CODECS = ("fp32", "fp16", "bf16", "int8", "int4")
WARM_UP = 0.0625  # of the schedule, as the demo's 5 of 80 epochs
EVALUATIONS = 20  # in a run


@dataclass(frozen=True)
class Setting:
    """What is compared, written as strategy:codec, or strategy:codec:samples an epoch."""

    strategy: str
    codec: str
    epoch: int

    @classmethod
    def parse(cls, text: str, batch: int) -> Setting:
        """Raises ValueError with a sentence."""
        strategy, _, rest = text.strip().partition(":")
        codec, _, samples = rest.partition(":")
        if strategy not in STRATEGIES or codec not in CODECS or (samples and not samples.isdecimal()):
            raise ValueError(
                f"{text.strip()!r} is no strategy with its codec: write {' or '.join(STRATEGIES)}, a colon and one of "
                f"{', '.join(CODECS)}, and perhaps a colon and the samples of an epoch, as in accumulate:int8:64"
            )
        epoch = int(samples or STRATEGIES[strategy] or batch)
        if epoch < 1:
            raise ValueError(f"{text.strip()!r}: an epoch has samples")
        return cls(strategy, codec, epoch)

    def __str__(self) -> str:
        return f"{self.strategy}:{self.codec}:{self.epoch}"


@dataclass(frozen=True)
class Options:
    links: tuple[Link, ...]
    settings: tuple[Setting, ...]
    seeds: int
    samples: int
    micro_batch: int
    samples_per_second: float
    local_batch: int
    learning_rate: float
    local_learning_rate: float
    held_out: int
    workers: int

    def spec(self, author: RunSpec, setting: Setting) -> RunSpec:
        """The run file's job under this setting."""
        epochs = max(1, -(-self.samples // setting.epoch))
        is_local = setting.strategy == "local-steps"
        document = author.model_dump(mode="json", exclude_none=True)
        document["training"] |= {"strategy": setting.strategy, "target_batch_size": setting.epoch, "max_epochs": epochs}
        if is_local:
            document["training"]["local_batch_size"] = self.local_batch
        document["optimizer"]["learning_rate"] = self.local_learning_rate if is_local else self.learning_rate
        document["schedule"]["warmup_steps"] = max(1 if is_local else 0, round(WARM_UP * epochs))
        document["averaging"]["codec"] = setting.codec
        document["evaluation"]["max_samples"] = self.held_out
        return RunSpec.model_validate(document)


def trained(options: Options, prepared: RunSpec, folder: Path, setting: Setting, seed: int) -> dict[str, Any]:
    """One run. `prepared` is the run file's spec, whose files are in `folder`."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    spec = options.spec(prepared, setting)
    task = open_task(spec, folder)
    every, measured = options.samples / EVALUATIONS, 0.0

    def evaluates(samples: int) -> bool:
        nonlocal measured
        due = samples >= measured + every or samples >= options.samples
        measured = samples if due else measured
        return due

    micro_batch, rate = options.micro_batch, options.samples_per_second
    with HomeSwarm(spec, task, options.links, seed=seed, micro_batch=micro_batch, samples_per_second=rate) as swarm:
        points = swarm.train(options.samples, evaluates)
    end, kept = points[-1], [asdict(point) for point in points if point.loss is not None]
    tables.say(f"{setting}, seed {seed}: loss {end.loss:.4f} after {end.seconds:.1f} s and {end.wire_bytes / 1e6:.2f} MB")
    return {"setting": str(setting), "seed": seed, "epochs": len(points), "points": kept}


def first_at(points: Sequence[dict[str, Any]], loss: float) -> dict[str, Any] | None:
    """The first measurement that is no worse; None if there is none."""
    return next((point for point in points if point["loss"] <= loss), None)


def summary(runs: Sequence[dict[str, Any]], settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """By setting: means over the seeds, and ratios to the first setting of each seed (`target`: the loss that it ends with)."""
    by = {(run["setting"], run["seed"]): run for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    found = []
    for setting in map(str, settings):
        ends = [by[setting, seed]["points"][-1] for seed in seeds]
        row: dict[str, Any] = {
            "setting": setting,
            "epochs": by[setting, seeds[0]]["epochs"],
            "loss": statistics.mean(end["loss"] for end in ends),
            "losses": [end["loss"] for end in ends],
            "seconds": statistics.mean(end["seconds"] for end in ends),
            "wire_bytes": statistics.mean(end["wire_bytes"] for end in ends),
            "samples": statistics.mean(end["samples"] for end in ends),
            "against": {},
        }
        for other in map(str, settings):
            if other == setting:
                continue
            theirs = [by[other, seed]["points"][-1] for seed in seeds]
            reached = [first_at(by[setting, seed]["points"], end["loss"]) for seed, end in zip(seeds, theirs, strict=True)]
            there = [(mine, end) for mine, end in zip(reached, theirs, strict=True) if mine is not None]
            row["against"][other] = {
                "loss_percent": 100 * (row["loss"] / statistics.mean(end["loss"] for end in theirs) - 1),
                "fewer_bytes": statistics.mean(end["wire_bytes"] for end in theirs) / row["wire_bytes"],
                "reached_its_loss_in": f"{len(there)} of {len(seeds)}",
                "faster_to_its_loss": statistics.mean(end["seconds"] / mine["seconds"] for mine, end in there) if there else None,
                "fewer_bytes_to_its_loss": (
                    statistics.mean(end["wire_bytes"] / mine["wire_bytes"] for mine, end in there) if there else None
                ),
            }
        found.append(row)
    return found


def parser() -> argparse.ArgumentParser:
    it = parser_of(
        "time_to_loss",
        __doc__,
        "python -m benchmarks.time_to_loss --links 20/100x4 --strategies accumulate:fp16,accumulate:int8,local-steps:int4",
        "python -m benchmarks.time_to_loss --strategies accumulate:int8:64,local-steps:int4:2048 --samples-per-second 2000",
    )
    it.add_argument("--links", default="20/100x4", help="up/down Mbit/s x peers, as in 20/100x4,1000/1000x1a: a for auxiliary")
    it.add_argument(
        "--strategies",
        default="accumulate:fp16,accumulate:int8,local-steps:int4",
        help="strategy:codec with commas between, each perhaps with :samples of an epoch",
    )
    it.add_argument("--seeds", type=int, default=3, help="how many; each draws other first weights and another order")
    it.add_argument("--samples", type=int, default=20_480, help="of a run")
    it.add_argument("--samples-per-second", type=float, default=100.0, help="of each peer, emulated")
    it.add_argument("--micro-batch", type=int, default=8)
    it.add_argument("--local-batch", type=int, default=16, help="samples of a local step")
    it.add_argument("--learning-rate", type=float, default=8e-3, help="of accumulate")
    it.add_argument("--local-learning-rate", type=float, default=4e-3, help="of local steps")
    it.add_argument("--held-out", type=int, default=128, help="samples on which the loss is measured")
    it.add_argument("--workers", type=int, default=1, help="runs at once; no result depends on it")
    return it


def options_of(arguments: Sequence[str] | None = None) -> tuple[Options, bool]:
    """(options, whether JSON is wanted). Ends the process with a sentence and code 2 when they make no sense."""
    it = parser()
    asked = it.parse_args(arguments)
    batch = RunSpec.load(RUN_FILE).training.target_batch_size
    try:
        links = parse_links(asked.links)
        settings = tuple(dict.fromkeys(Setting.parse(text, batch) for text in asked.strategies.split(",")))
    except ValueError as error:
        it.error(str(error))
    if links[0].client_mode:
        it.error("argument --links: the first peer leads at first, so it accepts connections")
    counts = (asked.seeds, asked.samples, asked.micro_batch, asked.local_batch, asked.held_out, asked.workers)
    if min(counts) < 1 or min(asked.samples_per_second, asked.learning_rate, asked.local_learning_rate) <= 0:
        it.error("counts are at least 1, and rates above 0")
    if any(setting.strategy == "local-steps" and setting.epoch < asked.local_batch for setting in settings):
        it.error("an epoch of local steps has at least --local-batch samples")
    options = Options(
        links=links,
        settings=settings,
        **{name: getattr(asked, name) for name in Options.__dataclass_fields__ if name not in ("links", "settings")},
    )
    return options, asked.json


def benchmark(options: Options) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dugnad-benchmark-")))
        prepared = prepare(RunSpec.load(RUN_FILE), folder, tables.say)
        order = [(setting, seed) for seed in range(1, options.seeds + 1) for setting in options.settings]
        work = [(options, prepared, folder, setting, seed) for setting, seed in order]
        if options.workers > 1:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(options.workers))
            runs = pool.starmap(trained, work, chunksize=1)
        else:
            runs = [trained(*one) for one in work]
    return {
        "benchmark": "time_to_loss",
        "compute": "emulated",
        "network": "simulated",
        "links": [[link.up_mbit, link.down_mbit] for link in options.links],
        "samples": options.samples,
        "samples_per_second_each": options.samples_per_second,
        "micro_batch": options.micro_batch,
        "local_batch": options.local_batch,
        "learning_rate": options.learning_rate,
        "local_learning_rate": options.local_learning_rate,
        "summary": summary(runs, options.settings),
        "runs": runs,
        "machine": tables.machine(),
    }


def main() -> None:
    options, as_json = options_of()
    result = benchmark(options)
    first = str(options.settings[0])
    rows, pairs = [], []
    for row in result["summary"]:
        losses = f"{min(row['losses']):.3f} to {max(row['losses']):.3f}"
        cost = [f"{row['seconds']:.1f}", f"{row['wire_bytes'] / 1e6:.2f}", f"{row['samples']:.0f}"]
        rows.append([row["setting"], str(row["epochs"]), f"{row['loss']:.4f}", losses, *cost])
        for other, it in row["against"].items():
            if other == row["setting"] or row["setting"] == first:
                continue
            faster = f"{it['faster_to_its_loss']:.2f}" if it["faster_to_its_loss"] else "-"
            cells = [f"{it['loss_percent']:+.2f} %", f"{it['fewer_bytes']:.1f}", it["reached_its_loss_in"], faster]
            pairs.append([f"{row['setting']} against {other}", *cells])
    title = f"{len(options.links)} peers, {options.samples_per_second:g} samples/s each (emulated), mean of {options.seeds} seeds"
    columns = ["strategy", "epochs", "held-out loss", "from, to", "s", "MB on the wire", "samples"]
    drawn = [tables.table(title, columns, rows)]
    if pairs:
        drawn.append(tables.table("", ["", "loss", "x fewer bytes", "reached its loss", "x faster there"], pairs))
    tables.show(result, drawn, as_json=as_json)


if __name__ == "__main__":
    tables.run(main)
