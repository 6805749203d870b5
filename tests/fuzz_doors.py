"""The doors that files and words of strangers come in by. Each makes valid ones, and tries one spoiled copy at a time: the answer
must be right, or an error of ours that names the file."""

import contextlib
import io
import itertools
import json
import math
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import datasets
import nibabel as nib
import numpy as np
import yaml
from mutations import ODD, spoil_file, spoil_json, spoil_text
from PIL import Image
from tiny_models import part_tree, tiny_feature_pipeline, tiny_pipeline, tiny_prior, tiny_vqvae

import iltm_anomaly
from iltm_anomaly import ILTMAnomalyPipeline, ILTMImageProcessor, InferenceSettings
from iltm_anomaly.cli import main
from iltm_anomaly.comparison.baselines import BaselinePipeline, train_baseline
from iltm_anomaly.data.folder import load_images
from iltm_anomaly.evaluation.detect import detect
from iltm_anomaly.evaluation.report import write_report
from iltm_anomaly.hub.upload import plan_upload
from iltm_anomaly.recipes.recipe import load_recipe, preset_names, recipe_from_dict
from iltm_anomaly.synthetic.dataset import generate_dataset, render_image, write_mvtec_tree
from iltm_anomaly.training.train import TrainArguments, train

SOURCE = Path(iltm_anomaly.__file__).parent
TOLD = (ValueError, RuntimeError, OSError, ImportError)  # what `main` makes a line of, but for memory and overflow
PART = render_image("part", 24, "good", 0)[0]  # (24, 24, 3) uint8


class Complaint(AssertionError):
    """What went in has come out as neither an answer nor an error of ours."""


@contextlib.contextmanager
def answers(*names: str) -> Iterator[None]:
    """The block may raise an error of ours that holds one of `names`; without names any of ours will do."""
    try:
        yield
    except Complaint:
        raise
    except Exception as error:
        trace = traceback.extract_tb(error.__traceback__)
        said = f"{type(error).__name__}: {str(error)[:300]} (raised in {trace[-1].filename}:{trace[-1].lineno})"
        if not isinstance(error, TOLD) or isinstance(error, RecursionError):
            raise Complaint(f"of a kind that is not told: {said}") from error
        whole = " ".join([str(error), *getattr(error, "__notes__", [])])
        if names and not any(name in whole for name in names):
            raise Complaint(f"names no file: {said}") from error
        # what a library says is ours where we add a note, or where it is what the system says of a file
        own = Path(trace[-1].filename).is_relative_to(SOURCE)
        if not own and whole == str(error) and not (isinstance(error, OSError) and error.filename):
            raise Complaint(f"of a library: {said}") from error
        if len(str(error).splitlines()) > 2 or len(str(error)) > 20_000:  # what is wrong, and perhaps what to do
            raise Complaint(f"no line: {said}") from error
        raise Refused from error


class Refused(Exception):
    """An error of ours, as it should be."""


def expect(true: bool, what: str) -> None:
    if not true:
        raise Complaint(what)


def check_rows(rows: list[dict], output: Path) -> None:
    """Each row of `detect` has a finite score, and a map of finite values, or an error that names its file."""
    refused = False
    for row in rows:
        if row["error"]:
            expect(Path(row["path"]).name in row["error"], f"the row's error names no file: {row['error']}")
            refused = True
            continue
        expect(math.isfinite(float(row["score"])), f"score {row['score']}")
        path = output / row["map"]
        values = np.load(path) if path.suffix == ".npy" else nib.load(path).get_fdata()
        expect(bool(np.isfinite(values).all()), "a map that is not finite")
    if refused:
        raise Refused


class Images:
    """Files of images, to `detect` with both kinds of pipelines, and to train on."""

    def __init__(self, root: Path):
        self.valid = root
        self.pipelines = [tiny_pipeline(score_threshold=3.0), tiny_feature_pipeline(score_threshold=3.0)]
        picture = Image.fromarray(PART)
        alpha = picture.copy()
        alpha.putalpha(Image.fromarray(PART[..., 0]))
        wide = Image.fromarray(PART[..., 0].astype(np.uint16) * 200)
        for name, image, options in [
            ("rgb.png", picture, {}),
            ("alpha.png", alpha, {}),
            ("grey.png", picture.convert("L"), {}),
            ("palette.png", picture.quantize(16), {"transparency": 3}),
            ("bits.png", picture.convert("1"), {}),
            ("wide.png", wide, {}),
            ("rgb.jpg", picture, {}),
            ("cmyk.jpg", picture.convert("CMYK"), {}),
            ("rgb.bmp", picture, {}),
            ("rgb.tif", picture, {}),
            ("packed.tif", picture, {"compression": "tiff_lzw"}),
            ("jpeg.tif", picture, {"compression": "jpeg"}),
            ("float.tif", Image.fromarray(PART[..., 0].astype(np.float32) / 255), {}),
            ("wide.tif", wide, {}),
            ("rgb.webp", picture, {}),
            ("moving.gif", picture, {"save_all": True, "append_images": [picture.rotate(90)]}),
            ("rgb.ppm", picture, {}),
            ("grey.pgm", picture.convert("L"), {}),
            ("bits.pbm", picture.convert("1"), {}),
        ]:
            image.save(root / name, **options)

    def case(self, draw: Random, folder: Path) -> None:
        path = shutil.copy(draw.choice(sorted(self.valid.iterdir())), folder)
        path = Path(path).rename(folder / f"spoiled{Path(path).suffix}")
        spoil_file(path, draw)
        with answers(path.name, "holds no image", "no image in"):
            if draw.random() < 0.2:
                for row in load_images(folder)["train"]:
                    expect(min(row["image"].size) > 0, "an image without pixels")
            else:
                rows = detect(draw.choice(self.pipelines), [folder], folder / "out", show_progress=False)
                check_rows(rows, folder / "out")


class Volumes:
    """NIfTI files to `detect`."""

    def __init__(self, root: Path):
        self.valid = root
        vqvae = tiny_vqvae(spatial_dims=3, in_channels=1)
        processor = ILTMImageProcessor(
            size={"depth": 16, "height": 16, "width": 16}, num_channels=1, spacing=3.0, intensity_range=(0.0, 10.0)
        )
        prior = tiny_prior(vocab_size=16, grid_shape=vqvae.grid_shape((16, 16, 16)))
        settings = InferenceSettings(num_samples=1, num_dropout_passes=2, num_contexts=0, score_threshold=3.0)
        self.pipeline = ILTMAnomalyPipeline(vqvae, prior, processor, settings)
        generator, affine = np.random.default_rng(0), np.diag([3.0, -3.0, 3.0, 1.0])
        values = generator.uniform(0, 10, (9, 10, 11))
        for name, kind, dtype in [
            ("float.nii", nib.Nifti1Image, np.float32),
            ("packed.nii.gz", nib.Nifti1Image, np.float32),
            ("short.nii", nib.Nifti1Image, np.int16),
            ("second.nii.gz", nib.Nifti2Image, np.uint8),
            ("double.nii", nib.Nifti2Image, np.float64),
        ]:
            nib.save(kind(values.astype(dtype), affine), root / name)

    def case(self, draw: Random, folder: Path) -> None:
        source = draw.choice(sorted(self.valid.iterdir()))
        path = folder / f"spoiled{''.join(source.suffixes)}"
        shutil.copy(source, path)
        spoil_file(path, draw)
        with answers(path.name, "holds no volume"):
            check_rows(detect(self.pipeline, [folder], folder / "out", show_progress=False), folder / "out")


class Pipelines:
    """Pipeline folders of all three kinds, with a file spoiled, lost or too many, to be loaded and used, or pushed."""

    def __init__(self, root: Path):
        self.kinds = []
        for name, pipeline in (
            ("codes", tiny_pipeline(score_threshold=3.0)),
            ("features", tiny_feature_pipeline(score_threshold=3.0)),
        ):
            pipeline.save_pretrained(root / name)
            self.kinds.append((ILTMAnomalyPipeline, root / name))
        pixels = torch_pixels(8)
        train_baseline(
            "mean_image", pixels, ILTMImageProcessor(size=24), root / "baseline", preset="tiny", show_progress=False
        )
        self.kinds.append((BaselinePipeline, root / "baseline" / "model"))

    def case(self, draw: Random, folder: Path) -> None:
        kind, source = draw.choice(self.kinds)
        copy = folder / "model"
        shutil.copytree(source, copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        path = draw.choice(files)
        if draw.random() < 0.1:
            path = path.with_name(draw.choice(["x.py", "x.bin", "adapter_config.json", "é" * 90, "a b.json", ".x"]))
            path.write_bytes(draw.randbytes(50))
        else:
            spoil_file(path, draw)
        with answers(path.name, str(copy), "image 1"):
            if draw.random() < 0.2:
                if kind is ILTMAnomalyPipeline:
                    plan_upload(copy, "org/name").describe()
            else:
                output = kind.from_pretrained(copy)(PART)
                finite = [bool(np.isfinite(values).all()) for values in (output.scores.numpy(), *output.anomaly_maps)]
                expect(all(finite), "a score or map that is not finite")


def torch_pixels(count: int) -> Any:
    import torch

    images = [render_image("part", 24, "good", seed)[0] for seed in range(count)]
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images])


class Recipes:
    """Recipes in YAML and values on the command line."""

    def __init__(self, root: Path):
        self.presets = {name: load_recipe(name).to_dict() for name in preset_names()}

    def case(self, draw: Random, folder: Path) -> None:
        path, values = folder / "mine.yaml", self.presets[draw.choice(sorted(self.presets))]
        kind = draw.randrange(4)
        plain = yaml.safe_dump(values).encode()
        if kind == 0:
            path.write_bytes(spoil_text(plain, draw))
        elif kind == 1:
            path.write_bytes(spoil_json(json.dumps(values).encode(), draw))  # which is YAML, too
        elif kind == 2 and draw.random() < 0.05:
            names = [f"a{number}" for number in range(12)]
            lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1]"]
            lines += [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in itertools.pairwise(names)]
            path.write_text("\n".join(lines))
        else:
            path.write_bytes(plain)
        overrides = []
        if kind > 1:
            table = draw.choice([key for key in values if isinstance(values[key], dict)])
            field = draw.choice([*values, *(f"{table}.{key}" for key in values[table])])
            overrides = [f"{field}={draw.choice([json.dumps(draw.choice(ODD)), str(draw.choice(ODD))])}"]
            overrides += draw.choice([[], ["="], [f"{field}.x=1"], ["x"], [".=1"]])
        with answers(path.name, "--set"):
            recipe = load_recipe(path, overrides)
            again = recipe_from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict())))
            expect(again == recipe, "written and read again it is another recipe")


class Metadata:
    """Data sets that `datasets` reads, with a table or an image spoiled."""

    def __init__(self, root: Path):
        self.roots = []
        for kind in ("csv", "jsonl", "parquet", "disk", "tree"):
            folder = root / kind
            if kind == "tree":
                self.roots.append(self.tree(folder))
                continue
            rows = [
                {"file_name": f"{n}.png", "defect": ["good", "good", "hole"][n % 3], "label": int(n % 3 == 2)}
                for n in range(4)
            ]
            for split in ("train", "test"):
                (folder / split).mkdir(parents=True)
                if kind == "disk":
                    continue
                for row in rows:
                    Image.fromarray(PART).save(folder / split / row["file_name"])
                if kind == "csv":
                    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
                    (folder / split / "metadata.csv").write_text("\n".join(lines) + "\n")
                elif kind == "jsonl":
                    (folder / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
                else:
                    datasets.Dataset.from_list(rows).to_parquet(folder / split / "metadata.parquet")
            if kind == "disk":
                shutil.rmtree(folder)
                features = datasets.Features(
                    {"image": datasets.Image(), "defect": datasets.Value("string"), "label": datasets.Value("int64")}
                )
                columns = {"image": [Image.fromarray(PART)] * 4, "defect": ["good"] * 4, "label": [0] * 4}
                split = datasets.Dataset.from_dict(columns, features=features)
                datasets.DatasetDict(train=split, test=split).save_to_disk(folder)
            self.roots.append(folder)

    @staticmethod
    def tree(folder: Path) -> Path:
        for part in ("train/good", "test/good", "test/hole", "ground_truth/hole"):
            (folder / part).mkdir(parents=True)
            for number in range(2):
                mask = part.startswith("ground")
                name = f"{number}_mask.png" if mask else f"{number}.png"
                Image.fromarray(PART[..., 0] if mask else PART).save(folder / part / name)
        return folder

    def case(self, draw: Random, folder: Path) -> None:
        copy = folder / "data"
        shutil.copytree(draw.choice(self.roots), copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        tables = [path for path in files if path.suffix != ".png"]
        path = draw.choice(tables if tables and draw.random() < 0.9 else files)
        if draw.random() < 0.1:
            odd = path.with_name(draw.choice(["a b", "é" * 60, "-x", "=1+1", "#", "%41", "[ab]", "a\nb", "\udcff"]))
            path = path.rename(odd.with_suffix(path.suffix))
        else:
            spoil_file(path, draw)
        with answers(path.name, str(copy)):
            for split in load_images(copy, require_masks=False).values():
                for row in split:
                    expect(min(row["image"].size) > 0 and row["label"] in (-1, 0, 1), f"a row that cannot be: {row}")


class Results:
    """What commands have written and read again: tables, reports, results for a model card, records of runs, cells."""

    def __init__(self, root: Path):
        self.root = root
        data = part_tree(root / "data")
        for name, preset, more in (
            ("run", "tiny-features", []),
            ("codes", "tiny", ["stage1.epochs=1", "stage2.epochs=1"]),
        ):
            train(TrainArguments(str(data), root / name, preset=preset, overrides=more, rounds=1))
            (root / name / "images.arrow").chmod(0o444)
        os.chdir(root)
        detect(ILTMAnomalyPipeline.from_pretrained(root / "run"), [data / "test"], root / "found", show_progress=False)
        expect(main(["evaluate", "run", "--data", str(data), "--output", "evaluation"]) == 0, "evaluate")
        words = "benchmark --categories part --methods mean_image --contamination 0 --preset tiny --cpu --output cells"
        clean = generate_dataset(
            kind="part", size=64, num_train=12, num_test_good=4, num_test_defective=4, contamination=0
        )
        write_mvtec_tree(clean, root / "clean", "part")
        expect(main([*words.split(), "--data", str(root / "clean")]) == 0, "benchmark")
        self.data = str(data)

    def case(self, draw: Random, folder: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            kinds = [self.table, self.trained, self.card, self.cells]  # these are quicker than
            (draw.choice([self.resumed, self.evaluated]) if draw.random() < 0.1 else draw.choice(kinds))(draw, folder)

    def copied(self, name: str, draw: Random, folder: Path, wanted: Callable[[Path], bool]) -> tuple[Path, Path]:
        """A copy of a folder with one of its files spoiled; the file, and the copy."""
        copy = folder / name
        shutil.copytree(self.root / name, copy)
        path = draw.choice(sorted(path for path in copy.rglob("*") if path.is_file() and wanted(path)))
        spoil_file(path, draw)
        return path, copy

    def table(self, draw: Random, folder: Path) -> None:
        path, copy = self.copied("found", draw, folder, lambda path: path.name == "results.csv")
        with answers(path.name):
            write_report(copy)

    def trained(self, draw: Random, folder: Path) -> None:
        path, copy = self.copied("run", draw, folder, lambda path: path.parent.name in ("run", "model", "round_1"))
        with answers(path.name, str(path.parent), str(copy)):
            write_report(copy)

    def card(self, draw: Random, folder: Path) -> None:
        path = folder / "results.json"
        shutil.copy(self.root / "evaluation" / "results.json", path)
        spoil_file(path, draw)
        with answers(path.name):
            plan_upload(self.root / "run" / "model", "org/name", [path]).describe()

    def resumed(self, draw: Random, folder: Path) -> None:
        name = draw.choice(["run", "codes"])
        path, copy = self.copied(name, draw, folder, lambda path: path.name in ("run.json", "stage.json", "keep.bin"))
        if draw.random() < 0.3:
            shutil.rmtree(copy / "model")
        more = [] if name == "run" else ["stage1.epochs=1", "stage2.epochs=1"]
        preset = "tiny-features" if name == "run" else "tiny"
        with answers(path.name, str(copy)):
            train(TrainArguments(self.data, copy, preset=preset, overrides=more, rounds=1, resume=True))

    def evaluated(self, draw: Random, folder: Path) -> None:
        path, copy = self.copied("codes", draw, folder, lambda path: path.name in ("run.json", "training_report.json"))
        with answers(path.name, str(path.parent)):
            main(
                [
                    "--debug",
                    "evaluate",
                    str(copy),
                    "--data",
                    self.data,
                    "--output",
                    str(folder / "out"),
                    "--last-round",
                ]
            )

    def cells(self, draw: Random, folder: Path) -> None:
        path, copy = self.copied("cells", draw, folder, lambda path: path.parent.name == "cells")
        with answers(path.name, str(copy)):
            main(["--debug", "benchmark", "--report-only", "--output", str(copy)])


class Arguments:
    """Words on the command line. No data are given that training could start on, and no network can be reached."""

    def __init__(self, root: Path):
        tiny_pipeline(score_threshold=3.0).save_pretrained(root / "model")
        Image.fromarray(PART).save(root / "a.png")
        (root / "empty").mkdir()
        (root / "file").write_text("x")
        self.root = root

    def case(self, draw: Random, folder: Path) -> None:
        os.chdir(self.root)
        values = [
            "model",
            "a.png",
            "empty",
            "file",
            "absent",
            "a.png/x",
            "/dev/null",
            "org/name",
            "x" * 5000,
            "\udcff",
            "~",
            ".",
        ]
        values += [
            "0",
            "-1",
            "1",
            "nan",
            "inf",
            "1e400",
            "9" * 30,
            "",
            "cuda:99",
            "cpu",
            "meta",
            "tiny",
            "a=b",
            "rounds=",
            "{}",
        ]
        out = ["--output", str(folder / "out")]
        commands = {  # words that are right, and options
            "detect": (["model", "a.png", *out], "--batch-size --threshold --device --no-maps"),
            "train": (
                ["--data", "absent", *out],
                "--category --contamination --protocol --train-size --preset --set --rounds --seed --resume --volumes --cpu "
                "--checkpoint-seconds --streaming --report-to",
            ),
            "evaluate": (["model", "--data", "absent", *out], "--category --last-round --device"),
            "report": (["absent"], "--output"),
            "benchmark": (
                ["--data", "absent", "--categories", "x", *out],
                "--methods --contamination --seeds --preset --protocol --image-size --train-size --baseline-seconds "
                "--baseline-config --cpu --dry-run --report-only",
            ),
            "push": (["model", "org/name", "--dry-run"], "--results --picture --revision --private"),
        }
        command = draw.choice(sorted(commands))
        words, options = list(commands[command][0]), commands[command][1].split()
        for _ in range(draw.randint(0, 3)):
            words += [draw.choice(options), *([draw.choice(values)] if draw.random() < 0.8 else [])]
        if draw.random() < 0.5:
            number = draw.randrange(len(words))
            if words[number - 1] not in ("--data", "--output", "--report-to") or command in (
                "detect",
                "push",
                "report",
            ):
                words[number] = draw.choice(values)
        if draw.random() < 0.1:
            del words[draw.randrange(len(words))]
        words = [word if word != "." or command in ("detect", "push") else "empty" for word in words]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                with answers():
                    status = main(["--debug", command, *words])
            except SystemExit as ended:
                if ended.code == 2:
                    raise Refused from ended
                status = ended.code
        expect(status in (0, 1, 2), f"{command} {words}: exit status {status}")


DOORS = {
    "images": Images,
    "volumes": Volumes,
    "pipelines": Pipelines,
    "recipes": Recipes,
    "metadata": Metadata,
    "results": Results,
    "arguments": Arguments,
}
