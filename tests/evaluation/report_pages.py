"""Pages of `iltm-anomaly report`, read as elements, and what they are made of."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from iltm_anomaly.evaluation.rows import COLUMNS

HOSTILE = ["<img src=x onerror=alert(1)>.png", "a</script><script>alert(2)</script>/{{ 7 * 7 }}'\"&.png"]
EMPTY = {"meta", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """A page as its elements, each with its attributes, what it lies in, and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[dict] = []
        self.open: list[dict] = []
        self.feed(self.source)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "inside": [one["tag"] for one in self.open], "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in EMPTY:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag: str, **attributes: str) -> list[dict]:
        wanted = {**attributes, "tag": tag}
        return [one for one in self.elements if wanted.items() <= one.items()]

    @property
    def data(self) -> dict:
        return json.loads(self.all("script", id="data")[0]["text"])

    def cards(self) -> list[dict]:
        return [one for one in self.all("li") if one.get("class", "").startswith("card")]


def write_results(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "results.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def some_image(path: Path, seed: int = 0, size: tuple[int, int] = (48, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.random.default_rng(seed).integers(0, 256, 3)
    Image.new("RGB", size, tuple(map(int, colour))).save(path)
    return path
