"""Which codec the next plan uses, where the run leaves it to measured rates (`averaging.codec = "auto"`). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocols.round.planner import Present, planned_seconds
from protocols.round.plans import Plan

# Averaging may take this share of an epoch before a codec that loses more takes over,
MAX_SHARE = 0.10
# and one that loses less comes back when it would take no more than this: rates that waver do not make codecs waver.
SHARE_TO_RETURN = 0.06


def codec_after(plan: Plan, present: Mapping[str, Present], codecs: Mapping[str, int], target_batch_size: int) -> str:
    """What the commit of `plan` names for the next one: one of `codecs`, least lossy first, each with the bytes of a vector."""
    speed = sum(present[peer].samples_per_second for peer in plan.contributors)
    if plan.finishes is not None:  # it says nothing of how long averaging takes
        speed = 0.0
    averaging_s = {codec: planned_seconds(plan, present, size) for codec, size in codecs.items()}
    return next_codec(plan.codec, tuple(codecs), averaging_s, target_batch_size / speed if speed else 0.0)


def next_codec(now: str, codecs: Sequence[str], averaging_s: Mapping[str, float], gathering_s: float) -> str:
    """One of `codecs`, least lossy first; `now` is what the last plan used.

    `averaging_s`: how long a plan like the last one takes with each of them at the rates reported, 0 while some are not
    measured. `gathering_s`: how long it takes to draw a batch, 0 while that is unknown.
    """
    if now not in codecs:
        return codecs[0]
    if gathering_s <= 0 or not all(averaging_s[codec] > 0 for codec in codecs):
        return now
    here = codecs.index(now)
    for index, codec in enumerate(codecs):
        share = averaging_s[codec] / (averaging_s[codec] + gathering_s)
        if share <= (SHARE_TO_RETURN if index < here else MAX_SHARE):
            return codec
    return codecs[-1]
