"""The benchmark of loss against time: its options, its ratios, and its swarm in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.home_swarm import HomeSwarm
from benchmarks.links import Link
from benchmarks.time_to_loss import Setting, first_at, options_of, summary
from protocols.gradients.codecs import CODECS
from tests.replicas import language_job


def test_a_setting_has_the_runs_batch_or_some_epochs_worth_unless_it_says_otherwise() -> None:
    assert Setting.parse("accumulate:fp16", 128) == Setting("accumulate", "fp16", 128)
    assert Setting.parse("local-steps:int4", 128) == Setting("local-steps", "int4", 4096)
    assert Setting.parse(" accumulate:int8:64", 128) == Setting("accumulate", "int8", 64)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--strategies", "accumulate"], "is no strategy with its codec"),
        (["--strategies", "acumulate:fp16"], "write accumulate or local-steps, a colon and one of fp32"),
        (["--strategies", "accumulate:fp16:0"], "an epoch has samples"),
        (["--links", "20x4"], "write up/down Mbit/s x peers"),
        (["--links", "20/100x4c,100/100x1a"], "the first peer leads at first"),
        (["--seeds", "0"], "counts are at least 1"),
        (["--strategies", "local-steps:int4:8"], "at least --local-batch samples"),
    ],
)
def test_wrong_options_end_with_a_sentence(arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options_of(arguments)
    assert ended.value.code == 2
    assert what in " ".join(capsys.readouterr().err.split())


def run(setting: Setting, seed: int, *points: tuple[float, float, float]) -> dict[str, Any]:
    measured = [{"seconds": s, "wire_bytes": b, "samples": 100, "loss": loss} for s, b, loss in points]
    return {"setting": str(setting), "seed": seed, "epochs": len(points), "points": measured}


def test_ratios_are_to_the_loss_that_the_other_ends_with_seed_by_seed() -> None:
    one, other = Setting("accumulate", "int8", 128), Setting("local-steps", "int4", 4096)
    runs = [
        run(one, 1, (50, 500, 5.0), (100, 1000, 4.0)),
        run(one, 2, (50, 500, 5.0), (100, 1000, 4.2)),
        run(other, 1, (10, 5, 4.5), (20, 10, 3.9)),
        run(other, 2, (10, 5, 4.5), (20, 10, 4.3)),  # never reaches 4.2
    ]
    against = summary(runs, [one, other])[1]["against"][str(one)]
    assert against["loss_percent"] == pytest.approx(0.0)
    assert against["fewer_bytes"] == 100
    assert against["reached_its_loss_in"] == "1 of 2"
    assert against["faster_to_its_loss"] == 5
    assert first_at(runs[0]["points"], 4.99) == runs[0]["points"][1]


@pytest.mark.parametrize("strategy", ["accumulate", "local-steps"])
def test_the_swarm_trains_and_its_bytes_and_seconds_are_those_of_its_lines(strategy: str, tmp_path: Path) -> None:
    spec, task = language_job(tmp_path, seed=7, width=32, learning_rate=5e-3, warmup_steps=1)
    training = spec.training.model_copy(update={"strategy": strategy, "target_batch_size": 64})
    spec = spec.model_copy(update={"training": training})
    links = (Link(20, 100),) * 4
    with HomeSwarm(spec, task, links, seed=1, micro_batch=8, samples_per_second=100) as swarm:
        points = swarm.train(128, lambda samples: True)
    assert points[-1].samples >= 128 and points[-1].loss is not None and points[0].loss is not None
    assert points[-1].loss < points[0].loss
    # Each of four sends three quarters of its contribution to others, and its quarter of the averages to three.
    slices, epochs = swarm.problem.slices, len(points)
    values = sum(stop - start for epoch in range(1, epochs + 1) for start, stop in slices.at(epoch))
    canonical = 3 * values * 4 * (3 if strategy == "accumulate" else 1)  # AdamW's slots are state, or private
    least = 6 * CODECS["fp32"].encoded_bytes(slices.elements) * epochs + canonical
    assert least < points[-1].wire_bytes < 1.2 * least
    assert points[-1].seconds > points[-1].samples / 400 + least / 4 / links[0].upload_bytes_s
