"""A toy job, and the names of its ten images."""

from __future__ import annotations

from pipeline.run import Run
from pipeline.runner import LocalRunner
from pipeline.runs.drive import execute
from tests.samples import Labelling

NAMES = [f"i{n:02d}" for n in range(10)]


def run_job(store, samples, labeller=None, runner=None, **options):
    """Run a toy label job and return its report and the newest snapshot."""
    run = Run.begin(store, "toy", kind="truth", identity=["x"])
    report = execute(
        store,
        samples,
        labeller or Labelling(),
        run=run,
        choose_runner=lambda count: runner or LocalRunner(2),
        shard_rows=options.pop("shard_rows", 3),
        **options,
    )
    return report, store.latest()
