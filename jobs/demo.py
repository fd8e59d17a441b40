"""Run the whole tour: generate scenes, ingest, train, label, evaluate, look.

    segmill demo                          on generated street scenes
    segmill demo --data path/to/CamVid    on CamVid in SegNet's layout

Each step is a command of segmill, printed before it runs, so that it can be copied. The last three
are nights of `segmill refresh` on a bucket in which images arrive; on the third the gate rejects a
network that learned nothing. Two cores: about three minutes, of which one is training.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from jobs.console import EXIT_GATE, DebugOption, JsonOption, Summary, command, note
from pipeline.errors import LayoutError, SegmillError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_SHARES: Final = (0.7, 0.1, 0.2)
_HEIGHT, _WIDTH = 240, 320
_ARRIVING: Final = (20, 10, 5)
"""Images that come into the bucket before each night."""
_DEPTH: Final = 3
"""How far below --data the dataset is looked for."""


class StepFailed(SegmillError):
    """A command of the tour failed; what it said stands above."""


@dataclass(slots=True)
class _Tour:
    """The steps taken so far, with their seconds."""

    seconds: dict[str, float] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)

    def announce(self, title: str, line: str) -> None:
        self.commands.append(line)
        note(f"\n[{len(self.commands)}] {title}\n    $ {line}")

    def run(
        self,
        title: str,
        verb: str,
        *arguments: str,
        key: str | None = None,
        may_reject: bool = False,
    ) -> dict[str, Any]:
        """Run one verb as the user would, and return its JSON summary.

        Args:
            title: What is said before the command.
            verb: The verb; `arguments` are its own.
            key: The step's name in `seconds`, if not the verb.
            may_reject: Whether a gate may say no.

        Raises:
            StepFailed: it failed.
        """
        self.announce(title, shlex.join(["segmill", verb, *arguments]))
        start = time.perf_counter()
        words = [sys.executable, "-m", "jobs", verb, *arguments, "--json"]
        ended = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
        self.seconds[key or verb] = round(time.perf_counter() - start, 1)
        lines = ended.stdout.strip().splitlines()
        allowed = (0, EXIT_GATE) if may_reject else (0,)
        if ended.returncode not in allowed or not lines:
            raise StepFailed(f"{self.commands[-1]}: exit code {ended.returncode}, see above")
        return dict(json.loads(lines[-1]))


@APP.command()
def demo(
    data: Annotated[
        str | None, typer.Option(help="CamVid in SegNet's layout, or a folder above it.")
    ] = None,
    out: Annotated[str, typer.Option(help="Where each tour makes a folder of its own.")] = "demo",
    minutes: Annotated[float, typer.Option(min=0.01, help="Minutes to train.")] = 1.0,
    images: Annotated[int, typer.Option(min=20, help="Scenes to generate.")] = 400,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run the whole tour on generated street scenes."""
    with command("demo", as_json=as_json, debug=debug) as summary:
        started = time.perf_counter()
        tour = _Tour()
        if data is None:
            source, recipe = _generate(tour, Path(out), images), "streetscenes"
        else:
            source, recipe = _find(Path(data)), "camvid-fpn"
        place = _fresh(Path(out))
        miou = _steps(tour, str(source), place, recipe, minutes)
        nights = _nights(tour, source, place)
        summary.figures = {
            "miou": miou,
            "nights": nights,
            "step_seconds": tour.seconds,
            "commands": tour.commands,
        }
        summary.paths = {
            "report": str(place / "report" / "index.html"),
            "gallery": str(place / "gallery" / "index.html"),
            "labels": str(place / "labels"),
            "model": str(place / "model"),
            "nights": str(place / "refresh" / "index.html"),
        }
        if not as_json:
            _tell(summary, tour, time.perf_counter() - started)


def _steps(tour: _Tour, source: str, place: Path, recipe: str, minutes: float) -> float:
    """Take the tour's steps on a dataset; return the mIoU on its test images."""
    truth, model, labels = str(place / "truth"), str(place / "model"), str(place / "labels")
    tour.run(
        "Read the dataset into a label store", "ingest", source, truth, "--format", "camvid-11"
    )
    tour.run(
        f"Train a small network for {minutes:g} min", "train", truth,
        "--recipe", recipe, "--minutes", f"{minutes:g}", "--out", model,
    )  # fmt: skip
    tour.run(
        "Label the test images, which training never saw, on two Ray actors",
        "label", f"{source}/test", labels, "--model", f"run:{model}",
        "--runner", "ray", "--actors", "2", "--shard-images", "16",
    )  # fmt: skip
    scores = tour.run(
        "Score the labels against the truth", "evaluate", "--truth", truth, "--pred", labels,
        "--split", "test", "--out", str(place / "report"),
    )  # fmt: skip
    tour.run(
        "Write a page to look at the labels", "gallery", labels, "--out", str(place / "gallery")
    )
    return float(scores["miou"])


def _nights(tour: _Tour, source: Path, place: Path) -> list[str]:
    """Refresh the labels of a bucket over three nights; return what became of each."""
    bucket, arrived, statuses = place / "bucket", 0, []
    bucket.mkdir()
    today = datetime.now(UTC).date()
    waiting = sorted((source / "test").iterdir())
    configs = {model: place / f"{model}.yaml" for model in ("refresh", "refresh-untrained")}
    configs["refresh"].write_text(_config(place, f"run:{place / 'model'}"), encoding="utf-8")
    configs["refresh-untrained"].write_text(
        _config(place, "zoo:enet?label_space=camvid-11&seed=3"), encoding="utf-8"
    )
    for number, share in enumerate(_ARRIVING, 1):
        count = max(1, len(waiting) * share // max(len(waiting), sum(_ARRIVING)))
        for image in waiting[arrived : arrived + count]:
            shutil.copy(image, bucket / f"street-{image.name}")
        arrived += count
        last = number == len(_ARRIVING)
        config = configs["refresh-untrained" if last else "refresh"]
        what = "an untrained network meets the gate" if last else "the model labels them"
        told = tour.run(
            f"Night {number}: {count} images arrived: {what}",
            "refresh", str(config), "--night", f"{today - timedelta(days=len(_ARRIVING) - number)}",
            key=f"night {number}", may_reject=last,
        )  # fmt: skip
        statuses.append(str(told["status"]))
    return statuses


def _config(place: Path, model: str) -> str:
    """Return the refresh's file: the gate's truth is the test split, which nothing learned from."""
    import yaml

    return yaml.safe_dump(
        {
            "truth": {"store": str(place / "truth"), "held_out": "split = 'test'"},
            "images": {"source": str(place / "bucket"), "dataset": "streets"},
            "labels": str(place / "nightly"),
            "work": str(place / "refresh"),
            "models": str(place / "models"),
            "model": model,
            "label": {"runner": "local"},
            "drift": {"canary": 0},
        },
        sort_keys=False,
    )


def _generate(tour: _Tour, out: Path, images: int) -> Path:
    """Draw the scenes, unless an earlier tour has drawn the same."""
    from pipeline.runner import cores
    from pipeline.streetscenes import write_dataset

    root = out / f"scenes-{images}"
    call = (
        f"from pipeline.streetscenes import write_dataset; "
        f"write_dataset({str(root)!r}, {images}, splits={_SHARES})"
    )
    tour.announce(f"Draw {images} street scenes with exact labels", f'python -c "{call}"')
    start = time.perf_counter()
    # The lists are written last: where all are, the scenes are whole.
    if not all((root / f"{split}.txt").is_file() for split in ("train", "val", "test")):
        write_dataset(
            root, images, height=_HEIGHT, width=_WIDTH, splits=_SHARES, workers=min(cores(), 8)
        )
    tour.seconds["generate"] = round(time.perf_counter() - start, 1)
    return root


def _find(data: Path) -> Path:
    """Return the folder of CamVid in SegNet's layout, at or a few levels below; the largest found.

    Raises:
        LayoutError: there is none.
    """
    found = [
        folder
        for folder in _folders(data)
        if (folder / "test.txt").is_file() and (folder / "trainannot").is_dir()
    ]
    if not found:
        raise LayoutError(
            f"{data}: no CamVid in SegNet's layout here or {_DEPTH} levels below "
            f"(train.txt, val.txt, test.txt beside train/, trainannot/, test/, ...)"
        )
    return max(found, key=lambda folder: (folder / "test.txt").stat().st_size)


def _folders(root: Path) -> Iterator[Path]:
    """Yield a folder and those below it, the nearest first; links are not followed."""
    level: Sequence[Path] = [root]
    for _ in range(_DEPTH + 1):
        yield from level
        level = [
            child
            for folder in level
            if folder.is_dir()
            for child in sorted(folder.iterdir())
            if child.is_dir() and not child.is_symlink() and not child.name.startswith(".")
        ]


def _fresh(out: Path) -> Path:
    """Make this tour's own folder: nothing of an earlier one is read, changed or removed."""
    out.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        place = out / f"tour-{number:03d}"
        try:
            place.mkdir()
        except FileExistsError:
            number += 1
        else:
            return place


def _tell(summary: Summary, tour: _Tour, seconds: float) -> None:
    """Print what the tour found and how long each step took."""
    steps = ", ".join(f"{name} {spent:g} s" for name, spent in tour.seconds.items())
    print(f"\nmIoU on test images that training never saw: {summary.figures['miou'] * 100:.1f} %")
    nights = ", ".join(summary.figures["nights"])
    print(f"Three nights of refresh: {nights}")
    print(f"{seconds:.0f} s: {steps}")
    print("Look at (open in a browser):")
