"""The storages of images by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from datastill.errors import InputError, require, unknown_name
from datastill.modalities.codec import Codec
from datastill.modalities.image_generators import Hallucinators, LatentCodes
from datastill.modalities.image_storage import (
    FreePixels,
    Frequencies,
    LinearBases,
    LowResolution,
    MultiFormation,
    Preconditioned,
    Storage,
)
from datastill.rng import isolated

STORAGES: dict[str, tuple[type[Storage], tuple[str, ...]]] = {
    "pixels": (FreePixels, ()),
    "preconditioned": (Preconditioned, ("mixing",)),
    "formation": (MultiFormation, ("factor",)),
    "low-resolution": (LowResolution, ("downscale",)),
    "bases": (LinearBases, ("bases", "downscale")),
    "frequencies": (Frequencies, ("keep",)),
    "hallucinators": (Hallucinators, ("styles", "diversity", "fit")),
    "codes": (LatentCodes, ("decoders", "channels", "width", "fit")),
}
"""By name: the storage and its options."""
OPTIONS = tuple(dict.fromkeys(option for _, options in STORAGES.values() for option in options))


def check_storage(name: str, counts: Sequence[int], options: dict[str, float], codec: Codec | None) -> None:
    """Refuse what `make_storage` cannot make, before any image is looked at.

    Raises:
        InputError: for an unknown name, an option that it does not have or cannot take, or a number of images of a class that
            does not come from whole stored units; and for a codec of what is not stored as it is optimised.
    """
    if name not in STORAGES:
        raise unknown_name("storage", name, STORAGES)
    kind, allowed = STORAGES[name]
    require(
        codec is None or not kind.folds,
        f"storage={name!r} is optimised in other numbers than those that are stored, and codec rounds the latter: leave one of "
        "the two out.",
    )
    for option in options:
        if option not in allowed:
            has = f"has the options {', '.join(allowed)}" if allowed else "has no options"
            raise InputError(f"storage={name!r} {has}, got {option!r}.")
    share = kind.share(**options)
    for group, count in enumerate(counts):
        near = max(1, round(count / share)) * share
        require(
            count % share == 0,
            f"storage={name!r} makes {share} images of each stored one, so the images of every class must be a multiple of "
            f"{share}, got {count} for class {group}: ask for {near}.",
        )


def is_compact(name: str) -> bool:
    """Whether the storage `name` takes fewer bytes than its images; an `InputError` for an unknown one."""
    return _known(name).compact


def folds(name: str) -> bool:
    """Whether the storage `name` has parameters that its export does not; an `InputError` for an unknown one."""
    return _known(name).folds


def factorised(name: str) -> bool:
    """Whether images of the storage `name` are products of several of its parameters; an `InputError` for an unknown one."""
    return _known(name).factorised


def shared(name: str, options: dict[str, float]) -> int:
    """How many images come from one stored unit of the storage `name`; an `InputError` for an unknown one."""
    return _known(name).share(**_own(name, options))


def fewest(name: str, options: dict[str, float]) -> int:
    """The fewest images of all classes together that the storage `name` holds; an `InputError` for an unknown one."""
    return _known(name).least(**_own(name, options))


def _known(name: str) -> type[Storage]:
    if name not in STORAGES:
        raise unknown_name("storage", name, STORAGES)
    return STORAGES[name][0]


def _own(name: str, options: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in options.items() if key in STORAGES[name][1]}


def make_storage(name: str, images: Tensor, options: dict[str, float], *, seed: int = 0) -> Storage:
    """The storage `name` that begins from `images`, whatever it draws at random decided by `seed`."""
    with isolated(seed):
        return STORAGES[name][0].of(images, **options)


def blank_storage(name: str, shape: Sequence[int], options: Mapping[str, float]) -> Storage:
    """The storage `name` of images of that shape (n, c, h, w), for stored numbers to be put in: nothing is computed."""
    return STORAGES[name][0](shape, **options)
