"""Label a folder by Ray Data's recipe for batch inference: MODEL IMAGES OUT PROCESSES.

read_images -> map_batches with a class on actors -> write_parquet, as its documentation has it.
"""

from __future__ import annotations

import os
import sys

import ray


class Label:
    def __init__(self, model: str) -> None:
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        from labelling import Plain

        self.plain = Plain(model)

    def __call__(self, batch):
        return {"path": batch["path"], "mask": self.plain(list(batch["image"]))}


def main() -> None:
    model, images, out, processes = sys.argv[1:]
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    here = os.path.dirname(os.path.abspath(__file__))
    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": f"{here}:{os.getcwd()}"}},
    )
    (
        ray.data.read_images(images, mode="RGB", include_paths=True)
        .map_batches(
            Label,
            fn_constructor_args=(model,),
            batch_size=8,
            # Below 1, as on this machine's few CPUs the readers need a share too.
            num_cpus=0.5,
            compute=ray.data.ActorPoolStrategy(size=int(processes)),
        )
        .write_parquet(out)
    )


if __name__ == "__main__":
    main()
