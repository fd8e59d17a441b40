"""What a conversion meets on its way: workers elsewhere, killed workers, files that cannot be."""

from __future__ import annotations

import errno
import json
import os
import pickle
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from connectors import connector
from connectors.dataset import Samples, Source, write_dataset
from connectors.reading import LaterFactory
from connectors.writing import WriterFactory
from pipeline.errors import PoisonInput
from pipeline.files import open_tree
from pipeline.labels.relabel import Relabeller
from pipeline.ray_runner import RayRunner
from pipeline.runner import LocalRunner, Outcome, Resources
from pipeline.streetscenes import write_dataset as write_scenes
from pipeline.trees.sinks import LocalSink
from tests.jobs.calls import call

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

IMAGES = 10
BAD = "street_000003"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "data", IMAGES, height=24, width=32, seed=1, splits=(1, 0, 0))
    return tmp_path / "data"


def parts(data: Path, out: str) -> tuple[WriterFactory[Samples], Source[Samples]]:
    """What converts the data into VOC's, in chunks of four."""
    tree, reader, writer = open_tree(str(data)), connector("camvid-11"), connector("voc")
    spaces = reader.label_spaces(tree)
    relabel = Relabeller.to(spaces[0], spaces)
    factory: WriterFactory[Samples] = WriterFactory(
        writer.format, out, relabel, LaterFactory("camvid-11", tree.url)
    )
    pieces = Samples.cut(reader.list(tree, ()), 4)
    return factory, Source(("test",), pieces, samples=lambda piece: piece)


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@dataclass(frozen=True)
class Elsewhere:
    """Workers as on another machine: pickled, and at home in another directory."""

    folder: str
    poison: str = ""
    name: str = "elsewhere"

    def map(self, make_worker: Any, chunks: Any, split: Any = None) -> Generator[Outcome[Any, Any]]:
        here = os.getcwd()
        todo = list(chunks)
        os.chdir(self.folder)
        try:
            worker = pickle.loads(pickle.dumps(make_worker))()
            while todo:
                chunk = todo.pop()
                if all(s.image_id != self.poison for s in chunk.items):
                    yield Outcome(chunk, worker(pickle.loads(pickle.dumps(chunk))))
                elif len(halves := split(chunk)) > 1:
                    todo += halves
                else:
                    yield Outcome(chunk, error=PoisonInput("the input", "it kills", "remove it"))
        finally:
            os.chdir(here)


def test_a_relative_target_lies_below_this_process(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    total = write_dataset(*parts(data, "out"), Elsewhere(str(tmp_path / "there")))
    assert total.done == IMAGES
    assert list((tmp_path / "there").iterdir()) == []
    write_dataset(*parts(data, str(tmp_path / "whole")), LocalRunner(1))
    assert files(tmp_path / "here" / "out") == files(tmp_path / "whole")


def check_poisoned(total: Any, out: Path, data: Path) -> None:
    """One sample failed, and the lists have all others in the listing's order."""
    assert (total.done, total.failed) == (IMAGES - 1, 1)
    (line,) = (out / "segmill-errors.jsonl").read_text().splitlines()
    failure = json.loads(line)
    assert (failure["image_id"], failure["error"]) == (BAD, "PoisonInput")
    assert failure["path"] == str(data / "train" / f"{BAD}.png")
    names = (out / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt").read_text().split()
    assert names == [f"street_{n:06d}" for n in range(IMAGES) if n != 3]


def test_a_chunk_that_kills_is_halved_and_order_is_kept(data: Path, tmp_path: Path) -> None:
    runner = Elsewhere(str(tmp_path), poison=BAD)
    total = write_dataset(*parts(data, str(tmp_path / "out")), runner)
    check_poisoned(total, tmp_path / "out", data)


@dataclass(frozen=True)
class Deadly:
    """A reader that kills its process on one sample."""

    inner: Any

    def __call__(self) -> Any:
        read = self.inner()

        def deadly(samples: Samples) -> Any:
            for sample, pending in read(samples):
                if sample.image_id == BAD:
                    time.sleep(0.5)  # for the answer to the chunk before to get out
                    os._exit(9)
                yield sample, pending

        return deadly


def test_on_ray_one_poisonous_sample_fails_alone(
    data: Path, tmp_path: Path, ray_session: object
) -> None:
    factory, source = parts(data, str(tmp_path / "out"))
    deadly = replace(factory, make_read=Deadly(factory.make_read))
    total = write_dataset(deadly, source, RayRunner(Resources(1, 2, cpus=0.5)))
    check_poisoned(total, tmp_path / "out", data)


def words(data: Path, out: Path) -> list[str]:
    rest = ["--from", "camvid-11", "--to", "maskdir", "--runner", "local", "--workers", "1"]
    return ["convert", str(data), str(out), *rest]


def test_a_sample_that_cannot_be_written_fails_alone(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, *words(data, tmp_path / "whole"))
    (place,) = [n for n in files(tmp_path / "whole") if BAD in n and n.startswith("masks")]
    (tmp_path / "out" / place).mkdir(parents=True)
    summary, err = call(capsys, *words(data, tmp_path / "out"), code=3)
    assert (summary["done"], summary["failed"]) == (IMAGES - 1, 1)
    assert "cannot be written" in err
    assert BAD in err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE])
def test_a_full_disk_ends_the_job_with_one_line(
    number: int,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = LocalSink.write

    def write(self: LocalSink, name: str, content: bytes) -> None:
        if BAD in name:
            raise OSError(number, os.strerror(number), self.url_of(name))
        real(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(LocalSink, "write", write)
        _, err = call(capsys, *words(data, tmp_path / "out"), code=1)
    assert err.strip().startswith(f"segmill convert: cannot write {tmp_path}/out/")
    assert os.strerror(number) in err
    assert len(err.strip().splitlines()) == 1
    assert call(capsys, *words(data, tmp_path / "out"))[0]["done"] == IMAGES


def test_code_that_breaks_on_every_sample_ends_the_job(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from connectors.maskdir import MaskDir

    def write(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(MaskDir, "write", write)
    _, err = call(capsys, *words(data, tmp_path / "out"), code=1)
    assert "unexpected KeyError" in err


def test_code_that_breaks_on_a_whole_chunk_fails_that_one_alone(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from connectors.maskdir import MaskDir

    real = MaskDir.write

    def write(self: MaskDir, sink: Any, record: Any, space: Any) -> Any:
        if record.image_id >= "street_000008":
            raise KeyError("ours")
        return real(self, sink, record, space)

    monkeypatch.setattr(MaskDir, "write", write)
    monkeypatch.setattr("jobs.convert.CHUNK_SAMPLES", 4)
    summary, err = call(capsys, *words(data, tmp_path / "out"), code=3)
    assert (summary["done"], summary["failed"]) == (8, 2)
    assert "KeyError" in err


def test_files_that_lie_on_a_workers_own_disk_are_explained(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from connectors.dataset import _Drive

    real = _Drive.take

    def take(self: Any, outcome: Any) -> int:
        done = real(self, outcome)
        (place,) = (tmp_path / "out" / ".segmill").glob(f"*/{outcome.result.name}")
        place.unlink()
        return done

    monkeypatch.setattr(_Drive, "take", take)
    _, err = call(capsys, *words(data, tmp_path / "out"), code=1)
    assert "need a target that all of them share" in err
