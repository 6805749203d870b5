"""`iltm-anomaly benchmark`: makes the plan, measures its cells and writes the report."""

from pathlib import Path

from iltm_anomaly.comparison.benchmark.dry_run import dry_run
from iltm_anomaly.comparison.benchmark.plan import BenchmarkArguments, make_plan
from iltm_anomaly.comparison.benchmark.report import write_report
from iltm_anomaly.comparison.benchmark.results import NoCellsError
from iltm_anomaly.comparison.benchmark.runner import run_plan
from iltm_anomaly.locks import locked


class CellsFailedError(RuntimeError):
    """Some cells, or some checks of a dry run, have failed; the others have not."""


def benchmark(arguments: BenchmarkArguments) -> list[Path]:
    """Measures the cells that are not finished, then writes the report on all cells in the folder; returns its files.

    Raises:
        ValueError: for arguments that cannot be used, or cells that do not belong together.
        CellsFailedError: if cells failed. It names them and says why; the report is written all the same.
    """
    failures, left = run_plan(make_plan(arguments))
    try:
        with locked(arguments.output / "runs" / "report.lock", wait=True):  # other processes may share the plan
            written = write_report(arguments.output)
    except NoCellsError:
        if not failures and not left:
            raise
        written = []  # every cell has failed, which is told below, or is left to another process
    except ValueError as error:
        if failures:
            error.add_note(_listed(failures, "cells", "the same command tries these again"))
        raise
    _raise_for(failures, "cells", "the others are finished; the same command tries these again")
    return written


def check(arguments: BenchmarkArguments) -> None:
    """The dry run, see `dry_run.dry_run`.

    Raises:
        ValueError: for arguments that cannot be used.
        CellsFailedError: if something would fail. It names it and says why.
    """
    _raise_for(dry_run(make_plan(arguments)), "checks", "nothing was trained")


def _raise_for(failures: dict[str, str], what: str, remark: str) -> None:
    if failures:
        raise CellsFailedError(_listed(failures, what, remark))


def _listed(failures: dict[str, str], what: str, remark: str) -> str:
    lines = (f"  {name}: {error}" for name, error in failures.items())
    return "\n".join([f"{len(failures)} {what} failed ({remark}):", *lines])
