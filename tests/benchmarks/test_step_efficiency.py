"""The benchmark of whole steps: what it makes of its options, and of the epochs that it sees."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from typing import Any, cast

import pytest

from benchmarks import join, step_efficiency
from benchmarks.crew import Crew
from benchmarks.step_efficiency import WARM_UP_EPOCHS, measure, options_of


class Scripted:
    """A crew whose first peer saw these epochs."""

    engine = "dugnad"
    setups = (1, 2)
    complaint = ""

    def __init__(self, epochs: list[tuple[float, int]]) -> None:
        self._epochs = epochs

    def meet(self) -> None:
        pass

    def all(self, command: str) -> list[Any]:
        return [self._epochs]


def measured(lengths_s: list[float], samples: list[int]) -> dict[str, Any]:
    options, _ = options_of(["--peers", "2", "--samples-per-second", "50", "--target-batch", "100", "--epochs", "10"])
    ends = list(itertools.accumulate([*[1.0] * (WARM_UP_EPOCHS + 1), *lengths_s]))
    epochs = list(zip(ends, [100] * (WARM_UP_EPOCHS + 1) + samples, strict=True))
    return measure(options, cast(Crew, Scripted(epochs)), lambda line: None)


def test_a_swarm_that_loses_nothing_has_an_efficiency_of_one() -> None:
    assert measured([1.0] * 10, [100] * 10)["efficiency"] == 1.0


def test_time_between_epochs_is_lost() -> None:
    assert measured([1.25] * 10, [100] * 10)["efficiency"] == pytest.approx(0.8)


def test_samples_beyond_the_batch_count_for_nothing_and_missing_ones_are_missed() -> None:
    assert measured([1.0] * 10, [200] * 9 + [50])["efficiency"] == pytest.approx(0.95)


def test_what_comes_before_the_clock_starts_does_not_count() -> None:
    found = measured([2.0] * 10, [100] * 10)
    assert found["seconds"] == 20.0
    assert found["median_epoch_s"] == 2.0


@pytest.mark.swarm
@pytest.mark.slow
def test_a_small_swarm_commits_most_of_what_it_draws() -> None:
    command = [sys.executable, "-m", "benchmarks.step_efficiency", "--engines", "dugnad", "--peers", "2", "--params", "10000"]
    command += ["--target-batch", "64", "--epochs", "10", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert 0 < result["efficiency"]["dugnad"] <= 1
    assert result["ideal_samples_per_second"] == 200.0


def test_speeds_are_for_all_or_for_each() -> None:
    assert options_of(["--samples-per-second", "100"])[0].samples_per_second == (100.0,) * 4
    options, _ = options_of(["--samples-per-second", "160,120,80,40"])
    assert options.ideal == 400.0
    assert len(options.links) == 4


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--samples-per-second", "fast"], "is no number"),
        (["--samples-per-second", "0"], "above 0"),
        (["--epochs", "9"], "at least 10"),
        (["--engines", "gloo"], "no engine 'gloo'"),
    ],
)
def test_wrong_use_is_told_in_a_sentence(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        step_efficiency.options_of(arguments)
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err


def test_a_join_takes_three_places(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert len(join.options_of(["--links", "200/200x2,20/100x1c"])[0].links) == 3
    for links, problem in (("100/100x4", "not 4"), ("100/100x2,50/50x1a", "nobody auxiliary")):
        with pytest.raises(SystemExit):
            join.options_of(["--links", links])
        assert problem in capsys.readouterr().err


def test_without_root_links_are_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SystemExit):
        step_efficiency.options_of(["--links", "100/100x4"])
    assert "sudo" in capsys.readouterr().err
