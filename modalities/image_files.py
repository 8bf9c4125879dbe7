"""Images in files: folders with one subfolder a class, and grids of PNG."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datastill.errors import InputError, load_extra, require

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_LABELS = "labels.csv"


def read_folder(path: str | Path) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """All images (n, c, h, w) of a folder with one subfolder a class as uint8, their labels, and the class names.

    Classes and files are in alphabetical order. Grey images stay grey if all are; else all become RGB. Where the folder
    has the `labels.csv` that `write_folder` writes, it gives the files, their order and their labels, which may be soft.

    Raises:
        InputError: if there is no such folder, no image in it, images differ in size, or one has more than 8 bits a pixel.
    """
    root = Path(path)
    require(root.is_dir(), f"There is no image folder {str(root)!r}.")
    if (root / _LABELS).is_file():
        files, labels, names = _read_labels(root)
    else:
        names = tuple(
            sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        )
        require(
            len(names) > 0,
            f"The image folder {str(root)!r} has no subfolders: it needs one for each class, named after it.",
        )
        files, numbers = [], []
        for number, name in enumerate(names):
            found = sorted(file for file in (root / name).rglob("*") if file.suffix.lower() in SUFFIXES)
            require(len(found) > 0, f"The class folder {str(root / name)!r} holds no image ({', '.join(SUFFIXES)}).")
            files += found
            numbers += [number] * len(found)
        labels = torch.tensor(numbers)
    return _read_files(files), labels, names


def eight_bits(image: Any, name: str) -> np.ndarray:
    """The pixels of a PIL image, uint8: (h, w) of a grey one, else (h, w, 3); transparency is dropped.

    Raises:
        InputError: for more than 8 bits a pixel and channel, which Pillow would cut off.
    """
    require(
        image.mode[:1] not in ("I", "F"),
        f"{name} has pixels of more than 8 bits (Pillow's mode {image.mode!r}), which would be cut off: rescale them to 0..255, "
        "or give the images as an array of floats.",
    )
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _read_labels(root: Path) -> tuple[list[Path], Tensor, tuple[str, ...]]:
    with (root / _LABELS).open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    if len(rows) < 2 or rows[0][:2] != ["file", "label"]:
        raise InputError(f"{str(root / _LABELS)!r} must begin with the header file,label and name at least one image.")
    names = tuple(rows[0][2:])
    try:
        files = [root / row[0] for row in rows[1:]]
        if names:
            weights = [[float(cell) for cell in row[2:]] for row in rows[1:]]
            require(all(len(row) == len(names) for row in weights), "a row is too short")
            labels = torch.tensor(weights)
            hard = bool(((labels == 0) | (labels == 1)).all())
            return files, labels.argmax(1) if hard else labels, names
        found = [row[1] for row in rows[1:]]
    except (ValueError, IndexError) as error:
        raise InputError(f"{str(root / _LABELS)!r} cannot be read: {error}.") from error
    names = tuple(sorted(set(found)))
    return files, torch.tensor([names.index(name) for name in found]), names


def _read_files(files: list[Path]) -> Tensor:
    pillow = load_extra("PIL.Image", "images")
    opened = []
    for file in files:
        try:
            with pillow.open(file) as image:
                opened.append(eight_bits(image, f"The image {str(file)!r}"))
        except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken files
            raise InputError(f"The image {str(file)!r} cannot be read: {error}.") from error
    colour = any(image.ndim == 3 for image in opened)
    first = opened[0].shape[:2]
    for file, image in zip(files, opened):
        require(
            image.shape[:2] == first,
            f"All images must have one size: {file.name} is {image.shape[1]}x{image.shape[0]}, {files[0].name} is "
            f"{first[1]}x{first[0]}. Resize them, or give a Dataset with a transform that does.",
        )
    if not colour:
        return torch.from_numpy(np.stack(opened)).unsqueeze(1)
    stacked = np.stack([image if image.ndim == 3 else np.repeat(image[:, :, None], 3, 2) for image in opened])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def write_folder(path: str | Path, images: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> None:
    """Write PNG files `class/0000.png` and `labels.csv` with the file, its class and the weight of every class.

    Args:
        path: a folder that does not exist yet, or is empty.
        images: (n, 1 or 3, h, w) uint8.
        labels: (n,) class ids, or (n, classes) distributions; a file goes to the folder of its most probable class.
        class_names: of all classes.
    """
    pillow = load_extra("PIL.Image", "images")
    root = Path(path)
    require(
        not root.exists() or (root.is_dir() and not any(root.iterdir())),
        f"{str(root)!r} exists and is not an empty folder: choose another place for the images.",
    )
    arrays = _as_arrays(images)
    weights = labels if labels.is_floating_point() else torch.nn.functional.one_hot(labels, len(class_names))
    folders = [_folder_name(name) for name in class_names]
    require(len(set(folders)) == len(folders), "Two class names give the same folder name: rename the classes.")
    digits = len(str(len(images) - 1))
    rows = [["file", "label", *class_names]]
    for number, (array, row) in enumerate(zip(arrays, weights.tolist())):
        label = row.index(max(row))
        file = Path(folders[label]) / f"{number:0{digits}}.png"
        (root / file.parent).mkdir(parents=True, exist_ok=True)
        pillow.fromarray(array).save(root / file)
        rows.append([file.as_posix(), class_names[label], *(repr(weight) for weight in row)])
    with (root / _LABELS).open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def _folder_name(name: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in name).strip(" .")
    return kept or "class"


def write_grid(path: str | Path, images: Tensor, *, columns: int, zoom: int | None = None) -> None:
    """Write one PNG of all images, row by row, with a white line between them.

    Args:
        path: of the file.
        images: (n, 1 or 3, h, w) uint8.
        columns: images in a row.
        zoom: side of the square that a pixel becomes; None makes an image at least 64 pixels high.
    """
    pillow = load_extra("PIL.Image", "images")
    zoom = zoom or max(1, -(-64 // images.shape[2]))
    large = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    count, channels, height, width = large.shape
    rows = -(-count // columns)
    gap = 2
    sheet = torch.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8)
    for number, image in enumerate(large):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pillow.fromarray(_as_arrays(sheet[None])[0]).save(path, format="PNG")


def _as_arrays(images: Tensor) -> list[np.ndarray]:
    require(
        images.shape[1] in (1, 3),
        f"PNG files hold images of 1 or 3 channels, not {images.shape[1]}: choose channels before writing.",
    )
    return [
        image.squeeze(0).numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy() for image in images
    ]
