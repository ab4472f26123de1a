"""Where a command takes its ticket from, so that nobody else on the machine need see it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from protocols.errors import TicketError
from protocols.identity import Ticket
from protocols.ticket_source import VARIABLE, read_ticket

TICKET = Ticket(("192.0.2.7",), 29100, bytes(32), bytes(16))


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_the_argument_itself() -> None:
    assert read_ticket(str(TICKET)) == TICKET


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "ticket.txt").write_text(f"{TICKET}\n")
    assert read_ticket(f"@{tmp_path}/ticket.txt") == TICKET
    with pytest.raises(TicketError, match=r"cannot read the ticket in .*missing: No such file"):
        read_ticket(f"@{tmp_path}/missing")


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(TICKET))
    assert read_ticket(None) == TICKET


def test_none_at_all_is_wrong_use() -> None:
    with pytest.raises(TicketError, match="no ticket is given") as caught:
        read_ticket(None)
    assert VARIABLE in caught.value.remedy and caught.value.exit_code == 2


def test_a_line_of_standard_input_and_not_a_byte_more(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.write(writing, f"{TICKET}\nwhat follows".encode())
    with os.fdopen(reading, "rb") as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert read_ticket("-") == TICKET
        assert os.read(reading, 100) == b"what follows"
    os.close(writing)
