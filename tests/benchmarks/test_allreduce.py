"""The benchmark of averaging, small, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from benchmarks.allreduce import options_of

COMMAND = [sys.executable, "-m", "benchmarks.allreduce", "--peers", "2", "--params", "100000", "--engines", "dugnad,gloo"]


@pytest.mark.swarm
def test_a_small_run_gives_one_object_with_every_figure() -> None:
    done = subprocess.run([*COMMAND, "--rounds", "2", "--json"], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["ratio_gloo"] > 0
    for engine in ("dugnad", "gloo"):
        found = result["engines"][engine]
        assert len(found["seconds"]) == 2 and min(found["seconds"]) > 0
        assert 0 < found["of_allowed_error"] <= 1
        assert found["mb_per_s"] == pytest.approx(0.4 / found["median_s"], rel=0.2)


@pytest.mark.swarm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_the_benchmark_nothing_outlives_it(number: signal.Signals) -> None:
    with subprocess.Popen([*COMMAND, "--rounds", "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert any("round 1 of" in line for line in running.stderr)
        children = psutil.Process(running.pid).children(recursive=True)
        assert len(children) == 4
        os.kill(running.pid, number)
        running.stderr.read()
        assert running.wait(30) == (130 if number == signal.SIGINT else -signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert alive == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--engines", "dugnad,nccl"], "no engine 'nccl'"),
        (["--links", "100x4"], "write up/down Mbit/s x peers"),
        (["--peers", "1"], "at least two peers"),
        (["--rounds", "0"], "at least 1"),
    ],
)
def test_wrong_use_is_told_in_a_sentence(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options_of(arguments)
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err
