"""What samples weigh: claims of them are capped, since nobody can show how many a gradient is of (pure)."""

from __future__ import annotations

from collections.abc import Sequence


def capped_weights(samples: Sequence[int], max_share: float) -> Sequence[float]:
    """What contributions of so many samples weigh, so that none has more than `max_share` of the sum, or 2/n if that is more.

    The samples themselves where no cap is needed. Two contributors are never capped: either could be the liar.
    """
    share = max(max_share, 2 / len(samples))
    ordered = sorted(samples, reverse=True)
    # If the `count` largest weigh as much as is allowed, that is `most`. The right count is the first that leaves nobody above.
    for count in range(len(ordered)):
        most = share * sum(ordered[count:]) / (1 - count * share)
        if ordered[count] <= most * (1 + 1e-12):
            break
    return [min(each, most) for each in samples] if count else samples
