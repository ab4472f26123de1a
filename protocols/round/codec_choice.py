"""Choice of the next plan's codec from measured rates, for runs with `averaging.codec = "auto"` (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocols.round.planner import Present, planned_seconds
from protocols.round.plans import Plan

# Averaging may take this share of an epoch. If it would take more, a lossier codec is used.
MAX_SHARE = 0.10
# A less lossy codec returns only if averaging with it takes at most this share. The gap keeps the choice stable while rates vary.
SHARE_TO_RETURN = 0.06


def codec_after(plan: Plan, present: Mapping[str, Present], codecs: Mapping[str, int], target_batch_size: int) -> str:
    """The codec that the commit of `plan` names for the next plan.

    `codecs` maps each codec, least lossy first, to the bytes of a whole vector in it.
    """
    speed = sum(present[peer].samples_per_second for peer in plan.contributors)
    # A plan that finishes another averages nothing, so it does not show how long averaging takes.
    gathering_s = target_batch_size / speed if speed and plan.finishes is None else 0.0
    averaging_s = {codec: planned_seconds(plan, present, size) for codec, size in codecs.items()}
    return next_codec(plan.codec, tuple(codecs), averaging_s, gathering_s)


def next_codec(now: str, codecs: Sequence[str], averaging_s: Mapping[str, float], gathering_s: float) -> str:
    """The least lossy of `codecs` (given least lossy first) that keeps averaging short enough; `now` is the last plan's codec.

    `averaging_s` maps each codec to the seconds that a plan like the last one takes with it; 0 while rates are unmeasured.
    `gathering_s` is how long the swarm takes to draw a batch; 0 while unknown. While any of these is 0, the codec stays.
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
