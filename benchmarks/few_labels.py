"""What methods make of few labels: test mIoU by method and seed, on CamVid or any store.

    few=benchmarks/splits/camvid/46.txt
    python benchmarks/few_labels.py stores/camvid runs --labelled $few
    python benchmarks/few_labels.py stores/camvid runs --labelled $few --methods unimatch --seeds 0
    python benchmarks/few_labels.py stores/camvid runs --labelled $few --table

Every method has the same network, number of steps, batch and validation; only `decouplednet` has a
network of its own. Each method and seed is a model directory and a `result.json` under the output:
what is there is not run again, and a killed run goes on, so the table grows run by run. Labelled
images are those listed; the others of the split are there without masks, and where a method wants
image-level labels, with their masks' classes. `supervised-all` has every mask. The mIoU is that of
one confusion matrix over the whole test split, void left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from pipeline.store import Store
    from pipeline.training.recipe import Recipe

DECOUPLED: Final = {"model": "zoo:decouplednet?width=32", "start_from": None, "input_size": None}
METHODS: Final[dict[str, dict[str, Any]]] = {
    "supervised": {},
    "supervised-all": {},
    "mean-teacher": {"method": "mean-teacher"},
    "unimatch": {"method": "unimatch"},
    "unimatch-v2": {"method": {"name": "unimatch", "version": 2}},
    "self-training": {"method": "self-training"},
    "advsemiseg": {"method": "advsemiseg"},
    "gan-ss": {"method": "gan-ss"},
    "gan-ss-weak": {"method": {"name": "gan-ss", "form": "weak"}},
    "decouplednet": {"method": "decouplednet", **DECOUPLED},
}
"""What each row of the table changes in the recipe."""


def main() -> None:
    """Run what is missing, then print and write the table."""
    asked = _arguments()
    folder = Path(asked.out) / _name(asked.labelled)
    if not asked.table:
        for seed in asked.seeds:
            for method in asked.methods:
                run(asked, folder, method, seed)
    text = table(folder)
    print(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("out")
    parser.add_argument("--labelled", required=True, help="1/8, a number, or a file of ids")
    parser.add_argument("--recipe", default="camvid-lite")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument(
        "--epoch", type=int, default=100, help="steps from checkpoint to checkpoint"
    )
    parser.add_argument("--test", default="test", help="the split that is scored")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    return parser.parse_args()


def _name(labelled: str) -> str:
    return Path(labelled).stem if Path(labelled).is_file() else labelled.replace("/", "-")


def recipe_of(asked: argparse.Namespace, method: str, seed: int) -> Recipe:
    """Return the recipe of one run: the given one with the method, the budget and the seed."""
    from pipeline.training.recipe import Recipe, read_recipe

    values = read_recipe(asked.recipe).plain() | {
        "minutes": None,
        "epochs": max(1, asked.steps // asked.epoch),
        "steps_per_epoch": asked.epoch,
        "seed": seed,
    }
    return Recipe.model_validate(values | METHODS[method])


def run(asked: argparse.Namespace, folder: Path, method: str, seed: int) -> None:
    """Train and score one method and seed, unless its result is there."""
    from pipeline.store import Store
    from pipeline.training.launch import Where, launch
    from pipeline.training.selection import selected
    from pipeline.training.supervised import Listener, Plan

    out = folder / f"{method}-seed{seed}"
    if (out / "result.json").exists():
        return
    store = Store.open(asked.store)
    few = None if method == "supervised-all" else selected(store, "train", asked.labelled)
    plan = Plan(store, recipe_of(asked, method, seed), str(out), labelled=few)

    def told(row: dict[str, Any]) -> None:
        scored = f", val mIoU {100 * row['miou']:.1f}" if "miou" in row else ""
        print(f"{out.name} epoch {row['epoch']}: loss {row['loss']:.3f}{scored}", flush=True)

    result = launch(plan, Where("local"), Listener(epoch=told))
    scores = score(str(out), store, asked.test)
    scores |= {
        "labelled": result.train_rows,
        "others": result.other_rows,
        "steps": sum(row["steps"] for row in result.history),
        "val_miou": result.miou,
        "seconds": result.seconds,
        "digest": result.digest,
    }
    partial = out / "result.json.part"
    partial.write_text(json.dumps(scores, indent=1), encoding="utf-8")
    partial.replace(out / "result.json")


def score(model_directory: str, store: Store, split: str) -> dict[str, Any]:
    """Return mIoU, pixel accuracy and each class's IoU of a model on a split, in 0..1."""
    from pipeline.models import load_model
    from pipeline.training.data import Channels, Reader
    from pipeline.training.place import this_machine
    from pipeline.training.validate import validate

    model, place = load_model(model_directory), this_machine()
    reader = Reader(store, split, Channels(model.label_space))
    tally = validate(
        model.module.to(place.device), reader, place, model.preprocessing, batch=4, precision="auto"
    )
    if not tally.pixels:
        raise SystemExit(f"{store.url}: split {split!r} has nothing to score on")
    names = [model.label_space.by_id[i].name for i in model.label_space.train_ids]
    iou = {n: None if math.isnan(v) else float(v) for n, v in zip(names, tally.iou, strict=True)}
    return {"miou": tally.miou, "pixel_accuracy": tally.pixel_accuracy, "iou": iou}


def table(folder: Path) -> str:
    """Return the results that are there as a Markdown table: mean and spread over seeds, in %."""
    found = {method: _results(folder, method) for method in METHODS}
    classes = sorted({c for results in found.values() for r in results for c in r["iou"]})
    columns = ["method", "seeds", "test mIoU", "against few", "pixel accuracy", *classes]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    base = [r["miou"] for r in found["supervised"]]
    for method, results in found.items():
        if results:
            mious = [r["miou"] for r in results]
            cells = [method, str(len(results)), spread(mious), gain(mious, base)]
            cells.append(spread([r["pixel_accuracy"] for r in results]))
            cells += [spread([r["iou"].get(c) for r in results]) for c in classes]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _results(folder: Path, method: str) -> list[dict[str, Any]]:
    paths = sorted(folder.glob(f"{method}-seed*/result.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def spread(values: list[float | None]) -> str:
    """Return the mean in per cent and, of several, their standard deviation."""
    known = [100 * v for v in values if v is not None]
    if not known:
        return "-"
    if len(known) == 1:
        return f"{known[0]:.1f}"
    return f"{statistics.mean(known):.1f} ± {statistics.stdev(known):.1f}"


def gain(mious: list[float], base: list[float]) -> str:
    """Return the difference of the means in points; "no gain" if it is below either's spread."""
    if not base or mious == base:
        return "-"
    points = 100 * (statistics.mean(mious) - statistics.mean(base))
    spreads = [100 * statistics.stdev(v) for v in (mious, base) if len(v) > 1]
    if 0 <= points < max(spreads, default=0.0):
        return f"no gain ({points:+.1f})"
    return f"{points:+.1f}"


if __name__ == "__main__":
    main()
