"""Tasks are found by name among installed packages; whatever is wrong with one is said in words that a volunteer can act on."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from protocols.errors import BadMessageError, SpecError, UsageError
from protocols.run_spec import MAX_ASSETS_BYTES, RunSpec, TaskSpec
from protocols.tasks.assets import create_assets
from protocols.tasks.language.causal_lm import CausalLanguageTask
from protocols.tasks.language.masked_lm import MaskedLanguageTask
from protocols.tasks.registry import checked, find_task, initial_model, open_task, prepare
from tests.packages import install, install_lines
from tests.protocols.tasks.teaching import teach

LINES = '[run]\nname = "lines"\n[task]\nkind = "lines"\n'


def refusal(task: TaskSpec) -> SpecError:
    with pytest.raises(SpecError) as caught:
        find_task(task)
    assert caught.value.remedy
    assert "\n" not in f"{caught.value}{caught.value.remedy}"
    return caught.value


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    install_lines(tmp_path / "site", monkeypatch)
    return RunSpec.from_toml(LINES, tmp_path)


def test_the_tasks_on_text_are_found_as_all_others_are() -> None:
    assert find_task(TaskSpec(kind="causal-lm")) is CausalLanguageTask
    assert find_task(TaskSpec(kind="masked-lm", package="dugnad")) is MaskedLanguageTask


def test_a_task_of_an_installed_package_is_found_by_its_name(lines: RunSpec) -> None:
    assert find_task(lines.task).__name__ == "Lines"
    assert find_task(TaskSpec(kind="lines", package="Some_Lines")).__name__ == "Lines"


def test_a_misspelt_task_is_refused_with_the_nearest_installed_one() -> None:
    error = refusal(TaskSpec(kind="casual-lm"))
    assert 'task "casual-lm" is not installed here' in str(error)
    assert 'Did you mean "causal-lm"?' in error.remedy


def test_a_task_that_resembles_none_is_refused_with_a_list_of_those_installed() -> None:
    error = refusal(TaskSpec(kind="protein-folding"))
    assert "Install the package that brings it" in error.remedy
    assert "causal-lm" in error.remedy and "masked-lm" in error.remedy


def test_a_peer_without_the_runs_task_is_told_which_package_brings_it() -> None:
    error = refusal(TaskSpec(kind="mask-lm", package="somebodys-masks"))
    assert "Install the package somebodys-masks if you trust it" in error.remedy
    assert "Did you mean" not in error.remedy


def test_a_task_of_the_same_name_from_another_package_is_not_taken_for_the_runs_own(lines: RunSpec) -> None:
    error = refusal(TaskSpec(kind="lines", package="other-lines"))
    assert "other-lines" in str(error) and "some-lines" in str(error)


def test_two_packages_with_one_name_are_told_apart_by_task_package(
    lines: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "other", monkeypatch, "other-lines", {"lines": "other_lines:Lines"}, "from some_lines import Lines")
    error = refusal(lines.task)
    assert "other-lines, some-lines" in str(error)
    assert "task.package" in error.remedy
    assert find_task(TaskSpec(kind="lines", package="some-lines")).__name__ == "Lines"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import a_library_that_is_not_there\n", "No module named 'a_library_that_is_not_there'"),
        ("raise OSError('no driver\\nfor this card')\n", "OSError: no driver"),
        ("Other = 1\n", "Broken"),
        ("def Broken(resolved, assets): ...\n", "not a subclass of Task"),
    ],
)
def test_a_task_that_cannot_be_loaded_is_named_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, cause: str
) -> None:
    install(tmp_path, monkeypatch, "broken-task", {"broken": "broken_task:Broken"}, source)
    error = refusal(TaskSpec(kind="broken"))
    assert 'task "broken" of package broken-task' in str(error)
    assert cause in str(error)


def test_where_nothing_is_installed_the_remedy_is_to_install_dugnad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocols.tasks.registry.entry_points", lambda group: ())
    assert "install dugnad itself" in refusal(TaskSpec()).remedy


def test_looking_for_a_task_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    refusal(TaskSpec(kind="absent", package="absent-package"))


# A task without text, from the author's spec to a peer


def test_a_task_without_text_needs_no_text_settings(lines: RunSpec, tmp_path: Path) -> None:
    said: list[str] = []
    resolved = prepare(lines, tmp_path / "run", said.append)
    assert resolved.task.settings == {"points": 8}
    assert resolved.task.package == "some-lines"
    assert set(resolved.assets) == {"points.json"}
    assert said == ["Drawing the points"]
    task = open_task(RunSpec.from_toml(resolved.to_toml()), tmp_path / "run")
    model = initial_model(lines, resolved, tmp_path / "run")
    before = task.evaluate(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    teach(task, model, optimizer, micro_batch=16, steps=60)
    assert task.evaluate(model) < 0.1 * before


def test_the_same_run_has_one_digest_however_its_defaults_are_written(lines: RunSpec) -> None:
    assert checked(RunSpec.from_toml(LINES + "points = 8\n")).digest == checked(lines).digest
    assert checked(RunSpec.from_toml(LINES + "points = 9\n")).digest != checked(lines).digest


def test_a_key_that_the_task_does_not_know_is_refused(lines: RunSpec) -> None:
    with pytest.raises(SpecError, match=r"task\.pionts") as caught:
        checked(RunSpec.from_toml(LINES + "pionts = 9\n"))
    assert "Did you mean task.points?" in caught.value.remedy


def test_a_file_that_is_not_the_one_prepared_opens_no_task(lines: RunSpec, tmp_path: Path) -> None:
    resolved = prepare(lines, tmp_path / "run", lambda text: None)
    (tmp_path / "run" / "assets" / "points.json").write_text("[1.0]")
    with pytest.raises(BadMessageError, match="digest"):
        open_task(resolved, tmp_path / "run")


def test_a_volunteers_own_data_is_refused_where_the_task_has_no_use_for_it(lines: RunSpec, tmp_path: Path) -> None:
    resolved = prepare(lines, tmp_path / "run", lambda text: None)
    with pytest.raises(UsageError, match="--data"):
        open_task(resolved, tmp_path / "run", data_paths=["mine.txt"])


def test_more_than_peers_accept_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="16 MiB"):
        create_assets(tmp_path, {"large": bytes(MAX_ASSETS_BYTES + 1)})
    assert list(tmp_path.iterdir()) == []
