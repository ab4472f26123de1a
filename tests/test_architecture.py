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


SIMULATION = files_under("peer/simulation")


@pytest.mark.parametrize("name", [name for name in FILES if name not in SIMULATION])
def test_nothing_of_the_product_but_the_command_knows_the_simulator(name: str) -> None:
    assert [module for module in imported(name) if module.startswith("peer.simulation")] == []


def test_protobuf_stays_in_wire_and_transport() -> None:
    """Above them all is records. Admission alone answers in messages, which newcomers get before they are peers."""
    users = {name for name in FILES if any(_is_protobuf(module) for module in imported(name))} - GENERATED
    allowed = {"coordinator/admission.py", "coordinator/network.py"}
    assert {name for name in users if not name.startswith(("protocols/wire/", "protocols/transport/"))} <= allowed


def _is_protobuf(module: str) -> bool:
    return module.startswith(("google.protobuf", "protocols.wire.dugnad_pb2")) or module == "protocols.wire"


def test_sockets_are_opened_in_the_transport_only() -> None:
    """Also gRPC's servers and channels. Elsewhere sockets may tell this machine's name, or whether a port is free."""
    makers = {"insecure_channel", "secure_channel", "add_secure_port", "add_insecure_port", "insecure_server"}
    makers |= {"create_server", "create_connection", "open_connection", "start_server", "sock_connect", "sock_accept"}
    for name in FILES:
        if name in GENERATED or name.startswith("protocols/transport/"):
            continue
        used = {node.attr for node in ast.walk(tree_of(name)) if isinstance(node, ast.Attribute)}
        assert used & makers == set(), name
        assert imports_of(name, "grpc", "OpenSSL", "ssl") == [] or name in CALLS_GRPC, name


# Enrolment answers newcomers, who are no peers yet and have no certificate.
CALLS_GRPC = {"coordinator/admission.py"}


# -- circles ------------------------------------------------------------------------------------------------------------------


@cache
def loaded_with(name: str) -> frozenset[str]:
    """Files that this one imports when it is itself imported: not in a function, and not for type checkers alone."""
    found: set[str] = set()
    for node in _on_import(tree_of(name).body):
        if isinstance(node, ast.Import):
            modules = {alias.name for alias in node.names}
        else:
            base = package_of(name)[: len(package_of(name)) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            modules = {module, *(f"{module}.{alias.name}" for alias in node.names)}
        found |= {MODULES[module] for module in modules if module in MODULES}
    return frozenset(file for file in found - {name} if not file.endswith("__init__.py"))


def _on_import(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _on_import(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for part in ("body", "orelse", "finalbody"):
                yield from _on_import(getattr(node, part, []))


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Each node that can be reached from itself, by a shortest way."""
    found = []
    for start in sorted(edges):
        ways, seen = [[start, after] for after in sorted(edges[start])], set[str]()
        while ways:
            way = ways.pop(0)
            if way[-1] == start:
                found.append(way)
                break
            if way[-1] not in seen:
                seen.add(way[-1])
                ways += [[*way, after] for after in sorted(edges.get(way[-1], ()))]
    return found


def test_a_circle_would_be_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [list("abca"), list("bcab"), list("cabc")]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_no_module_is_loaded_by_what_it_loads() -> None:
    assert circles({name: set(loaded_with(name)) for name in FILES}) == []


@pytest.mark.parametrize("package", ["peer", "protocols"])
def test_no_folder_is_loaded_by_what_it_loads(package: str) -> None:
    """The package's own files count each by itself."""

    def room(name: str) -> str:
        parts = name.split("/")
        return "/".join(parts[:2])

    edges: dict[str, set[str]] = {}
    for name in files_under(package):
        inside = {room(file) for file in loaded_with(name) if file.startswith(f"{package}/")}
        edges.setdefault(room(name), set()).update(inside - {room(name)})
    assert circles(edges) == []


# -- what is loaded, and what may be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import protocols.run_spec", ("torch", "transformers", "hivemind", "grpc")),
        ("import dugnad, peer.cli, coordinator.cli", ("torch", "transformers", "hivemind")),
        ("import peer.arrival", ("torch", "transformers", "hivemind", "scipy", "numpy")),
        ("import dugnad", ("peer.simulation.world", "peer.simulation.process", "peer.simulation.scenario")),
        ("import protocols.round.leader, protocols.round.member", ("torch", "numpy", "grpc", "asyncio", "socket", "threading")),
    ],
)
def test_what_must_start_fast_or_stay_pure_does_not_load_the_heavy_engines(statement: str, absent: tuple[str, ...]) -> None:
    code = f"import sys; before = set(sys.modules)\n{statement}\nprint(*sorted(set({absent!r}) & (set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


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
