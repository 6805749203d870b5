"""The command `benchmark`; heavy imports wait, as in `cli`."""

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any

PROTOCOLS = ("disjoint", "overlap")
PROTOCOL_HELP = (
    "where contamination comes from: test images that are left out of the test set (disjoint, default), or copies of images of "
    "the test set, turned by up to 3 degrees and shifted by up to 3 %% (overlap)"
)


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="ROOT", help="folder that the categories are in")
    categories = "category folders below ROOT (bottle, mvtec/bottle), `official` for the 12 of the paper, or `all15` of MVTec AD"
    add("--categories", nargs="+", metavar="NAME", help=categories)
    output = "cells, runs and report; the same DIR again continues"
    add("--output", required=True, type=Path, metavar="DIR", help=output)
    methods = (
        "all (default), paper, or names; patchcore, patchcore_coreset and softpatch are not in all, as they need weights of an "
        "ImageNet network"
    )
    add("--methods", nargs="+", default=["all"], metavar="NAME", help=methods)
    shares = "shares of defective training images (default: 0 0.1 0.2)"
    add("--contamination", nargs="+", type=float, default=[0.0, 0.1, 0.2], metavar="F", help=shares)
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds of everything random (default: 0)")
    add("--preset", default="cpu", metavar="NAME_OR_FILE", help="recipe (default: cpu)")
    sizes = (
        "training images of every cell; `common` (default) takes, per category, the most at which all levels are possible, "
        "`all` the good images and as many defective ones as a level needs"
    )
    add("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], help=PROTOCOL_HELP)
    side = (
        "pixels of the square that every image becomes for all methods, in place of the recipe's; a multiple of the side of a "
        "token, 8 pixels with every preset of images"
    )
    add("--image-size", type=int, metavar="N", help=side)
    add("--train-size", type=_size, default="common", metavar="N", help=sizes)
    seconds = "training time of each other method (default: that of one round of ILTM's prior; with `paper`, its own schedule)"
    add("--baseline-seconds", type=float, metavar="S", help=seconds)
    config: dict[str, Any] = {"nargs": "+", "action": "extend", "type": _baseline_field, "default": []}
    values = "fields of other methods in place of the preset's, such as cutpaste.weights=microsoft/resnet-18"
    add("--baseline-config", **config, metavar="METHOD.FIELD=VALUE", help=values)
    add("--cpu", action="store_true", help="do not use a GPU")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--dry-run", action="store_true", help="print plan and cost, try one step of everything, train nothing")
    add("--report-only", action="store_true", help="write the report of the cells in DIR anew; needs no data")


def _size(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _baseline_field(text: str) -> tuple[str, str, Any]:
    """ "nsa.max_patches=4" -> ("nsa", "max_patches", 4)."""
    import yaml

    name, equals, value = text.partition("=")
    method, dot, field = name.partition(".")
    if not (equals and dot and method and field):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form METHOD.FIELD=VALUE")
    found = yaml.safe_load(value)
    if isinstance(found, str):
        with suppress(ValueError):  # YAML takes 1e-3 for text
            found = float(found)
    return method, field, found


def run_benchmark(arguments: argparse.Namespace) -> None:
    if arguments.report_only:
        from iltm_anomaly.comparison.benchmark.report import write_report

        written = write_report(arguments.output)
    else:
        from iltm_anomaly.comparison.benchmark.plan import BenchmarkArguments
        from iltm_anomaly.comparison.benchmark.task import benchmark, check

        if arguments.data is None or arguments.categories is None:
            raise ValueError("--data and --categories are needed, unless --report-only is given")
        values = {k: v for k, v in vars(arguments).items() if k in BenchmarkArguments.__dataclass_fields__}
        values["baseline_config"] = {}
        for method, name, value in arguments.baseline_config:
            values["baseline_config"].setdefault(method, {})[name] = value
        if arguments.dry_run:
            check(BenchmarkArguments(**values))
            return
        written = benchmark(BenchmarkArguments(**values))
    print(f"written: {', '.join(map(str, written))}")
