from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datastill.errors import InputError
from datastill.modalities.image_data import labelled_images
from datastill.modalities.image_files import read_folder, write_folder, write_grid


def pixels(n: int, channels: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, 6, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip_of_hard_labels(tmp_path: Path, channels: int) -> None:
    images, labels = pixels(12, channels), torch.arange(12) % 2
    write_folder(tmp_path / "out", images, labels, ("cat", "dog"))
    assert len(list((tmp_path / "out/dog").glob("*.png"))) == 6
    got, ids, names = read_folder(tmp_path / "out")
    assert torch.equal(got, images)
    assert torch.equal(ids, labels)
    assert names == ("cat", "dog")
    with Image.open(tmp_path / "out/dog/01.png") as image:  # an independent reading of one file
        shown = np.asarray(image)
    assert np.array_equal(shown, images[1, 0].numpy() if channels == 1 else images[1].permute(1, 2, 0).numpy())


def test_round_trip_of_soft_labels(tmp_path: Path) -> None:
    labels = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    write_folder(tmp_path / "out", pixels(2, 1), labels, ("a/b", "b", "c"))
    with (tmp_path / "out/labels.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["file", "label", "a/b", "b", "c"]
    assert rows[1][:2] == ["c/0.png", "c"]
    assert rows[2][:2] == ["a_b/1.png", "a/b"]
    assert torch.equal(read_folder(tmp_path / "out")[1], labels)


def test_plain_folder_in_alphabetical_order(tmp_path: Path) -> None:
    for name, value in (("b/1.png", 1), ("a/2.png", 2), ("a/x/0.jpg", 3), ("b/notes.txt", 0)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            (tmp_path / name).write_text("no image")
        else:
            Image.fromarray(np.full((3, 3), value, np.uint8)).save(tmp_path / name)
    images, labels, names = read_folder(tmp_path)
    assert images[:, 0, 0, 0].tolist() == [2, 3, 1]
    assert labels.tolist() == [0, 0, 1]
    assert names == ("a", "b")


def test_mixed_grey_and_colour_become_colour(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((3, 3), 7, np.uint8)).save(tmp_path / "a/0.png")
    Image.fromarray(np.full((3, 3, 3), 9, np.uint8)).save(tmp_path / "a/1.png")
    assert read_folder(tmp_path)[0][:, :, 0, 0].tolist() == [[7, 7, 7], [9, 9, 9]]


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image folder"):
        read_folder(tmp_path / "absent")
    with pytest.raises(InputError, match="no subfolders"):
        read_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        read_folder(tmp_path)
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "a/0.png")
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "a/1.png")
    with pytest.raises(InputError, match=r"1\.png is 4x3, 0\.png is 3x3"):
        read_folder(tmp_path)
    (tmp_path / "a/1.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match="cannot be read"):
        read_folder(tmp_path)
    (tmp_path / "labels.csv").write_text("file,label,a\na/0.png,a,x\n")
    with pytest.raises(InputError, match="cannot be read"):
        read_folder(tmp_path)
    (tmp_path / "labels.csv").write_text("nothing")
    with pytest.raises(InputError, match="header"):
        read_folder(tmp_path)


def test_writing_refuses_what_it_would_spoil(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("precious")
    with pytest.raises(InputError, match="not an empty folder"):
        write_folder(tmp_path / "full", pixels(1, 1), torch.tensor([0]), ("a",))
    with pytest.raises(InputError, match="1 or 3 channels"):
        write_folder(tmp_path / "new", pixels(1, 2), torch.tensor([0]), ("a",))
    with pytest.raises(InputError, match="same folder name"):
        write_folder(tmp_path / "new", pixels(1, 1), torch.tensor([0]), ("a/b", "a:b"))


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_every_image_in_its_place(tmp_path: Path, channels: int) -> None:
    images = pixels(5, channels)
    write_grid(tmp_path / "deep/grid.png", images, columns=3, zoom=2)
    with Image.open(tmp_path / "deep/grid.png") as image:
        sheet = np.asarray(image).reshape(2 * 14 - 2, 3 * 10 - 2, channels)
    for number, image in enumerate(images):
        top, left = number // 3 * 14, number % 3 * 10
        assert np.array_equal(sheet[top : top + 12 : 2, left : left + 8 : 2], image.permute(1, 2, 0).numpy())
    assert (sheet[14:, 20:] == 255).all()  # no sixth image


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGBA", 3), ("CMYK", 3)])
def test_files_and_datasets_have_the_same_pixels(tmp_path: Path, mode: str, channels: int) -> None:
    made = [Image.fromarray(image[0].numpy()).convert(mode) for image in pixels(4, 1)]
    for number, image in enumerate(made):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        image.save(tmp_path / str(number % 2) / f"{number}.{'tif' if mode == 'CMYK' else 'png'}")
    found = read_folder(tmp_path)[0]
    given = labelled_images([(made[number], number % 2) for number in (0, 2, 1, 3)]).images
    assert found.shape[1] == channels
    assert torch.equal(found, given)


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32"])
def test_pixels_of_more_than_eight_bits_are_refused_and_not_cut_off(tmp_path: Path, kind: str) -> None:
    image = Image.fromarray((np.arange(24).reshape(6, 4) * 2000).astype(kind))
    with pytest.raises(InputError, match=r"data\[0\] has pixels of more than 8 bits .* rescale them to 0\.\.255"):
        labelled_images([(image, 0)])
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "deep.tif")
    with pytest.raises(InputError, match=r"deep.tif' has pixels of more than 8 bits"):
        read_folder(tmp_path)
