"""`iltm-anomaly benchmark`: plan, cells, report."""

from pathlib import Path

from filelock import FileLock

from iltm_anomaly.comparison.benchmark.dry_run import dry_run
from iltm_anomaly.comparison.benchmark.plan import BenchmarkArguments, make_plan
from iltm_anomaly.comparison.benchmark.report import write_report
from iltm_anomaly.comparison.benchmark.results import NoCellsError
from iltm_anomaly.comparison.benchmark.runner import run_plan


class CellsFailedError(RuntimeError):
    """Some cells, or some checks of a dry run, failed; the others are there."""


def benchmark(arguments: BenchmarkArguments) -> list[Path]:
    """Measures what is not finished, then writes the report over all cells in the folder; returns its files.

    Raises:
        ValueError: for arguments that mean nothing.
        CellsFailedError: if cells failed; names them and says why. The report is written all the same.
    """
    failures, left = run_plan(make_plan(arguments), arguments)
    try:
        with FileLock(arguments.output / "runs" / "report.lock"):  # of processes that share a plan
            written = write_report(arguments.output)
    except NoCellsError:
        if not failures and not left:
            raise
        written = []  # every cell failed, and the failures say more, or other processes work on all of them
    except ValueError as error:
        if failures:
            error.add_note(_listed(failures, "cells", "the same command tries these again"))
        raise
    _raise_for(failures, "cells", "the others are finished; the same command tries these again")
    return written


def check(arguments: BenchmarkArguments) -> None:
    """The dry run.

    Raises:
        ValueError: for arguments that mean nothing.
        CellsFailedError: if something would fail; names it and says why.
    """
    _raise_for(dry_run(make_plan(arguments), arguments), "checks", "nothing was trained")


def _raise_for(failures: dict[str, str], what: str, remark: str) -> None:
    if failures:
        raise CellsFailedError(_listed(failures, what, remark))


def _listed(failures: dict[str, str], what: str, remark: str) -> str:
    lines = (f"  {name}: {error}" for name, error in failures.items())
    return "\n".join([f"{len(failures)} {what} failed ({remark}):", *lines])
