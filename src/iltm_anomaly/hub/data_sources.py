"""What a model card must say about the data sets that results of this project were measured on."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from iltm_anomaly.data import HUB_ID

CONTAMINATION = 0.3  # of the training images of `iltm-anomaly demo`


@dataclass(frozen=True)
class DataSource:
    """What a card must say about a data set.

    Args:
        name: as its authors call it.
        text: what it is, and what of it this project's results used.
        licence: as the Hub abbreviates it; "other" where there is no such abbreviation.
        terms: the licence in words.
        citation: of its authors.
        hub_id: its repository on the Hub, if the results are comparable with others on it.
    """

    name: str
    text: str
    licence: str
    terms: str
    citation: str
    hub_id: str | None = None


# By the end of the path that the results name, with or without a category after it.
DATA_SOURCES = {
    key: DataSource(**fields)
    for key, fields in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")).items()
}
DEMO = DATA_SOURCES["data/part"]


def data_source(path: str, recipe: str | None = None) -> DataSource:
    """What is known of the data set that a result names by its `path`; of an unknown one, only its `public_name`. Somebody's own
    images may lie in a folder named like the demo's: if the name of another `recipe` is known, they are not the demo's."""
    parts = Path(path).parts
    for key in ("/".join(parts[-2:]), *parts[-1:], *parts[-2:-1]):
        source = DATA_SOURCES.get(key)
        if source is not None and (source is not DEMO or recipe in (None, "demo")):
            return source
    name = public_name(path)
    text = f"{in_markdown(name)}. Its maker should say here what it holds and how it was collected."
    return DataSource(name, text, "other", "not stated", "", name if "/" in name else None)


def in_markdown(text: str) -> str:
    """Text of one line that Markdown shows as it is: names of folders are no formatting, no links and no HTML."""
    return re.sub(r"[\\`*_\[\]<>&|~#!$]", r"\\\g<0>", without_control(text))


def without_control(text: str) -> str:
    """Text with a space in place of each character that ends a line or shows nothing."""
    return "".join(character if character.isprintable() else " " for character in text)


def as_path(data: str) -> str:
    """What a user has given as data, with ./ before a folder whose name could also be a Hub id: later, on another machine, nobody
    can tell which of the two it was. "." and the like become absolute, so that they name something."""
    if Path(data).name in ("", ".."):
        return str(Path(data).resolve())
    is_folder = Path(data).expanduser().is_dir()
    return f"./{data}" if is_folder and data[:1] not in "./~" else data


def public_name(path: str) -> str:
    """As much of a path as may be published, because names of folders may tell of people and customers: a Hub id, the end of a
    path that `DATA_SOURCES` knows, or the last part."""
    plain = Path(path.replace("\\", "/"))  # a run may have been on Windows
    parts = plain.parts
    if "/".join(parts[-2:]) in DATA_SOURCES or "".join(parts[-2:-1]) in DATA_SOURCES:
        return "/".join(parts[-2:])
    return path if HUB_ID.fullmatch(path) and not Path(path).exists() else plain.name
