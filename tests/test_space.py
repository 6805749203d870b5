"""The Space: its function, and its page in a real headless Chromium (Debian: `chromium`, `chromium-driver`)."""

import importlib.util
import io
import os
import shutil
import struct
import subprocess
import sys
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, free_port, wait_for
from PIL import Image
from tiny_models import tiny_pipeline

from iltm_anomaly import ILTMAnomalyPipeline

pytest.importorskip("gradio", reason="needs gradio: run `make test-space`")
SPACE = Path(__file__).resolve().parents[1] / "space"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("space") / "model"
    tiny_pipeline(score_threshold=3.0).save_pretrained(folder)
    return folder


@pytest.fixture
def app(model, monkeypatch) -> Any:
    monkeypatch.setenv("ILTM_MODEL", str(model))
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def silent(*arguments: Any, **options: Any) -> None:
    """In place of Gradio's progress bar."""


def test_what_is_shown_is_what_the_pipeline_gives(app, model):
    path = str(sorted((SPACE / "examples").glob("*.png"))[0])
    verdict, image, abnormality, healed, likelihoods = app.detect(path, 3, silent)
    out = ILTMAnomalyPipeline.from_pretrained(model)(path, num_samples=3)
    assert f"Score {float(out.scores[0]):.2f}, threshold 3.00" in verdict
    assert ("abnormal" in verdict) == bool(out.masks[0].any())
    assert image.size == abnormality.size == healed.size == (384, 384)  # of 96, for people to look at
    np.testing.assert_array_equal(np.asarray(healed)[::4, ::4], np.asarray(out.healed_images[0]))
    assert len(np.unique(np.asarray(likelihoods).reshape(-1, 3), axis=0)) <= 16
    lowest, highest = out.token_log_likelihoods.min(), out.token_log_likelihoods.max()
    assert f"{lowest:.1f} (black) to {highest:.1f}; {int(out.resampled_tokens.sum())} of 16 healed" in verdict


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
        (None, b"", "Drop an image first"),
    ],
)
def test_a_bad_file_gives_a_line_that_says_why(app, tmp_path, name, content, said):
    path = None
    if name is not None:
        path = str(tmp_path / name)
        Path(path).write_bytes(content)
    verdict, *pictures = app.detect(path, 3, silent)
    assert said in verdict and str(tmp_path) not in verdict and pictures == [None] * 4


def test_a_model_that_cannot_be_loaded_is_said_too(app, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "MODEL", str(tmp_path / "nothing"))
    path = str(sorted((SPACE / "examples").glob("*.png"))[0])
    verdict, *_ = app.detect(path, 3, silent)
    assert "The model cannot be loaded" in verdict and "ILTM_MODEL" in verdict


def test_files_and_queue_are_bounded(app, monkeypatch):
    """One image at a time: examples, button and file have a queue each, whose limits are those of `default_concurrency_limit`."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(app.gr.Blocks, "launch", lambda page, **options: asked.update(options, page=page))
    app.serve()
    assert asked["max_file_size"] == 50 * 2**20
    page = asked["page"]
    assert page._queue.max_size == 16 and page._queue.default_concurrency_limit == 1


@pytest.fixture
def browser(model, tmp_path) -> Iterator[Browser]:
    """Chromium with the page of the Space open."""
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    page, port = free_port(), free_port()
    environment = os.environ | {
        "ILTM_MODEL": str(model),
        "GRADIO_SERVER_PORT": str(page),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(tmp_path / "gradio"),
    }
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
        chromium.ask("POST", "/url", url=f"http://127.0.0.1:{page}")
        wait_for(lambda: chromium.run("return document.querySelector('#file input[type=file]') !== null"), "the page")
        yield chromium
    finally:
        if chromium is not None:
            chromium.ask("DELETE", "")
        for process in processes:
            process.terminate()
            process.wait(timeout=30)


def test_page_in_a_real_browser(browser, tmp_path):
    def verdict() -> str:
        return browser.run("return document.querySelector('#verdict').innerText")

    def sizes() -> list[int]:
        script = "return [0,1,2,3].map(i => document.querySelector(`#picture${i} img`)?.naturalWidth ?? 0)"
        return browser.run(script)

    assert "Drop an image" in verdict()
    examples = sorted((SPACE / "examples").glob("*.png"))
    count = "return [...document.querySelectorAll('#examples img')].filter(i => i.naturalWidth).length"
    wait_for(lambda: browser.run(count) == len(examples), "pictures of the examples")
    browser.run("document.querySelector('#examples img').click()")
    wait_for(lambda: "Score" in verdict(), "a score of an example")
    wait_for(lambda: sizes() == [384, 384, 384, 320], "its pictures")
    first = verdict()

    browser.ask("POST", "/refresh")
    wait_for(lambda: "Drop an image" in verdict(), "the page again")
    browser.upload(examples[0])
    wait_for(lambda: verdict() == first, "the same score of the same image as a file")
    wait_for(lambda: sizes() == [384, 384, 384, 320], "four pictures")
    browser.run("window.scrollTo(0, 0)")
    picture = browser.screenshot()
    picture.save(os.environ.get("ILTM_SCREENSHOT") or tmp_path / "space.png")
    assert np.asarray(picture).std() > 10  # not an empty page

    browser.ask("POST", "/refresh")
    wait_for(lambda: "Drop an image" in verdict(), "the page again")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    browser.upload(tmp_path / "broken.png")
    wait_for(lambda: "This file cannot be used" in verdict(), "a message")
    assert "broken.png" in verdict() and sizes() == [0, 0, 0, 0]
