"""Networks trained on CamVid (11 classes) for so many minutes each, scored on its test images.

    python benchmarks/camvid.py stores/camvid --minutes 30 \
        camvid-lite camvid-enet camvid-linknet

Each recipe is trained by `segmill train --minutes`; `segmill label` labels the test images and
`segmill evaluate` scores them, into a JSON file. Killed, the same command goes on: results
that are there stay, a training goes on from its last epoch. Without recipes it prints the table of
what is there. Runs that shall be compared want an idle machine: minutes are of the wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import segmill

SPLIT = "test"


@dataclass(frozen=True, slots=True)
class Published:
    """What a paper says of a network on these test images, in per cent."""

    miou: str
    accuracy: str
    differs: str


PUBLISHED = {
    "camvid-fcn8s": Published("57.0", "88.0", "ImageNet weights, hours on a GPU"),
    "camvid-segnet": Published("46.4 to 60.1", "62.5 to 90.4", "ImageNet weights, 40 K steps"),
    "camvid-enet-paper": Published("51.3", "", "hundreds of epochs"),
    "camvid-enet": Published("51.3", "", "the full size, hundreds of epochs"),
    "camvid-linknet": Published("68.3", "", "larger images, ImageNet weights"),
    "camvid-fc-densenet56": Published("58.9", "88.9", "750 epochs, then full size"),
    "camvid-fc-densenet67": Published("65.8", "90.8", "750 epochs, then full size"),
    "camvid-fc-densenet103": Published("66.9", "91.5", "750 epochs, then full size"),
    "camvid-deeplab-lfov": Published("61.6", "", "ImageNet weights"),
    "camvid-dilation8": Published("65.3", "79.0", "ImageNet weights, trained in two stages"),
    "camvid-icnet": Published("67.1", "", "images of 960x720, 30 K steps"),
    "camvid-gfrnet": Published("68.0", "", "ImageNet weights"),
}
"""From the papers' tables; each recipe says which."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("store", help="a label store of CamVid with its train, val and test splits")
    parser.add_argument("recipes", nargs="*", help="shipped names or YAML files")
    parser.add_argument("--minutes", type=float, default=30.0, help="of training, for each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for recipe in arguments.recipes:
        place = arguments.out / f"camvid-{Path(recipe).stem}-{arguments.minutes:g}min.json"
        if place.exists():
            print(f"{recipe}: {place} is there", file=sys.stderr)
            continue
        found = measured(arguments.store, recipe, arguments.minutes, place.with_suffix(""))
        unfinished = place.with_suffix(".part")
        unfinished.write_text(json.dumps(found, indent=1))
        unfinished.replace(place)
    print(table([json.loads(p.read_text()) for p in arguments.out.glob("camvid-*min.json")]))


def measured(store: str, recipe: str, minutes: float, work: Path) -> dict[str, Any]:
    """Train, label and score; what is left of an earlier try is gone on from."""
    from pipeline.models import load_model
    from pipeline.models.heads import parameters_in_use

    work.mkdir(exist_ok=True)
    model, labels = str(work / "model"), str(work / "labels")
    trained = run("train", store, "--recipe", recipe, "--minutes", f"{minutes:g}", "--out", model)
    run("label", str(test_images(store, work)), labels, "--model", f"run:{model}")
    pages = ("--out", str(work / "report"), "--images", "0")
    scored = run("evaluate", "--truth", store, "--pred", labels, "--split", SPLIT, *pages)
    report = json.loads((work / "report" / "report.json").read_text())
    return {
        "recipe": Path(recipe).stem,
        "minutes": minutes,
        "miou": scored["miou"],
        "class_average": report["mean_accuracy"],
        "pixel_accuracy": report["pixel_accuracy"],
        "images": scored["done"],
        "parameters": parameters_in_use(load_model(f"run:{model}").module),
        "epochs": trained["epochs"],
        "val_miou": trained["miou"],
        "train_seconds": trained["train_seconds"],
        "wait_share": trained["wait_share"],
        "model_digest": trained["model_digest"],
        "cores": len(os.sched_getaffinity(0)),
    }


def run(*arguments: str) -> dict[str, Any]:
    """Run a verb and return its JSON summary; what it says on the way goes to this terminal."""
    command = segmill(*arguments, "--json")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_images(store: str, work: Path) -> Path:
    """Write the list of the test split's images."""
    import pyarrow.compute as pc

    from pipeline.store import Store

    place = work / "test.txt"
    wanted = pc.match_substring_regex(pc.field("split"), f"^{SPLIT}$")
    batches = Store.open(store).scan(["image"], wanted)
    paths = [row["image"]["path"] for batch in batches for row in batch.to_pylist()]
    place.write_text("\n".join(sorted(paths)) + "\n")
    return place


def table(results: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown, best first."""
    lines = [
        "| recipe | mIoU % | class average % | global accuracy % | parameters | minutes | epochs "
        "| waited % | published mIoU | published accuracy | what the published run had more |",
        "| --- " * 11 + "|",
    ]
    for one in sorted(results, key=lambda r: -r["miou"]):
        known = PUBLISHED.get(one["recipe"], Published("", "", ""))
        shares = (one["miou"], one["class_average"], one["pixel_accuracy"])
        cells = [
            one["recipe"],
            *(f"{100 * share:.1f}" for share in shares),
            f"{one['parameters'] / 1e6:.2f} M",
            f"{one['train_seconds'] / 60:.1f}",
            str(one["epochs"]),
            "" if one["wait_share"] is None else f"{100 * one['wait_share']:.1f}",
            known.miou,
            known.accuracy,
            known.differs,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
