import io
from dataclasses import replace

import pytest
from rich.console import Console as Terminal

from coordinator.sinks.console import Console
from coordinator.swarm_view import SwarmView
from protocols.observations import PeerView
from tests.factories import COMMITTED_EVENT

ALICE = PeerView("3fa2" * 16, "alice", "contributor", True, 12, 31, 102.4, "training", True)
BOB = PeerView("91cc" * 16, "bob", "contributor", False, 12, 20, 48.2, "averaging", False)
AUXILIARY = PeerView("aaaa" * 16, "", "auxiliary", True, 12, 0, 0.0, "training", False)
VIEW = SwarmView("python-lm", "ab" * 32, 12, "cd" * 32, 51, 96, 1152, "training", (AUXILIARY, BOB, ALICE), 60)


class Fixture:
    """A console on a terminal of a given size that is drawn on demand."""

    def __init__(self, width: int, height: int = 30, *, is_tty: bool = True) -> None:
        self.now = 0.0
        self.out = io.StringIO()
        self.terminal = Terminal(file=self.out, width=width, height=height, force_terminal=is_tty, color_system=None)
        self.console = Console(terminal=self.terminal, clock=lambda: self.now)

    def frame(self) -> list[str]:
        with self.terminal.capture() as capture:
            self.terminal.print(self.console._render())
        return capture.get().rstrip("\n").split("\n")


@pytest.mark.parametrize("width", [60, 84, 200])
def test_the_view_shows_batch_loss_swarm_and_peers_at_any_width(width: int) -> None:
    on = Fixture(width)
    on.console.swarm(VIEW)
    on.console.event(COMMITTED_EVENT)
    text = "\n".join(on.frame())
    assert max(len(line) for line in on.frame()) == width
    for shown in (
        "python-lm",
        "epoch 12 of 60",
        "51 of 96 samples",
        "4.312",
        "151 samples/s",
        "alice 3fa2…",
        "client-mode",
        "auxiliary",
    ):
        assert shown in text
    assert "● averaging" in text


@pytest.mark.parametrize("height", [16, 24])
def test_forty_columns_hold_names_pace_and_time_left(height: int) -> None:
    on = Fixture(40, height)
    on.console.swarm(replace(VIEW, epoch=10, total_samples=1000))
    on.now = 60.0
    on.console.swarm(replace(VIEW, epoch=20, total_samples=2000))
    for _ in range(9):
        on.console.event(COMMITTED_EVENT)
    frame = on.frame()
    assert {len(line) for line in frame} == {40} and len(frame) < height
    text = " ".join(" ".join(line.strip("│") for line in frame).split())
    for shown in ("python-lm · epoch 20 of 60", "alice 3fa2…", "bob 91cc…", "16.7 samples/s · 4 minutes left", "● averaging"):
        assert shown in text, text


def test_the_leader_is_marked_and_stands_first() -> None:
    on = Fixture(100)
    on.console.swarm(VIEW)
    rows = [line for line in on.frame() if "●" in line]
    assert "★ alice" in rows[0]
    assert "auxiliary" in rows[-1]
    assert sum("★" in row for row in rows) == 1


@pytest.mark.parametrize("height", [14, 20, 40])
def test_a_big_swarm_does_not_outgrow_the_terminal(height: int) -> None:
    on = Fixture(100, height)
    crowd = tuple(replace(BOB, peer=f"{i:04x}" * 16) for i in range(500))
    on.console.swarm(replace(VIEW, peers=(ALICE, *crowd)))
    for _ in range(9):
        on.console.event(COMMITTED_EVENT)
    on.console.status("writing a checkpoint")
    frame = on.frame()
    assert len(frame) < height
    assert any("more" in line for line in frame)
    assert any("committed" in line for line in frame)


def test_what_is_left_is_told_from_the_pace() -> None:
    on = Fixture(120)
    on.console.swarm(replace(VIEW, epoch=10))
    on.now = 60.0
    on.console.swarm(replace(VIEW, epoch=20))
    assert any("4 minutes left" in line for line in on.frame())
    on.console.swarm(replace(VIEW, epoch=60))
    assert not any("left" in line for line in on.frame())


def test_a_run_without_an_end_has_no_end_in_sight() -> None:
    on = Fixture(120)
    for epoch in (1, 2):
        on.now = float(epoch)
        on.console.swarm(replace(VIEW, epoch=epoch, max_epochs=None))
    assert not any("left" in line or "None" in line for line in on.frame())


def test_start_up_work_is_shown_until_the_first_view() -> None:
    on = Fixture(80)
    on.console.status("reading the corpus")
    assert "reading the corpus" in on.frame()[-1]
    on.console.swarm(VIEW)
    assert not any("reading the corpus" in line for line in on.frame())


def test_names_from_other_machines_cannot_steer_the_terminal() -> None:
    on = Fixture(120)
    on.console.swarm(replace(VIEW, run="[red]x", peers=(replace(ALICE, name="\x1b[2J[b]\nx", state="\x07[/]"),)))
    on.console.event({"time": 0.0, "event": "peer_left", "peer": "\x1b]0;", "name": "", "reason": "[/oops]\x1b[1m"})
    text = "\n".join(on.frame())
    assert "\x1b" not in text and "\x07" not in text
    assert "[b]" in text and "[/oops]" in text


def test_off_a_terminal_each_event_is_one_line_and_views_are_none() -> None:
    on = Fixture(40, is_tty=False)
    with on.console as console:
        console.status("reading the corpus")
        console.status("reading the corpus")
        console.swarm(VIEW)
        console.event(COMMITTED_EVENT)
        console.event({"time": 1.7e9, "event": "checkpoint_failed", "reason": "no space left on the device " * 3})
    first, second, third = on.out.getvalue().splitlines()
    assert first == "reading the corpus"
    assert second.endswith(" epoch 12 committed: 4 peers, 96 samples, loss 4.31, 214 ms")
    assert third.count("no space left") == 3


def test_on_a_terminal_the_last_view_stays_when_the_console_closes() -> None:
    on = Fixture(100)
    with on.console as console:
        console.swarm(VIEW)
        console.event(COMMITTED_EVENT)
        console.say("the ticket: abc")
    assert "epoch 12 committed" in on.out.getvalue().rpartition("╭")[2]
    assert "the ticket: abc" in on.out.getvalue()


def test_standard_output_stays_machine_readable(capsys: pytest.CaptureFixture[str]) -> None:
    on = Fixture(100)
    with on.console as console:
        console.swarm(VIEW)
        print('{"epochs": 1}')
    assert capsys.readouterr().out == '{"epochs": 1}\n'


def test_without_volunteers_it_says_how_to_get_some() -> None:
    on = Fixture(100)
    on.console.swarm(replace(VIEW, peers=tuple(peer for peer in VIEW.peers if peer.role == "auxiliary")))
    assert any("waiting for volunteers: send them the line with the ticket" in line for line in on.frame())


def test_the_pace_is_that_of_commits_and_not_what_the_peers_could_do() -> None:
    on = Fixture(120)
    on.console.swarm(VIEW)
    assert any("computing 151 samples/s" in line for line in on.frame())
    on.now = 10.0
    on.console.swarm(replace(VIEW, epoch=VIEW.epoch + 1, total_samples=VIEW.total_samples + 60))
    assert any("6.00 samples/s" in line for line in on.frame())
