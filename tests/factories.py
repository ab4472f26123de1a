"""What many tests need, made once: records, a spec, credentials. Imports no torch; models and replicas are in replicas.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from protocols.identity import Authority, Credentials, Key
from protocols.round.records import Ballot, Candidate, Commit, Contribution, ShardResult
from protocols.run_spec import RunSpec

RUN = "ab" * 32
PARENT = "a" * 64
CORPUS = Path(__file__).parent / "data" / "corpus"
"""Plain text that never changes: what tests train on, and train tokenizers from."""


def contribution(peer: str = "ann", **change: Any) -> Contribution:
    """Eight samples, unless `change` says otherwise."""
    options: dict[str, Any] = {"incarnation": 1, "first": 0, "end": 8, "base": PARENT, "loss": 1.0, "norm": 1e6}
    return Contribution(peer, **{**options, **change})


def commit(by: str = "ann", **change: Any) -> Commit:
    """Led by `by`. On PARENT, of one contribution in one shard, unless `change` says otherwise; it weighs what it names."""
    contributions = change.get("contributions", (contribution(),))
    options: dict[str, Any] = {
        "ballot": Ballot(1, PARENT, 1, by),
        "plan_digest": "b" * 64,
        "contributions": contributions,
        "members": tuple(sorted({by, *(c.peer for c in contributions)})),
        "shards": (ShardResult(0, 100, "c" * 64, 1.0),),
        "codec": "fp32",
        "next_codec": "fp32",
        "total_samples": sum(c.weight for c in contributions),
        "leader": Candidate(by, "l:1"),
        "succession": (),
    }
    return Commit(**{**options, **change})


def run_spec(**tables: Any) -> RunSpec:
    """The smallest spec with these tables beside it."""
    return RunSpec.model_validate({"run": {"name": "x"}, **tables})


def admitted(authority: Authority) -> Credentials:
    """Of a new key."""
    key = Key.generate()
    return Credentials(key, authority.admit(key.request()), authority.pem)


COMMITTED_EVENT: dict[str, Any] = {  # as the coordinator's history has it
    "time": 1.7e9,
    "event": "committed",
    "epoch": 12,
    "samples": 96,
    "contributors": [{}, {}, {}, {}],
    "loss": 4.312,
    "seconds": 0.214,
    "attempts": 1,
}
