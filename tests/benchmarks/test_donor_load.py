"""The benchmark of serving state, small, with real processes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "benchmarks.donor_load", "--params", "100000", "--target-batch", "32", "--window-s", "0.5"]


@pytest.mark.swarm
@pytest.mark.slow
def test_a_small_run_compares_a_donor_that_serves_with_one_that_does_not() -> None:
    done = subprocess.run([*COMMAND, "--pairs", "1", "--json"], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["ratios"]) == 1 and result["ratio"] > 0
    assert result["snapshots"] >= 1
    assert result["served_mbit"] > 0
