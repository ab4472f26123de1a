"""What a peer's events become: lines of the log with codes, lines of the screen in words, and numbers of the volunteer's own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as Terminal

from peer.console import PeerConsole
from peer.events import PeerEvents
from protocols.errors import DiskError
from protocols.host.event_log import EventLog, read_events
from protocols.reasons import Reason
from protocols.round.records import Ballot, SignedCommit
from tests.factories import PARENT, commit, contribution

ME = "ann"


class On:
    def __init__(self, folder: Path) -> None:
        self._out = io.StringIO()
        self.log = EventLog(folder / "events.jsonl")
        self.events = PeerEvents(ME, self.log, PeerConsole(terminal=Terminal(file=self._out, width=200)))

    @property
    def said(self) -> str:
        return self._out.getvalue()

    def applied(self, **samples: int) -> None:
        contributions = tuple(contribution(peer=peer, first=0, end=count) for peer, count in sorted(samples.items()))
        self.events("applied", signed=SignedCommit(commit(contributions=contributions), b"", b""))


@pytest.fixture
def on(tmp_path: Path) -> On:
    return On(tmp_path)


def test_share_and_place_are_of_what_was_committed_since_it_joined(on: On) -> None:
    assert (on.events.share, on.events.rank) == (0.0, (1, 0))
    on.applied(ann=10, bob=20, cid=10)
    on.applied(bob=20)
    on.applied(ann=20, cid=20)
    assert on.events.share == 0.3 and on.events.contributed_samples == 30 and on.events.contributions == 2
    assert on.events.rank == (2, 3), "bob has more, cid as much"


def test_the_log_keeps_codes_and_the_screen_has_words(on: On, tmp_path: Path) -> None:
    on.events("given_up", reason=Reason.MISSED, samples=1)
    on.events("attempt_failed", ballot=Ballot(3, PARENT, 2, "bob"), reason=Reason.REDUCER_LOST, peer="3fa2bb", seconds=7.25)
    on.events.names = {"3fa2bb": "attic"}
    on.events("leader_lost", peer="3fa2bb", reason=Reason.SILENT)
    on.events("blamed", reason=Reason.REDUCER_LOST, epoch=4, seconds=12.0)
    assert "1 sample given up: the others went on without them" in on.said
    assert "attempt 2 of epoch 3 failed after 7.2 s: a shard could not be exchanged (3fa2…)" in on.said
    assert "leader attic 3fa2… lost: it fell silent" in on.said
    assert "which cost an attempt at epoch 4, 12 s; asking others" in on.said
    assert [record["reason"] for record in read_events(tmp_path / "events.jsonl")] == [
        "missed",
        "reducer-lost",
        "silent",
        "reducer-lost",
    ]


def test_a_full_disk_costs_the_log_alone_and_is_said_once(on: On, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise DiskError("the disk is full")

    monkeypatch.setattr(on.log, "record", fails)
    on.applied(ann=10)
    on.applied(ann=10)
    assert on.events.contributed_samples == 20
    assert on.said.count("the disk is full; it trains on without") == 1
