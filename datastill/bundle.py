"""The one mechanism for anything that datastill writes: a bundle, which is a folder of checksummed files.

    manifest.json       format, version, sha256 and size of every other file, the caller's metadata, sha256 of itself
    data.safetensors    the tensors
    ...                 further files of the caller

Writing is atomic. A new bundle is built in the hidden sibling `.NAME.new`, forced to disk and renamed into place. If
one was there before, it first steps aside to `.NAME.previous`, and is removed when its successor stands. So at any
moment at least one complete bundle exists, and `read_bundle` finds it: if a process was killed between the two
renames, it reads `.NAME.previous`. What a killed process left over is removed by the next write. A path has one writer
at a time.

Reading trusts nothing: every byte is covered by a checksum, nothing is executed, no file outside the folder is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from datastill.errors import ArtifactError, InputError, require
from datastill.nested import META_MARK, decode, encode
from datastill.nested import flatten_state as flatten_state
from datastill.nested import unflatten_state as unflatten_state

FORMAT = "datastill-bundle"
VERSION = 1
MANIFEST = "manifest.json"
DATA = "data.safetensors"
MAX_MANIFEST_BYTES = 64 * 2**20
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,199}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


def write_bundle(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    extra_files: Mapping[str, bytes | Path] | None = None,
) -> None:
    """Write a bundle, replacing one that is there; after a crash at any moment the old or the new one is readable.

    Args:
        path: the bundle's folder. Its parent is created.
        tensors: dense tensors by name, on any device, of any dtype that safetensors has.
        meta: nests of dicts, lists, tuples, strings, numbers (NaN and infinities too), bools and None.
        extra_files: further files by name (no folders), as bytes or as a file to copy.

    Raises:
        InputError: before anything is written, if an argument cannot be stored, or `path` holds anything but a bundle.
        OSError: if the disk is full or not writable; what was at `path` is still there.
    """
    target = Path(path).resolve()
    extras = dict(extra_files or {})
    for name in extras:
        require(
            _is_file_name(name) and name not in (MANIFEST, DATA),
            f"extra_files: {name!r} is not a plain file name, or is one that the bundle itself uses.",
        )
    stored_meta = encode(dict(meta), META_MARK)
    _check_replaceable(target)
    data = _serialise(tensors)

    target.parent.mkdir(parents=True, exist_ok=True)
    new, previous = _sibling(target, "new"), _sibling(target, "previous")
    _remove(new)
    new.mkdir()
    try:
        files = {DATA: _write_file(new / DATA, data)}
        for name, content in extras.items():
            files[name] = _write_file(new / name, content)
        manifest = {"format": FORMAT, "format_version": VERSION, "files": files, "meta": stored_meta}
        manifest["sha256"] = hashlib.sha256(_to_bytes(manifest)).hexdigest()
        _write_file(new / MANIFEST, _to_bytes(manifest))
        _sync_folder(new)
    except BaseException:
        _remove(new)
        raise
    if target.exists():
        _remove(previous)
        target.rename(previous)
    new.rename(target)
    _sync_folder(target.parent)
    _remove(previous)


def read_bundle(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the metadata of a bundle, after checking every one of its files.

    Raises:
        ArtifactError: if there is no bundle, or it is corrupted, truncated, foreign or from a newer version. No other
            exception leaves this function, and it never gives values that were not written.
    """
    target = Path(path)
    for _ in range(8):
        before = _identity(target)
        try:
            return _read(_present(target))
        except ArtifactError:
            if _identity(target) == before:
                raise
        # A writer replaced the bundle while it was being read: read the new one.
    raise ArtifactError(f"{target} is being rewritten too often to be read; try again later.")


def locate(path: str | os.PathLike[str]) -> Path:
    """The folder in which the files of the bundle at `path` lie now, for those that are mapped rather than read."""
    return _present(Path(path))


def has_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether `read_bundle` finds a bundle at `path` (which may turn out to be damaged)."""
    return (_present(Path(path)) / MANIFEST).is_file()


def _present(target: Path) -> Path:
    if target.exists():
        return target
    previous = _sibling(target.resolve(), "previous")
    return previous if previous.exists() else target


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not folder.is_dir():
        raise ArtifactError(f"There is no datastill bundle at {folder}: it is not a folder.")
    manifest = _read_manifest(folder)
    data = b""
    for name, entry in manifest["files"].items():
        with _open_file(folder, name, expected=entry["bytes"]) as file:
            digest = hashlib.sha256()
            if name == DATA:
                data = file.read(entry["bytes"])
                digest.update(data)
            else:  # it may be larger than memory
                while block := file.read(2**20):
                    digest.update(block)
        if digest.hexdigest() != entry["sha256"]:
            raise ArtifactError(f"{folder / name} is corrupted: its checksum is not the one in the manifest.")
    try:
        tensors, meta = safetensors.torch.load(data), decode(manifest["meta"], META_MARK, {})
    except Exception as error:  # a parser of foreign bytes may raise anything; callers are promised one exception
        raise ArtifactError(f"{folder} cannot be decoded: {error}") from error
    if not isinstance(meta, dict):
        raise ArtifactError(f"{folder / MANIFEST} is foreign: its metadata are not a dict.")
    return tensors, meta


def _read_manifest(folder: Path) -> dict[str, Any]:
    where = folder / MANIFEST
    with _open_file(folder, MANIFEST) as file:
        raw = file.read()
    try:
        manifest = json.loads(raw)
        canonical = _to_bytes(manifest)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is corrupted or foreign: it is not JSON as datastill writes it.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtifactError(f"{where} is foreign: it does not name the format {FORMAT!r}.")
    version = manifest.get("format_version")
    if type(version) is not int or version < 1:
        raise ArtifactError(f"{where} is corrupted: its format_version is {version!r}.")
    if version > VERSION:
        raise ArtifactError(
            f"{where} has format version {version}, this datastill reads up to {VERSION}; install a newer datastill."
        )
    digest = manifest.pop("sha256", None)
    if canonical != raw or digest != hashlib.sha256(_to_bytes(manifest)).hexdigest():
        raise ArtifactError(f"{where} is corrupted: its own checksum does not match.")
    # From here on the manifest is as somebody wrote it; that need not have been datastill.
    files, meta = manifest.get("files"), manifest.get("meta")
    if not isinstance(files, dict) or DATA not in files or not isinstance(meta, dict):
        raise ArtifactError(f"{where} is foreign: it does not list the files and metadata of a bundle.")
    for name, entry in files.items():
        if not _is_file_name(name) or name == MANIFEST:
            raise ArtifactError(f"{where} lists {name!r}, which is not a plain file name inside of the bundle.")
        size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        if type(size) is not int or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ArtifactError(f"{where} is foreign: its entry for {name!r} is not a sha256 and a size.")
    return manifest


@contextmanager
def _open_file(folder: Path, name: str, expected: int | None = None) -> Iterator[BinaryIO]:
    """A regular file in `folder` to be read, if it has the `expected` size."""
    path = folder / name
    try:
        # O_NOFOLLOW refuses links; O_NONBLOCK keeps a named pipe from blocking before it is found not to be a file.
        descriptor = os.open(path, os.O_RDONLY | _flag("O_NOFOLLOW") | _flag("O_NONBLOCK") | _flag("O_BINARY"))
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ArtifactError(f"{path} is not a regular file.")
            if expected is None and found.st_size > MAX_MANIFEST_BYTES:
                raise ArtifactError(f"{path} has {found.st_size} bytes, more than any manifest may have.")
            if expected is not None and found.st_size != expected:
                raise ArtifactError(
                    f"{path} has {found.st_size} bytes where the manifest says {expected}: it was cut or changed."
                )
            yield file
    except OSError as error:
        reason = "a link, which is refused" if path.is_symlink() else f"not readable ({error.strerror or error})"
        raise ArtifactError(f"{path} is {reason}; is {folder} a datastill bundle?") from error


def _serialise(tensors: Mapping[str, Tensor]) -> bytes:
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        require(isinstance(name, str) and name != "__metadata__", f"tensors: {name!r} cannot be the name of a tensor.")
        require(isinstance(tensor, Tensor), f"tensors[{name!r}] must be a tensor, got {type(tensor).__name__}.")
        require(
            tensor.layout == torch.strided and not tensor.is_quantized,
            f"tensors[{name!r}] must be dense, got layout {tensor.layout}; store its parts as tensors of their own.",
        )
        # safetensors refuses tensors that share memory, so each gets its own.
        plain[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    try:
        return safetensors.torch.save(plain)
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        kinds = sorted({str(tensor.dtype) for tensor in plain.values()})
        raise InputError(f"tensors have dtypes {', '.join(kinds)}, of which safetensors lacks {error}.") from error


def _check_replaceable(target: Path) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    manifest = target / MANIFEST
    head = b""
    if manifest.is_file():
        with manifest.open("rb") as file:
            head = file.read(256)
    require(
        json.dumps(FORMAT).encode() in head,
        f"{target} already exists and is not a datastill bundle, so it is not replaced; choose another path.",
    )
    try:
        own = {MANIFEST, *json.loads(manifest.read_bytes())["files"]}
    except (ValueError, KeyError, TypeError):  # damaged, so that nobody can say what else is in it
        own = {found.name for found in target.iterdir() if found.is_file()}
    foreign = sorted(found.name for found in target.iterdir() if found.name not in own)
    require(
        not foreign,
        f"{target} holds more than the bundle that would be replaced, {', '.join(foreign[:3])}: move that elsewhere, or choose "
        "another path.",
    )


def _write_file(path: Path, content: bytes | Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        if isinstance(content, bytes):
            digest.update(content)
            size = file.write(content)
        else:
            with content.open("rb") as source:
                while block := source.read(2**20):
                    digest.update(block)
                    size += file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "bytes": size}


def _to_bytes(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and _FILE_NAME.fullmatch(name) is not None and not name.endswith((".", " "))


def _sibling(target: Path, role: str) -> Path:
    return target.with_name(f".{target.name}.{role}")


def _identity(target: Path) -> tuple[int, int] | None:
    try:
        found = target.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open folders; its renames are journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flag(name: str) -> int:
    return getattr(os, name, 0)
