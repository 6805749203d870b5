"""What README and docs/ say: commands that exist, code that compiles, files that are there, a picture of today's imports."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from iltm_anomaly.cli import build_parser
from iltm_anomaly.hub.cards import load_results, rounds_table
from iltm_anomaly.recipes.reading import preset_names
from iltm_anomaly.recipes.recipe import load_recipe

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "iltm_anomaly"
README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
# Recipes that a page tells its reader to write first.
WRITTEN_BY_READERS = {"mine.yaml"}

# by its path: on sys.path, scripts/evaluate.py would hide the library of that name
_SPEC = importlib.util.spec_from_file_location("architecture", REPOSITORY / "scripts" / "architecture.py")
assert _SPEC is not None and _SPEC.loader is not None
architecture = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(architecture)


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of the languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def commands(page: Path) -> list[list[str]]:
    """The words of every `iltm-anomaly` command in a page's blocks, with a value in the place of each `$variable`."""
    found = []
    for block in blocks(page, "bash", "sh"):
        lines = re.sub(r"\\\n", " ", block).splitlines()
        for line in lines:
            for part in re.split(r"[;&|]+", re.sub(r"\$\w+", "0", line)):
                words = shlex.split(part, comments=True)
                words = words[1:] if words[:1] == ["do"] else words
                if words[:1] == ["iltm-anomaly"]:
                    found.append(words[1:])
    return found


EVERY_COMMAND = [pytest.param(words, id=" ".join(words)) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize("words", EVERY_COMMAND)
def test_every_command_is_one_that_the_command_line_takes(words):
    arguments = build_parser().parse_args(words)
    preset = getattr(arguments, "preset", None)
    if preset is not None and preset not in WRITTEN_BY_READERS:
        assert preset in preset_names()
        load_recipe(preset, getattr(arguments, "overrides", ()))


def test_the_commands_of_the_readme_are_all_seen():
    seen = {words[0] for words in commands(README)}
    assert seen == {"train", "evaluate", "detect", "push"} and len(EVERY_COMMAND) > 25


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_compile(page):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


def test_targets_of_make_that_are_named_exist():
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`make ([a-z-]+)`", text) + re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)
        assert set(named) <= set(targets), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not re.match(r"https?://|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_source_that_are_named_exist(page):
    for name in re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|yaml))`", page.read_text(encoding="utf-8")):
        places = (REPOSITORY / name, SOURCE / name, SOURCE / "recipes" / name)
        assert name in ("recipe.yaml", *WRITTEN_BY_READERS) or any(place.exists() for place in places), name


def test_the_readme_fits_on_a_screen_or_two():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    results = text.split("## Results\n")[1].split("\n## ")[0]
    rows = [line for line in results.splitlines() if line.startswith("|")]
    assert 2 < len(rows) <= 2 + 8


def test_the_picture_of_the_packages_is_of_todays_imports():
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.draw(), "python scripts/architecture.py"


def test_every_part_of_the_source_is_told_in_a_line():
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("## What each is for\n")[1].split("\n## ")[0]
    for name, files in architecture.parts_of(SOURCE).items():
        shown = f"`{name}.py`" if files == [SOURCE / f"{name}.py"] else f"`{name}/`"
        assert shown in table, name


def test_packages_in_a_circle_are_not_drawn():
    with pytest.raises(ValueError, match=r"circle.*\['a', 'b', 'c'\]"):
        architecture.heights({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()})


def test_arrows_that_others_stand_for_are_left_out():
    graph = {"top": {"middle", "bottom"}, "middle": {"bottom"}, "bottom": set()}
    assert architecture.without_shortcuts(graph) == {"top": {"middle"}, "middle": {"bottom"}, "bottom": set()}
    assert architecture.rows_of(architecture.without_shortcuts(graph)) == [["bottom"], ["middle"], ["top"]]


def test_pages_of_the_site_are_those_of_its_navigation():
    listed = re.findall(r": ([\w-]+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in PAGES[1:])


@pytest.mark.parametrize("name", ["demo", "bottle"])
def test_tables_of_rounds_are_those_of_the_results(name):
    table = rounds_table(load_results([REPOSITORY / "docs" / "results" / f"{name}.jsonl"]))
    assert table.strip() in (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
