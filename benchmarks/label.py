"""`segmill label` against a hand-written PyTorch loop that does the same work in one process.

    python benchmarks/label.py --light 240 --heavy 16

Both decode JPEGs, run the same model in the same batch, resize, take the arg-max and write a
palette PNG (the loop) or a mask cell in a committed Parquet (segmill). Whole processes, start
included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from measure import median, once, segmill, table

LIGHT = "zoo:enet?label_space=camvid-11&seed=0"
HEAVY = "torchvision:deeplabv3_resnet50?label_space=camvid-11&seed=0"


def loop(model: str, images: str, out: str, threads: int, batch: int = 8) -> None:
    """Label a folder as one would by hand."""
    import cv2
    import numpy as np
    import torch
    from PIL import Image
    from torch.nn import functional as F  # noqa: N812

    from pipeline.models import load_model

    torch.set_num_threads(threads)
    loaded = load_model(model)
    net = loaded.module.to(memory_format=torch.channels_last)
    mean = torch.tensor(loaded.preprocessing.mean).view(1, 3, 1, 1)
    std = torch.tensor(loaded.preprocessing.std).view(1, 3, 1, 1)
    palette = loaded.label_space.palette()
    paths = sorted(Path(images).glob("*.jpg"))
    Path(out).mkdir(parents=True)
    for start in range(0, len(paths), batch):
        some = paths[start : start + batch]
        rgb = np.stack([cv2.imread(str(p))[..., ::-1] for p in some])
        with torch.inference_mode():
            x = torch.from_numpy(rgb.copy()).permute(0, 3, 1, 2).float() / 255
            logits = net(((x - mean) / std).contiguous(memory_format=torch.channels_last))
            logits = F.interpolate(logits, rgb.shape[1:3], mode="bilinear")
            ids = logits.argmax(1).to(torch.uint8).numpy()
        for path, one in zip(some, ids, strict=True):
            image = Image.fromarray(one, "P")
            image.putpalette(palette)
            image.save(f"{out}/{path.stem}.png")


def compare(name: str, model: str, count: int, runs: int) -> None:
    """Measure one model all ways and print the table."""
    import cv2

    from pipeline.streetscenes import scene

    with tempfile.TemporaryDirectory() as root:
        images = Path(root) / "images"
        images.mkdir()
        for seed in range(count):
            rgb, _ = scene(seed, 352, 480)
            cv2.imwrite(str(images / f"{seed:05d}.jpg"), rgb[..., ::-1])
        found: dict[str, list] = {}
        for run in range(runs):
            common = ["label", str(images)]
            shard = str(max(1, min(128, count // 4)))
            ways = {
                f"loop, {threads} thread{'s' * (threads > 1)}": [
                    sys.executable, __file__, "--loop", model, str(images),
                    f"{root}/loop{threads}-{run}", str(threads),
                ]
                for threads in (1, 2)
            } | {
                "segmill, in process": segmill(*common, f"{root}/local{run}", "--model", model,
                    "--runner", "local", "--shard-images", shard),
                "segmill, 2 Ray actors": segmill(*common, f"{root}/ray{run}", "--model", model,
                    "--runner", "ray", "--actors", "2:2", "--shard-images", shard),
            }  # fmt: skip
            for way, command in ways.items():
                found.setdefault(way, []).append(once(command))
        rows = {way: median(figures) for way, figures in found.items()}
        best = min(("loop, 1 thread", "loop, 2 threads"), key=lambda way: rows[way].wall)
        print(
            f"\n{name}: {model}, {count} JPEGs of 480x352, median of {runs}; ratios to {best!r}\n"
        )
        print(table(rows, best, count))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--light", type=int, default=240)
    parser.add_argument("--heavy", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--loop", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loop:
        model, images, out, threads = args.loop
        loop(model, images, out, int(threads))
        return
    compare("light", LIGHT, args.light, args.runs)
    compare("heavy", HEAVY, args.heavy, args.runs)


if __name__ == "__main__":
    main()
