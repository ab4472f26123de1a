from typing import Any

import pytest

from coordinator.sinks.event_lines import describe
from tests.factories import COMMITTED_EVENT


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"event": "peer_joined", "peer": "3fa2bb", "name": "", "role": "contributor"}, "peer 3fa2… joined"),
        (
            {"event": "peer_joined", "peer": "3fa2bb", "name": "ola", "role": "auxiliary", "reachable": False},
            "peer ola 3fa2… joined (auxiliary, client-mode)",
        ),
        ({"event": "peer_left", "peer": "3fa2bb", "reason": "connection-lost"}, "peer 3fa2… lost: the connection broke"),
        (COMMITTED_EVENT, "epoch 12 committed: 4 peers, 96 samples, loss 4.31, 214 ms"),
        (
            {"event": "committed", "epoch": 3, "samples": 1, "contributors": [{}], "loss": None, "attempts": 2},
            "epoch 3 committed: 1 peer, 1 sample, 2 attempts",
        ),
        (
            {"event": "attempt_failed", "epoch": 13, "attempt": 2, "reason": "connection-lost", "peer": "3fa2bb"},
            "attempt 2 of epoch 13 failed: the connection broke (3fa2…)",
        ),
        (
            {
                "event": "attempt_failed",
                "epoch": 3,
                "attempt": 1,
                "reason": "silent",
                "peer": "3fa2bb",
                "name": "ola",
                "seconds": 9.0,
            },
            "attempt 1 of epoch 3 failed after 9.0 s: it fell silent (ola 3fa2…)",
        ),
        ({"event": "evaluated", "epoch": 10, "loss": 4.4}, "held-out loss at epoch 10: 4.40"),
        ({"event": "evaluated", "epoch": 10, "loss": None}, "held-out loss at epoch 10: not finite"),
        (
            {"event": "checkpoint_written", "epoch": 10, "path": "x", "bytes": 12_345_678, "seconds": 75.0},
            "checkpoint of epoch 10 written (12.3 MB, 1 minute)",
        ),
        ({"event": "auxiliary_restarted", "reason": "exit code 1"}, "auxiliary peer restarted: exit code 1"),
        ({"event": "run_finished", "epoch": 60}, "run finished at epoch 60"),
        ({"event": "something_new", "number": 3}, "something new number 3"),
    ],
)
def test_every_event_has_its_line(record: dict[str, Any], line: str) -> None:
    assert describe({"time": 0.0, **record}) == line
