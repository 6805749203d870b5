"""A headless Chromium for tests of pages (Debian: `chromium`, `chromium-driver`)."""

import base64
import io
import json
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # how WebDriver marks an element


class Browser:
    """A headless Chromium, spoken to in the W3C WebDriver protocol."""

    def __init__(self, port: int):
        self.address = f"http://127.0.0.1:{port}"
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self.ask("POST", "/session", capabilities={"alwaysMatch": wanted})
        self.address += f"/session/{session['sessionId']}"

    def ask(self, method: str, path: str, **content: Any) -> Any:
        data = json.dumps(content).encode() if method == "POST" else None
        request = urllib.request.Request(
            self.address + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def run(self, script: str) -> Any:
        return self.ask("POST", "/execute/sync", script=script, args=[])

    def complaints(self) -> list[str]:
        """What the console has said since it was last asked."""
        return [entry["message"] for entry in self.ask("POST", "/se/log", type="browser")]

    def press(self, key: str) -> None:
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self.ask("POST", "/actions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def upload(self, path: Path) -> None:
        found = self.ask("POST", "/element", using="css selector", value="#file input[type=file]")
        self.ask("POST", f"/element/{found[ELEMENT]}/value", text=str(path))

    def errors(self) -> list[str]:
        """What the console has had to complain of since it was last asked."""
        found = self.ask("POST", "/se/log", type="browser")
        return [entry["message"] for entry in found if entry["level"] == "SEVERE"]

    def resize(self, width: int, height: int) -> None:
        """Gives the page's own area this size; a window is no narrower than 500 pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("POST", "/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=metrics)

    def screenshot(self) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(self.ask("GET", "/screenshot")))).convert("RGB")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"waited in vain for {what}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
