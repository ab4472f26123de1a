import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from coordinator.sinks.history import History, Mark, summarise
from protocols.errors import DiskError
from protocols.host.event_log import read_events


def committed(epoch: int, *, at: float = 0.0, lineage: str = "", samples: int = 10, loss: float | None = 5.0) -> dict[str, Any]:
    return {"time": at, "event": "committed", "epoch": epoch, "lineage": lineage or f"a{epoch}", "samples": samples, "loss": loss}


def test_what_is_recorded_can_be_read_at_once(tmp_path: Path) -> None:
    with History(tmp_path / "new", clock=lambda: 12.5) as history:
        history.record("peer_left", peer="3fa2", reason="connection-lost")
        assert list(read_events(history.path)) == [
            {"time": 12.5, "event": "peer_left", "peer": "3fa2", "reason": "connection-lost"}
        ]


def test_a_restart_appends(tmp_path: Path) -> None:
    for epoch in (1, 2):
        with History(tmp_path) as history:
            history.record("evaluated", epoch=epoch, loss=4.0)
    assert [record["epoch"] for record in read_events(tmp_path / "events.jsonl")] == [1, 2]


def test_a_line_torn_by_a_crash_costs_that_line_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with History(tmp_path) as history:
        history.record("evaluated", epoch=1, loss=4.0)
        history.record("evaluated", epoch=2, loss=4.0)
    whole = history.path.read_bytes()
    history.path.write_bytes(whole[:-9])
    with History(tmp_path) as history:
        history.record("evaluated", epoch=3, loss=4.0)
    assert [record["epoch"] for record in read_events(history.path)] == [1, 3]
    assert "history-line-skipped: line 2" in caplog.text


def test_lines_that_are_no_events_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "x"}\n[1]\n\n"text"\n\xff\xfe\n{"time": 1, "event": "run_started"}\n')
    assert [record["event"] for record in read_events(path)] == ["run_started"]


def test_values_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with History(tmp_path) as history:
        history.record("committed", epoch=1, loss=float("nan"), contributors=[{"loss": float("inf")}])
    (line,) = history.path.read_text().splitlines()
    record = json.loads(line, parse_constant=pytest.fail)
    assert record["loss"] is None
    assert record["contributors"] == [{"loss": None}]


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot be written") as caught:
        History(tmp_path / "file" / "history")
    assert caught.value.remedy
    with pytest.raises(DiskError, match="cannot be read"):
        list(read_events(tmp_path / "absent.jsonl"))


def test_a_full_disk_is_reported_and_the_history_goes_on_when_there_is_room(tmp_path: Path) -> None:
    script = """
        import resource, signal, sys
        from pathlib import Path
        from coordinator.sinks.history import History
        from protocols.errors import DiskError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with History(Path(sys.argv[1])) as history:
            history.record("evaluated", epoch=1)
            resource.setrlimit(resource.RLIMIT_FSIZE, (70, resource.RLIM_INFINITY))
            try:
                history.record("evaluated", epoch=2)
            except DiskError as error:
                print("refused:", error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            history.record("evaluated", epoch=3)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused: ")
    assert [record["epoch"] for record in read_events(tmp_path / "events.jsonl")] == [1, 3]


def test_scalars_land_in_a_tensorboard_file(tmp_path: Path) -> None:
    with History(tmp_path) as history:
        history.scalar("train/loss", 4.5, 1)
        history.scalar("train/loss", 4.25, 2)
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = (tmp_path / "tensorboard").iterdir()
    values = [value for event in EventFileLoader(str(path)).Load() for value in event.summary.value]
    assert [(value.tag, value.tensor.float_val[0]) for value in values] == [("train/loss", 4.5), ("train/loss", 4.25)]


def test_a_summary_counts_what_was_committed_and_who_came() -> None:
    summary = summarise(
        [
            {"time": 0.0, "event": "run_started", "run": "r", "run_digest": "d"},
            {"time": 1.0, "event": "peer_joined", "peer": "aa", "name": "", "role": "contributor"},
            {"time": 1.0, "event": "peer_joined", "peer": "ff", "name": "", "role": "auxiliary"},
            {"time": 1.5, "event": "evaluated", "epoch": 0, "loss": 9.0},
            committed(1, at=2.0, loss=6.0),
            {"time": 2.5, "event": "attempt_failed", "epoch": 2, "attempt": 1, "reason": "connection-lost", "peer": "aa"},
            {"time": 2.6, "event": "peer_left", "peer": "aa", "name": "ola", "reason": "connection-lost"},
            {"time": 2.7, "event": "peer_joined", "peer": "aa", "name": "", "role": "contributor"},
            committed(2, at=3.0, loss=None, samples=7),
            {"time": 4.0, "event": "evaluated", "epoch": 2, "loss": 5.5},
        ]
    )
    assert (summary.epochs, summary.rounds_committed, summary.samples_committed) == (2, 2, 17)
    assert (summary.peers_joined, summary.rounds_retried) == (1, 1)
    assert (summary.loss_first, summary.loss_last) == (9.0, 5.5)
    assert summary.train_curve == ((1, 6.0),)
    assert summary.eval_curve == ((0, 9.0), (2, 5.5))
    assert summary.marks[2] == Mark(1, "left", "aa", "ola", "connection-lost")
    assert summary.duration_s == 4.0


def test_commits_of_an_abandoned_lineage_do_not_count() -> None:
    given_up = [committed(epoch, lineage=f"old{epoch}") for epoch in (1, 2, 3, 4)]
    resumed = [{"time": 0.0, "event": "evaluated", "epoch": 4, "loss": 1.0}, committed(3, lineage="new3", samples=1)]
    summary = summarise([*given_up, *resumed])
    assert (summary.epochs, summary.samples_committed) == (3, 21)
    assert summary.eval_curve == ()


def test_a_commit_recorded_twice_counts_once() -> None:
    assert summarise([committed(1), committed(2), committed(1)]).samples_committed == 20


def test_time_in_which_no_coordinator_ran_is_not_the_runs() -> None:
    events = [
        {"time": 100.0, "event": "run_started"},
        committed(1, at=110.0),
        {"time": 5000.0, "event": "run_resumed"},
        committed(2, at=5003.0),
        committed(3, at=4000.0),
    ]
    assert summarise(events).duration_s == 13.0


def test_an_empty_history_has_a_summary() -> None:
    summary = summarise([])
    assert (summary.epochs, summary.loss_first, summary.loss_last, summary.duration_s) == (0, None, None, 0.0)
