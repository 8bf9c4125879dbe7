"""The shell: what each command writes and prints, and that every mistake is one sentence with exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import datastill
from datastill import commands
from datastill.cli import main
from datastill.errors import InputError
from datastill.options import add_options, documented, expressible, make_parser, with_dashes


class Shell:
    """Runs the command in this process; `code`, `out` and `err` are what the last call gave."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.code: int | str | None = None
        self.out = self.err = ""

    def __call__(self, *arguments: str) -> int | str | None:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        self.out, self.err = self.capsys.readouterr()
        self.code = end.value.code
        return self.code


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A log of two tastes: even users like items 0 to 9, odd ones items 10 to 19."""
    rng = np.random.default_rng(0)
    rows = [(user, 10 * (user % 2) + item) for user in range(40) for item in rng.choice(10, 6, replace=False)]
    path = tmp_path / "logs.csv"
    path.write_text("user_id,item_id\n" + "".join(f"u{user},i{item}\n" for user, item in rows))
    return path


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_the_overview_names_every_command(shell: Shell, arguments: tuple[str, ...]) -> None:
    assert shell(*arguments) == 0
    for command in ("image", "text", "graph", "graphs", "interactions", "evaluate", "report", "recipes", "demo"):
        assert f"datastill {command} " in shell.out
    assert shell.err == ""


def test_the_version(shell: Shell) -> None:
    assert shell("--version") == 0
    assert shell.out == f"datastill {datastill.__version__}\n"


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("image", ("--data", "--per-class", "--recipe", "--out", "--seeds", "--test")),
        ("text", ("--data", "--per-class", "--embeddings", "--text-column")),
        ("graph", ("--data", "--ratio", "--root", "--download", "--recipe")),
        ("graphs", ("--data", "--per-class", "--nodes", "--adjacency")),
        ("interactions", ("--data", "--users", "--min-rating")),
        ("evaluate", ("run", "--learners", "--data", "--device", "--baselines", "k-center")),
        ("report", ("run",)),
        ("recipes", ("name",)),
        ("demo", ("--out", "--seed", "--quick")),
    ],
)
def test_each_command_lists_its_options(shell: Shell, command: str, options: tuple[str, ...]) -> None:
    assert shell(command, "--help") == 0
    for option in options:
        assert option in shell.out, option
    assert "--progress" not in shell.out


def test_as_a_module_and_as_a_command() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for start in ([sys.executable, "-m", "datastill"], [str(Path(sys.executable).with_name("datastill"))]):
        done = subprocess.run([*start, "--version"], capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stdout) == (0, f"datastill {datastill.__version__}\n")


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("grap",), "Did you mean 'graph'"),
        (("interactions",), "Needed and not given: --data"),
        (("interactions", "--data"), "expected one argument"),
        (("interactions", "--data", "x", "--user", "3"), "did you mean --users"),
        (("interactions", "--data", "x", "--users", "many"), "--users: Expected a"),
        (("interactions", "--data", "x", "--seeds", "few"), "--seeds: Expected a"),
        (("interactions", "--data", "x", "--device", "toaster"), "device 'toaster' cannot be used here"),
        (("interactions", "--data", "x", "--quiet", "--recipe", "distil-cf"), "Did you mean 'distill-cf'"),
        (("interactions", "--data", "nowhere.csv"), "nowhere.csv"),
        (("recipes", "gcon"), "Did you mean 'gcond'"),
        (("report", "nowhere"), "not a run folder"),
        (("report",), "Needed and not given: run"),
        (("evaluate", "nowhere"), "no datastill bundle"),
        (("image", "--data", "digits", "--baselines", "herdin"), "Unknown baseline 'herdin'. Did you mean 'herding'?"),
        (("evaluate", "nowhere", "--seeds", "0"), "seeds must be at least 1"),
        (("image", "--data", "digits", "--protocol", "dsaa", "--quiet"), "Did you mean 'dsa'"),
        (("image", "--data", "digits", "--learners", "convnetz", "--quiet"), "Did you mean 'convnet'"),
        (("image", "--data", "digits", "--learners", "mlp,lenet", "--quiet"), "lenet"),
        (
            ("image", "--data", "digits", "--protocol", "krr", "--learners", "mlp", "--quiet"),
            "protocol 'krr' fits a kernel",
        ),
        (
            ("image", "--data", "digits", "--recipe", "dm", "--protocol", "mtt", "--quiet"),
            "protocol 'mtt' trains with the learning rate that was learned",
        ),
        (("image", "--data", "digits", "--seeds", "-3", "--quiet"), "seeds must be at least 0"),
        (("image", "--data", "digits", "--baseline-space", "convnt", "--quiet"), "Did you mean 'convnet'"),
        (("image", "--data", "digits", "--storage-options", '{"factr": 2}', "--quiet"), "Did you mean 'factor'"),
    ],
)
def test_a_mistake_is_one_sentence(shell: Shell, arguments: tuple[str, ...], said: str) -> None:
    assert shell(*arguments) == 2
    assert said in shell.err
    assert shell.err.startswith("datastill: ")
    assert shell.err.count("\n") == 1
    assert "Traceback" not in shell.err
    assert shell.out == ""


def test_a_full_disk_is_a_sentence_too(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(arguments: Sequence[str]) -> None:
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr(commands, "list_recipes", full)
    assert shell("recipes") == 2
    assert shell.err == "datastill: No space left on device: runs/x.\n"


def test_an_interrupt_says_how_to_go_on(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: Sequence[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "run_demo", interrupted)
    assert shell("demo") == 130
    assert "goes on from the last checkpoint" in shell.err


def test_a_fault_of_the_library_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: Sequence[str]) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(commands, "run_demo", broken)
    with pytest.raises(ZeroDivisionError):
        main(["demo"])


# --- a whole run ------------------------------------------------------------------------------------------------------


def test_a_log_is_distilled_scored_and_reported(shell: Shell, logs: Path, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    pytest.importorskip("matplotlib")
    out = tmp_path / "run"
    command = ("interactions", "--data", str(logs), "--users", "4", "--steps", "3", "--out", str(out), "--seeds", "2")
    assert shell(*command, "--quiet", "--min_rating=null") == 0
    for row in ("random subset", "full data", "hr@10"):
        assert row in shell.out
    assert "it/s" not in shell.err
    assert {path.name for path in out.iterdir()} == {
        "artifact",
        "checkpoint",
        "metrics.jsonl",
        "report.html",
        "run.json",
    }
    stored = datastill.load(out)
    assert (stored.kind, stored.points, stored.steps) == ("interactions", 4, 3)
    assert stored.evaluation is not None
    # Its kernel is fitted to the same points once, and to a new random subset for each seed.
    assert {len(row["scores"]["hr@10"]) for row in stored.evaluation["rows"] if row["data"] == "random subset"} == {2}
    assert {len(row["scores"]["hr@10"]) for row in stored.evaluation["rows"] if row["data"] != "random subset"} == {1}
    assert set(stored.dataset.items) <= {f"i{item}" for item in range(20)}
    kinds = [json.loads(line)["kind"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("step") == 3

    # Again with another learner: its rows are added to the stored ones.
    assert shell("evaluate", str(out), "--seeds", "1", "--learners", "nngp", "--quiet") == 0
    again = datastill.load(out)
    assert again.evaluation is not None
    assert [row for row in again.evaluation["rows"] if row["learner"] != "nngp"] == stored.evaluation["rows"]
    assert "nngp" in {row["learner"] for row in again.evaluation["rows"]}

    # Or other baselines: what was scored before stays.
    before = [row for row in again.evaluation["rows"] if row["data"] == "random subset"]
    assert shell("evaluate", str(out), "--seeds", "1", "--baselines", "herding, k-center", "--quiet") == 0
    assert "herding subset" in shell.out
    assert "random subset" not in shell.out
    further = datastill.load(out).evaluation
    assert further is not None
    assert [row for row in further["rows"] if row["data"] == "random subset"] == before
    assert {row["data"] for row in further["rows"]} >= {"herding subset", "k-center subset", "full data"}
    assert shell("evaluate", str(out), "--seeds", "1", "--baselines", "none", "--quiet") == 0
    assert "subset" not in shell.out
    assert "full data" not in shell.out

    assert shell("evaluate", str(out), "--protocol", "dsa", "--quiet") == 2
    assert "interactions data have no published protocols" in shell.err

    # On other data than those it was distilled from it is refused.
    other = tmp_path / "other.csv"
    other.write_text(logs.read_text().replace("u39", "u38"))
    assert shell("evaluate", str(out), "--data", str(other), "--quiet") == 2
    assert "are not those" in shell.err

    (out / "report.html").unlink()
    assert shell("report", str(out)) == 0
    assert shell.out.strip() == str(out / "report.html")

    # A run folder of other settings is not overwritten.
    assert shell(*command[:4], "5", *command[5:]) == 2
    assert "other settings" in shell.err

    (out / "run.json").write_text('{"command": "smells", "options": {"data": "x"}}')
    assert shell("evaluate", str(out)) == 2
    assert "unknown command 'smells'" in shell.err


def test_recipes_are_listed_and_shown(shell: Shell) -> None:
    assert shell("recipes") == 0
    for name in ("dm", "dc", "dsa", "kip", "dd", "mtt", "gcond", "gcond-x", "gcdm", "doscond", "distill-cf", "text-dd"):
        assert f"\n{name} " in shell.out
    assert shell("recipes", "gcond") == 0
    assert "gradient-matching" in shell.out
    assert "2110.07580" in shell.out
    assert shell("recipes", "kip") == 0
    assert "kernel=ntk, ridge=1e-06, real_size=500" in shell.out  # of images
    assert "kernel=ntk, ridge=1.0, real_size=None" in shell.out  # of graphs
    assert "overrides" not in shell.out


# --- options from signatures ------------------------------------------------------------------------------------------


def sample(
    data: str,
    count: int = 3,
    *,
    share: float | None = None,
    mode: Literal["a", "b"] = "a",
    strict: bool = False,
    call: Callable[[], None] | None = None,
    path: str | Path | None = None,
    anything: Any = None,
    names: Sequence[str] | None = None,
    pair: tuple[float, float] | None = None,
    **rest: Any,
) -> None:
    """Do something.

    Args:
        data: where
            it lies, 95 % of the time.
        count, share: how many.
        mode: which.

    Returns:
        Nothing: none.
    """


def test_options_have_the_names_types_defaults_and_help_of_the_signature() -> None:
    parser = make_parser("sample", "Do something.")
    added = add_options(parser, sample, skip=("pair",))
    assert added == ["data", "count", "share", "mode", "strict", "path", "names"]
    found = vars(parser.parse_args(["--data", "x"]))
    assert found == {
        "data": "x", "count": 3, "share": None, "mode": "a", "strict": False, "path": None, "names": None,
    }  # fmt: skip
    given = with_dashes(["--data=a_b", "--count", "4", "--share", "0.5", "--mode", "b", "--strict", "--path", "p_q"])
    found = vars(parser.parse_args(given))
    assert (found["data"], found["count"], found["share"], found["mode"]) == ("a_b", 4, 0.5, "b")
    assert (found["strict"], found["path"]) == (True, "p_q")
    assert "it lies, 95 % of the time." in " ".join(parser.format_help().split())
    for wrong in (["--count", "1.5"], ["--mode", "c"], ["--share", "x"], ["--coun", "3"]):
        with pytest.raises(InputError, match="--help"):
            parser.parse_args(["--data", "x", *wrong])


def test_underscores_in_options_are_dashes_and_values_stay() -> None:
    assert with_dashes(["--per_class", "a_b", "--x_y=c_d", "e_f"]) == ["--per-class", "a_b", "--x-y=c_d", "e_f"]


def test_docstrings_are_read() -> None:
    assert documented(sample) == {
        "data": "where it lies, 95 % of the time.",
        "count": "how many.",
        "share": "how many.",
        "mode": "which.",
    }
    assert documented(lambda: None) == {}


@pytest.mark.parametrize(
    ("annotation", "found"),
    [
        (int, int),
        (Path, str),
        (Any, None),
        (int | None, int | None),
        (str | Path | None, str | None),
        (Callable[[], None] | None, None),
        (tuple[float, float], tuple[float, float]),
        (Mapping[str, int], dict[str, int]),
        (Sequence[str], list[str]),
    ],
)
def test_what_a_string_can_express(annotation: Any, found: Any) -> None:
    assert expressible(annotation) == found
