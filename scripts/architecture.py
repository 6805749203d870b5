"""Draws which package of `src/iltm_anomaly` imports which: docs/architecture.svg. What imports stands above what it imports.

    python scripts/architecture.py           # writes the picture
    python scripts/architecture.py --check   # exit status 1 if the picture is not the one of today's imports

An arrow is left out where a chain of other arrows leads the same way. The source is parsed, not imported.
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from textwrap import wrap
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "iltm_anomaly"
PICTURE = REPOSITORY / "docs" / "architecture.svg"

# Pixels.
BOX_WIDTH, WAY_WIDTH, LINE_HEIGHT, GAP, LAYER_GAP, MARGIN = 150, 4, 14, 16, 40, 14
LETTERS = 27  # of a line of small text in a box

Graph = dict[str, set[str]]
Arrow = tuple[str, str]
# What has a place in a layer: a box, by its name, or an arrow that passes, by its ends and the layer.
Item = str | tuple[str, str, int]


class Place(NamedTuple):
    """Pixels: the middle of an item, its upper and its lower edge, and the lower edge of its layer."""

    middle: float
    top: float
    bottom: float
    layer_bottom: float


def parts_of(source: Path) -> dict[str, list[Path]]:
    """Files of each package, and of each public module beside the packages, by name."""
    parts = {}
    for path in sorted(source.iterdir()):
        if path.is_dir() and (path / "__init__.py").exists():
            parts[path.name] = sorted(path.rglob("*.py"))
        elif path.suffix == ".py" and not path.name.startswith("_"):
            parts[path.stem] = [path]
    return parts


def imported_names(path: Path) -> Iterator[str]:
    """Dotted names that a file imports at its top, and for the command line, which imports where it needs, anywhere."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if path.stem == "cli" else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_graph(source: Path = SOURCE) -> Graph:
    """Name of each part -> the parts that it imports."""
    parts = parts_of(source)
    graph: Graph = {name: set() for name in parts}
    for name, paths in parts.items():
        for imported in (found for path in paths for found in imported_names(path)):
            package, _, rest = imported.partition(".")
            target = rest.partition(".")[0]
            if package == source.name and target in parts and target != name:
                graph[name].add(target)
    return graph


def heights(graph: Graph) -> dict[str, int]:
    """The layer of each part, 0 at the bottom: one above the highest part that it imports.

    Raises:
        ValueError: if parts import each other in a circle.
    """
    found: dict[str, int] = {}
    while len(found) < len(graph):
        ready = [name for name in graph if name not in found and graph[name] <= found.keys()]
        if not ready:
            raise ValueError(f"these import each other in a circle, or what does: {sorted(set(graph) - set(found))}")
        found |= {name: 1 + max((found[other] for other in graph[name]), default=-1) for name in ready}
    return found


def without_shortcuts(graph: Graph) -> Graph:
    """The graph without arrows to what is reached through another arrow too."""

    def reached(name: str) -> set[str]:
        return graph[name].union(*(reached(other) for other in graph[name]))

    return {
        name: {other for other in others if not any(other in reached(third) for third in others)}
        for name, others in graph.items()
    }


def ways(graph: Graph) -> dict[Arrow, list[Item]]:
    """The items that each arrow passes from its start to its end: in the layers between them a place that it keeps free."""
    layer = heights(graph)
    return {
        (start, end): [start, *((start, end, row) for row in range(layer[start] - 1, layer[end], -1)), end]
        for start in sorted(graph)
        for end in sorted(graph[start])
    }


def rows_of(graph: Graph, sweeps: int = 8) -> list[list[Item]]:
    """Items of each layer, the lowest first. Sweeps up and down put each one near the mean place of those that it is connected
    to, so that few arrows cross."""
    layer = heights(graph)
    beside: dict[Item, set[Item]] = {name: set() for name in sorted(graph)}
    for way in ways(graph).values():
        for upper, lower in pairwise(way):
            beside.setdefault(upper, set()).add(lower)
            beside.setdefault(lower, set()).add(upper)
    rows: list[list[Item]] = [[] for _ in range(max(layer.values()) + 1)]
    for item in beside:
        rows[layer[item] if isinstance(item, str) else item[2]].append(item)
    place = {item: index / len(row) for row in rows for index, item in enumerate(row)}
    for sweep in range(sweeps):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            means = {item: fmean([place[other] for other in beside[item]] or [place[item]]) for item in row}
            row.sort(key=lambda item: (round(means[item], 6), str(item)))
            place |= {item: (index + 0.5) / len(row) for index, item in enumerate(row)}
    return rows


def module_lines(name: str, paths: list[Path], source: Path = SOURCE) -> list[str]:
    """What stands in a box below the name of a package: its modules and sub-packages."""
    folder = source / name
    names = {path.relative_to(folder).parts[0].removesuffix(".py") for path in paths if path.is_relative_to(folder)}
    shown = sorted(module for module in names if not module.startswith("_"))
    return wrap(", ".join(shown), LETTERS, break_long_words=False)


def draw(source: Path = SOURCE) -> str:
    """The picture as SVG."""
    graph, parts = without_shortcuts(import_graph(source)), parts_of(source)
    rows = rows_of(graph)
    lines = {name: module_lines(name, parts[name], source) for name in graph}
    widths = [sum(width_of(item) + GAP for item in row) - GAP for row in rows]
    width = 2 * MARGIN + max(widths)
    places: dict[Item, Place] = {}
    top = MARGIN
    for row, row_width in zip(reversed(rows), reversed(widths), strict=True):
        left = (width - row_width) / 2
        heights_of = {item: 26 + LINE_HEIGHT * len(lines[item]) for item in row if isinstance(item, str)}
        height = max(heights_of.values())
        for item in row:
            places[item] = Place(left + width_of(item) / 2, top, top + heights_of.get(item, height), top + height)
            left += width_of(item) + GAP
        top += height + LAYER_GAP
    body = [arrow([places[item] for item in way]) for way in ways(graph).values()]
    body += [box(name, lines[name], places[name]) for name in sorted(graph)]
    size = (
        f'viewBox="0 0 {width:g} {top - LAYER_GAP + MARGIN:g}" width="{width:g}" height="{top - LAYER_GAP + MARGIN:g}"'
    )
    marker = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif">',
            f'<defs>{marker}<path d="M0 0 L8 4 L0 8 z" fill="#7a8691"/></marker></defs>',
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *body,
            "</svg>\n",
        ]
    )


def width_of(item: Item) -> int:
    """Of a box, or of the place that an arrow keeps free."""
    return BOX_WIDTH if isinstance(item, str) else WAY_WIDTH


def arrow(places: list[Place]) -> str:
    """A curve from below the first place to above the last, straight through those between."""
    path = f"M{places[0].middle:g} {places[0].bottom:g}"
    for upper, lower in pairwise(places):
        half = (upper.layer_bottom + lower.top) / 2
        path += f" V{upper.layer_bottom:g} C{upper.middle:g} {half:g} {lower.middle:g} {half:g} {lower.middle:g} {lower.top:g}"
    return f'<path d="{path}" fill="none" stroke="#7a8691" stroke-width="1.2" marker-end="url(#head)"/>'


def box(name: str, lines: list[str], place: Place) -> str:
    """A package is filled blue, a single module yellow."""
    fill = "#e8f0f7" if lines else "#fbf6e9"
    left, height = place.middle - BOX_WIDTH / 2, place.bottom - place.top
    text = [
        f'<text x="{place.middle:g}" y="{place.top + 17:g}" font-size="13" font-weight="bold">{escape(name)}</text>'
    ]
    small = 'font-size="9.5" fill="#44505a"'
    for index, line in enumerate(lines):
        y = place.top + 33 + LINE_HEIGHT * index
        text.append(f'<text x="{place.middle:g}" y="{y:g}" {small}>{escape(line)}</text>')
    sides = f'x="{left:g}" y="{place.top:g}" width="{BOX_WIDTH}" height="{height:g}"'
    return f'<g text-anchor="middle"><rect {sides} rx="5" fill="{fill}" stroke="#5b6b7a"/>{"".join(text)}</g>'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; tell whether the picture is up to date")
    arguments = parser.parse_args()
    picture = draw()
    if not arguments.check:
        PICTURE.write_text(picture, encoding="utf-8")
        print(PICTURE)
        return 0
    if PICTURE.exists() and PICTURE.read_text(encoding="utf-8") == picture:
        return 0
    print(f"{PICTURE} is not of today's imports: python scripts/architecture.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
