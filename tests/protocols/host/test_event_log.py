"""What tests/coordinator/sinks/test_history.py does not say about the event log already."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import pytest

from protocols.host.event_log import EventLog, commit_fields, read_events
from protocols.round.records import Ballot, Candidate, Commit, Contribution, ShardResult


def test_lines_of_many_threads_do_not_mix(tmp_path: Path) -> None:
    with EventLog(tmp_path / "new" / "events.jsonl", clock=lambda: 1.0) as log:

        def write(writer: int) -> None:
            for number in range(50):
                log.record("tick", writer=writer, number=number, padding="x" * 300)

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events = list(read_events(tmp_path / "new" / "events.jsonl"))
    for writer in range(4):
        assert [event["number"] for event in events if event["writer"] == writer] == list(range(50))


def test_what_record_returns_is_what_was_written(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl", clock=lambda: 2.5) as log:
        returned = log.record("went", where=Path("/a/b"), nested={"loss": math.nan, "more": [math.inf, 1.5]}, name="Åse")
    (written,) = read_events(tmp_path / "events.jsonl")
    assert (
        written
        == returned
        == {"time": 2.5, "event": "went", "where": "/a/b", "nested": {"loss": None, "more": [None, 1.5]}, "name": "Åse"}
    )


def test_a_commit_is_logged_with_every_counter_range() -> None:
    contributions = (Contribution("ann", 7, 3, 5, "a" * 64, 2.0), Contribution("bob", 8, 0, 6, "a" * 64, 4.0))
    shards = (ShardResult(0, 10, "c" * 64, 9.0), ShardResult(10, 20, "d" * 64, 16.0))
    leader = Candidate("ann", "a:1")
    commit = Commit(
        Ballot(4, "a" * 64, 2, "ann"), "b" * 64, contributions, ("ann", "bob"), shards, "fp32", 108, leader, (), "fp32"
    )
    fields = json.loads(json.dumps(commit_fields(commit)))
    assert fields["contributors"] == [
        {"peer": "ann", "incarnation": 7, "first": 3, "end": 5, "base": "a" * 64, "loss": 2.0, "norm": 0.0},
        {"peer": "bob", "incarnation": 8, "first": 0, "end": 6, "base": "a" * 64, "loss": 4.0, "norm": 0.0},
    ]
    assert (fields["epoch"], fields["attempt"], fields["parent"], fields["lineage"]) == (4, 2, "a" * 64, commit.digest)
    assert (fields["samples"], fields["total_samples"], fields["leader"], fields["codec"]) == (8, 108, "ann", "fp32")
    assert fields["loss"] == pytest.approx(3.5)
    assert fields["grad_norm"] == pytest.approx(5.0)


def test_times_in_the_file_are_iso_8601_and_come_back_as_seconds(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl", clock=lambda: 1795591234.5678) as log:
        log.record("went")
    assert json.loads((tmp_path / "events.jsonl").read_text())["time"] == "2026-11-25T07:20:34.567Z"
    (record,) = read_events(tmp_path / "events.jsonl")
    assert record["time"] == pytest.approx(1795591234.567, abs=1e-6)


def test_a_log_with_a_limit_keeps_one_older_file(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl", clock=lambda: 1.0, max_bytes=1000) as log:
        for number in range(100):
            log.record("tick", number=number)
    older, both = (list(read_events(tmp_path / name)) for name in ("events.1.jsonl", "events.jsonl"))
    assert [record["number"] for record in both] == list(range(100 - len(both), 100)), "both are read, the older one first"
    assert 0 < len(older) < len(both) and all(file.stat().st_size <= 1000 for file in tmp_path.iterdir())
