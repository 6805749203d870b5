"""Image files that ask for more than a picture."""

import os
import runpy
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from iltm_anomaly import metrics
from iltm_anomaly.data.images import IMAGE_SUFFIXES, ImageReadError, find_images, read_image
from iltm_anomaly.data.mvtec import load_mvtec
from iltm_anomaly.data.schema import normalise_mask


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """What Ghostscript was asked to draw."""
    found: list[str] = []

    def draw(*arguments, **options):
        found.append("started")
        return Image.new("RGB", (8, 8)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", draw)
    return found


@pytest.fixture
def script(tmp_path) -> Path:
    """A program in PostScript, named like a picture."""
    Image.new("RGB", (8, 8)).save(tmp_path / "part.png", "EPS")
    return tmp_path / "part.png"


def test_no_file_starts_a_program(script, started):
    for read in (read_image, normalise_mask, lambda path: normalise_mask(path.read_bytes())):
        with pytest.raises(ImageReadError, match="not in an image format that is read"):
            read(script)
    assert not started


def test_the_page_of_the_metric_starts_no_program(script, started):
    # from its file: imported by name, its folder would take the place of the function `metrics.aupro`
    app = runpy.run_path(str(Path(metrics.__file__).parent / "aupro" / "app.py"))
    text, figure = app["score"]([str(script)], [str(script)])
    assert text.startswith("Error: ") and figure is None and not started


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_that_a_folder_is_searched_for_is_read(tmp_path, suffix):
    Image.new("1" if suffix == ".pbm" else "L", (8, 6), 1).save(tmp_path / f"part{suffix}")
    (path,) = find_images(tmp_path)
    assert read_image(path).size == (8, 6)


def test_a_picture_with_a_preview_beside_it_is_read(tmp_path):
    first = Image.new("RGB", (8, 6), "red")
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (4, 3))])
    assert read_image(tmp_path / "a.jpg").size == (8, 6)


def test_masks_of_several_parts_are_read_like_any_other(tmp_path):
    for name in ("train/good/0", "test/good/0", "test/cut/0", "ground_truth/cut/0/a", "ground_truth/cut/0/b"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 6), 255).save(path)
    Image.new("L", (8, 6), 3).save(tmp_path / "ground_truth/cut/0/b.png")  # classes: stored anew
    assert np.asarray(load_mvtec(tmp_path)["test"][0]["mask"]).all()


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    side = 13_300  # of one bit a pixel, so that all of it is a few kilobytes
    header = side.to_bytes(4) * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes((side // 8 + 2) * side))
    path = tmp_path / "large.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    assert path.stat().st_size < 30_000
    with pytest.raises(ImageReadError, match=r"large\.png: it has 13300 x 13300 pixels, and 100,000,000 are the most"):
        read_image(path)


def test_what_is_no_file_is_said_and_not_waited_for(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    for name, reason in (("link", "a link to nothing"), ("pipe", "a pipe"), ("round", "symbolic links")):
        with pytest.raises(ImageReadError, match=f"{name}.png: .*{reason}"):
            read_image(tmp_path / f"{name}.png")
    assert len(find_images(tmp_path)) == len(find_images(tmp_path, recursive=True)) == 3
