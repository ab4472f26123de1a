"""A coordinator with a task that knows no text: from its run file to a checkpoint that others can read."""

from __future__ import annotations

import json
import queue
from contextlib import closing
from pathlib import Path

import pytest
from safetensors.torch import load_file

from coordinator.checkpoints.store import STATE, Checkpoints
from coordinator.genesis import open_run
from coordinator.monitor import Monitor, Run
from coordinator.sinks.base import Sinks
from coordinator.sinks.history import History
from protocols.host.event_log import read_events
from protocols.optimization import build_optimizer, build_scheduler
from protocols.run_spec import RunSpec
from protocols.tasks.registry import open_task
from tests.packages import install_lines


def test_a_task_without_text_is_evaluated_and_kept_as_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_lines(tmp_path / "site", monkeypatch)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    author = RunSpec.from_toml('[run]\nname = "lines"\n[task]\nkind = "lines"\n', tmp_path)
    opened = open_run(author, tmp_path / "run", checkpoints, lambda text: None)
    task = open_task(opened.spec, tmp_path / "run")
    model = task.build_model()
    run = Run(opened.spec, task, model, build_scheduler(opened.spec, build_optimizer(opened.spec, model)), opened.authority.pem)
    snapshot = opened.snapshot.read_bytes()
    with closing(History(tmp_path / "run")) as history:
        monitor = Monitor(run, Sinks([history]), checkpoints, queue.SimpleQueue(), lambda: snapshot, lambda text: None)
        monitor.start(snapshot, resumed=False)
        monitor.keep(checkpoint=True)
    events = {record["event"]: record for record in read_events(tmp_path / "run" / "events.jsonl")}
    assert events["run_started"]["loss_unit"] == "squared error per point"
    assert events["evaluated"]["loss"] == pytest.approx(task.evaluate(model))

    kept = checkpoints.latest()
    assert kept is not None
    assert set(load_file(kept.path / "model.safetensors")) == {"weight", "bias"}
    assert set(json.loads((kept.path / STATE).read_text())["files"]) == {
        *("README.md", "model.safetensors", "run.toml", "training_state.safetensors")
    }
    card = (kept.path / "README.md").read_text()
    assert "squared error per point" in card
    assert "transformers" not in card and "pipeline_tag" not in card and "perplexity" not in card


def test_a_default_that_is_written_out_later_makes_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_lines(tmp_path / "site", monkeypatch)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    digests = {
        open_run(RunSpec.from_toml(text, tmp_path), tmp_path / "run", checkpoints, lambda text: None).spec.digest
        for text in ('run.name = "lines"\ntask.kind = "lines"\n', 'run.name = "lines"\ntask = { kind = "lines", points = 8 }\n')
    }
    assert len(digests) == 1
