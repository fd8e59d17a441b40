"""Where a training run runs: in this process, or on Ray Train's workers; the same loop."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from pipeline.errors import ModelError, SegmillError, UsageError
from pipeline.ray_runner import start_ray
from pipeline.tables.location import locate
from pipeline.training import checkpoint
from pipeline.training.place import Place, this_machine
from pipeline.training.supervised import Listener, Plan, Result, preflight, read_result, train

if TYPE_CHECKING:
    from collections.abc import Sequence

RunnerName = Literal["auto", "local", "ray"]
RUNNERS: Final = ("auto", "local", "ray")
_REPORTED: Final = ("epoch", "step", "loss", "lr", "miou", "pixel_accuracy", "seconds")
_RAY_FOLDER: Final = "ray"
_FAILURES: Final = 2
"""How often Ray Train starts the workers again, from the checkpoint, after one died."""


@dataclass(frozen=True, slots=True)
class Where:
    """The machines to train on. auto takes Ray for a cluster, several workers or several GPUs."""

    runner: RunnerName = "auto"
    workers: int | None = None
    address: str | None = None
    gpu: bool | None = None
    """Whether Ray's workers take a GPU each; None: if there are enough."""

    def __post_init__(self) -> None:
        if self.runner not in RUNNERS:
            raise UsageError(f"--runner takes {', '.join(RUNNERS)}, not {self.runner!r}")
        if self.runner == "local" and (self.workers or 1) > 1:
            raise UsageError("--runner local trains in one process; leave --workers out")

    def on_ray(self) -> bool:
        """Tell whether Ray Train runs this."""
        if self.runner != "auto":
            return self.runner == "ray"
        import torch

        cluster = self.address or os.environ.get("RAY_ADDRESS")
        return bool(cluster) or (self.workers or torch.cuda.device_count()) > 1


def launch(
    plan: Plan, where: Where, listener: Listener | None = None, *, resume: bool = True
) -> Result:
    """Train and return what came of it; with `resume` off an older run in `plan.out` is dropped.

    Raises:
        SegmillError: as `train`.
    """
    plan = replace(plan, out=locate(plan.out))  # workers have other working directories
    if not resume:
        checkpoint.discard(plan.out)
    if where.on_ray():
        preflight(plan)  # a mistake is told in seconds here, and thrice in minutes there
        _train_on_ray(plan, where)
    else:
        train(plan, this_machine(), listener)
    return read_result(plan.out)


def _train_on_ray(plan: Plan, where: Where) -> None:
    """Run the loop on Ray Train's workers: one a GPU where there are any, else on CPU cores."""
    started = start_ray(where.address)
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    have = ray.cluster_resources()
    gpus = int(have.get("GPU", 0))
    workers = where.workers or max(1, gpus)
    use_gpu = gpus >= workers if where.gpu is None else where.gpu
    threads = threads_each(
        [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]], workers
    )
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"plan": plan, "threads": threads},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=use_gpu, resources_per_worker=_resources(use_gpu, threads)
        ),
        run_config=RunConfig(
            name=_RAY_FOLDER,
            storage_path=plan.out,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=_FAILURES),
            worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise _explained(error) from error
    finally:
        if started:
            ray.shutdown()
    # What Ray Train keeps beside the model is a copy of the checkpoint.
    shutil.rmtree(f"{plan.out}/{_RAY_FOLDER}", ignore_errors=True)


def threads_each(cpus: Sequence[float], workers: int) -> int:
    """Return the most CPUs that each of the workers can have on nodes with so many.

    A share of the cluster's sum would not do: a worker that fits on no node waits for ever.

    >>> threads_each([4, 3], 1), threads_each([4, 3], 2), threads_each([4, 3], 3)
    (4, 3, 2)
    >>> threads_each([], 2)
    1
    """
    for threads in range(int(max(cpus, default=1)), 1, -1):
        if sum(int(held // threads) for held in cpus) >= workers:
            return threads
    return 1


def _resources(use_gpu: bool, threads: int) -> dict[str, float]:
    return {"CPU": 1, "GPU": 1} if use_gpu else {"CPU": threads}


def _loop(config: dict[str, Any]) -> None:
    """Run on each of Ray Train's workers."""
    import torch
    from ray import train as ray_train
    from ray.train.torch import get_device

    context = ray_train.get_context()
    place = Place(
        get_device(), context.get_world_rank(), context.get_world_size(), config["threads"]
    )
    plan: Plan = config["plan"]

    def report(row: dict[str, Any]) -> None:
        figures = {k: row.get(k) for k in _REPORTED}
        if place.rank:
            ray_train.report(figures)
            return
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.copy(plan.out, folder)
            ray_train.report(figures, checkpoint=ray_train.Checkpoint.from_directory(folder))

    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
    train(plan, place, Listener(epoch=report))


def _explained(error: Exception) -> Exception:
    """Return the error that the loop raised on a worker, out of Ray Train's wrapping."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "cause", failure)
        cause = cause if isinstance(cause, SegmillError) else getattr(cause, "cause", cause)
        if isinstance(cause, SegmillError):
            return cause
        return ModelError(f"training failed on a worker: {str(cause).strip().splitlines()[-1]}")
    return error
