import io
from dataclasses import replace

import pytest
from rich.console import Console as Terminal

from peer.console import PeerConsole, PeerStatus
from protocols.observations import Evaluation

STATUS = PeerStatus(
    epoch=7,
    my_samples=12,
    swarm_samples=61,
    target_batch_size=96,
    my_samples_per_second=48.2,
    swarm_samples_per_second=158.9,
    loss=4.312,
    held_out=Evaluation(60, 4.207),
    peers=4,
    leader="attic 3fa2…",
    contributions=3,
    contributed_samples=1072,
    share=0.25,
    rank=(2, 3),
    phase="training",
    run="python-lm",
    max_epochs=80,
    left_s=245.0,
)


class Fixture:
    """A console on a terminal of a given width that is drawn on demand."""

    def __init__(self, width: int, *, height: int = 24, is_tty: bool = True) -> None:
        self.now = 0.0
        self.out = io.StringIO()
        self.terminal = Terminal(file=self.out, width=width, height=height, force_terminal=is_tty, color_system=None)
        self.console = PeerConsole(terminal=self.terminal, clock=lambda: self.now)

    def frame(self) -> str:
        with self.terminal.capture() as capture:
            self.terminal.print(self.console._render())
        return capture.get()

    def lines(self) -> list[str]:
        """What was said, without the time of day."""
        return [line.partition(" ")[2] for line in self.out.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 140])
def test_the_view_shows_my_share_and_the_swarm_at_any_width(width: int) -> None:
    on = Fixture(width)
    on.console.update(STATUS)
    on.console.event("the leader is now 91cc…")
    frame = on.frame()
    assert {len(line) for line in frame.splitlines()} == {width}
    for shown in (
        "dugnad · python-lm · epoch 7 of 80 · training",
        "61 of 96 samples",
        "4.312",
        "4 peers · 159 samples/s · 4 minutes left",
        "48.2 samples/s · 12 samples in this batch",
        "3 contributions, 1,072 samples",
        "the leader is now 91cc…",
    ):
        assert shown in frame


def test_a_peer_sees_its_share_and_its_place_once_others_contribute() -> None:
    assert STATUS.given == "3 contributions, 1,072 samples: 25% of all since you joined, place 2 of 3"
    assert replace(STATUS, share=1.0, rank=(1, 1)).given == "3 contributions, 1,072 samples"


def test_a_narrow_terminal_gets_a_whole_frame() -> None:
    on = Fixture(40)
    on.console.update(STATUS)
    on.console.event("an event that is longer than a line of forty columns can hold")
    lines = on.frame().splitlines()
    assert {len(line) for line in lines} == {40}
    assert lines[0].startswith("╭") and lines[-1].startswith("╰")
    assert words_of(lines).startswith("dugnad · python-lm · epoch 7 of 80 batch")
    for shown in (
        "held-out 4.207 at epoch 60",
        "159 samples/s · 4 minutes left · leader attic 3fa2…",
        "3 contributions, 1,072 samples: 25% of all since you joined, place 2 of 3",
        "an event that is longer than a line of forty columns can hold",
    ):
        assert shown in words_of(lines)


def words_of(lines: list[str]) -> str:
    """What a frame says, in one line."""
    return " ".join(" ".join(lines).translate({ord(bar): " " for bar in "╭─╮│╰╯"}).split())


@pytest.mark.parametrize("width", [40, 100])
@pytest.mark.parametrize("height", [12, 18, 24])
def test_on_a_low_screen_the_oldest_events_give_way(width: int, height: int) -> None:
    on = Fixture(width, height=height)
    on.console.update(replace(STATUS, epoch=1234, max_epochs=20_000, leader="a kitchen's computer 3fa2…"))
    for number in range(4):
        on.console.event(f"event {number} " + "which takes more than one line of forty columns, or even two of them")
    lines = on.frame().splitlines()
    assert len(lines) < max(height, 14) and lines[-1].startswith("╰")
    assert "python-lm · epoch 1,234 of 20,000" in words_of(lines) and "place 2 of 3" in words_of(lines)
    if height == 24:
        assert "event 3" in words_of(lines)


def test_a_download_shows_its_bytes_and_its_pace() -> None:
    on = Fixture(80)
    on.console.status("downloading the state", 0, 12_000_000)
    on.now = 2.0
    on.console.status("downloading the state", 3_000_000, 12_000_000)
    assert "3.0 MB of 12.0 MB · 1.5 MB/s" in on.frame()
    on.console.status("checking the state")
    assert "MB" not in on.frame()
    on.console.status(None)
    assert on.frame().strip() == ""


def test_the_first_contribution_is_told_once() -> None:
    on = Fixture(80)
    on.console.contributed(7, 24)
    on.console.contributed(8, 24)
    on.console.update(STATUS)
    assert on.frame().count("Your first contribution is in: epoch 7, 24 samples.") == 1
    assert "epoch 8" not in on.frame()


def test_a_loss_is_kept_once_per_epoch() -> None:
    on = Fixture(80)
    for epoch, loss in ((1, 9.0), (1, 8.0), (2, 7.0), (3, float("nan")), (4, None)):
        on.console.update(replace(STATUS, epoch=epoch, loss=loss))
    assert "7.000 █▁" in on.frame()


def test_before_the_first_contribution_nothing_is_claimed() -> None:
    on = Fixture(80)
    on.console.update(replace(STATUS, contributions=0, contributed_samples=0, loss=None, leader="", phase=""))
    assert "none yet" in on.frame()
    assert "leader" not in on.frame()


def test_off_a_terminal_the_state_is_told_every_ten_seconds() -> None:
    on = Fixture(40, is_tty=False)
    with on.console as console:
        for second in range(0, 25):
            on.now = float(second)
            console.update(replace(STATUS, epoch=second))
    assert [line.split(":")[0] for line in on.lines()] == ["epoch 0", "epoch 10", "epoch 20"]
    assert on.lines()[0] == (
        "epoch 0: 61 of 96 samples, 4 peers, 159 samples/s (you 48.2), 4 minutes left, loss 4.312,"
        " held-out 4.207 at epoch 60, training;"
        " given: 3 contributions, 1,072 samples: 25% of all since you joined, place 2 of 3"
    )


def test_off_a_terminal_each_step_and_event_is_told_but_progress_only_now_and_then() -> None:
    on = Fixture(40, is_tty=False)
    with on.console as console:
        console.status("joining the swarm")
        for second in range(0, 15):
            on.now = float(second)
            console.status("downloading the state", second * 1_000_000, 20_000_000)
        console.event("caught up with epoch 7")
    assert on.lines() == [
        "joining the swarm",
        "downloading the state: 0 Bytes of 20.0 MB",
        "downloading the state: 10.0 MB of 20.0 MB",
        "caught up with epoch 7",
    ]


def test_texts_from_other_machines_cannot_steer_the_terminal() -> None:
    on = Fixture(80)
    on.console.update(replace(STATUS, leader="\x1b[2", phase="[red]\x1b[2J"))
    on.console.event("[/oops]\x1b[1m")
    frame = on.frame()
    assert "\x1b" not in frame
    assert "[red]" in frame and "[/oops]" in frame


def test_a_run_without_an_end_and_a_pace_that_is_not_known_yet_are_left_out() -> None:
    on = Fixture(80)
    on.console.update(replace(STATUS, max_epochs=None, left_s=None, swarm_samples_per_second=None))
    assert "python-lm · epoch 7 · training" in on.frame()
    assert "4 peers · leader attic 3fa2…" in on.frame()
    assert "None" not in on.frame()
