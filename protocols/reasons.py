"""Reason codes: why a peer, a contribution or an attempt dropped out, or why a request was refused. Every absence logs one."""

from __future__ import annotations

from enum import Enum


class Reason(str, Enum):
    """One code for each way to drop out. The values are part of the wire protocol."""

    # A peer refuses a plan, or a leader refuses or leaves out a peer.
    OTHER_RUN = "other-run"  # the handshake named another run spec
    OTHER_LINEAGE = "other-lineage"  # the peer is not at the parent that the plan builds on
    OTHER_INCARNATION = "other-incarnation"  # a newer process of the same peer exists
    PROMISED_HIGHER = "promised-higher"  # the peer accepted a higher ballot of this epoch before
    NOT_A_MEMBER = "not-a-member"
    NOT_THE_LEADER = "not-the-leader"
    NOT_CAUGHT_UP = "not-caught-up"
    NOTHING_TO_GIVE = "nothing-to-give"  # the peer's accumulator is empty
    NOT_PLANNED = "not-planned"  # the peer came after the plan was made, or is in a pair that failed in this epoch
    SLOW_LINK = "slow-link"  # the peer only received: its samples are not worth the time of its upload
    AUXILIARY = "auxiliary"  # the peer computes no gradients: it only reduces
    BUSY = "busy"  # the peer was asked the same a moment ago
    BAD_TICKET = "bad-ticket"
    BANNED = "banned"  # the organiser does not let it take part
    OLD_CERTIFICATE = "old-certificate"  # the coordinator has not renewed it, though it was there to do so
    OTHER_VERSION = "other-version"
    BAD_MESSAGE = "bad-message"  # a call breaks the protocol

    # An attempt ends.
    CONNECTION_LOST = "connection-lost"  # the connection to a member broke: the member or its network failed
    UNREAD = "unread"  # a peer does not read what it is sent, and too much waits
    SILENT = "silent"  # a member sent no byte for the detection time
    STALLED = "stalled"  # no byte of the round moved for the attempt's patience
    REDUCER_LOST = "reducer-lost"  # a contributor could not send its shard to a reducer, or get the average back
    CONTRIBUTOR_LOST = "contributor-lost"  # a reducer waited for a contributor whose stream broke
    BAD_CHUNK = "bad-chunk"  # shape, finiteness, weight or membership of a chunk is wrong
    COUNTED = "already-counted"  # a contribution holds samples that a commit has named before
    RESULTS_DIFFER = "results-differ"  # two members hold different averaged bytes
    DRIFT = "drift"  # a member's state is further off a reducer's canonical values than rounding allows
    LEADER_LOST = "leader-lost"
    SUPERSEDED = "superseded"  # a higher ballot took over
    NO_REACHABLE_PEER = "no-reachable-peer"  # no peer is left that others can dial: the swarm pauses

    # A contribution is given up.
    MISSED = "missed"  # its epoch was committed without it
    NOT_FINITE = "not-finite"  # the gradient overflowed, so it was not sent
    LOST_FORK = "lost-fork"  # a heavier lineage won
    LEFT = "left"  # its peer left before it was planned

    # A member fetches state: at its start, or because its own state is of no use.
    JOINED = "joined"
    BEHIND = "behind"
    MISSED_RESULTS = "missed-results"  # the member has the commit, but not its averaged shards
    APPLY_FAILED = "apply-failed"

    # A peer leaves a lineage alone for a while.
    NO_HOLDER = "no-holder"  # the lineage is heavier, but no holder of it can be reached
