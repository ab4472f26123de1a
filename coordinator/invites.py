"""Who may take part in a run: its invites, a record of whom each admitted, and bans. Kept in SQLite, so that the organiser's
commands and a running coordinator share it, and no crash loses an admission."""

from __future__ import annotations

import contextlib
import hmac
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from protocols.ban_list import MAX_BANNED, BanList
from protocols.errors import TicketError, UsageError
from protocols.identity import Ticket

FILE = Path("identity") / "admission.db"
OPEN = "open"
"""The invite of the ticket that the coordinator prints: for anybody, as often as they like."""
KEPT_ADMISSIONS = 100_000
_BUSY_S = 10.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS invites (
    name TEXT PRIMARY KEY, secret BLOB NOT NULL, uses INTEGER, expires_at REAL, made_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS admissions (
    number INTEGER PRIMARY KEY, peer TEXT NOT NULL, invite TEXT NOT NULL, at REAL NOT NULL, address TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS bans (peer TEXT PRIMARY KEY, until REAL);
CREATE TABLE IF NOT EXISTS ban_list (only INTEGER PRIMARY KEY CHECK (only = 1), version INTEGER NOT NULL);
INSERT OR IGNORE INTO ban_list VALUES (1, 0);
CREATE INDEX IF NOT EXISTS by_invite ON admissions (invite, peer);
"""


@dataclass(frozen=True)
class Invite:
    """`uses` is how many peers it admits, None for any number; `expires_at` is in Unix seconds, None for never."""

    name: str
    uses: int | None
    expires_at: float | None
    used: int


@dataclass(frozen=True)
class Admission:
    """A certificate was given to `peer`, which called from `address`; `at` is in Unix seconds."""

    peer: str
    invite: str
    at: float
    address: str


class Invites:
    """The invites of the run in `folder`. Each method is one transaction."""

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.time, admitted: Callable[[Admission], None] = lambda admission: None
    ) -> None:
        """`admitted` is told of each admission once it is on the disk."""
        self._clock = clock
        self._admitted = admitted
        self._database = sqlite3.connect(folder / FILE, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        (folder / FILE).chmod(0o600)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        self._database.close()

    def open_to_all(self, secret: bytes) -> None:
        """Make the invite that the coordinator's own ticket is of, if there is none yet."""
        self._database.execute("INSERT OR IGNORE INTO invites VALUES (?, ?, NULL, NULL, ?)", (OPEN, secret, self._clock()))

    def make(self, name: str, uses: int | None, lasts_s: float | None) -> bytes:
        """A new invite; its secret. Raises UsageError if there is one of that name."""
        secret, now = Ticket.new_secret(), self._clock()
        try:
            with self._database:
                expires_at = now + lasts_s if lasts_s is not None else None
                self._database.execute("INSERT INTO invites VALUES (?, ?, ?, ?, ?)", (name, secret, uses, expires_at, now))
        except sqlite3.IntegrityError as error:
            raise UsageError(f"there is an invite named {name!r} already", remedy="Choose another --name.") from error
        return secret

    def limit(self, name: str, uses: int) -> None:
        """From now on the invite admits at most so many peers, those that it has admitted included. Raises UsageError."""
        if not self._database.execute("UPDATE invites SET uses = ? WHERE name = ?", (uses, name)).rowcount:
            raise UsageError(f"there is no invite named {name!r}", remedy="dugnad coordinator peers lists them.")

    def check(self, secret: bytes) -> str:
        """The name of the invite with this secret, if it is still good. Raises TicketError."""
        found = ""
        for name, kept in self._database.execute("SELECT name, secret FROM invites"):
            if hmac.compare_digest(secret, kept):
                found = name
        if not found:
            raise TicketError("the ticket's secret is not this run's")
        invite = self._invite(found)
        if invite.expires_at is not None and self._clock() >= invite.expires_at:
            raise TicketError(f"the invite {found!r} has expired")
        return found

    def admit(self, secret: bytes, peer: str, address: str) -> str:
        """Record that `peer` gets a certificate by the invite with this secret, and return the invite's name. A peer that comes
        again by the same invite takes no further use. Raises TicketError."""
        name = self.check(secret)
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            known = database.execute("SELECT 1 FROM admissions WHERE invite = ? AND peer = ?", (name, peer)).fetchone()
            invite = self._invite(name)
            if known is None and invite.uses is not None and invite.used >= invite.uses:
                raise TicketError(f"the invite {name!r} was used {invite.used} times, as often as it may be")
            admission = Admission(peer, name, self._clock(), address)
            database.execute("INSERT INTO admissions VALUES (NULL, ?, ?, ?, ?)", astuple(admission))
            database.execute(
                "DELETE FROM admissions WHERE invite = ? AND number <= (SELECT MAX(number) FROM admissions) - ?",
                (OPEN, KEPT_ADMISSIONS),
            )
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")
        self._admitted(admission)
        return name

    # -- bans --------------------------------------------------------------------------------------------------------------------

    def ban(self, peers: Iterable[str], lasts_s: float | None = None) -> None:
        """These peers take no part for so long, None for ever. Raises UsageError when they are too many."""
        until = self._clock() + lasts_s if lasts_s is not None else None
        with self._changing_bans():
            self._database.executemany("INSERT OR REPLACE INTO bans VALUES (?, ?)", [(peer, until) for peer in peers])
            (count,) = self._database.execute("SELECT COUNT(*) FROM bans").fetchone()
            if count > MAX_BANNED:
                raise UsageError(
                    f"at most {MAX_BANNED} peers can be banned",
                    remedy="Limit the invite that they come by: dugnad coordinator invite RUN.toml --name open --uses N.",
                )

    def unban(self, peers: Iterable[str]) -> None:
        with self._changing_bans():
            self._database.executemany("DELETE FROM bans WHERE peer = ?", [(peer,) for peer in peers])

    @contextlib.contextmanager
    def _changing_bans(self) -> Iterator[None]:
        """One transaction, after which the list has a larger version: milliseconds since 1970, so that a folder that was restored
        from an older copy does not use a version twice."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            now_ms = int(self._clock() * 1000)
            self._database.execute("UPDATE ban_list SET version = MAX(version + 1, ?)", (now_ms,))
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def end(self, name: str) -> None:
        """The invite admits nobody from now on. Raises UsageError."""
        if not self._database.execute("UPDATE invites SET expires_at = ? WHERE name = ?", (self._clock(), name)).rowcount:
            raise UsageError(f"there is no invite named {name!r}", remedy="dugnad coordinator peers lists them.")

    @property
    def banned(self) -> frozenset[str]:
        """The peers that take no part now."""
        return frozenset(self.ban_list.peers)

    @property
    def ban_list(self) -> BanList:
        """As it is now. A ban that has ended leaves it, which makes a new version."""
        over = [peer for (peer,) in self._database.execute("SELECT peer FROM bans WHERE until <= ?", (self._clock(),))]
        if over:
            self.unban(over)
        rows = self._database.execute("SELECT version, peer FROM ban_list LEFT JOIN bans ORDER BY peer").fetchall()
        return BanList(rows[0][0], tuple(peer for _, peer in rows if peer is not None))

    def admitted_by(self, name: str) -> list[str]:
        return [peer for (peer,) in self._database.execute("SELECT DISTINCT peer FROM admissions WHERE invite = ?", (name,))]

    def named(self, start: str) -> str:
        """The peer that was admitted whose id begins so. Raises UsageError unless there is exactly one."""
        rows = self._database.execute("SELECT DISTINCT peer FROM admissions WHERE substr(peer, 1, ?) = ?", (len(start), start))
        found = [peer for (peer,) in rows]
        if len(found) != 1:
            what = f"{len(found)} peers have ids that begin with" if found else "nobody was admitted whose id begins with"
            raise UsageError(f"{what} {start!r}", remedy="dugnad coordinator peers lists them.")
        (peer,) = found
        return str(peer)

    # -- for people --------------------------------------------------------------------------------------------------------------

    @property
    def invites(self) -> list[Invite]:
        """The oldest first."""
        return [self._invite(name) for (name,) in self._database.execute("SELECT name FROM invites ORDER BY rowid")]

    @property
    def admissions(self) -> list[Admission]:
        """The newest of each peer and invite, the latest first."""
        rows = self._database.execute(
            "SELECT peer, invite, MAX(at), address FROM admissions GROUP BY peer, invite ORDER BY MAX(number) DESC"
        )
        return [Admission(*row) for row in rows]

    def _invite(self, name: str) -> Invite:
        (used,) = self._database.execute("SELECT COUNT(DISTINCT peer) FROM admissions WHERE invite = ?", (name,)).fetchone()
        uses, expires_at = self._database.execute("SELECT uses, expires_at FROM invites WHERE name = ?", (name,)).fetchone()
        return Invite(name, uses, expires_at, used)
