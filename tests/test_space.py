"""The Space: its function, and its page in a real headless Chromium (Debian: `chromium`, `chromium-driver`)."""

import importlib.util
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from browser import Browser, free_port, wait_for
from PIL import Image
from tiny_models import tiny_pipeline

pytest.importorskip("gradio", reason="needs gradio: run `make test-space`")
SPACE = Path(__file__).resolve().parents[1] / "space"


def load_app() -> Any:
    """The module of the page."""
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its data classes are looked up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def app() -> Any:
    return load_app()


@pytest.fixture(scope="module")
def page(app) -> Any:
    """The page with the model that it is shipped with."""
    return app.Page(str(SPACE / "model"))


def outlined(picture: Image.Image) -> np.ndarray:
    return (np.asarray(picture) == (255, 0, 255)).all(-1)


def test_what_is_shown_is_what_the_pipeline_gives(app, page):
    path = str(SPACE / "examples" / "scratch.png")
    found, verdict, bar, (image, drawn) = page.detect(path, page.threshold, app.MAP)
    out, known = page.pipe(path), page.known
    score = float(out.scores[0])
    assert verdict.startswith(f"### Abnormal: score {score:.2f}, threshold {page.threshold:.2f}")
    share = int(100 * (known.good < score).mean())
    assert f"{share}\u00a0% of the {len(known.good)} training images that look good score lower than this" in verdict
    assert f"outline holds {100 * out.masks[0].mean():.1f}\u00a0% of the image" in verdict
    assert f"score {score:.2f}" in bar and f"threshold {page.threshold:.2f}" in bar
    assert image.size == drawn.size == (576, 576)  # of 192, for people to look at
    mask = out.masks[0].repeat(3, 0).repeat(3, 1)
    assert outlined(drawn).any() and not (outlined(drawn) & ~mask).any()
    *_, (_, expected) = page.show(found, page.threshold, app.EXPECTED)
    left = ~outlined(expected)
    np.testing.assert_array_equal(np.asarray(expected)[left], np.asarray(found.expected)[left])


def test_another_threshold_moves_verdict_and_outline_without_scoring(app, page, monkeypatch):
    found, verdict, _, (_, drawn) = page.detect(str(SPACE / "examples" / "no_screw.png"), page.threshold, app.MAP)
    assert verdict.startswith("### Normal") and not outlined(drawn).any()
    monkeypatch.setattr(page, "pipe", None)
    lower, _, (_, drawn) = page.show(found, 4.0, app.MAP)
    assert lower.startswith("### Abnormal") and "highest at the upper left corner" in lower
    inside = np.argwhere(outlined(drawn))
    assert len(inside) and (inside < 576 / 2).all()  # the screw that is not there
    more = page.show(found, 1.0, app.MAP)[2][1]
    assert np.ptp(np.argwhere(outlined(more)), axis=0).prod() > np.ptp(inside, axis=0).prod()
    alarms = [float(re.search(r"about ([\d.]+)\u00a0% of good", text)[1]) for text in (verdict, lower)]
    assert alarms == [round(100 * page.known.false_alarms(limit), 1) for limit in (page.threshold, 4.0)]


def test_the_map_of_a_good_image_can_be_seen(app, page):
    found, verdict, _, (_, drawn) = page.detect(str(SPACE / "examples" / "good.png"), page.threshold, app.MAP)
    assert verdict.startswith("### Normal") and "the outline holds nothing" in verdict
    at_most, at_least = (
        np.unravel_index(index, found.values.shape) for index in (found.values.argmax(), found.values.argmin())
    )
    colours = [np.asarray(app.COLOURS(page.share(found.values[at]))[:3]) for at in (at_most, at_least)]
    assert np.abs(colours[0] - colours[1]).max() > 0.1
    pixels = np.asarray(drawn, dtype=int)
    assert (np.ptp(pixels, axis=-1) > 5).all()  # every pixel has a colour, where nothing is abnormal too


def test_a_large_image_is_shown_smaller_and_its_smallest_defect_kept(app, page, monkeypatch, tmp_path):
    values = np.zeros((2000, 3000), dtype=np.float32)
    values[1834, 2345] = page.highest
    picture = Image.new("RGB", (3000, 2000))
    picture.save(tmp_path / "large.png")
    out = SimpleNamespace(anomaly_maps=[values], scores=[page.highest], healed_images=[picture])
    monkeypatch.setattr(page, "pipe", lambda image: out)
    found, verdict, _, (_, drawn) = page.detect(str(tmp_path / "large.png"), page.threshold, app.MAP)
    assert found.values.shape == (667, 1000) and found.values.max() == page.highest and outlined(drawn).sum() == 1
    assert "highest at the lower right corner" in verdict


def test_a_model_on_pixels_without_training_scores_is_shown_too(app, tmp_path):
    tiny_pipeline(score_threshold=3.0).save_pretrained(tmp_path)
    page = app.Page(str(tmp_path))
    assert page.examples == [] and page.card == ""
    _, verdict, *_ = page.detect(str(SPACE / "examples" / "good.png"), 3.0, app.EXPECTED)
    out = page.pipe(str(SPACE / "examples" / "good.png"))
    assert f"score {float(out.scores[0]):.3g}"[:9] in verdict and "training images" not in verdict


def huge_png() -> bytes:
    """A few hundred bytes that claim 40,000 x 40,000 pixels."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "png")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", 40_000, 40_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("huge.png", huge_png(), "exceeds limit of 50000000 pixels"),
        ("empty.png", b"", "the file is empty"),
        ("text.png", b"not an image", "not in an image format"),
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "not in an image format"),
        ("cut.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "cannot read image cut.png"),
        (None, b"", "Drop an image, or take an example"),
    ],
)
def test_a_bad_file_gives_a_line_that_says_why(app, page, tmp_path, name, content, said):
    path = None
    if name is not None:
        path = str(tmp_path / name)
        Path(path).write_bytes(content)
    found, verdict, bar, pictures = page.detect(path, page.threshold, app.MAP)
    assert said in verdict and str(tmp_path) not in verdict and (found, bar, pictures) == (None, "", None)


def words_of(blocks: Any) -> str:
    return " ".join(str(component["props"].get("value")) for component in blocks.config["components"])


def test_a_model_that_cannot_be_loaded_is_said_on_the_page(app, tmp_path):
    assert "The model cannot be loaded" in words_of(app.build(str(tmp_path / "nothing")))
    tiny_pipeline().save_pretrained(tmp_path)
    assert "has no threshold" in words_of(app.build(str(tmp_path)))


def test_the_page_has_card_and_limits(page):
    words = words_of(page.build())
    assert "Weights trained on them are free" in words and "When not to use it" in words and "model-index" not in words


def test_what_visitors_send_is_bounded_and_not_kept(app, monkeypatch):
    """One image at a time: examples and file have a queue each, whose limits are those of `default_concurrency_limit`."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(app.gr.Blocks, "launch", lambda page, **options: asked.update(options, page=page))
    app.serve(str(SPACE / "model"))
    assert asked["max_file_size"] == 50 * 2**20
    page = asked["page"]
    assert page._queue.max_size == 16 and page._queue.default_concurrency_limit == 1
    assert page.delete_cache == (600, 3000) and asked["run_history"] is False and not page.analytics_enabled
    (kept,) = (block for block in page.blocks.values() if isinstance(block, app.gr.State))
    assert kept.time_to_live == 3000


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    """Chromium with the page of the Space open, as it is shipped."""
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    page, port = free_port(), free_port()
    environment = os.environ | {"GRADIO_SERVER_PORT": str(page), "GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
    environment.pop("ILTM_MODEL", None)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [
        subprocess.Popen([sys.executable, "app.py"], cwd=SPACE, env=environment, **quiet),
        subprocess.Popen([driver, f"--port={port}"], **quiet),
    ]
    chromium = None
    try:
        wait_for(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/status").status == 200, "chromedriver")
        wait_for(lambda: urllib.request.urlopen(f"http://127.0.0.1:{page}").status == 200, "the Space")
        chromium = Browser(port)
        chromium.resize(1200, 1200)
        chromium.ask("POST", "/url", url=f"http://127.0.0.1:{page}")
        wait_for(lambda: chromium.run("return document.querySelector('#file input[type=file]') !== null"), "the page")
        yield chromium
    finally:
        if chromium is not None:
            chromium.ask("DELETE", "")
        for process in processes:
            process.terminate()
            process.wait(timeout=30)


MOVE = """const slider = document.querySelector('#threshold input[type=range]');
slider.value = arguments[0]; slider.dispatchEvent(new Event('input', {bubbles: true}));"""
RIGHT = "return document.querySelectorAll('#pictures img')[1]?.src"


def test_page_in_a_real_browser(browser, tmp_path):
    """The model as it is shipped: an example, a file, the slider, the healed image, a broken file, two widths, dark."""

    def verdict() -> str:
        return browser.run("return document.querySelector('#verdict').innerText")

    def press(selector: str) -> None:
        browser.run(f"document.querySelector({selector!r}).click()")

    shown = Path(os.environ.get("ILTM_SCREENSHOTS") or tmp_path)
    assert "Drop an image" in verdict()
    count = "return [...document.querySelectorAll('#examples img')].filter(i => i.naturalWidth && i.alt).length"
    wait_for(lambda: browser.run(count) == 6, "pictures of the examples, with words")
    press("#examples img[alt='no screw']")
    wait_for(lambda: verdict().startswith("Normal"), "a verdict on an example")
    wait_for(lambda: browser.run(RIGHT), "its pictures")
    before = browser.run(RIGHT)
    browser.run(MOVE.replace("arguments[0]", "4"))
    wait_for(lambda: verdict().startswith("Abnormal: score 6.5"), "another verdict at a lower threshold")
    wait_for(lambda: browser.run(RIGHT) != before, "its outline")
    press("#seen input[value='what the model expected']")
    outlined = browser.run(RIGHT)
    wait_for(lambda: browser.run(RIGHT) != outlined, "the healed image")
    words = "return [...document.querySelectorAll('#pictures img')].every(image => image.alt)"
    wait_for(lambda: browser.run(words), "words for both pictures")

    for width in (400, 1200):
        browser.resize(width, 1600)
        for dark in ("remove", "add"):
            browser.run(f"document.body.classList.{dark}('dark'); window.scrollTo(0, 0)")
            time.sleep(1)  # colours change slowly
            picture = browser.screenshot()
            picture.save(shown / f"space_{width}_{dark}.png")
            assert np.asarray(picture).std() > 10  # not an empty page
            assert browser.run("return document.documentElement.scrollWidth") <= width  # nothing beyond the right edge
    assert browser.errors() == []

    browser.ask("POST", "/refresh")
    wait_for(lambda: "Drop an image" in verdict(), "the page again")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    browser.upload(tmp_path / "broken.png")
    wait_for(lambda: "This file cannot be used" in verdict(), "a message")
    assert "broken.png" in verdict() and not browser.run(RIGHT)

    browser.ask("POST", "/refresh")
    wait_for(lambda: "Drop an image" in verdict(), "the page again")
    browser.upload(SPACE / "examples" / "scratch.png")
    wait_for(lambda: verdict().startswith("Abnormal"), "a verdict on a file")
    assert browser.errors() == []
