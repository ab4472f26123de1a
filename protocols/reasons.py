"""Reason codes: why a peer, a contribution or an attempt dropped out, or a request was refused. Logged with every absence."""

from __future__ import annotations

from enum import Enum


class Reason(str, Enum):
    # A peer refuses a plan, or a leader a peer.
    OTHER_RUN = "other-run"  # the handshake named another run spec
    OTHER_LINEAGE = "other-lineage"  # the plan builds on a parent that this peer is not at
    OTHER_INCARNATION = "other-incarnation"  # a newer process of the same peer exists
    PROMISED_HIGHER = "promised-higher"  # a higher ballot of this epoch was accepted before
    NOT_A_MEMBER = "not-a-member"
    NOT_THE_LEADER = "not-the-leader"
    NOT_CAUGHT_UP = "not-caught-up"
    NOTHING_TO_GIVE = "nothing-to-give"  # an empty accumulator
    NOT_PLANNED = "not-planned"  # it came when the plan was made, or stands in a pair that failed in this epoch
    SLOW_LINK = "slow-link"  # it was planned to receive only: its upload takes longer than its samples are worth
    AUXILIARY = "auxiliary"  # it computes nothing: it only reduces
    BUSY = "busy"  # it was asked the same a moment ago
    BAD_TICKET = "bad-ticket"
    OTHER_VERSION = "other-version"

    # An attempt ends.
    CONNECTION_LOST = "connection-lost"  # the link to a member broke: it left, died or its network did
    SILENT = "silent"  # a member sent no byte for longer than detection allows
    STALLED = "stalled"  # no byte of the round moved for the attempt's patience
    REDUCER_LOST = "reducer-lost"  # a contributor could not finish with a reducer
    CONTRIBUTOR_LOST = "contributor-lost"  # a reducer waits for a contributor whose stream broke
    BAD_CHUNK = "bad-chunk"  # shape, finiteness, weight or membership of a chunk is wrong
    COUNTED = "already-counted"  # samples offered again that a commit has named
    RESULTS_DIFFER = "results-differ"  # two members hold different averaged bytes
    DRIFT = "drift"  # a member's state is further off a reducer's canonical values than rounding allows
    LEADER_LOST = "leader-lost"
    SUPERSEDED = "superseded"  # a higher ballot took over
    NO_REACHABLE_PEER = "no-reachable-peer"  # nobody is left whom others can connect to: the swarm pauses

    # A contribution is given up.
    MISSED = "missed"  # its epoch was committed without it
    NOT_FINITE = "not-finite"  # the gradient overflowed; the samples are given up, not sent
    LOST_FORK = "lost-fork"  # a heavier lineage won
    LEFT = "left"  # its peer left before it was planned

    # A member's state is fetched: at the start, or because what it has is no use.
    JOINED = "joined"
    BEHIND = "behind"
    MISSED_RESULTS = "missed-results"  # the commit is there, its averaged shards are not
    APPLY_FAILED = "apply-failed"

    # A lineage is left alone for a while.
    NO_HOLDER = "no-holder"  # it is heavier, and nobody who holds it can be reached
