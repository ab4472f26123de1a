"""Reason codes in words, for screens. Logs keep the codes."""

from __future__ import annotations

from protocols.reasons import Reason

WORDS = {
    Reason.OTHER_RUN: "it takes part in another run",
    Reason.OTHER_LINEAGE: "it stands at another state",
    Reason.OTHER_INCARNATION: "it has started again meanwhile",
    Reason.PROMISED_HIGHER: "another leader's attempt came first",
    Reason.NOT_A_MEMBER: "it was not asked to this round",
    Reason.NOT_THE_LEADER: "somebody else leads",
    Reason.NOT_CAUGHT_UP: "it has no state yet",
    Reason.NOTHING_TO_GIVE: "it has nothing to give yet",
    Reason.NOT_PLANNED: "it came after the plan was made",
    Reason.SLOW_LINK: "its upload would hold up the others",
    Reason.AUXILIARY: "it only averages",
    Reason.BUSY: "it was asked the same a moment ago",
    Reason.BAD_TICKET: "its ticket is wrong",
    Reason.BANNED: "the organiser has banned it",
    Reason.OLD_CERTIFICATE: "its certificate was not renewed",
    Reason.OTHER_VERSION: "it has another version of dugnad",
    Reason.BAD_MESSAGE: "it broke the protocol",
    Reason.CONNECTION_LOST: "the connection broke",
    Reason.UNREAD: "it took nothing of what it was sent",
    Reason.SILENT: "it fell silent",
    Reason.STALLED: "no byte moved any more",
    Reason.REDUCER_LOST: "a shard could not be exchanged",
    Reason.CONTRIBUTOR_LOST: "a contribution did not arrive",
    Reason.BAD_CHUNK: "it sent something that cannot be right",
    Reason.COUNTED: "its samples were counted before",
    Reason.RESULTS_DIFFER: "two peers got different averages",
    Reason.DRIFT: "the state was off by more than rounding",
    Reason.LEADER_LOST: "the leader went away",
    Reason.SUPERSEDED: "another attempt took over",
    Reason.NO_REACHABLE_PEER: "nobody is left whom others can reach",
    Reason.MISSED: "the others went on without them",
    Reason.NOT_FINITE: "the gradient overflowed",
    Reason.LOST_FORK: "the swarm was divided, and the other part did more",
    Reason.LEFT: "this peer left before they were averaged",
    Reason.JOINED: "it has just joined",
    Reason.BEHIND: "the others are further",
    Reason.MISSED_RESULTS: "the averages did not arrive here",
    Reason.APPLY_FAILED: "the step failed on this device",
    Reason.NO_HOLDER: "nobody who has that state can be reached",
}


def in_words(code: str) -> str:
    """Of a reason code; any other text, such as an exit code, as it is."""
    return next((words for reason, words in WORDS.items() if reason.value == code), code)
