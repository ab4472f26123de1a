from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from protocols.errors import UsageError
from protocols.host.home import Home


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    with Home.claim(tmp_path / "peer") as home:
        assert home.path == tmp_path / "peer"
        with pytest.raises(UsageError, match="another process") as caught:
            Home.claim(tmp_path / "peer")
        assert caught.value.remedy
    with Home.claim(tmp_path / "peer"):
        pass


def test_peers_that_share_a_machine_get_a_folder_each_and_come_back_to_it(tmp_path: Path) -> None:
    with Home.claim_free(tmp_path / "peer") as first, Home.claim_free(tmp_path / "peer") as second:
        assert (first.path.name, second.path.name) == ("peer", "peer-2")
        with Home.claim_free(tmp_path / "peer") as third:
            assert third.path.name == "peer-3"
    with Home.claim_free(tmp_path / "peer") as again:
        assert again.path.name == "peer"


def test_the_lock_goes_with_a_process_that_is_killed(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from protocols.host.home import Home
home = Home.claim(Path(sys.argv[1]))
print("mine", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(tmp_path / "peer")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"mine\n"
        with pytest.raises(UsageError):
            Home.claim(tmp_path / "peer")
        owner.kill()
        owner.wait()
    with Home.claim(tmp_path / "peer"):
        pass


def test_a_folder_that_cannot_be_made_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        Home.claim(tmp_path / "file" / "below")
    assert caught.value.remedy
