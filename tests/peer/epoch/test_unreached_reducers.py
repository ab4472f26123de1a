"""A peer that others can call but not send shards to costs one attempt, and then no more. Peers are whole, in virtual time."""

from __future__ import annotations

import pytest

from tests.peer.virtual import SmallSwarm

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("p0", "p1", "p2", "p3")
EPOCHS = 12


def shut(swarm: SmallSwarm, callers: tuple[str, ...], *, refuses: bool) -> None:
    machine = swarm.network.machines["p2"]
    machine.refuses = refuses
    machine.shut_to.update(callers)


def seconds_for(swarm: SmallSwarm, epochs: int) -> float:
    first, began = swarm.epoch("p0"), swarm.world.now
    swarm.until(lambda: min(map(swarm.epoch, NAMES)) >= first + epochs, 600.0)
    return swarm.world.now - began


@pytest.mark.parametrize("refuses", [True, False], ids=["a closed port", "a firewall that drops"])
@pytest.mark.parametrize("callers", [("p0", "p1", "p3"), ("p1",)], ids=["to all", "to one"])
def test_after_its_first_epoch_such_a_peer_slows_nobody(callers: tuple[str, ...], refuses: bool) -> None:
    with SmallSwarm(4) as swarm:
        swarm.start_all()
        swarm.until(lambda: min(map(swarm.epoch, NAMES)) >= 2)
        usual_s = seconds_for(swarm, EPOCHS)
        assert swarm.observer.retries == 0
        shut(swarm, callers, refuses=refuses)
        seconds_for(swarm, 2)
        retries = swarm.observer.retries
        assert 0 < retries <= 2
        with_it_s = seconds_for(swarm, EPOCHS)
        assert swarm.observer.retries == retries, "it costs no further attempt"
        assert with_it_s <= 1.1 * usual_s
        print(f"{with_it_s / usual_s:.3f} of the usual time, {retries} attempts lost")


def test_it_reduces_again_once_it_has_been_reached() -> None:
    with SmallSwarm(4) as swarm:
        swarm.start_all()
        swarm.until(lambda: min(map(swarm.epoch, NAMES)) >= 2)
        shut(swarm, ("p1",), refuses=True)
        p1 = swarm.processes["p1"]
        swarm.until(lambda: p1.told_of("unreached"))
        assert p1.told_of("unreached")[0]["peer"] == "p2"
        assert p1.engine.unreached.names == ("p2",)
        swarm.network.machines["p2"].shut_to.clear()
        swarm.until(lambda: p1.told_of("reached"))
        reached_at = swarm.world.now
        swarm.until(lambda: swarm.network.reached_at("p1", "p2") > reached_at + 1.0)
        assert p1.engine.unreached.names == ()


def test_a_reducer_whose_stream_broke_is_dialled_at_once() -> None:
    with SmallSwarm(4) as swarm:
        swarm.start_all()
        swarm.until(lambda: min(map(swarm.epoch, NAMES)) >= 2)
        p1 = swarm.processes["p1"]
        with p1.loop.running():
            p1.engine._could_not_reach("p2", "it broke")
        swarm.until(lambda: p1.told_of("reached"), 5.0)


def test_who_is_in_client_mode_meanwhile_is_not_taken_for_reached() -> None:
    with SmallSwarm(4) as swarm:
        swarm.start_all()
        swarm.until(lambda: min(map(swarm.epoch, NAMES)) >= 2)
        shut(swarm, ("p1",), refuses=True)
        p1, p2 = swarm.processes["p1"], swarm.processes["p2"]
        swarm.until(lambda: p1.told_of("unreached"))
        shut(swarm, ("p0", "p3"), refuses=True)
        with p2.loop.running():
            p2.engine.reachability.suspect()
        swarm.until(lambda: p2.told_of("unreachable"))
        swarm.world.run_until(swarm.world.now + 30.0)
        assert "client mode" in p1.told_of("unreached")[-1]["problem"]
        assert p1.engine.unreached.names == ("p2",) and not p1.told_of("reached")
