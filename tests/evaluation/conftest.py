"""A browser for the pages."""

import shutil
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest
from browser import Browser, free_port, wait_for


@pytest.fixture
def browser() -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    port = free_port()
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    chromium = None
    try:
        wait_for(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/status").status == 200, "chromedriver")
        chromium = Browser(port)
        yield chromium
    finally:
        if chromium is not None:
            chromium.ask("DELETE", "")
        process.terminate()
        process.wait(timeout=30)
