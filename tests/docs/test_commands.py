"""The commands of README and documentation, run as they are printed, on small data.

Each page's commands run in order in a folder where what the page names lies: a small CamVid of
generated streets, its store, a tiny model. `STANDS_FOR` says what is put in place of buckets and of
recipes that train for half an hour; `NOT_RUN` what is only read, by the verb's own parser, and why.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import pytest
import yaml

from jobs import VERBS
from jobs.__main__ import main
from pipeline.record import File, Record, to_table
from pipeline.store import Store
from pipeline.streetscenes import scene, write_dataset
from pipeline.tables.fragment import write_fragment
from tests.jobs.test_help import parse
from tests.streets import recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PAGES = {str(p.relative_to(ROOT)): p for p in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
FRESH = ("README.md", "docs/index.md", "docs/convert.md")
"""Pages for those who have nothing yet but CamVid and a folder of pictures."""

STANDS_FOR = (
    (r"--recipe (camvid-fpn|camvid-lite|my\.yaml)", "--recipe tiny.yaml"),
    (r"s3://bucket/frames", "frames"),
    (r"--baseline-version 7", "--baseline-version 1"),
    (r"--labelled 1/8", "--labelled 1/2"),
)
NOT_RUN = (
    (r"s3://(photos|labels)", "a bucket; tests/connectors and tests/faults have one"),
    (r"segmill (submit|jobs) ", "a cluster; tests/cluster has one"),
    (r"segmill refresh |nights/2026", "a whole night; tests/refresh has many"),
    (r"work/fixed", "what FiftyOne would have written"),
)
OTHERS = (
    "git clone", "make ", "source .venv", "pip install", "python benchmarks/", "python - >",
    "ray ", "kubectl", "export ", "sudo ", "helm ",
)  # fmt: skip
"""How lines of shell blocks begin that are no segmill commands."""


@dataclass(frozen=True)
class Line:
    """A command of a page, or another program's."""

    text: str

    @property
    def ours(self) -> bool:
        return self.text.startswith("segmill ")


def blocks(text: str) -> Iterator[str]:
    """Yield what stands in the shell blocks of a page."""
    fences = re.compile(r"(?ms)^( *)```(\w*)\n(.*?)^\1```")
    for indent, language, body in fences.findall(text):
        if language in ("", "sh", "bash") and re.search(rf"(?m)^{indent}segmill ", body):
            yield re.sub(rf"(?m)^{indent}", "", body)
    for body in re.findall(r"(?m)(?:^    segmill .*\n(?:^        .*\n)*)+", fences.sub("", text)):
        yield re.sub(r"(?m)^    ", "", body)


def lines(text: str) -> list[Line]:
    """Return the commands of a page in order; a here-document belongs to its command."""
    found = []
    for block in blocks(text):
        joined = re.sub(r"\\\n\s*", "", block)
        for whole in re.findall(r"(?ms)^[^\n]*<<'END'\n.*?^END$|^[^\n]+$", joined):
            found += [] if whole.startswith("#") else [Line(whole.strip())]
    return found


def words(text: str) -> list[str]:
    """Split a command line as a shell does; `$(cat FILE)` is the file's content."""
    told = re.sub(r"\$\(cat ([\w.]+)\)", lambda m: Path(m[1]).read_text().strip(), text)
    return shlex.split(told, comments=True)


def run(text: str) -> None:
    """Run a command of segmill in this process; a redirection goes into the file."""
    _, *given = words(text)
    code: object = 0
    try:
        main(given)
    except SystemExit as ended:
        code = ended.code
    assert not code, f"exit code {code}: {text}"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Give a folder of one with nothing yet, and one of somebody who has trained and labelled."""
    fresh = tmp_path_factory.mktemp("fresh")
    write_dataset(fresh / "CamVid", 20, height=72, width=96, splits=(0.5, 0.25, 0.25))
    for folder in ("my_photos", "frames", "images"):
        (fresh / folder).mkdir()
        for n in range(4):
            picture, _ = scene((len(folder), n), 72, 96)
            cv2.imwrite(str(fresh / folder / f"{n}.jpg"), picture[..., ::-1])
    for seed, name in enumerate(("tiny", "other")):
        small = recipe(epochs=2, seed=seed, label_space="camvid-11").plain()
        kept = {key: value for key, value in small.items() if value is not None}
        (fresh / f"{name}.yaml").write_text(yaml.safe_dump(kept))

    later = tmp_path_factory.mktemp("later") / "world"
    shutil.copytree(fresh, later)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(later)
        for text in (
            "segmill ingest CamVid stores/camvid --format camvid-11",
            "segmill train stores/camvid --recipe tiny.yaml --out models/fpn",
            "segmill train stores/camvid --recipe other.yaml --out models/b",
            "segmill label CamVid/test stores/new --model run:models/fpn --confidence --margin",
            "segmill label frames stores/audit --model run:models/b",  # stands for people's labels
        ):
            run(text)
        shutil.copytree("models/fpn", "models/a")
        for store in ("city", "voc", "coco", "bucket"):
            shutil.copytree("stores/camvid", f"stores/{store}")
        for store in ("night", "old"):
            shutil.copytree("stores/new", f"stores/{store}")
        _without_masks(Store.open("stores/city"), "train")
        _without_masks(Store.open("stores/bucket"), "unlabelled")
    return fresh, later


def _without_masks(store: Store, split: str) -> None:
    """Add pictures that nobody has labelled."""
    paths = sorted(Path("frames").resolve().iterdir())
    rows = [Record(p.stem, "frames", split, File(str(p)), "f", 72, 96, "camvid-11") for p in paths]
    store.commit([write_fragment(store.sink(), "data/frames.parquet", to_table(rows))])


@pytest.mark.parametrize("name", [n for n, p in PAGES.items() if any(lines(p.read_text()))])
def test_the_commands_of_a_page_do_what_they_say(name, worlds, tmp_path, monkeypatch, capsys):
    fresh, later = worlds
    here = tmp_path / "here"
    shutil.copytree(fresh if name in FRESH else later, here)
    monkeypatch.chdir(here)
    for line in lines(PAGES[name].read_text()):
        if not line.ours:
            assert line.text.startswith(OTHERS), f"what is this? {line.text}"
            if "<<'END'" in line.text:
                subprocess.run(["bash", "-ec", line.text], check=True, timeout=60)
        elif not any(re.search(pattern, line.text) for pattern, _ in NOT_RUN):
            text = line.text
            for pattern, instead in STANDS_FOR:
                text = re.sub(pattern, instead, text)
            run(text)
    capsys.readouterr()


@pytest.mark.parametrize("name", list(PAGES))
def test_every_command_is_one_that_its_verb_takes(name):
    for line in lines(PAGES[name].read_text()):
        if line.ours:
            parse(shlex.join(shlex.split(line.text.partition(" >")[0], comments=True)))


def test_inline_commands_name_verbs_that_are_there():
    for name, page in PAGES.items():
        for verb in re.findall(r"`segmill ([a-z][a-z-]*)", page.read_text()):
            assert verb in VERBS, f"{name}: segmill {verb}"


def test_three_commands_of_the_readme_label_a_folder_of_pictures(tmp_path, monkeypatch, capsys):
    """With nothing but the README: labels, a page to look at, a dataset for other tools."""
    first = next(iter(blocks(PAGES["README.md"].read_text())))
    told = [line.text for line in lines(f"```\n{first}```\n") if line.ours]
    assert len(told) == 3
    (tmp_path / "my_photos").mkdir()
    for n, size in enumerate([(120, 160), (160, 120), (90, 90)]):
        picture, _ = scene(n, *size)
        cv2.imwrite(str(tmp_path / f"my_photos/IMG {n}.jpg"), picture[..., ::-1])
    monkeypatch.chdir(tmp_path)
    for text in told:
        run(text)
    capsys.readouterr()
    rows = list(Store.open("stores/photos").records())
    assert len(rows) == 3
    assert all(row.mask is not None and row.label_space == "camvid-11" for row in rows)
    assert "IMG 0" in Path("pages/photos/items.js").read_text(encoding="utf-8")
    written = json.loads(next(Path("out/photos").rglob("panoptic_*.json")).read_text())
    assert len(written["images"]) == 3


def test_the_check_itself_sees_what_is_wrong():
    page = "```\nsegmill label a b --modle x\n```\n\n    segmill lable a b\n"
    one, two = lines(page)
    for line in (one, two):
        with pytest.raises(Exception, match=r"modle|lable"):
            parse(line.text)
