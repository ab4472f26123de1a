"""When a peer may use its computer, by what the owner allows: decided from one look at the machine (pure)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta

from protocols.errors import UsageError

_SPAN = re.compile(r"(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)")


@dataclass(frozen=True)
class Span:
    """A part of every day, local time, from `start` up to `end`. It may go over midnight; equal ends mean all day."""

    start: time
    end: time

    def holds(self, at: time) -> bool:
        if self.start < self.end:
            return self.start <= at < self.end
        return at >= self.start or at < self.end


def hours(text: str) -> tuple[Span, ...]:
    """From "22:00-07:00, 12:00-13:30". Raises UsageError."""
    spans = []
    for part in text.split(","):
        match = _SPAN.fullmatch(part.strip())
        try:
            a, b, c, d = map(int, match.groups() if match is not None else ())
            spans.append(Span(time(a, b), time(c, d)))
        except ValueError as error:
            raise UsageError(f"--hours: {part.strip()!r} is no part of a day", remedy="Write 22:00-07:00.") from error
    return tuple(spans)


@dataclass(frozen=True, kw_only=True)
class Manners:
    """What the owner of the computer allows."""

    hours: tuple[Span, ...] = ()
    """() for the whole day."""
    on_battery: bool = False
    untouched_s: float | None = None
    """Only when nobody has used the computer for so long; None: also beside somebody."""
    share_gpu: bool = False
    """Also while other programs use the GPU."""
    max_transfer_bytes: float | None = None
    """Sent and received together, in one day of local time."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One look at the machine."""

    at: datetime
    """Local time."""
    paused: bool = False
    paused_until: datetime | None = None
    """By the owner; None until told otherwise."""
    on_battery: bool = False
    untouched_s: float | None = None
    """Since somebody used the computer; None where the system does not tell."""
    gpu_is_used: bool = False
    """By other programs."""
    transferred_bytes: int = 0
    """Today."""


@dataclass(frozen=True)
class Pause:
    """Why a peer does not work now."""

    why: str
    until: datetime | None = None
    """None where no clock tells."""

    def __str__(self) -> str:
        return f"{self.why}, until {self.until:%H:%M}" if self.until is not None else self.why


def pause_at(moment: Moment, manners: Manners) -> Pause | None:
    """None when the peer may work. `until` is when this reason ends; then another may hold."""
    at = moment.at
    if moment.paused and (moment.paused_until is None or at < moment.paused_until):
        return Pause("you paused it (dugnad resume goes on)", moment.paused_until)
    if manners.hours and not any(span.holds(at.time()) for span in manners.hours):
        return Pause("it is outside its hours", min(_next(span.start, at) for span in manners.hours))
    if manners.max_transfer_bytes is not None and moment.transferred_bytes >= manners.max_transfer_bytes:
        return Pause("today's transfer is used up", _next(time(), at))
    if moment.on_battery and not manners.on_battery:
        return Pause("this computer runs on its battery")
    if manners.untouched_s is not None and moment.untouched_s is not None and moment.untouched_s < manners.untouched_s:
        return Pause("somebody uses this computer")
    if moment.gpu_is_used and not manners.share_gpu:
        return Pause("another program uses the GPU")
    return None


def _next(of_day: time, after: datetime) -> datetime:
    today = datetime.combine(after.date(), of_day)
    return today if today > after else today + timedelta(days=1)
