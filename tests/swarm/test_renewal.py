"""Certificates that are fresh for a minute: a swarm renews them while it trains, and refuses who did not."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from cryptography import x509

from protocols.errors import RefusedError
from protocols.identity import issued_at
from protocols.reasons import Reason
from protocols.round.records import Candidate
from protocols.transport import tls
from protocols.transport.network import NetworkTransport
from protocols.transport.whereabouts import ask
from tests.swarm.swarm import Process, Swarm, address_of, wait_until

pytestmark = pytest.mark.slow
FRESH_S = 60.0
LATE_S = 45.0  # a peer announces itself every 10 to 15 s, so that it is renewed by then


def kept_certificate(peer: Process) -> x509.Certificate:
    return x509.load_pem_x509_certificate(json.loads((peer.folder / "enrolment.json").read_bytes())["certificate"].encode())


def renewed_at_an_age(peer: Process) -> float:
    """Wait for that; seconds."""
    before = issued_at(kept_certificate(peer))
    wait_until(lambda: issued_at(kept_certificate(peer)) > before, f"{peer.name}'s new certificate", FRESH_S + LATE_S)
    return issued_at(kept_certificate(peer)) - before


def test_peers_renew_their_certificates_while_they_train_and_who_does_not_is_refused(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=73, faults=True, fresh_s=FRESH_S) as swarm:
        ann, bob = swarm.start_peer("ann"), swarm.start_peer("bob")
        for peer in (ann, bob):
            swarm.contributes(peer)
        swarm.visit()  # who never announces itself
        there = Candidate(swarm.id_of(ann), address_of(ann))

        async def visit(transport: NetworkTransport) -> None:
            await ask(transport, there)

        swarm.call(visit)
        began = time.time()
        for _ in range(2):
            ages = [renewed_at_an_age(peer) for peer in (ann, bob)]
            print(f"renewed at an age of {ages} s")
            assert max(ages) < FRESH_S
        host, port = there.address.split(":")
        shown = swarm.now(tls.shown_certificates(host, int(port)))[0]
        assert issued_at(shown) > began, "the server shows what was renewed"
        with pytest.raises(RefusedError) as refused:
            wait_until(lambda: swarm.call(visit), "the visitor to be refused", FRESH_S)
        assert refused.value.reason == Reason.OLD_CERTIFICATE.value
        for peer in (ann, bob):
            swarm.commits_by(peer, peer.epoch() + 3)
            assert len(peer.events("started")) == 1
            lost = [event for name in ("attempt_failed", "leader_lost", "paused") for event in peer.events(name)]
            # On a loaded machine a leader may be taken for silent; what comes after that has other causes.
            until = min((event["time"] for event in lost if event.get("reason") == "silent"), default=float("inf"))
            assert not [event for event in lost if began < event["time"] < until], "no round was dropped for it"
