"""The example of a task from another package, loaded through the entry point that its own pyproject.toml declares."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from protocols.run_spec import RunSpec
from protocols.tasks.base import Task
from protocols.tasks.registry import initial_model, open_task, prepare
from tests.packages import install
from tests.protocols.tasks.teaching import teach

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLE = Path(__file__).parents[3] / "examples" / "digits"


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Task, RunSpec]:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    monkeypatch.syspath_prepend(EXAMPLE)
    install(tmp_path / "site", monkeypatch, project["name"], project["entry-points"]["dugnad.tasks"])
    resolved = prepare(RunSpec.load(EXAMPLE / "run.toml"), tmp_path / "run", lambda line: None)
    return open_task(resolved, tmp_path / "run"), resolved


def test_the_digits_example_learns(opened: tuple[Task, RunSpec], tmp_path: Path) -> None:
    task, resolved = opened
    model = initial_model(resolved, resolved, tmp_path / "run")
    before = task.evaluate(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    teach(task, model, optimizer, micro_batch=64, steps=40)
    assert before == pytest.approx(2.3, abs=0.1)  # ln(10): it guesses
    assert task.evaluate(model) < 1.0


def test_nobody_trains_on_a_digit_that_is_held_out(opened: tuple[Task, RunSpec]) -> None:
    task, _ = opened
    held_out = {image.numpy().tobytes() for image in task.held_out["pixels"]}  # type: ignore[attr-defined]
    with task.batches(seed=0, peer="ann", micro_batch=1437) as batches:
        trained = {image.numpy().tobytes() for image in next(batches)["pixels"]}
    assert len(trained) == 1437  # one whole pass: every image once
    assert not held_out & trained


def test_the_micro_batch_cuts_the_same_order_elsewhere(opened: tuple[Task, RunSpec]) -> None:
    task, _ = opened
    with task.batches(seed=0, peer="ann", micro_batch=8) as large, task.batches(seed=0, peer="ann", micro_batch=4) as small:
        whole, first, second = next(large), next(small), next(small)
    assert torch.equal(whole["pixels"], torch.cat([first["pixels"], second["pixels"]]))
