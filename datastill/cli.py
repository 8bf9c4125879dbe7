"""`datastill`: the library in a shell. What it says when something is wrong is one sentence, with exit code 2."""

from __future__ import annotations

import atexit
import difflib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

from datastill.errors import DatastillError

_COMMANDS = {
    "image": "distil images: a folder, MNIST's files, or digits",
    "text": "distil labelled sentences: a CSV, a TSV, or lines of 'label sentence'",
    "graph": "distil a graph for node classification: Cora, a folder, or an .npz",
    "graphs": "distil a set of small graphs: a TU or OGB folder, or digits",
    "interactions": "distil a recommender log: CSV, TSV, parquet or .inter",
    "evaluate": "score the summary in a run folder again",
    "report": "write a run folder's report.html",
    "recipes": "list the published methods that --recipe names",
    "demo": "distil scikit-learn's digits as images and as a graph; needs no download",
}

_EXAMPLES = """\
examples:
  datastill demo
  datastill graph --data Cora --root data/planetoid --ratio 0.026 --out runs/cora
  datastill image --data digits --per-class 10 --recipe dm
  datastill interactions --data logs.parquet --users 500
"""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 if it worked, 2 for an error of the user or the data, 130 if interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for message in (".*torch.jit.*", "Sparse CSR tensor support", "Sparse invariant checks"):
        warnings.filterwarnings("ignore", message=message)  # of libraries about themselves; nothing a user can mend
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # started by torchrun
            _join()
        _run(given)
        sys.stdout.flush()
    except DatastillError as error:
        _fail(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing reads on, as after `| head`
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename}." if error.filename else f"{error}.")
    except KeyboardInterrupt:
        print("datastill: interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _join() -> None:
    """Become one of several processes, of which the first alone speaks."""
    from datastill import processes

    processes.start()
    atexit.register(processes.stop)
    if not processes.is_main():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _run(given: list[str]) -> None:
    if not given or given[0] in ("-h", "--help", "help"):
        print(_overview(), end="")
        return
    if given[0] == "--version":
        from datastill import __version__

        print(f"datastill {__version__}")
        return
    command, *rest = given
    if command not in _COMMANDS:
        near = difflib.get_close_matches(command, _COMMANDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DatastillError(f"There is no command {command!r}.{hint} Commands: {', '.join(_COMMANDS)}.")
    from datastill import commands

    runners: dict[str, Callable[[Sequence[str]], None]] = {
        **{kind: partial(commands.condense, kind) for kind in ("image", "text", "graph", "graphs", "interactions")},
        "evaluate": commands.evaluate_run,
        "report": commands.report_run,
        "recipes": commands.list_recipes,
        "demo": commands.run_demo,
    }
    runners[command](rest)


def _overview() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  datastill {name:{width}}  {about}" for name, about in _COMMANDS.items()]
    return "\n".join(
        [
            "Distil big datasets into tiny synthetic ones.",
            "",
            *lines,
            "",
            "`datastill COMMAND --help` lists its options.",
            "",
            _EXAMPLES,
        ]
    )


def _fail(message: str) -> NoReturn:
    print(f"datastill: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
