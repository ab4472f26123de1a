import json
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from coordinator.sinks.history import History
from protocols.errors import DiskError
from protocols.host.event_log import event_record, read_events


def evaluated(epoch: int) -> dict[str, Any]:
    return event_record(12.5, "evaluated", {"epoch": epoch, "loss": 4.0})


def test_what_is_recorded_can_be_read_at_once(tmp_path: Path) -> None:
    with closing(History(tmp_path / "new")) as history:
        history.event(event_record(12.5, "peer_left", {"peer": "3fa2", "reason": "connection-lost"}))
        assert list(read_events(history.path)) == [
            {"time": 12.5, "event": "peer_left", "peer": "3fa2", "reason": "connection-lost"}
        ]


def test_a_restart_appends(tmp_path: Path) -> None:
    for epoch in (1, 2):
        with closing(History(tmp_path)) as history:
            history.event(evaluated(epoch))
    assert [record["epoch"] for record in read_events(tmp_path / "events.jsonl")] == [1, 2]


def test_a_line_torn_by_a_crash_costs_that_line_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(History(tmp_path)) as history:
        history.event(evaluated(1))
        history.event(evaluated(2))
    whole = history.path.read_bytes()
    history.path.write_bytes(whole[:-9])
    with closing(History(tmp_path)) as history:
        history.event(evaluated(3))
    assert [record["epoch"] for record in read_events(history.path)] == [1, 3]
    assert "history-line-skipped: line 2" in caplog.text


def test_lines_that_are_no_events_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    noise = b'{"event": "x"}\n[1]\n\n"text"\n\xff\xfe\n{"time": 1, "event": "old"}\n'
    path.write_bytes(noise + b'{"time": "2026-11-25T07:20:34.567Z", "event": "run_started"}\n')
    assert [record["event"] for record in read_events(path)] == ["run_started"]


def test_values_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with closing(History(tmp_path)) as history:
        history.event(event_record(0.0, "committed", {"loss": float("nan"), "contributors": [{"loss": float("inf")}]}))
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
        from contextlib import closing
        from pathlib import Path
        from coordinator.sinks.history import History
        from protocols.errors import DiskError
        from protocols.host.event_log import event_record
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with closing(History(Path(sys.argv[1]))) as history:
            history.event(event_record(0.0, "evaluated", {"epoch": 1}))
            resource.setrlimit(resource.RLIMIT_FSIZE, (70, resource.RLIM_INFINITY))
            try:
                history.event(event_record(0.0, "evaluated", {"epoch": 2}))
            except DiskError as error:
                print("refused:", error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            history.event(event_record(0.0, "evaluated", {"epoch": 3}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused: ")
    assert [record["epoch"] for record in read_events(tmp_path / "events.jsonl")] == [1, 3]


def test_scalars_land_in_a_tensorboard_file(tmp_path: Path) -> None:
    with closing(History(tmp_path)) as history:
        history.scalar("train/loss", 4.5, 1)
        history.scalar("train/loss", 4.25, 2)
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = (tmp_path / "tensorboard").iterdir()
    values = [value for event in EventFileLoader(str(path)).Load() for value in event.summary.value]
    assert [(value.tag, value.tensor.float_val[0]) for value in values] == [("train/loss", 4.5), ("train/loss", 4.25)]
