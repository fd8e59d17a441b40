"""`segmill convert` against Datumaro, a hand-written pycocotools script, supervision, datasets.

    python -m venv .venv-peers && .venv-peers/bin/pip install -r benchmarks/peers/requirements.txt
    python benchmarks/convert.py --peers .venv-peers/bin/python --images 1000

Every way starts cold, reads the same dataset and writes images and labels. The dataset is generated
street scenes; cars, people and bicycles are objects, cut from the exact labels.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from measure import Figures, median, once, segmill, table

PEERS = Path(__file__).parent / "peers"
CITY = "cityscapes"
VOC = "voc_instance_segmentation"
"""What Datumaro calls VOC with class and object masks."""
FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation")


def write_voc(root: Path, images: int, height: int, width: int) -> None:
    """Write scenes as VOC2012: JPEGs, class masks, object masks, a list."""
    import cv2
    import numpy as np
    from PIL import Image

    from pipeline.label_space import find_remap, label_space
    from pipeline.streetscenes import scene

    voc = label_space("voc-21")
    lut = find_remap(label_space("camvid-11"), voc).lut.copy()
    lut[lut == voc.ignore_index] = 0
    home = root / "VOCdevkit/VOC2012"
    for folder in (
        "JPEGImages",
        "SegmentationClass",
        "SegmentationObject",
        "ImageSets/Segmentation",
    ):
        (home / folder).mkdir(parents=True)
    names = []
    for seed in range(images):
        rgb, labels = scene(seed, height, width)
        ids = lut[labels].astype(np.uint8)
        objects = np.zeros((height, width), np.int32)
        for value in np.unique(ids[ids > 0]):
            _, found = cv2.connectedComponents((ids == value).astype(np.uint8))
            objects[found > 0] = found[found > 0] + objects.max()
        name = f"2007_{seed:06d}"
        names.append(name)
        Image.fromarray(rgb).save(home / f"JPEGImages/{name}.jpg", quality=90)
        for folder, values in (("SegmentationClass", ids), ("SegmentationObject", objects)):
            picture = Image.fromarray(np.minimum(values, 254).astype(np.uint8))
            picture.putpalette(voc.palette())
            picture.save(home / f"{folder}/{name}.png")
    (home / "ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n")


def compare(
    title: str, ways: dict[str, list[str]], out: Path, images: int, runs: int, base: str
) -> None:
    """Run the ways in turn, several times, and print a table with ratios against `base`."""
    found: dict[str, list[Figures]] = {name: [] for name in ways}
    written: dict[str, tuple[int, int]] = {}
    for _ in range(runs):
        for name, command in ways.items():
            shutil.rmtree(out, ignore_errors=True)
            found[name].append(once(command))
            written[name] = written_files(out)
    rows = {name: median(figures) for name, figures in found.items()}
    print(f"\n### {title}\n\n{table(rows, base, images)}\n")
    print("| what | images written | label PNGs written | CPU ms an image | CPU ms a label PNG |")
    print("| --- | --- | --- | --- | --- |")
    for name, (photos, labels) in written.items():
        cpu = 1000 * rows[name].cpu
        each = [f"{cpu / n:.2f}" if n else "-" for n in (photos, labels)]
        print(f"| {name} | {photos} | {labels} | {' | '.join(each)} |", flush=True)


def written_files(out: Path) -> tuple[int, int]:
    """Count the images and the label PNGs that a tool wrote: some leave masks out."""
    labels = {"SegmentationClass", "SegmentationObject"}
    files = [p for p in out.rglob("*") if p.suffix in (".png", ".jpg")]
    made = sum(not labels.isdisjoint(p.parts) for p in files)
    return len(files) - made, made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", help="The Python of the peers' environment.")
    args = parser.parse_args()
    height, width = 375, 500
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        voc, out = root / "voc", root / "out"
        write_voc(voc, args.images, height, width)
        coco, city = root / "coco", root / CITY
        once(segmill("convert", str(voc), str(coco), "--from", "voc", "--to", "coco-instances"))
        once(segmill("convert", str(voc), str(city), "--from", "voc", "--to", CITY))

        datumaro_coco = root / "datumaro"  # it looks for images/ beside annotations/
        datumaro_coco.mkdir()
        (datumaro_coco / "annotations").symlink_to(coco / "annotations")
        (datumaro_coco / "images").symlink_to(coco)

        def ours(source: Path, one: str, two: str) -> dict[str, list[str]]:
            command = segmill("convert", str(source), str(out), "--from", one, "--to", two)
            return {
                "segmill": command,
                "segmill, 1 thread": [*command, "--runner", "local", "--workers", "1"],
            }

        def peer(name: str, *words: object) -> list[str]:
            return [args.peers, str(PEERS / f"{name}.py"), *map(str, words)]

        def run(title: str, ways: dict[str, list[str]]) -> None:
            print(f"({args.images} scenes of {width}x{height}, median of {args.runs} runs)")
            compare(title, ways, out, args.images, args.runs, "segmill, 1 thread")

        theirs = bool(args.peers)
        run(
            "VOC to COCO",
            ours(voc, "voc", "coco-instances")
            | (
                {
                    "pycocotools script": peer("plain_voc_to_coco", voc, out),
                    "Datumaro": peer("datumaro_convert", voc, VOC, out, "coco_instances"),
                }
                if theirs
                else {}
            ),
        )
        run(
            "COCO to VOC",
            ours(coco, "coco-instances", "voc")
            | (
                {
                    "pycocotools script": peer("plain_coco_to_voc", coco, out),
                    "Datumaro": peer("datumaro_convert", datumaro_coco, "coco_instances", out, VOC),
                    "supervision, COCO to COCO": peer("supervision_copy", coco, out),
                }
                if theirs
                else {}
            ),
        )
        run(
            "Cityscapes to VOC",
            ours(city, CITY, "voc")
            | (
                {
                    "Datumaro, PNGs copied": peer("datumaro_convert", city, CITY, out, VOC),
                    "Datumaro, JPEGs": peer("datumaro_convert", city, CITY, out, VOC, ".jpg"),
                }
                if theirs
                else {}
            ),
        )
        store = segmill("ingest", str(voc), str(out), "--format", "voc", "--embed-images")
        run(
            "VOC to Parquet, images embedded",
            {
                "segmill": store,
                "segmill, 1 thread": [*store, "--runner", "local", "--workers", "1"],
            }
            | (
                {"Hugging Face datasets": peer("datasets_parquet", voc, out / "data.parquet")}
                if theirs
                else {}
            ),
        )


if __name__ == "__main__":
    main()
