"""Lets a process whose GPU is Ray's word alone compute on its CPU.

On the path of the test cluster's nodes. `pick_device` is right to refuse such a GPU; the tests are
of where work is placed.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

PATCHED = "pipeline.segmenter"


class Patch(MetaPathFinder):
    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != PATCHED:
            return None
        spec = PathFinder.find_spec(name, path)  # type: ignore[arg-type]
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            real = module.pick_device

            def pick_device(asked: str) -> object:
                given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
                return real("cpu" if asked == "cuda" and given.isdecimal() else asked)

            module.pick_device = pick_device

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Patch())
