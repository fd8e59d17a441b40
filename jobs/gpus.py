"""Whether there are GPUs to label on: here, or in the cluster where there is one."""

from __future__ import annotations

import os

from jobs.console import note


def has_gpu() -> bool:
    """Tell whether this machine has a GPU."""
    import torch

    return bool(torch.cuda.is_available())


def default_gpus(address: str | None, runner: str) -> float:
    """Return the GPUs of an actor where the user names none: one where there are any.

    Work in this process takes this machine's, also as a job on the head of a cluster that has some.
    """
    if runner == "local" or not (address or os.environ.get("RAY_ADDRESS")):
        return float(has_gpu())
    import ray

    from pipeline.ray_runner import start_ray

    start_ray(address)
    if ray.cluster_resources().get("GPU"):
        return 1.0
    note("the cluster has no GPU now; --gpus-per-actor 1 asks for some, labelling on CPUs")
    return 0.0
