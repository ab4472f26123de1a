"""The tree of all errors that dugnad raises on purpose.

    DugnadError                 exit code 1
    ├── UsageError              exit code 2: the user can type something else to correct it
    │   ├── SpecError           a run spec that cannot be used
    │   ├── TicketError         a ticket that is damaged, or of another version
    │   ├── CorpusError         the training text is missing, empty or too small
    │   └── PortInUseError      another process listens on the port
    ├── LocalError              this machine is at fault: disk, device, clock
    │   ├── DiskError           a file could not be written whole
    │   └── DriftError          this peer's state is further off the others' than rounding allows
    └── RemoteError             the other machine or the network is at fault
        ├── UnreachableError    no answer came
        ├── RefusedError        the other side refused; `reason` is a code from reasons.py
        ├── RouterError         the home's router forwards no port
        └── BadMessageError     a message broke the protocol; nothing of it was used

Each error has the cause in its message and the cure in `remedy`, so that a command can print both in two lines.
"""

from __future__ import annotations


class DugnadError(Exception):
    """Base class of dugnad's errors. `remedy` is one sentence that tells the user what to do."""

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class UsageError(DugnadError):
    """The user can type something else to correct it."""

    exit_code = 2


class SpecError(UsageError):
    """A run spec cannot be used."""


class TicketError(UsageError):
    """A ticket is damaged, or of another version."""


class CorpusError(UsageError):
    """The training text is missing, empty or too small."""


class PortInUseError(UsageError):
    """Another process listens on the port."""


class LocalError(DugnadError):
    """This machine is at fault."""


class DiskError(LocalError):
    """A file could not be written whole."""


class DriftError(LocalError):
    """This peer's state is further off the others' than rounding allows."""


class RemoteError(DugnadError):
    """The other machine or the network is at fault."""


class UnreachableError(RemoteError):
    """No answer came."""


class RefusedError(RemoteError):
    """The other side refused. `reason` is a code from reasons.py."""

    def __init__(self, message: str, *, reason: str, sentence: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.reason = reason
        self.sentence = sentence  # the other side's explanation alone; the message may add our own words


class RouterError(RemoteError):
    """The home's router forwards no port."""


class BadMessageError(RemoteError):
    """A message broke the protocol. Nothing of it was used."""
