"""Every error that dugnad raises on purpose.

    DugnadError                 exit code 1
    ├── UsageError              exit code 2: the person can mend it by typing something else
    │   ├── SpecError           a run spec that cannot be used
    │   └── TicketError         a ticket that is damaged, or of another version
    ├── LocalError              this machine is at fault: disk, port, corpus, device
    │   ├── CorpusError         the training text is missing, empty or too small
    │   ├── PortInUseError      somebody else listens there
    │   ├── DiskError           a file could not be written whole
    │   └── DriftError          this peer's state is further off the others' than rounding allows
    └── RemoteError             the other machine is at fault, or the way to it
        ├── UnreachableError    nobody answered
        ├── RefusedError        somebody answered "no"; `reason` is the code from reasons.py
        └── BadMessageError     what arrived breaks the protocol; nothing of it was used

Each carries the cause in its message and what to do about it in `remedy`, so that a command can print both in two lines.
"""

from __future__ import annotations


class DugnadError(Exception):
    """Base of all of dugnad's errors. `remedy` is one sentence telling the person what to do."""

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class UsageError(DugnadError):
    exit_code = 2


class SpecError(UsageError):
    pass


class TicketError(UsageError):
    pass


class LocalError(DugnadError):
    pass


class CorpusError(LocalError):
    pass


class PortInUseError(LocalError):
    pass


class DiskError(LocalError):
    pass


class DriftError(LocalError):
    pass


class RemoteError(DugnadError):
    pass


class UnreachableError(RemoteError):
    pass


class RefusedError(RemoteError):
    def __init__(self, message: str, *, reason: str, sentence: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.reason = reason
        self.sentence = sentence  # what the other side said, without our words around it


class BadMessageError(RemoteError):
    pass
