"""Tables, differences and drops against a stored small example and direct arithmetic."""

import json
from pathlib import Path

import numpy as np
import pytest

from iltm_anomaly.comparison.baselines.methods import METHODS
from iltm_anomaly.comparison.benchmark.cells import CellDamagedError, load_cell, save_cell
from iltm_anomaly.comparison.benchmark.plan import digest_of
from iltm_anomaly.comparison.benchmark.published import comparable, is_impossible, load_published, published
from iltm_anomaly.comparison.benchmark.report import (
    markdown,
    markdown_differences,
    markdown_drops,
    markdown_means,
    markdown_times,
    write_report,
)
from iltm_anomaly.comparison.benchmark.results import Results
from iltm_anomaly.comparison.benchmark.statistics import ImageStatistics, interval, pack
from iltm_anomaly.comparison.benchmark.tables import latex_level, level_table, markdown_level
from iltm_anomaly.headings import METRICS
from iltm_anomaly.settings import InferenceSettings

EXAMPLE = Path(__file__).with_name("example")
SCORES = {  # pixel AUROC at contamination 0; the rest follows from it
    "autoencoder": 0.80,
    "vqvae_transformer": 0.88,
    "vqvae_transformer_residual": 0.86,
    "iltm": 0.93,
    "mean_image": 0.70,
}


def document(method: str, category: str, level: float, seed: int, auroc: float, draws: int = 50) -> dict:
    """A cell with a pixel AUROC of `auroc`, an AUPRO 0.1 below, an image AUROC 0.05 above, and draws around them."""
    generator = np.random.default_rng([len(method), len(category), round(100 * level), seed])
    values = {"pixel_auroc": auroc, "aupro": auroc - 0.1, "image_auroc": auroc + 0.05}
    result = {"method": method, "category": category, "contamination": level, "seed": seed, "round": None, **values}
    for name, metric in (("auroc", "pixel_auroc"), ("aupro", "aupro")):
        result |= {f"per_image_{name}_mean": values[metric] - 0.01, f"per_image_{name}_std": 0.05}
    packed = {metric: pack(np.clip(v + 0.01 * generator.normal(size=draws), 0, 1)) for metric, v in values.items()}
    return {
        "results": [result],
        "training_images": 155,
        "images_sha256": f"{category}{level}{seed}",
        "preset": "cpu",
        "training_seconds": 60.0 + len(method),
        "settings": {
            "method": method,
            "category": category,
            "contamination": level,
            "seed": seed,
            "protocol": "disjoint",
            "recipe": {"name": "cpu"},
            "baseline_seconds": None,
            "baseline": {"stage": {"steps": 10}} if method in ("autoencoder", "vae", "cutpaste", "nsa") else None,
            "inference": None,
        },
        "draws": {"count": draws, "kind": "poisson", "test_sha256": f"{category}{seed}", **packed},
        "hardware": {"device": "a machine", "threads": 1},
    }


def example() -> list[dict]:
    """Bottle and metal_nut at 0 and 0.1, bottle at 0.1 with a second seed for all but the mean image, and a set of our own."""
    documents = []
    for method, score in SCORES.items():
        loss = 0.01 if method == "iltm" else 0.04
        for category, offset in (("bottle", 0.0), ("metal_nut", -0.02)):
            documents += [
                document(method, category, level, 0, score + offset - loss * (level > 0)) for level in (0.0, 0.1)
            ]
        if method != "mean_image":
            documents.append(document(method, "bottle", 0.1, 1, score - loss + 0.02))
        if method != "vqvae_transformer_residual":
            documents.append(document(method, "magnetic_tile", 0.1, 0, score - 0.1))
    return documents


@pytest.fixture
def results() -> Results:
    return Results(example())


def vector(results: Results, *key) -> np.ndarray:
    return results.vectors[key]


def test_the_table_is_laid_out_as_stored(results):
    """Made anew by `python tests/comparison/benchmark/test_benchmark_report.py`, to be looked at before it is committed."""
    table = level_table(results, 0.1)
    assert markdown_level(table) + "\n" == (EXAMPLE / "table.md").read_text()
    assert latex_level(table) + "\n" == (EXAMPLE / "table.tex").read_text()


def test_every_figure_in_the_table_stands_where_it_belongs(results):
    table = level_table(results, 0.1)
    lines = [line.strip("| ").split(" | ") for line in markdown_level(table).splitlines()]
    header, first = lines[0], lines[2]
    assert header[:6] == ["category", "metric", "AE", "*paper*", "VQ-VAE + Transformer (KDE)", "*paper*"]
    assert first[0] == "bottle (seeds 0, 1)" and first[1] == "AUROC"
    assert first[2] == "77.0 (76.0 ± 5.0)" and first[3] == "*45.9 ± 11.5*"  # mean of 0.76 and 0.78
    assert first[header.index("ILTM")] == "**93.0** (92.0 ± 5.0)"
    assert first[-1] == "66.0‡ (65.0 ± 5.0)"  # the mean image has seed 0 alone, and the paper has no such column
    assert [row[0] for row in table.rows[::3]] == [
        "bottle (seeds 0, 1)",
        "metal_nut (seed 0)",
        "magnetic_tile (seed 0)",
        "mean of 2: bottle, metal_nut",
    ]
    assert latex_level(table).count("\\midrule") == 4 and "metal\\_nut" in latex_level(table)


def test_the_printed_figures_are_the_papers():
    """Its column means, as worked out from the appendix independently."""
    table = load_published()
    assert len(table["categories"]) == 12
    for metric, expected in (
        ("pixel_auroc", [59.3, 65.4, 72.2, 79.6, 82.8, 89.1]),
        ("aupro", [30.9, 37.3, 54.9, 66.8, 74.3, 82.8]),
    ):
        cells = np.array([rows[metric] for rows in table["categories"].values()])
        np.testing.assert_allclose(cells[..., 0].mean(0), expected, atol=0.051)
    assert published("iltm", "hazelnut", "aupro") == (93.1, 3.6)
    assert published("patchcore", "hazelnut", "aupro") is None and published("iltm", "pcb", "aupro") is None
    assert {method.paper for method in METHODS.values()} - {None} == set(table["methods"])


def test_the_two_impossible_cells_are_marked_and_never_compared(results):
    table = load_published()
    impossible = [
        (category, method, metric)
        for category, rows in table["categories"].items()
        for metric, cells in rows.items()
        for method, cell in zip(table["methods"], cells, strict=True)
        if is_impossible(*cell)
    ]
    assert impossible == [("bottle", "autoencoder", "aupro"), ("metal_nut", "iltm", "aupro")]
    assert all(comparable(method, category, metric) is None for category, method, metric in impossible)
    assert comparable("autoencoder", "bottle", "pixel_auroc") == 45.9

    text = markdown_level(level_table(results, 0.1))
    assert text.count("†") == 2 and "*2.8 ± 19.6* †" in text and "*83.5 ± 51.2* †" in text
    assert latex_level(level_table(results, 0.1)).count("$^\\dag$") == 2
    mean = level_table(results, 0.1).rows[-2]
    assert mean[1] == "aupro"
    printed = dict(zip(level_table(results, 0.1).methods, (entry.printed for entry in mean[2]), strict=True))
    assert printed["autoencoder"] is None and printed["iltm"] is None  # one of the two figures is no figure
    assert printed["vqvae_transformer"][0] == pytest.approx((81.9 + 75.1) / 2)

    differences = markdown_differences(results, 0.1, "aupro").splitlines()
    paper = [line for line in differences if "*paper*" in line]
    assert len(paper) == 1 and paper[0].startswith("| *bottle* | *paper* |  | *+9.1* | *+9.1* |")  # 91.0 - 81.9


def test_differences_are_paired_draw_by_draw(results):
    for seed in (0, 1):
        a, b = (vector(results, m, "bottle", 0.1, seed, "aupro") for m in ("iltm", "autoencoder"))
        found = results.difference("iltm", "autoencoder", "bottle", 0.1, "aupro", seed)
        assert found.value == pytest.approx(100 * (a[0] - b[0]))
        assert (found.low, found.high) == pytest.approx(tuple(100 * v for v in interval((a - b)[1:])))
    pooled = results.difference("iltm", "autoencoder", "bottle", 0.1, "aupro")
    pairs = [
        vector(results, "iltm", "bottle", 0.1, s, "aupro") - vector(results, "autoencoder", "bottle", 0.1, s, "aupro")
        for s in (0, 1)
    ]
    assert pooled.value == pytest.approx(100 * np.mean(pairs, axis=0)[0]) == pytest.approx(16.0)
    assert pooled.high - pooled.low < max(100 * np.ptp(interval(pair[1:])) for pair in pairs)
    # of the mean image only the common seed counts
    assert results.difference("iltm", "mean_image", "bottle", 0.1, "aupro") == results.difference(
        "iltm", "mean_image", "bottle", 0.1, "aupro", 0
    )


def test_a_mixture_is_said_and_the_mean_panel_needs_no_level_that_one_set_alone_has(results):
    assert results.problems == []
    text = markdown(results)
    assert "## Each method minus the mean image" in text and "Not comparable" not in text
    documents = example()
    documents[0] = documents[0] | {"preset": "tiny"}
    for one in documents:
        if one["images_sha256"] == "bottle0.00":
            one["training_images"] = 99
    found = Results([*documents, document("iltm", "commutator", 0.05, 0, 0.9)])
    problems = "; ".join(found.problems)
    assert "different presets: bottle at 0, seed 0 / " in problems
    assert "different numbers of training images of bottle: bottle at 0, seed 0 / bottle at 0.1, seed 0, " in problems
    assert found.levels == [0, 0.05, 0.1] and found.drop_range() == results.drop_range() is not None
    assert "- cells of different presets" in markdown(found)
    # a method may have settings of its own for every category
    for name, smoothing in (("bottle", 0.1), ("cable", 0.2)):
        documents.append(document("nsa", name, 0.1, 0, 0.9))
        documents[-1]["settings"]["baseline"] = {"smoothing": smoothing}
    assert not any("settings of NSA" in problem for problem in Results(documents).problems)


def test_times_and_the_share_of_its_recipe_that_a_method_was_trained_for_are_shown_per_set_and_level():
    documents = [
        document("nsa", name, level, 0, 0.9) for name, level in (("bottle", 0.0), ("bottle", 0.1), ("cable", 0.1))
    ]
    for cell, seconds, steps in zip(documents, (401.0, 431.4, 500.0), (1655, 1827, 4000), strict=True):
        cell["budget"] = {"seconds": seconds, "steps": steps, "planned_steps": 4000}
    documents.append(document("mean_image", "bottle", 0.1, 0, 0.7))
    documents[-1]["budget"] = {"seconds": None, "steps": 0, "planned_steps": 0}
    table = markdown_times(Results(documents))
    assert "| category | contamination | time limit | NSA | Mean image |" in table
    for line in (
        "bottle | 0 % | 401 | 63 (41%) | -",
        "bottle | 10 % | 431 | 63 (46%) | 70",
        "cable | 10 % | 500 | 63 (100%) | -",
    ):
        assert f"| {line} |" in table


def test_a_table_of_one_method_with_two_budgets_or_recipes_says_so():
    documents = [document(method, "bottle", level, 0, 0.9) for method in ("iltm", "nsa") for level in (0.0, 0.1)]
    documents[1]["settings"]["recipe"] = {"name": "cpu", "stage1": {"steps": 99}}
    documents[3]["settings"]["baseline_seconds"] = 9.0
    problems = Results(documents).problems
    assert len(problems) == 2
    assert "cells of different recipes of ILTM: bottle at 0, seed 0 / bottle at 0.1, seed 0" in problems
    assert "cells of different --baseline-seconds: bottle at 0, seed 0 / bottle at 0.1, seed 0" in problems


def test_the_time_of_a_round_of_another_recipe_is_said():
    documents = [document(method, "bottle", 0.1, 0, 0.9) for method in ("iltm", "nsa", "vae", "mean_image")]
    for cell, scale in zip(documents[:3], (1.5, 3.0, 1.5), strict=True):
        cell["settings"]["recipe"] = {"name": "cpu", "stage2": {}, "rounds": {"outlier_scale": scale}}
    assert Results(documents).problems == [
        "time limits from a round of another recipe than ILTM's beside them: NSA on bottle at 0.1, seed 0"
    ]


def test_cells_of_two_trainings_side_by_side_are_named():
    methods = ("iltm", "vqvae_transformer", "vqvae_transformer_residual", "mean_image")
    documents = [document(method, "bottle", 0.1, seed, 0.9) for seed in (0, 1) for method in methods]
    for cell in documents:
        if cell["settings"]["method"] in ("iltm", "vqvae_transformer"):
            cell["vqvae_sha256"] = str(cell["settings"]["seed"])
    assert Results(documents).problems == []
    documents[6]["vqvae_sha256"] = "of another run"
    assert Results(documents).problems == ["ILTM and round 0 of different trainings: bottle at 0.1, seed 1"]


def test_a_field_that_did_not_exist_when_a_cell_was_measured_is_no_difference(tmp_path):
    empty = np.zeros((2, 3))
    statistics = ImageStatistics(empty, empty, empty, np.ones(2), np.ones(2), np.array([False, True]))
    settings = vars(InferenceSettings())
    older = {name: value for name, value in settings.items() if name != "own_reconstruction"}
    for level, inference in ((0.1, settings), (0.2, older)):
        cell = document("iltm", "bottle", level, 0, 0.9)
        cell["settings"]["inference"] = inference
        save_cell(tmp_path / "cells", f"{level}", cell, statistics)
    assert [results.problems for results in Results.load(tmp_path)] == [[]]


def test_identical_methods_differ_by_nothing_with_an_interval_of_nothing():
    documents = [document("iltm", "bottle", level, 0, 0.9) for level in (0.0, 0.2)]
    for original in documents[:2]:
        twin = original | {"settings": original["settings"] | {"method": "nsa"}}
        documents.append(twin)
    results = Results(documents)
    for metric in METRICS:
        found = [
            results.difference("iltm", "nsa", "bottle", 0.2, metric),
            results.mean_difference("iltm", "nsa", 0.2, metric),
        ]
        found.append(results.drop("nsa", metric, "iltm"))
        assert all((e.value, e.low, e.high) == (0, 0, 0) for e in found)


def test_means_are_over_categories_that_all_methods_have(results):
    assert results.complete(0.1) == ["bottle", "metal_nut"]
    bottle = np.mean([vector(results, "iltm", "bottle", 0.1, s, "aupro")[0] for s in (0, 1)])
    nut = vector(results, "iltm", "metal_nut", 0.1, 0, "aupro")[0]
    assert results.mean("iltm", 0.1, "aupro")[0] == pytest.approx((bottle + nut) / 2)
    assert results.missing() == [
        "bottle at 0.1, seed 1: Mean image",
        "magnetic_tile at 0.1, seed 0: VQ-VAE + Transformer (residual)",
    ]


def test_the_drop_is_over_common_categories_and_seeds_and_smallest_for_the_steadiest(results):
    level, methods, categories = results.drop_range()
    assert (level, categories) == (0.1, ["bottle", "metal_nut"]) and set(methods) == set(SCORES)
    for method in SCORES:  # seed 1 has no cell at 0: it does not count
        assert results.drop(method, "pixel_auroc").value == pytest.approx(1.0 if method == "iltm" else 4.0)
    assert results.drop("autoencoder", "aupro", "iltm").value == pytest.approx(3.0)
    text = markdown_drops(results)
    assert "| ILTM | +1.0 [" in text and "from 0 to 10 %" in text
    assert "§" not in text
    assert Results([d for d in example() if d["settings"]["contamination"]]).drop_range() is None


def test_the_drop_of_a_method_that_has_changed_between_the_levels_is_marked():
    documents = example()
    for cell in documents:
        if cell["settings"]["method"] == "iltm" and cell["settings"]["contamination"] == 0.1:
            cell["settings"]["inference"] = {"outlier_scale": 1.5}
    text = markdown_drops(Results(documents))
    assert "| ILTM§ |" in text and "| AE |" in text and "§ of other settings" in text


def test_drops_of_two_methods_are_paired_over_the_seeds_that_both_have():
    documents = [document("nsa", "bottle", level, 0, 0.9 - 0.02 * (level > 0)) for level in (0.0, 0.2)]
    for seed, loss in ((0, 0.02), (1, 0.1)):
        documents += [document("iltm", "bottle", level, seed, 0.9 - loss * (level > 0)) for level in (0.0, 0.2)]
    results = Results(documents)
    assert results.drop("iltm", "pixel_auroc").value == pytest.approx(6.0)
    assert results.drop("nsa", "pixel_auroc", "iltm").value == pytest.approx(0.0)


def test_a_curve_is_of_one_test_set():
    """Levels with the same seeds alone: another seed has other test images."""
    documents = [document("iltm", "bottle", level, 0, value) for level, value in ((0.0, 0.9), (0.1, 0.8), (0.2, 0.7))]
    documents += [document("iltm", "bottle", 0.1, seed, 0.99) for seed in (1, 2)]
    documents += [document("iltm", "pill", level, 0, 0.5) for level in (0.0, 0.2)]
    documents += [document("nsa", "bottle", level, seed, 0.6) for level, seed in ((0.0, 0), (0.2, 1))]
    results = Results(documents)

    def curve(method: str, *categories: str) -> list[tuple[float, float]]:
        return [(level, round(value, 6)) for level, value in results.curve(method, "pixel_auroc", categories)]

    assert curve("iltm", "bottle") == [(0.0, 0.9), (0.1, 0.8), (0.2, 0.7)]
    assert curve("iltm", "bottle", "pill") == [(0.0, 0.7), (0.2, 0.6)]
    assert curve("nsa", "bottle") == []


def test_means_of_other_seeds_are_marked(results):
    rows = {line.split(" | ")[0].strip("| "): line for line in markdown_means(results).splitlines()}
    assert "‡" not in rows["ILTM"] and rows["Mean image"].count("‡") == 3  # seed 0 alone, at 10 %
    assert "‡ of other seeds than ILTM's." in rows


def test_the_report_names_what_is_missing_and_leaves_out_what_is_damaged(tmp_path):
    empty = np.zeros((2, 3))
    statistics = ImageStatistics(empty, empty, empty, np.ones(2), np.ones(2), np.array([False, True]))
    for number, cell in enumerate(example()):
        save_cell(tmp_path / "cells", f"{number:02d}", cell, statistics)
    whole = load_cell(tmp_path / "cells" / "00.json")
    assert whole["results"] == example()[0]["results"]
    (tmp_path / "cells" / "00.npz").unlink()  # may be absent, as in a repository
    assert load_cell(tmp_path / "cells" / "00.json") == whole
    damaged = tmp_path / "cells" / "03.json"
    damaged.write_text(damaged.read_text().replace('"preset": "cpu"', '"preset": "cpu2"'))
    with pytest.raises(CellDamagedError, match="does not fit its checksum"):
        load_cell(damaged)

    names = [path.name for path in write_report(tmp_path)]
    assert names == ["table.md", "table.tex", "plot.png"]
    text = (tmp_path / "table.md").read_text()
    gaps = text[text.index("## Missing cells") :]
    assert "metal_nut at 0.1, seed 0: AE" in gaps and "03.json is damaged" in gaps
    assert "bottle 155" in text and "‡ of other seeds" in text
    for title in ("Mean over categories", "Drop under contamination", "ILTM minus each method"):
        assert f"## {title}" in text
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_json_lines_file_makes_the_report_of_its_cells(tmp_path):
    cells = [json.dumps(cell | {"checksum": digest_of(cell)}) for cell in example()]
    cells[3] = cells[3].replace('"preset": "cpu"', '"preset": "cpu2"')
    source = tmp_path / "sets.jsonl"
    source.write_text("\n".join(cells) + "\n")
    assert write_report(source) == [tmp_path / "sets" / name for name in ("table.md", "table.tex", "plot.png")]
    text = (tmp_path / "sets" / "table.md").read_text()
    assert f"{source}, line 4 is damaged" in text
    damaged = Results([cell for number, cell in enumerate(example()) if number != 3])
    assert text.startswith(markdown(damaged).rstrip())


def test_the_table_in_the_repository_is_what_its_cells_render():
    folder = Path(__file__).resolve().parents[3] / "docs" / "results"
    (results,) = Results.load(folder / "real_sets.jsonl")
    assert markdown(results) == (folder / "real_sets" / "table.md").read_text()


def test_each_protocol_has_a_report_of_its_own(tmp_path):
    documents = [document(method, "bottle", level, 0, 0.9) for method in ("iltm", "nsa") for level in (0.0, 0.1)]
    for method in ("iltm", "nsa"):
        copies = document(method, "bottle", 0.1, 0, 0.6) | {"images_sha256": "of copies"}
        copies["settings"]["protocol"] = "overlap"
        documents.append(copies)
    source = tmp_path / "sets.jsonl"
    source.write_text("".join(json.dumps(cell | {"checksum": digest_of(cell)}) + "\n" for cell in documents))
    disjoint, overlap = Results.load(source)
    assert (disjoint.protocol, overlap.protocol) == ("disjoint", "overlap")
    assert disjoint.drop("iltm", "pixel_auroc").value == pytest.approx(0.0)
    assert overlap.drop("iltm", "pixel_auroc").value == pytest.approx(30.0), "from the same cell at 0"
    names = ["table.md", "table.tex", "plot.png", "table_overlap.md", "table_overlap.tex", "plot_overlap.png"]
    assert [path.name for path in write_report(source)] == names


def test_cells_of_other_images_are_not_compared():
    first, second = document("iltm", "bottle", 0, 0, 0.9), document("nsa", "bottle", 0, 0, 0.8)
    with pytest.raises(ValueError, match="not trained on the same images"):
        Results([first, second | {"images_sha256": "other"}])
    with pytest.raises(ValueError, match="they have 155 and 99 training images"):
        Results([first, second | {"images_sha256": "other", "training_images": 99}])
    second["draws"]["test_sha256"] = "other"
    with pytest.raises(ValueError, match="not tested on the same images"):
        Results([first, second])


def test_a_single_cell_makes_a_report_too():
    results = Results([document("nsa", "pcb", 0.1, 0, 0.8)])
    assert "| pcb (seed 0) | AUROC | **80.0** (79.0 ± 5.0) |" in markdown_level(level_table(results, 0.1))
    assert markdown_differences(results, 0.1, "aupro") is None
    assert "Needs the same categories" in markdown_drops(results)


if __name__ == "__main__":
    EXAMPLE.mkdir(exist_ok=True)
    stored = level_table(Results(example()), 0.1)
    (EXAMPLE / "table.md").write_text(markdown_level(stored) + "\n")
    (EXAMPLE / "table.tex").write_text(latex_level(stored) + "\n")
