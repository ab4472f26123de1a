"""The pipes between a peer and its DHT process: whatever goes wrong there is an error that is logged, and tried again."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from protocols.errors import LocalError, UnreachableError
from protocols.identity import Authority
from protocols.transport import discovery as module
from protocols.transport.announcements import MAX_RECORD_BYTES
from protocols.transport.discovery import MAX_LINE_BYTES, MAX_RECORDS, Discovery, DiscoveryConfig
from tests import factories

# A child that starts in order and then answers every request with one line.
CHILD = """
import json, sys
sys.stdin.readline()
print(json.dumps({"node": "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"}), flush=True)
sys.stdin.readline()
print(json.dumps({"addresses": ["garbage"], "daemon_pid": 0}), flush=True)
while sys.stdin.readline():
    print(%s, flush=True)
"""
GOOD = repr(json.dumps({"values": ["00"]}))


async def child(answer: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD % answer, stdin=pipe, stdout=pipe, limit=MAX_LINE_BYTES
    )


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("'x' * 40_000_000", LocalError),
        ("'no json'", LocalError),
        ("'[1]'", LocalError),
        ("exit(1)", LocalError),
        ("__import__('time').sleep(600)", UnreachableError),
    ],
)
def test_a_child_that_answers_nonsense_is_replaced(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, answer: str, error: type[Exception]
) -> None:
    monkeypatch.setattr(module, "CALL_S", 1.0)

    async def launched_again(log_file: Path) -> asyncio.subprocess.Process:
        return await child(GOOD)

    async def work() -> None:
        monkeypatch.setattr(module, "launch", launched_again)
        config = DiscoveryConfig("ab" * 32, ["garbage"], (), str(tmp_path / "key"))
        discovery = Discovery(config, factories.admitted(authority), tmp_path / "log", await child(answer))
        try:
            await discovery.start()
            assert discovery.addresses == (), "what is no address is not announced"
            with pytest.raises(error):
                await discovery.peers()
            assert await discovery.peers() == [], "another child answers; what it found does not check"
        finally:
            await discovery.aclose()

    asyncio.run(asyncio.wait_for(work(), 30))


def test_all_announcements_that_a_node_keeps_fit_into_one_line_and_into_one_of_hiveminds_messages() -> None:
    assert MAX_RECORDS * (MAX_RECORD_BYTES + 64) < 4 << 20
    line = json.dumps({"values": [bytes(MAX_RECORD_BYTES).hex()] * MAX_RECORDS})
    assert len(line) < MAX_LINE_BYTES
