"""Label a folder as one would by hand, in one process: MODEL IMAGES OUT THREADS PART PARTS.

With `forward` as OUT only the network runs, for ten seconds, on tensors that are there already; it
prints images a second.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import cv2
import torch
from labelling import Plain, files

BATCH, SECONDS = 8, 10.0


def read(path: Path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def forward(plain: Plain, paths: list[Path]) -> None:
    x = plain.tensors([read(p) for p in paths[:BATCH]])
    with torch.inference_mode():
        plain.net(x)
        count, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < SECONDS or not count:
            plain.net(x)
            count += len(x)
        spent = time.perf_counter() - start
    print(count / spent)


def main() -> None:
    model, images, out, threads, part, parts = sys.argv[1:]
    cv2.setNumThreads(1)
    plain, paths = Plain(model, int(threads)), files(images, int(part), int(parts))
    if out == "forward":
        forward(plain, paths)
        return
    Path(out).mkdir(parents=True, exist_ok=True)
    for start in range(0, len(paths), BATCH):
        some = paths[start : start + BATCH]
        for path, cell in zip(some, plain([read(p) for p in some]), strict=True):
            Path(out, f"{path.stem}.png").write_bytes(cell)


if __name__ == "__main__":
    main()
