"""Make a shipped model of a trained model directory: half precision, no paths, and its card.

    python benchmarks/ship_model.py models/camvid-lite --truth stores/camvid

The weights become float16, the record of the training loses what names this machine, and photos of
any size are brought to the size that the network was trained at. Then the original and what ships
label the test split, are scored, and the card (README.md beside the weights) gets the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.models import load_model
from pipeline.models.directory import MODEL_FILE, read_description
from pipeline.models.loaded import LoadedModel, ShortestEdge
from pipeline.models.shipped import KIND
from pipeline.models.weights import WEIGHTS_FILE, digest

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 4_000_000
EDGE = 360
"""Pixels of the shorter side that the network was trained at: CamVid as SegNet has it."""
DRIVE = "Seq05VD"
"""The drive of CamVid of which no frame is among those to learn from or to choose weights by."""
MACHINE = ("store", "unreadable_first")
"""What a training's record says of the machine that it ran on."""


def main() -> None:
    """Write the files, score them, write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="what `segmill train` wrote")
    parser.add_argument("--truth", required=True, help="a store with the test split")
    parser.add_argument("--split", default="test")
    parser.add_argument("--name", default="camvid-lite")
    asked = parser.parse_args()
    described = read_description(asked.source)
    if not described["training"]["finished"]:
        print("the training is not finished: its best weights so far are taken", file=sys.stderr)
    out = ROOT / "pipeline" / "models" / "shipped" / asked.name
    out.mkdir(parents=True, exist_ok=True)
    model = shrunk(load_model(f"run:{asked.source}"))
    write(model, described, out)
    uris = {"fp32": f"run:{asked.source}", "fp16": f"{KIND}:{asked.name}"}
    scores = {kind: scored(uri, asked.truth, asked.split) for kind, uri in uris.items()}
    text = card(model, described["training"], scores, (out / WEIGHTS_FILE).stat().st_size)
    (out / "README.md").write_text(text, encoding="utf-8")
    for kind, (whole, new) in scores.items():
        said = {name: f"{100 * score['miou']:.2f}" for name, score in (("", whole), (DRIVE, new))}
        print(f"{kind}: mIoU {said['']}, {DRIVE} alone {said[DRIVE]}")


def shrunk(model: LoadedModel) -> LoadedModel:
    """Return the model with its numbers rounded to half precision, as it will be loaded again."""
    model.module.half().float()
    for name, tensor in model.module.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise SystemExit(f"{name}: too large for half precision")
    prepared = replace(model.preprocessing, edge=ShortestEdge(EDGE))
    model = replace(model, preprocessing=prepared)
    model.digest = digest(model)
    return model


def write(model: LoadedModel, described: dict[str, Any], out: Path) -> None:
    """Write model.json and the weights."""
    half = {
        name: (t.half() if t.is_floating_point() else t).contiguous()
        for name, t in model.module.state_dict().items()
    }
    (out / WEIGHTS_FILE).write_bytes(save(half))
    size = (out / WEIGHTS_FILE).stat().st_size
    if size >= MOST_BYTES:
        raise SystemExit(f"{size:,} bytes of weights: at most {MOST_BYTES:,} ship")
    training = {k: v for k, v in described["training"].items() if k not in MACHINE}
    told = described | {
        "preprocessing": model.preprocessing.to_dict(),
        "digest": model.digest,
        "training": training,
    }
    (out / MODEL_FILE).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def scored(uri: str, truth: str, split: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Label the split with a model; return its scores on all of it, and on the new drive."""
    with tempfile.TemporaryDirectory() as folder:
        labels, wanted = f"{folder}/labels", f"split = '{split}'"
        run("label", truth, labels, "--where", wanted, "--model", uri, "--runner", "local")
        sides = ("evaluate", "--truth", truth, "--pred", labels, "--split", split)
        whole = run(*sides, "--out", f"{folder}/whole")
        new = run(*sides, "--out", f"{folder}/new", "--where", f"image_id LIKE '{DRIVE}%'")
    return whole, new


def run(*args: str) -> dict[str, Any]:
    """Run a verb; return its summary."""
    command = [sys.executable, "-m", "jobs", *args, "--json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def card(
    model: LoadedModel,
    training: dict[str, Any],
    scores: dict[str, tuple[dict[str, Any], dict[str, Any]]],
    size: int,
) -> str:
    """Return the card's text."""
    (ours, new), (before, _) = scores["fp16"], scores["fp32"]
    space = model.label_space
    names = [space.by_id[i].name for i in space.train_ids]
    rows = [
        "| {} | {:.1f} | {:.1f} | {:.1f} |".format(
            name, *(100 * ours["classes"][name][key] for key in ("iou", "precision", "recall"))
        )
        for name in names
    ]
    template = Path(__file__).with_name("ship_model_card.md").read_text(encoding="utf-8")
    return template.format(
        parameters=sum(p.numel() for p in model.module.parameters()) / 1e6,
        megabytes=size / 1e6,
        names=", ".join(names),
        train=training["rows"]["train"],
        val=training["rows"]["val"],
        best_epoch=training["best_epoch"],
        epochs=training["recipe"]["epochs"],
        val_miou=100 * training["miou"],
        minutes=training["seconds"] / 60,
        unfinished="" if training["finished"] else "; the training went on when this was made",
        images=ours["inputs"],
        strange=new["inputs"],
        drive=DRIVE,
        rows="\n".join(rows),
        edge=EDGE,
        **_figures(ours, ""),
        **_figures(before, "32"),
        **_figures(new, "_new"),
    )


def _figures(score: dict[str, Any], after: str) -> dict[str, float]:
    named = {"miou": "miou", "mean_accuracy": "mean_accuracy", "accuracy": "pixel_accuracy"}
    return {name + after: 100 * score[key] for name, key in named.items()}


if __name__ == "__main__":
    main()
