from typing import Any

from coordinator.report.summary import Mark, summarise


def committed(epoch: int, *, at: float = 0.0, lineage: str = "", samples: int = 10, loss: float | None = 5.0) -> dict[str, Any]:
    return {"time": at, "event": "committed", "epoch": epoch, "lineage": lineage or f"a{epoch}", "samples": samples, "loss": loss}


def test_a_summary_counts_what_was_committed_and_who_came() -> None:
    summary = summarise(
        [
            {"time": 0.0, "event": "run_started", "run": "r", "run_digest": "d", "loss_unit": "nats per image"},
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
    assert (summary.epochs, summary.samples_committed) == (2, 17)
    assert (summary.peers_joined, summary.rounds_retried) == (1, 1)
    assert (summary.loss_first, summary.loss_last) == (9.0, 5.5)
    assert summary.train_curve == ((1, 6.0),)
    assert summary.eval_curve == ((0, 9.0), (2, 5.5))
    assert summary.marks[2] == Mark(1, "left", "aa", "ola", "connection-lost")
    assert summary.duration_s == 4.0
    assert summary.loss_label == "loss (nats per image)"


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
