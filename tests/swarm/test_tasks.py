"""A run whose task comes from a package: volunteers who installed it train, the others are told what to install."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packages import install_lines
from tests.swarm.swarm import START_S, Process, free_port, run_dugnad, wait_until

pytestmark = pytest.mark.swarm

SPEC = """
run.name = "lines"
task.kind = "lines"
training = { target_batch_size = 64, max_epochs = 40 }
optimizer.learning_rate = 0.1
evaluation.every_epochs = 20
checkpoint.every_epochs = 20
"""


def test_a_task_from_a_package_trains_where_it_is_installed_and_is_named_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, run = tmp_path / "site", tmp_path / "run"
    install_lines(site, monkeypatch)
    (tmp_path / "run.toml").write_text(SPEC)
    arguments = ["coordinator", str(tmp_path / "run.toml"), "--dir", str(run), "--host", "127.0.0.1", "--port", str(free_port())]
    processes = [Process("coordinator", run, arguments, PYTHONPATH=str(site))]
    coordinator = processes[0]
    try:
        wait_until(lambda: (run / "ticket.txt").exists() or not coordinator.running, "the ticket", START_S)
        assert coordinator.running, coordinator.tail()
        ticket = (run / "ticket.txt").read_text().strip()

        without = run_dugnad("peer", ticket, "--home", str(tmp_path / "without"), PYTHONPATH="")
        assert without.returncode == 2, without.stderr
        assert 'task "lines" is not installed here' in without.stderr
        assert "Install the package some-lines if you trust it" in without.stderr

        peer = ["peer", ticket, "--home", str(tmp_path / "with"), "--micro-batch", "8", "--threads", "1", "--yes"]
        processes.append(Process("with", tmp_path / "with", peer, PYTHONPATH=str(site)))
        assert coordinator.wait() == 0, coordinator.tail()
        losses = [record["loss"] for record in coordinator.events("evaluated")]
        assert losses[-1] < 0.5 * losses[0], losses
    finally:
        for process in processes:
            process.end()
