"""Model cards from measured results: every number in one comes from the JSON that `iltm-anomaly evaluate` wrote."""

import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from iltm_anomaly import headings
from iltm_anomaly.hub.checks import HARDWARE, NUMBER, check_shape
from iltm_anomaly.hub.data_sources import CONTAMINATION, DEMO, DataSource, data_source, in_markdown, without_control
from iltm_anomaly.provenance import training_commit
from iltm_anomaly.recipes.reading import preset_names
from iltm_anomaly.recipes.recipe import load_recipe, recipe_from_dict

VERDICTS = ("detected", "defective", "false_alarms", "good")
MARKER = "<!-- Rendered by iltm-anomaly"
RESULT = {
    "method": str,
    "round": int,
    "category": str,
    "contamination": NUMBER,
    "protocol": str,
    "train_size": int,
    "seed": int,
}
DOCUMENT = {
    "results": [RESULT | dict.fromkeys((*headings.IMAGES, *headings.VOLUMES), NUMBER)],
    "data": str,
    "recipe": str,
    "at_threshold": dict.fromkeys(VERDICTS, int),
    "training_seconds": NUMBER,
    "training_commit": str,
    "commit": str,
    "hardware": HARDWARE,
    "versions": {},
}
TEMPLATE = Path(__file__).with_name("model_card.md")


def read_documents(paths: list[Path]) -> dict[str, Any]:
    """Documents by where they stand: each file is one, or, if its name ends in .jsonl, has one a line."""
    found = {}
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        for number, part in enumerate(text.splitlines() if path.suffix == ".jsonl" else [text], 1):
            found[f"{path}, line {number}" if path.suffix == ".jsonl" else str(path)] = _parsed(part, path)
    return found


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def load_results(paths: list[Path]) -> list[dict[str, Any]]:
    """Documents of `iltm-anomaly evaluate`, one a seed, of one data set (`read_documents`).

    Raises:
        ValueError: if one is no such document, or they do not belong together.
    """
    by_place = read_documents(paths)
    for place, document in by_place.items():
        check_shape(document, DOCUMENT, place)
        results = document.get("results") if document else None
        if not results or any(r.get("method") != "iltm" or r.get("round") is None for r in results):
            raise ValueError(f"{place} holds no results of `iltm-anomaly evaluate`")
    documents = list(by_place.values())
    for what, values in {
        # by name: a data set may lie in another folder on each machine, and a demo makes one of its own for every seed
        "data sets": [(Path(d.get("data") or "").name, d["results"][0].get("category")) for d in documents],
        "contaminations": [d["results"][0].get("contamination") for d in documents],
        "protocols": [d["results"][0].get("protocol") or "disjoint" for d in documents],
        "rounds": [[r["round"] for r in d["results"]] for d in documents],
    }.items():
        if any(value != values[0] for value in values):
            raise ValueError(f"the files hold different {what}: {dict(zip(by_place, values, strict=True))}")
    return documents


def summarise(documents: list[dict[str, Any]], round_index: int, key: str) -> tuple[float, float, int] | None:
    """Mean, population standard deviation and number of seeds of a share, in per cent; None where it was not measured."""
    values = [
        100 * d["results"][round_index][key] for d in documents if d["results"][round_index].get(key) is not None
    ]
    return (mean(values), pstdev(values), len(values)) if values else None


def rounds_table(documents: list[dict[str, Any]]) -> str:
    """One row a round, mean and population standard deviation over documents in per cent, as Markdown."""
    columns = headings.VOLUMES if _of_volumes(documents, {}) else headings.IMAGES
    lines = ["| round | " + " | ".join(columns.values()) + " |", "| --- " * (len(columns) + 1) + "|"]
    for index, result in enumerate(documents[0]["results"]):
        cells = [str(result["round"])]
        for key in columns:
            value = summarise(documents, index, key)
            cells.append("-" if value is None else f"{value[0]:.1f}" + (f" ± {value[1]:.1f}" if value[2] > 1 else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _of_volumes(documents: list[dict[str, Any]], report: dict[str, Any]) -> bool:
    return bool((report.get("recipe") or {}).get("volume")) or any("lesions" in d["results"][0] for d in documents)


def draw_picture(documents: list[dict[str, Any]]) -> bytes | None:
    """A plot (PNG) over the rounds of each metric that all rounds of all seeds have: a dot per seed, a line through their means.
    None if there is no such metric. It shows no image of any data set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    results = [result for document in documents for result in document["results"]]
    # a test set without good images has no image AUROC
    metrics = [key for key in headings.METRICS if all(result.get(key) is not None for result in results)]
    if not metrics:
        return None
    rounds = [r["round"] for r in documents[0]["results"]]
    figure = Figure(figsize=(8, 2.6), dpi=100, layout="constrained")
    for axes, key in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        values = [[100 * r[key] for r in d["results"]] for d in documents]
        for seed in values:
            axes.plot(rounds, seed, "o", color="tab:blue", alpha=0.5)
        axes.plot(rounds, [mean(column) for column in zip(*values, strict=True)], color="tab:blue")
        axes.set(title=headings.IMAGES[key], xlabel="round", xticks=rounds)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("per cent")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Subject:
    """What documents and training report tell of a model; what they do not tell is None or empty.

    Args:
        documents, report: as of `render_card`.
        source, category, dataset_name: the data set; the name is that of both.
        kind: "images" or "volumes".
        contamination: share of the training images that is defective.
        protocol: where these come from, see `iltm_anomaly.data.contamination`.
        recipe, preset: how the model was trained, and the name of the preset with exactly that recipe.
        measured: of the last round, `summarise` by metric.
        conditions: "seeds", and where known "contamination" and "round", as the card's metadata has them.
    """

    documents: list[dict[str, Any]]
    report: dict[str, Any]
    source: DataSource
    category: str | None
    dataset_name: str
    kind: str
    contamination: float | None
    protocol: str
    recipe: dict[str, Any]
    preset: str | None
    measured: dict[str, tuple[float, float, int]]
    conditions: dict[str, Any]


def _subject(documents: list[dict[str, Any]], report: dict[str, Any]) -> _Subject:
    data, document = report.get("data") or {}, documents[0] if documents else {}
    last = document["results"][-1] if documents else {}
    recipe_name = (report.get("recipe") or {}).get("name") or document.get("recipe")
    source = data_source(str(document.get("data") if documents else data.get("source") or "unknown"), recipe_name)
    category = (last if documents else data).get("category")
    contamination = last.get("contamination") if documents else (data.get("contamination") or {}).get("fraction")
    contamination = CONTAMINATION if source is DEMO else contamination
    recipe, preset = _recipe(report, recipe_name or ("demo" if source is DEMO else None))
    measured = {key: summarise(documents, -1, key) for key in headings.METRICS}
    seeds = [d["results"][-1].get("seed") or 0 for d in documents]
    conditions = {"seeds": seeds, "contamination": contamination, "round": last.get("round")}
    return _Subject(
        documents,
        report,
        source,
        category,
        dataset_name=f"{source.name}, {category}" if category else source.name,
        kind="volumes" if _of_volumes(documents, report) else "images",
        contamination=contamination,
        protocol=(last if documents else data.get("contamination") or {}).get("protocol") or "disjoint",
        recipe=recipe,
        preset=preset,
        measured={key: value for key, value in measured.items() if value is not None},
        conditions={key: value for key, value in conditions.items() if value is not None},
    )


def _recipe(report: dict[str, Any], name: str | None) -> tuple[dict[str, Any], str | None]:
    recipe = report.get("recipe") or {}
    if name is None or name not in preset_names():
        return recipe, None
    preset = load_recipe(name)
    try:
        is_preset = not recipe or recipe_from_dict(recipe) == preset
    except ValueError:  # version 0.1 let more be chosen
        is_preset = False
    return recipe or preset.to_dict(), name if is_preset else None


def render_card(
    name: str,
    documents: list[dict[str, Any]],
    report: dict[str, Any] | None = None,
    repo_id: str | None = None,
    picture: bytes | None = None,
    tags: Sequence[str] = (),
) -> dict[str, bytes]:
    """The files of a model card.

    Args:
        name: of the model.
        documents: of `load_results`; none gives a card that says that nothing was measured.
        report: training report of the pipeline, where there is one.
        repo_id: where its weights are; None makes a card of results alone.
        picture: PNG in place of `draw_picture`.
        tags: for the metadata, beside those that every card has.

    Returns:
        Content by path: README.md, picture.png if there is one, and `.eval_results/iltm.yaml` if the data set is on the Hub.
    """
    subject = _subject(documents, report or {})
    plotted = picture is None and bool(documents)
    picture = draw_picture(documents) if plotted else picture
    card = ModelCard.from_template(
        _metadata(name, subject, tags),
        template_path=str(TEMPLATE),
        title=name,
        repo_id=repo_id,
        picture=picture is not None,
        plotted=plotted,
        is_demo=subject.source is DEMO,
        has_features="features" in subject.recipe,
        table=rounds_table(documents) if documents else None,
        verdicts=_verdicts(documents),
        facts=_facts(subject),
        commands=_commands(subject),
        **vars(subject)
        | {"dataset_name": in_markdown(subject.dataset_name), "category": in_markdown(subject.category or "")},
    )
    files = {"README.md": (card.content.rstrip() + "\n").encode()}
    if picture is not None:
        files["picture.png"] = picture
    if subject.source.hub_id and subject.measured:
        files[".eval_results/iltm.yaml"] = _eval_results(subject.source.hub_id, subject)
    return files


def _metadata(name: str, subject: _Subject, tags: Sequence[str]) -> ModelCardData:
    source = subject.source
    evaluations = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Anomaly detection",
            dataset_type=source.hub_id or source.name.lower().replace(" ", "-"),
            dataset_name=_measured_on(subject),
            dataset_config=subject.category,
            dataset_split="test",
            metric_type=key,
            metric_name=headings.IMAGES[key],
            metric_value=round(value / 100, 4),
            metric_args=subject.conditions | {"standard_deviation": round(spread / 100, 4)},
        )
        for key, (value, spread, _) in subject.measured.items()
    ]
    return ModelCardData(
        license=source.licence,
        library_name="iltm-anomaly",
        pipeline_tag="image-segmentation",
        tags=["anomaly-detection", "iltm", "unsupervised"]
        + (["imagenet-features"] if "features" in subject.recipe else [])
        + (["vq-vae", "performer"] if "vqvae" in subject.recipe else [])
        + list(tags),
        datasets=[source.hub_id] if source.hub_id else None,
        model_name=name,
        eval_results=evaluations or None,
    )


def _measured_on(subject: _Subject) -> str:
    """The data set with what makes results on it no others': size of the images, and a split that is not its makers'."""
    size = subject.recipe.get("image_size")
    own = subject.contamination is not None and subject.source is not DEMO
    remarks = ([f"{size} px"] if size else []) + (["own split"] if own else [])
    return f"{subject.dataset_name} ({', '.join(remarks)})" if remarks else subject.dataset_name


def _eval_results(hub_id: str, subject: _Subject) -> bytes:
    notes = ", ".join([_measured_on(subject), *(f"{key} {value}" for key, value in subject.conditions.items())])
    task = subject.category or "default"
    entries = [
        EvalResultEntry(dataset_id=hub_id, task_id=f"{task}_{key}", value=round(value / 100, 4), notes=notes)
        for key, (value, _, _) in subject.measured.items()
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False).encode()


def _verdicts(documents: list[dict[str, Any]]) -> dict[str, int] | None:
    """What the thresholds that training has set make of the test images, of all seeds together; None unless all tell."""
    found = [document["at_threshold"] for document in documents if document.get("at_threshold")]
    if len(found) < len(documents):
        return None
    return {key: sum(entry.get(key) or 0 for entry in found) for key in VERDICTS}


def _facts(subject: _Subject) -> str:
    """A list of what is recorded of training and evaluation; "" if nothing is."""
    documents, report = subject.documents, subject.report
    sources = documents or ([report] if report.get("versions") else [])
    if not sources:
        return ""

    def each(values: list[Any]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "not recorded"

    machines = [
        f"{d['hardware'].get('device')}, {d['hardware'].get('threads')} thread(s)"
        for d in sources
        if d.get("hardware")
    ]
    versions = [
        ", ".join(f"{package} {version}" for package, version in (d.get("versions") or {}).items()) for d in sources
    ]
    trained = [d.get("training_commit") for d in documents] or [training_commit(report)]
    recipes = [d.get("recipe") if documents else (d.get("recipe") or {}).get("name") for d in sources]
    facts = {
        "Machine": each(machines),
        "Training time": f"{each([d.get('training_seconds') for d in sources])} seconds",
        "Recipe": each(recipes),
        "Commit of training": each(trained),
        "Commit of evaluation": each([d.get("commit") for d in documents]),
        "Versions": each(versions),
    }
    return "\n".join(f"- {name}: {in_markdown(fact)}" for name, fact in facts.items())


def _commands(subject: _Subject) -> str:
    documents, report, source = subject.documents, subject.report, subject.source
    recipe, preset = subject.recipe, subject.preset
    seeds = subject.conditions["seeds"] or [report.get("seed") or 0]
    commits = {d.get("commit") for d in documents}
    commit = commits.pop() if len(commits) == 1 else None
    lines = []
    if commit and "+" not in commit:  # else nobody else has its changes
        lines.append(f"git checkout {commit}  # of iltm-anomaly; later code may give other numbers")
    if source is DEMO:
        return "\n".join(lines + [f"iltm-anomaly demo --seed {seed} --output demo_{seed}" for seed in seeds])
    category = shlex.quote(without_control(subject.category or ""))
    where = f"--data {source.hub_id or 'ROOT'}" + (f" --category {category}" if subject.category else "")
    options = " --volumes" if subject.kind == "volumes" else ""
    contamination = (report.get("data") or {}).get("contamination") or (
        documents[0]["results"][0] if documents else {}
    )
    fraction = contamination.get("fraction", contamination.get("contamination"))
    options += f" --contamination {fraction:g}" if fraction is not None else ""
    options += "" if subject.protocol == "disjoint" else f" --protocol {subject.protocol}"
    options += f" --train-size {contamination['train_size']}" if contamination.get("train_size") else ""
    if preset:
        options += f" --preset {preset}"
    elif recipe:
        options += " --preset recipe.yaml"
        lines.append("# recipe.yaml holds what training_report.json has under `recipe`")
    for seed in seeds:
        lines.append(f"iltm-anomaly train {where}{options} --seed {seed} --output runs/{seed}")
        if documents:  # else there may be no test images
            lines.append(f"iltm-anomaly evaluate runs/{seed} {where} --output runs/{seed}/evaluation")
    return "\n".join(lines)
