from __future__ import annotations

import pytest

from peer.epoch.slots import Slots
from protocols.errors import RefusedError


def test_nobody_has_more_done_at_a_time_than_its_slots_and_nobody_when_all_are_taken() -> None:
    slots = Slots(2, 3)
    with slots.taken("ann", "dials"), slots.taken("ann", "dials"):
        with pytest.raises(RefusedError, match="2 dials for you"), slots.taken("ann", "dials"):
            pass
        with slots.taken("bob", "dials"), pytest.raises(RefusedError, match="3 dials"), slots.taken("cid", "dials"):
            pass
    with slots.taken("ann", "dials"):
        assert slots._taken == {"ann": 1}
