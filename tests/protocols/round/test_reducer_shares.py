"""How much a reducer may get of the vector: claimed rates raise it step by step, and rounds that take long lower it."""

from __future__ import annotations

from protocols.round.planner import Present, Round, fresh
from protocols.round.reducer_shares import ReducerShares


def test_a_claim_of_any_rate_at_most_doubles_a_share_with_each_round() -> None:
    shares, sizes = ReducerShares(), list[float]()
    for epoch in range(1, 6):
        rates = {peer: 1e12 if peer == "eve" else 1e6 for peer in ("ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal")}
        present = {
            peer: Present(f"{peer}:1", 8, rate, rate, most_share=shares.most(peer, len(rates))) for peer, rate in rates.items()
        }
        layout = fresh(present, "ann", Round(epoch, 1 << 20, 4 << 20, 64))
        assert layout is not None
        fractions = dict.fromkeys(rates, 0.0)
        for shard in layout.shards:
            fractions[shard.reducer] += (shard.stop - shard.start) / (1 << 20)
        sizes.append(fractions["eve"])
        shares.reduced(fractions, 1.0, 1.0)
    assert sizes[0] <= 0.25 + 1e-3 and sizes[1] <= 0.5 + 1e-3
    assert sizes[-1] > 0.9, "an honest fast line gets there"


def test_a_round_that_took_four_times_as_long_as_planned_takes_shares_back_to_equal_parts() -> None:
    shares = ReducerShares()
    shares.reduced({"eve": 0.9, "ann": 0.1}, 1.0, 1.0)
    assert shares.most("eve", 10) == 1.0
    shares.reduced({"eve": 0.9, "ann": 0.1}, 9.0, 1.0)
    assert shares.most("eve", 10) == 0.45
    shares.reduced({"eve": 0.45, "ann": 0.55}, 9.0, 1.0)
    shares.reduced({"eve": 0.225, "ann": 0.775}, 9.0, 1.0)
    assert shares.most("eve", 10) == 0.2
    assert ReducerShares().most("eve", 1) == 1.0, "a lone reducer is not capped"
