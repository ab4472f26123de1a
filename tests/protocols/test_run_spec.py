from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from protocols.errors import SpecError
from protocols.run_spec import MAX_SPEC_BYTES, RunSpec
from protocols.sections import Section

SMALLEST = '[run]\nname = "small"\n'
EXAMPLES = Path(__file__).parents[2] / "examples"


def refusal(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        RunSpec.from_toml(text)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return caught.value


def test_two_lines_are_a_whole_spec() -> None:
    spec = RunSpec.from_toml(SMALLEST)
    assert spec.training.target_batch_size == 256
    assert spec.task.kind == "causal-lm"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/run.toml")), ids=lambda path: path.parent.name)
def test_the_examples_load(path: Path) -> None:
    assert RunSpec.load(path).run.name


class Widths(Section):
    hidden: int = 8
    dropout: float | None = None


class Shape(Section):
    depth: int
    widths: Widths = Field(default_factory=Widths)


def test_what_only_the_task_knows_stands_in_its_table_and_below() -> None:
    spec = RunSpec.from_toml(SMALLEST + "[task]\nkind = 'shapes'\ndepth = 3\n[task.widths]\nhidden = 64\n")
    assert spec.task.settings == {"depth": 3, "widths": {"hidden": 64}}
    assert spec.task.read(Shape) == Shape(depth=3, widths=Widths(hidden=64))
    assert RunSpec.from_toml(spec.to_toml()) == spec


def test_settings_with_their_defaults_written_out_travel_as_toml() -> None:
    brief, whole = (RunSpec.from_toml(f"{SMALLEST}[task]\ndepth = 3\n{more}") for more in ("", "widths.hidden = 8\n"))
    assert brief.digest != whole.digest
    brief, whole = (spec.model_copy(update={"task": spec.task.with_settings(spec.task.read(Shape))}) for spec in (brief, whole))
    assert brief.digest == whole.digest == RunSpec.from_toml(brief.to_toml()).digest


@pytest.mark.parametrize(
    ("table", "cause", "remedy"),
    [
        ("depht = 3\n", "unknown key task.depht", "Did you mean task.depth?"),
        ("depth = 3\nwidths.hiden = 3\n", "unknown key task.widths.hiden", "Did you mean task.widths.hidden?"),
        ("depth = 3\nhidden = 3\n", "unknown key task.hidden", "Did you mean task.widths.hidden?"),
        ("depth = 3\nlearning_rate = 3.0\n", "unknown key task.learning_rate", "Did you mean optimizer.learning_rate?"),
        ("depth = 3\nxyz = 3\n", "unknown key task.xyz", "Valid here: depth, kind, package, widths."),
        ("depth = '3'\n", "task.depth is '3'", "integer"),
        ("", "task.depth is missing", "Add task.depth."),
    ],
)
def test_a_tasks_own_keys_are_checked_as_all_others_are(table: str, cause: str, remedy: str) -> None:
    with pytest.raises(SpecError) as caught:
        RunSpec.from_toml(SMALLEST + "[task]\n" + table).task.read(Shape)
    assert cause in str(caught.value)
    assert remedy in caught.value.remedy


@given(
    seed=st.integers(0, 2**63 - 1),
    learning_rate=st.floats(1e-12, 1e3),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    total_steps=st.none() | st.integers(100, 10**9),
    width=st.integers(1, 10**6),
    note=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20),
)
def test_a_spec_survives_being_written_and_read(
    seed: int, learning_rate: float, betas: tuple[float, float], total_steps: int | None, width: int, note: str
) -> None:
    spec = RunSpec.model_validate(
        {
            "run": {"name": "x", "seed": seed},
            "task": {"kind": "shapes", "model": {"hidden_size": width, "note": note}},
            "optimizer": {"learning_rate": learning_rate, "betas": betas},
            "schedule": {"total_steps": total_steps, "options": {"power": 1.5}},
            "assets": {"tokenizer/tokenizer.json": "0" * 64},
        }
    )
    assert RunSpec.from_toml(spec.to_toml()) == spec
    assert RunSpec.from_toml(spec.to_toml()).digest == spec.digest


def test_the_digest_ignores_order_comments_and_written_out_defaults_but_no_value() -> None:
    spec = RunSpec.from_toml(SMALLEST)
    same = '# a comment\n[optimizer]\nname = "adamw"\n[task]\nkind = "causal-lm"\n[run]\nseed = 0\nname = "small"\n'
    assert RunSpec.from_toml(same).digest == spec.digest
    assert RunSpec.from_toml(SMALLEST + "[optimizer]\nlearning_rate = 1.0000001e-3\n").digest != spec.digest
    assert RunSpec.from_toml(SMALLEST + "[task]\nn_embd = 64\n").digest != spec.digest


def test_the_digest_is_the_same_in_every_version_of_this_code() -> None:
    # If this fails, machines of the last release and of this one refuse each other: release notes must say so.
    assert RunSpec.from_toml(SMALLEST).digest == "0a6f5caac872f1b402b0a353b116c2f07fea287b93012d6df2fe64cfcae098df"


def test_where_the_file_lay_is_no_part_of_the_run(tmp_path: Path) -> None:
    spec = RunSpec.from_toml(SMALLEST, tmp_path)
    assert spec == RunSpec.from_toml(SMALLEST)
    assert spec.folder == tmp_path
    assert spec.model_copy(update={"assets": {}}).folder == tmp_path


@pytest.mark.parametrize(
    ("addition", "key", "nearest"),
    [
        ("[training]\ntarget_batchsize = 3\n", "training.target_batchsize", "training.target_batch_size"),
        ("[training]\nlearning_rate = 3.0\n", "training.learning_rate", "optimizer.learning_rate"),
        ("[trainin]\nx = 3\n", "trainin", "training"),
        ("[optimizer]\nlr = 1.0\n", "optimizer.lr", "learning_rate"),
        ("[model]\nx = 3\n", "model", "[task.model]"),
        ("[tokenizer]\nx = 3\n", "tokenizer", "[task.model]"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_one(addition: str, key: str, nearest: str) -> None:
    error = refusal(SMALLEST + addition)
    assert key in str(error)
    assert nearest in error.remedy


@pytest.mark.parametrize(
    ("addition", "part"),
    [
        ("[training]\ntarget_batch_size = 0\n", "training.target_batch_size"),
        ("[training]\ntarget_batch_size = 2.5\n", "training.target_batch_size"),
        ("[training]\ntarget_batch_size = true\n", "training.target_batch_size"),
        ('[optimizer]\nlearning_rate = "fast"\n', "optimizer.learning_rate"),
        ("[optimizer]\nlearning_rate = nan\n", "optimizer.learning_rate"),
        ("[optimizer]\nbetas = [0.9, 1.0]\n", "optimizer.betas"),
        ('[optimizer]\nname = "adam"\n', "optimizer.name"),
        ('[schedule]\nname = "greedy"\n', "schedule.name"),
        ('[schedule]\nname = "linear"\n', "total_steps"),
        ('[schedule]\nname = "warmup_stable_decay"\n', "num_stable_steps"),
        ("[schedule]\nwarmup_steps = 9\ntotal_steps = 3\n", "warmup_steps"),
        ("[schedule]\nwarmup_steps = 9\n[training]\nmax_epochs = 3\n", "warmup_steps"),
        ('[task]\nkind = "a task"\n', "task.kind"),
        ('[task]\npackage = "https://example.org/x.whl"\n', "task.package"),
        ("[task]\nn_embd = inf\n", "n_embd"),
        ("[task.model]\nn_embd = 2020-01-01\n", "model.n_embd"),
        (f"[task]\n{'a.' * 5000}a = 1\n", "nested too deeply"),
        ('[assets]\n"../escape" = "00"\n', "assets"),
        ('[assets]\n"/etc/passwd" = "00"\n', "assets"),
        ('[assets]\n".hidden" = "00"\n', "assets"),
        ('[assets]\n"held_out.json" = "00"\n', "assets.held_out.json"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_its_dotted_key(addition: str, part: str) -> None:
    assert part in str(refusal(SMALLEST + addition))


def test_a_missing_section_or_key_is_named() -> None:
    assert "run is missing" in str(refusal('[task]\nkind = "x"\n'))
    assert "run.name" in str(refusal("[run]\n"))
    assert "run.name" in str(refusal('[run]\nname = "Not A Slug"\n'))
    assert "run" in str(refusal("run = 3\n"))


def test_a_syntax_error_is_named_by_its_line() -> None:
    assert "line 2" in str(refusal('[run]\nname = "x\n'))
    refusal("a = " + "[" * 100_000)


def test_a_file_that_is_missing_binary_or_huge_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    with pytest.raises(SpecError, match="no run file"):
        RunSpec.load(path)
    with pytest.raises(SpecError, match="cannot read"):
        RunSpec.load(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="cannot read"):
        RunSpec.load(path)
    path.write_text("#" * (MAX_SPEC_BYTES + 1))
    with pytest.raises(SpecError, match="larger"):
        RunSpec.load(path)


def test_a_file_remembers_its_folder(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(SMALLEST)
    assert RunSpec.load(tmp_path / "run.toml").folder == tmp_path.resolve()


def test_a_spec_cannot_be_changed() -> None:
    spec = RunSpec.from_toml(SMALLEST)
    with pytest.raises(ValueError, match="frozen"):
        spec.run.name = "other"  # type: ignore[misc]


def test_reading_a_spec_imports_no_torch() -> None:
    code = "import sys, protocols.run_spec; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
