"""`segmill convert` against Datumaro, a hand-written pycocotools script, supervision, datasets.

    python -m venv .venv-peers && .venv-peers/bin/pip install -r benchmarks/peers/requirements.txt
    python benchmarks/convert.py --peers .venv-peers/bin/python --images 1000

Every way starts cold, reads the same dataset and writes images and labels into a directory of its
own. What it wrote is counted, and compared with the truth: the share of each class's pixels, in the
first few images, that came out as that class.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from convert_data import CITY, LOOKED_AT, VOC, Written, agreement, write_sets
from measure import Figures, median, once, segmill, table

PEERS = Path(__file__).parent / "peers"
HEIGHT, WIDTH = 375, 500
BASE = "segmill, 1 thread"
INSTANCES = "voc_instance_segmentation"
"""What Datumaro calls VOC with class and object masks."""
WANTED = {"pycocotools script": 1 / 1.3, "Datumaro": 10.0, "Datumaro, JPEGs": 10.0}
"""How many times what `BASE` takes a peer is to take at least."""


@dataclass(frozen=True)
class Contest:
    """A conversion, and the ways to do it; `{out}` in a command is where the result goes."""

    title: str
    source: Path
    ways: dict[str, list[str]] = field(default_factory=dict)
    keep: bool = False

    def run(self, out: Path, images: int, runs: int) -> None:
        """Run the ways in turn, several times, and print tables."""
        found: dict[str, list[Figures]] = {name: [] for name in self.ways}
        told: dict[str, str] = {}
        for turn in range(runs):
            for number, (name, command) in enumerate(self.ways.items()):
                target = out / f"{turn}-{number}"
                found[name].append(once([word.format(out=target) for word in command]))
                if not turn:
                    told[name] = self._told(target)
                shutil.rmtree(target)
        rows = {name: median(figures) for name, figures in found.items()}
        print(f"\n### {self.title}\n")
        print(f"{images} scenes of {WIDTH}x{HEIGHT}, median of {runs} runs:\n")
        print(f"{table(rows, BASE, images)}\n")
        if any(told.values()):
            print("| what | images | class masks | object masks | annotations | pixels right |")
            print("| --- | --- | --- | --- | --- | --- |")
            print("\n".join(f"| {name} | {text} |" for name, text in told.items()))
        for name, least in WANTED.items():
            if name in rows:
                print(f"\n{_ratios(name, rows[name], rows[BASE], least)}", flush=True)

    def _told(self, target: Path) -> str:
        written = Written(target, CITY if self.keep else VOC)
        if not written.photos:
            return ""
        shares = agreement(written, self.source)
        wrong = sorted(f"{name} {share:.1%}" for name, share in shares.items() if share < 1)
        right = f"{len(shares) - len(wrong)} of {len(shares)} classes whole"
        masks = [len(written.labels(f"Segmentation{kind}")) for kind in ("Class", "Object")]
        cells = [written.photos, *masks, written.annotations or "-"]
        return " | ".join([*map(str, cells), "; ".join([right, *wrong]) if shares else "-"])


def _ratios(name: str, theirs: Figures, ours: Figures, least: float) -> str:
    pairs = {"wall": (theirs.wall, ours.wall), "CPU": (theirs.cpu, ours.cpu)}
    pairs["peak memory"] = theirs.peak, ours.peak
    said = ", ".join(f"{a / b:.2f} in {what}" for what, (a, b) in pairs.items())
    reached = min(theirs.wall / ours.wall, theirs.cpu / ours.cpu) >= least
    verdict = "reached" if reached else "not reached"
    return f"{name} / {BASE}: {said}; wanted in wall and CPU: {least:.2f}, {verdict}."


def ours(source: Path, one: str, two: str, *options: str) -> dict[str, list[str]]:
    """Return the commands of `segmill convert`."""
    command = segmill("convert", str(source), "{out}", "--from", one, "--to", two, *options)
    return {"segmill": command, BASE: [*command, "--runner", "local", "--workers", "1"]}


def contests(root: Path, peers: str | None) -> list[Contest]:
    """Return what is compared; without `peers` only ourselves."""
    voc, city, coco = root / "voc", root / "city", root / "coco"
    beside = root / "datumaro"  # it looks for images/ beside annotations/

    def peer(name: str, *words: object) -> list[str]:
        return [peers or "", str(PEERS / f"{name}.py"), *map(str, words)]

    def datumaro(source: Path, one: str, two: str, *more: str) -> list[str]:
        return peer("datumaro_convert", source, one, "{out}", two, *more)

    store = segmill("ingest", str(voc), "{out}", "--format", "voc", "--embed-images")
    theirs: list[dict[str, list[str]]] = [
        {
            "pycocotools script": peer("plain_voc_to_coco", voc, "{out}"),
            "Datumaro": datumaro(voc, INSTANCES, "coco_instances"),
        },
        {
            "pycocotools script": peer("plain_coco_to_voc", coco, "{out}"),
            "Datumaro": datumaro(beside, "coco_instances", INSTANCES),
        },
        {"supervision": peer("supervision_copy", coco, "{out}")},
        {
            "Datumaro, PNGs copied": datumaro(city, "cityscapes", INSTANCES),
            "Datumaro, JPEGs": datumaro(city, "cityscapes", INSTANCES, ".jpg"),
        },
        {"Hugging Face datasets": peer("datasets_parquet", voc, "{out}/data.parquet")},
    ]
    own = [
        Contest("VOC to COCO", voc, ours(voc, "voc", "coco-instances")),
        Contest("COCO to VOC", voc, ours(coco, "coco-instances", "voc")),
        Contest("COCO to COCO", voc, ours(coco, "coco-instances", "coco-instances")),
        Contest(
            "Cityscapes to VOC, all classes",
            city,
            ours(city, "cityscapes", "voc", "--label-space", "keep"),
            keep=True,
        ),
        Contest(
            "VOC to Parquet, images embedded",
            voc,
            {"segmill": store, BASE: [*store, "--runner", "local", "--workers", "1"]},
        ),
    ]
    if peers:
        for contest, ways in zip(own, theirs, strict=True):
            contest.ways.update(ways)
    return own


def main() -> None:
    """Make the datasets and print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", help="The Python of the peers' environment.")
    parser.add_argument("--only", default="", help="Run the tables whose title has this text.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="segmill-convert-") as folder:
        root = Path(folder)
        write_sets(args.images, HEIGHT, WIDTH, root / "voc", root / "city")
        words = "--from", "voc", "--to", "coco-instances"
        once(segmill("convert", str(root / "voc"), str(root / "coco"), *words))
        (root / "datumaro").mkdir()
        for name, place in (("annotations", "coco/annotations"), ("images", "coco")):
            (root / "datumaro" / name).symlink_to(root / place)
        print(f"What came out is compared in {LOOKED_AT} images.")
        for contest in contests(root, args.peers):
            if args.only.lower() in contest.title.lower():
                contest.run(root / "out", args.images, args.runs)


if __name__ == "__main__":
    main()
