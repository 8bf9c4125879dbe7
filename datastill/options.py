"""Command-line options made from the signatures and docstrings of functions, so that neither is written down twice."""

from __future__ import annotations

import difflib
import functools
import inspect
import operator
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from jsonargparse import ActionYesNo, ArgumentParser

from datastill.errors import InputError

_PLAIN = (int, float, str, bool, type(None))


class Parser(ArgumentParser):
    """A parser whose complaints are `InputError`s."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what argparse would print, as one sentence."""
        said = " ".join(line.strip(" -") for line in str(message).splitlines() if line.strip()).rstrip(".")
        wrong_type = re.match(r"Parser key \"(\w+)\": (.*)", said)
        missing = re.match(r"the following arguments are required: (.*)", said)
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", said, re.I)
        options = [text for action in self._actions for text in action.option_strings if text.startswith("--")]
        if wrong_type:
            wanted = re.sub(r"<class '(\w+)'>", r"\1", wrong_type[2])
            kinds = [kind for kind in re.findall(r"Expected an? (\w+)", wanted) if kind != "NoneType"]
            value = re.search(r"Given value: (.*)", wanted)
            if "Union subtypes" in wanted and kinds and value:  # an option that may be left out
                wanted = f"Expected a {' or '.join(kinds)}, got {value[1]}"
            said = f"{self._shown(wrong_type[1])}: {wanted}"
        elif missing:
            said = f"Needed and not given: {', '.join(map(self._shown, missing[1].split(', ')))}"
        elif unknown:
            near = difflib.get_close_matches(unknown[1], options, n=1)
            said = f"There is no option {unknown[1]}" + (f"; did you mean {near[0]}?" if near else "")
        raise InputError(f"{said}{'' if said.endswith('?') else '.'} See `{self.prog} --help`.")

    def _shown(self, name: str) -> str:
        return next((a.option_strings[0] for a in self._actions if a.dest == name and a.option_strings), name)


def make_parser(command: str, about: str) -> Parser:
    """A parser for `datastill COMMAND` without options of files or the environment."""
    return Parser(prog=f"datastill {command}", description=about, default_env=False, allow_abbrev=False)


def add_options(parser: Parser, function: Callable[..., Any], *, skip: Iterable[str] = ()) -> list[str]:
    """Give `parser` an option for each parameter of `function` that a string can express, and return their names.

    Types and defaults are those of the signature, help is that of the docstring. Parameters whose values only exist in
    Python (callbacks, modules) get no option.
    """
    helps = documented(function)
    added = []
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        kind = expressible(parameter.annotation)
        if name in skip or kind is None or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        needed = parameter.default is parameter.empty
        settings: dict[str, Any] = {"help": helps.get(name, ""), "required": needed}
        if not needed:
            settings["default"] = parameter.default
        if kind is bool:
            parser.add_argument(option(name), action=ActionYesNo(no_prefix="no-"), **settings)
        else:
            parser.add_argument(option(name), type=kind, **settings)
        added.append(name)
    return added


def option(name: str) -> str:
    """The option of a parameter: `per_class` is `--per-class`."""
    return "--" + name.replace("_", "-")


def with_dashes(arguments: Sequence[str]) -> list[str]:
    """Arguments with `--per_class` written as `--per-class`; both are understood."""
    return [re.sub(r"^--[A-Za-z_-]+", lambda found: found[0].replace("_", "-"), argument) for argument in arguments]


def expressible(annotation: Any) -> Any:
    """The part of a type that a string can express, or None if there is none."""
    if annotation in _PLAIN and annotation is not type(None):
        return annotation
    if annotation is Path:
        return str
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return annotation
    if origin in (Union, types.UnionType):
        kept = [kind for part in parts if part is not type(None) and (kind := expressible(part)) is not None]
        if not kept:
            return None
        return functools.reduce(operator.or_, [*kept, None] if type(None) in parts else kept)
    if origin in (Sequence, list) and parts[:1] == (str,):
        return list[str]
    if origin in (tuple, Mapping, dict) and parts and all(part is Ellipsis or expressible(part) for part in parts):
        return dict.__class_getitem__(parts) if origin is Mapping else annotation
    return None


def documented(function: Callable[..., Any]) -> dict[str, str]:
    """What the "Args:" of a docstring say of each parameter."""
    text = inspect.getdoc(function) or ""
    found: dict[str, str] = {}
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    for entry in re.finditer(
        r"^    (\w[\w, ]*): (.*?)(?=^    \w[\w, ]*: |\Z)", section[1] if section else "", re.M | re.S
    ):
        found.update(dict.fromkeys(entry[1].split(", "), " ".join(entry[2].split())))
    return found
