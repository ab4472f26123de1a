"""The floors of DESIGN.md, read off the source: a floor imports only from floors below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("protocols", "peer", "coordinator")
GENERATED = {"protocols/wire/dugnad_pb2.py", "protocols/wire/dugnad_pb2_grpc.py"}
FILES = {
    str(path.relative_to(ROOT)): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if "__pycache__" not in path.parts
}
MODULES = {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): name for name in FILES}
MAX_LINES = 460


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


def package_of(name: str) -> list[str]:
    return name.split("/")[:-1]


@cache
def imported(name: str) -> frozenset[str]:
    """Every module that a file imports, anywhere in it; relative imports resolved, and `from a import b` as a and a.b."""
    found: set[str] = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package_of(name)[: len(package_of(name)) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.add(module)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def imports_of(name: str, *forbidden: str) -> list[str]:
    return sorted(module for module in imported(name) if module.split(".")[0] in forbidden)


def reached(start: str) -> Iterator[str]:
    """Files that importing `start` runs: itself, what it imports of ours, and the __init__ of every package on the way."""
    todo, seen = [start], set[str]()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        yield name
        for module in imported(name) | {".".join(package_of(name))}:
            parts = module.split(".")
            todo += [MODULES[prefix] for end in range(1, len(parts) + 1) if (prefix := ".".join(parts[:end])) in MODULES]


def files_under(*folders: str) -> list[str]:
    return [name for name in FILES if name.startswith(tuple(f"{folder}/" for folder in folders))]


ROUND = files_under("protocols/round")


def test_the_guards_see_the_source() -> None:
    assert {
        "protocols/round/member.py",
        "protocols/round/leader.py",
        "peer/training/replica.py",
        "coordinator/app.py",
    } <= FILES.keys()
    assert "protocols.reasons" in imported("protocols/round/member.py")
    assert "protocols/reasons.py" in set(reached("protocols/round/leader.py"))


@pytest.mark.parametrize("name", files_under("protocols"))
def test_the_protocols_know_neither_peer_nor_coordinator(name: str) -> None:
    assert imports_of(name, "peer", "coordinator", "dugnad", "tests") == []


@pytest.mark.parametrize("name", files_under("peer"))
def test_a_peer_does_not_know_the_coordinator(name: str) -> None:
    assert imports_of(name, "coordinator", "dugnad", "tests") == []


@pytest.mark.parametrize("name", files_under("coordinator"))
def test_the_coordinator_does_not_know_the_peer(name: str) -> None:
    assert imports_of(name, "peer", "dugnad", "tests") == []


@pytest.mark.parametrize("name", ROUND)
def test_the_round_is_pure(name: str) -> None:
    """Neither it nor anything of ours that it imports touches a tensor, a clock, a thread or a socket."""
    impure = (
        "torch",
        "asyncio",
        "grpc",
        "time",
        "threading",
        "socket",
        "hivemind",
        "random",
        "datetime",
        "os",
        "subprocess",
        "concurrent",
    )
    for file in reached(name):
        assert imports_of(file, *impure) == [], f"{name} reaches {file}"


def test_hivemind_is_imported_in_one_file_only() -> None:
    assert [name for name in FILES if imports_of(name, "hivemind")] == ["protocols/transport/discovery_process.py"]


def test_sockets_are_opened_in_the_transport_only() -> None:
    """gRPC's names appear where its calls are served or made; servers and channels are made in protocols/transport alone."""
    makers = {"insecure_channel", "secure_channel", "add_secure_port", "add_insecure_port", "insecure_server"}
    for name in FILES:
        if name in GENERATED or name.startswith("protocols/transport/"):
            continue
        used = {node.attr for node in ast.walk(tree_of(name)) if isinstance(node, ast.Attribute)}
        assert used & makers == set(), name


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import protocols.run_spec", ("torch", "transformers", "hivemind", "grpc")),
        ("import dugnad, peer.cli, coordinator.cli", ("torch", "transformers", "hivemind")),
        ("import protocols.round.leader, protocols.round.member", ("torch", "numpy", "grpc", "asyncio", "socket", "threading")),
    ],
)
def test_what_must_start_fast_or_stay_pure_does_not_load_the_heavy_engines(statement: str, absent: tuple[str, ...]) -> None:
    code = f"import sys; before = set(sys.modules)\n{statement}\nprint(*sorted(set({absent!r}) & (set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", [name for name in FILES if name not in GENERATED])
def test_no_file_owns_so_much_that_it_is_too_long(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) <= MAX_LINES


def _broad(node: ast.expr | None) -> bool:
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} if node is not None else {"Exception"}
    return bool(names & {"Exception", "BaseException"})


def _does_nothing(body: list[ast.stmt]) -> bool:
    return all(
        isinstance(s, ast.Pass | ast.Continue) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)) for s in body
    )


@pytest.mark.parametrize("name", FILES)
def test_no_error_is_swallowed_unseen(name: str) -> None:
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.ExceptHandler):
            assert not (_broad(node.type) and _does_nothing(node.body)), f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            assert not (called == "suppress" and any(_broad(arg) for arg in node.args)), f"line {node.lineno}"


@pytest.mark.parametrize("name", [name for name in FILES if name not in GENERATED])
def test_there_is_no_cleaning_up_in_del_and_no_mutable_global(name: str) -> None:
    for node in ast.walk(tree_of(name)):
        assert not (isinstance(node, ast.FunctionDef) and node.name == "__del__"), f"line {node.lineno}"
        assert not isinstance(node, ast.Global), f"line {node.lineno}"
