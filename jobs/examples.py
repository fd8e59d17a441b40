"""The examples that each verb's --help ends with; a test parses every one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    import typer

EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "ingest": (
        "segmill ingest VOCdevkit stores/voc --format voc --split train",
        "segmill ingest nyu_depth_v2_labeled.mat stores/nyu --format nyuv2-mat",
        "segmill ingest s3://data/ade.zip s3://labels/ade --format ade20k \\\n    --max-errors 1%",
    ),
    "export": (
        "segmill export stores/voc out/voc --format voc --label-space keep",
        "segmill export stores/night out/coco --format coco-instances \\\n"
        "    --view reports/night/thresholds.json --where \"split = 'val'\"",
    ),
    "convert": (
        "segmill convert CamVid out/voc --from camvid-11 --to voc --label-space keep",
        "segmill convert cityscapes.zip out/coco --from cityscapes --to coco-panoptic \\\n"
        "    --split val",
    ),
    "label": (
        "segmill label photos stores/photos --model run:models/fpn",
        "segmill label s3://photos/2026 s3://labels/2026 --model run:s3://models/fpn \\\n"
        "    --runner ray --confidence --max-errors 1%",
        "segmill label photos stores/photos --model run:models/fpn --dry-run",
    ),
    "pseudo-label": (
        "segmill pseudo-label run:models/fpn --images s3://photos/2026 \\\n"
        "    --truth stores/camvid --out stores/night --report reports/night",
        "segmill pseudo-label run:models/a run:models/b --images photos \\\n"
        "    --truth stores/camvid --where \"split = 'val'\" --target 0.9 \\\n"
        "    --out stores/night --report reports/night",
    ),
    "refresh": (
        "segmill refresh refresh.yaml",
        "segmill refresh refresh.yaml --status",
        "segmill refresh --example",
    ),
    "train": (
        "segmill train stores/camvid --recipe camvid-fpn --out models/fpn",
        "segmill train stores/camvid --recipe camvid-fpn --out models/few \\\n"
        "    --labelled 1/8 --method mean-teacher",
        "segmill train stores/mine --recipe recipe.yaml --out models/mine --minutes 30",
    ),
    "models": (
        "segmill models",
        "segmill models unet --size 512x1024 --classes 19",
    ),
    "evaluate": (
        "segmill evaluate --truth stores/camvid --pred stores/night --split test \\\n"
        "    --out reports/night",
        "segmill evaluate --truth stores/camvid --pred stores/new \\\n"
        "    --baseline stores/old --fail-if 'miou < baseline - 0.005' --out cmp",
    ),
    "store": (
        "segmill store info stores/voc",
        "segmill store history stores/voc",
        "segmill store validate stores/voc --out reports/voc",
    ),
    "store info": ("segmill store info stores/voc --version 3",),
    "store stats": ("segmill store stats stores/voc --by split",),
    "store validate": ("segmill store validate stores/voc --out reports/voc",),
    "store errors": ("segmill store errors stores/voc",),
    "store diff": ("segmill store diff stores/voc 3 4",),
    "store history": ("segmill store history stores/voc --limit 10",),
    "store restore": ("segmill store restore stores/voc 3",),
    "store tag": ("segmill store tag stores/voc released",),
    "store compact": ("segmill store compact stores/voc",),
    "store vacuum": (
        "segmill store vacuum stores/voc",
        "segmill store vacuum stores/voc --hours 24 --delete",
    ),
    "store merge": ("segmill store merge stores/a stores/b stores/both",),
    "gallery": (
        "segmill gallery stores/night --out pages/night --limit 2000 --sample",
        "segmill gallery stores/night --out pages/val --where \"split = 'val'\"",
    ),
    "submit": (
        "segmill submit --gpus 4 label s3://photos s3://labels/night \\\n    --model run:s3://models/a",
        "segmill submit --no-wait refresh s3://config/refresh.yaml",
    ),
    "jobs": (
        "segmill jobs list",
        "segmill jobs logs -f segmill-label-4f2a91c07d",
        "segmill jobs stop segmill-label-4f2a91c07d",
    ),
    "demo": (
        "segmill demo",
        "segmill demo --data path/to/CamVid --out tours --minutes 5",
    ),
    "doctor": (
        "segmill doctor",
        "segmill doctor --json",
    ),
}
"""Commands by verb, or by verb and what it is told to do."""


def show(app: typer.Typer, verb: str) -> None:
    """Let the help of a verb, and of each part of it, end with its examples."""
    group = app.registered_callback is not None or len(app.registered_commands) != 1
    if group:
        app.info.epilog = _epilog(verb)
    for command in app.registered_commands:
        said = command.name or (command.callback.__name__ if command.callback else "")
        command.epilog = command.epilog or _epilog(f"{verb} {said}" if group else verb)


def _epilog(name: str) -> str | None:
    """Return the examples as a text whose empty lines the help's renderer keeps."""
    if name not in EXAMPLES:
        return None
    lines = ["Examples:", *(f"  {text}" for text in EXAMPLES[name])]
    return "\n\n".join(line.replace("[", "\\[") for line in lines)
