"""Nests of plain values and tensors as JSON beside named tensors, and back, without pickle.

JSON has no tuples, no integer keys, no NaN and no tensors. Each is written as an object with one marked key, such as
`{"@tuple": [...]}`; an ordinary dict whose keys would be mistaken for a mark is written as a list of pairs.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from datastill.errors import ArtifactError, InputError

STATE_MARK = "@"
META_MARK = "$"


def flatten_state(nested: Any) -> tuple[dict[str, Tensor], Any]:
    """A nested state as named tensors and a JSON-able value, from which `unflatten_state` rebuilds it.

    Args:
        nested: dicts (keys: str, int, float, bool, None, or tuples of them), lists, tuples, tensors, str, bool, int,
            float (NaN and infinities too) and None, in any nest. Subclasses of these come back as the plain type; a
            tensor that occurs twice comes back as two tensors.

    Returns:
        The tensors, detached but not copied, named by their place ("optimizer/state/0/exp_avg"); and the rest.

    Raises:
        InputError: for a value of any other type; the message says where it sits.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, encode(nested, STATE_MARK, tensors)


def unflatten_state(tensors: dict[str, Tensor], json: Any) -> Any:
    """The inverse of `flatten_state`. Tensors that `json` does not name are left out.

    Raises:
        ArtifactError: if `json` does not come from `flatten_state`, or names a tensor that is not there.
    """
    return decode(json, STATE_MARK, tensors)


def encode(value: Any, mark: str, tensors: dict[str, Tensor] | None = None, place: str = "") -> Any:
    """`value` as strict JSON. Tensors are put into `tensors`; they are refused where it is None."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {f"{mark}float": repr(float(value))}
    if isinstance(value, Tensor) and tensors is not None:
        name = _free_name(place or "value", tensors)
        tensors[name] = value.detach()
        return {f"{mark}tensor": name}
    if isinstance(value, list | tuple):
        items = [encode(item, mark, tensors, _join(place, index)) for index, item in enumerate(value)]
        return {f"{mark}tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith(mark) for key in value):
            return {str(key): encode(item, mark, tensors, _join(place, key)) for key, item in value.items()}
        pairs = []
        for key, item in value.items():
            name = encode(key, mark, None, f"a key of {place or 'the whole'}")
            pairs.append([name, encode(item, mark, tensors, _join(place, key))])
        return {f"{mark}dict": pairs}
    raise InputError(
        f"A value of type {type(value).__name__!r} (at {place or 'the top'}) cannot be stored; "
        f"use dicts, lists, tuples, {'tensors, ' if tensors is not None else ''}strings, numbers, bools or None."
    )


def decode(json: Any, mark: str, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `encode`; an `ArtifactError` for what `encode` cannot have written."""
    if isinstance(json, list):
        return [decode(item, mark, tensors) for item in json]
    if not isinstance(json, dict):
        return json
    if not any(key.startswith(mark) for key in json):
        return {key: decode(item, mark, tensors) for key, item in json.items()}
    if len(json) == 1:
        ((key, item),) = json.items()
        kind = key.removeprefix(mark)
        if kind == "float" and item in ("nan", "inf", "-inf"):
            return float(item)
        if kind == "tensor" and isinstance(item, str) and item in tensors:
            return tensors[item]
        if kind == "tuple" and isinstance(item, list):
            return tuple(decode(part, mark, tensors) for part in item)
        if kind == "dict" and _is_pairs(item):
            try:
                return {decode(name, mark, {}): decode(part, mark, tensors) for name, part in item}
            except TypeError as error:  # an unhashable key
                raise ArtifactError(f"A stored value has a malformed part: {error}.") from error
    raise ArtifactError(f"A stored value has a malformed part: an object with the keys {sorted(json)[:3]}.")


def _is_pairs(item: Any) -> bool:
    return isinstance(item, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in item)


def _join(place: str, key: object) -> str:
    return f"{place}/{key}" if place else str(key)


def _free_name(place: str, taken: dict[str, Tensor]) -> str:
    # Two places can look alike, as {"a/b": t} and {"a": {"b": t}} do.
    name, count = place, 1
    while name in taken or name == "__metadata__":
        count += 1
        name = f"{place}~{count}"
    return name
