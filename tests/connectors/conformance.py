"""What every connector must do: inherit `Conformance`, write four images in `make_tree`, done.

    class TestCamVid11(Conformance):
        connector = CAMVID_11

        def make_tree(self, root: Path) -> Made:
            ...

Files are checked with Pillow and the standard library, not with the code under test. A check that
a format cannot meet is switched off by a class attribute, which says so.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import (
    CorruptImage,
    CorruptMask,
    InputError,
    LabelOutOfRange,
    LayoutError,
    MissingFile,
    SizeMismatch,
    UsageError,
)
from pipeline.files import open_sink, open_tree
from pipeline.label_space import LabelSpace, label_space
from pipeline.masks import rle_encode
from pipeline.record import (
    EMBEDDED,
    SPLITS,
    File,
    Instance,
    Provenance,
    Record,
    Sample,
    from_batch,
    to_table,
)
from tests.connectors.trees import (
    bare,
    class_maps,
    contents,
    make_record,
    pack,
    rewrite,
    tree_bytes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from connectors.base import Connector
    from pipeline.files import Tree


@dataclass(frozen=True)
class Made:
    """What `make_tree` wrote.

    `splits` has the ids of each split in listing order; `ids` the class ids [H, W] by "split/id",
    in the store's label space, of size 0 for no mask. `sample` is an id of one image only, `image`
    its image and `mask` its mask, where a mask is a file of its own, as names below the root.
    `same_files` come back byte for byte when the records are written in the format again.
    """

    splits: dict[str, list[str]]
    ids: dict[str, NDArray[Any]]
    sample: str
    image: str
    mask: str | None = None
    same_files: tuple[str, ...] = field(default=())


class Conformance:
    """The checks; a format's own tests are added beside them."""

    connector: ClassVar[Connector]

    carries_any_space: ClassVar[bool] = True
    """Whether `--label-space keep` brings the classes of another space back."""
    carries_unlabelled: ClassVar[bool] = True
    """Whether a record without a mask in split unlabelled comes back as that."""
    carries_masks: ClassVar[bool] = True
    """Whether a dense mask comes back from a record that has nothing else."""
    images_are_files: ClassVar[bool] = True
    """Whether images and masks are files; where one file has them all, records hold the bytes."""
    one_size: ClassVar[bool] = False
    """Whether all images of a dataset have one size."""
    own_classes: ClassVar[bool] = False
    """Whether the tree holds classes that no table knows: converting them natively is refused."""
    fills_void: ClassVar[bool] = False
    """Whether masks and objects are one picture, in which objects fill void pixels of the mask."""
    exact: ClassVar[bool] = True
    """Whether masks and objects come back pixel for pixel; else the loss report counts them."""
    image_suffix: ClassVar[str] = ".png"
    """Images of this kind come back byte for byte."""
    stray_error: ClassVar[type[InputError]] = LabelOutOfRange
    """What a mask raises that is full of a value, or colour, that no class has."""

    def make_tree(self, root: Path) -> Made:
        """Write a dataset of four images in the format's true layout."""
        raise NotImplementedError

    def spoil(self, mask: Path) -> None:
        """Fill a mask with a value that is neither a class nor the ignore index."""
        with Image.open(mask) as image:
            size = image.size
        Image.new("L", size, 200).save(mask)

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        path = tmp_path / "source"
        path.mkdir()
        return path

    @pytest.fixture
    def made(self, root: Path) -> Made:
        return self.make_tree(root)

    @pytest.fixture
    def tree(self, root: Path, made: Made) -> Tree:
        return open_tree(str(root))

    def listed(self, tree: Tree, *splits: str) -> list[Sample]:
        return list(self.connector.list(tree, splits))

    def sample(self, tree: Tree, made: Made) -> Sample:
        return next(s for s in self.listed(tree) if s.image_id == made.sample)

    def records(self, tree: Tree) -> list[Record]:
        return [self.connector.read(tree, sample) for sample in self.listed(tree)]

    def space(self, tree: Tree) -> LabelSpace:
        return self.connector.label_spaces(tree)[0]

    def native(self) -> LabelSpace:
        return label_space(self.connector.native or "camvid-11")

    # Listing

    def test_lists_every_image_once_in_its_split(self, tree: Tree, made: Made) -> None:
        samples = self.listed(tree)
        found: dict[str, list[str]] = {}
        for s in samples:
            found.setdefault(s.split, []).append(s.image_id)
        assert found == made.splits
        assert len({(s.split, s.image_id) for s in samples}) == len(samples) == len(made.ids)
        assert len({s.path for s in samples}) == len(samples)
        assert all(s.fingerprint and s.digest for s in samples)
        assert {s.dataset for s in samples} == {self.connector.format}

    def test_lists_in_the_same_order_twice(self, tree: Tree) -> None:
        assert self.listed(tree) == self.listed(tree)

    def test_lists_the_split_that_is_asked_for(self, tree: Tree, made: Made) -> None:
        for split, ids in made.splits.items():
            assert [s.image_id for s in self.listed(tree, split)] == ids

    def test_refuses_a_split_that_is_none(self, tree: Tree) -> None:
        with pytest.raises((UsageError, LayoutError), match="tomato"):
            self.listed(tree, "tomato")

    def test_refuses_an_empty_directory(self, tmp_path: Path) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(LayoutError, match="empty"):
            self.listed(open_tree(str(empty)))
        with pytest.raises(LayoutError, match="empty"):
            self.connector.label_spaces(open_tree(str(empty)))

    def test_root_may_lie_a_level_down(self, tree: Tree, root: Path) -> None:
        below = self.records(open_tree(str(root.parent)))
        assert [bare(r) for r in below] == [bare(r) for r in self.records(tree)]

    def test_samples_and_connector_survive_pickle_and_the_plan(self, tree: Tree) -> None:
        connector, moved = pickle.loads(pickle.dumps((self.connector, tree)))
        for sample in self.listed(tree):
            planned = Sample(**json.loads(json.dumps(asdict(sample))))
            pickled = pickle.loads(pickle.dumps(sample))
            record = self.connector.read(tree, sample)
            assert connector.read(moved, planned) == record
            assert connector.read(moved, pickled) == record

    def test_digest_and_fingerprint_follow_the_files(
        self, tree: Tree, root: Path, made: Made
    ) -> None:
        before = self.sample(tree, made)
        _append(root / made.image)
        after = self.sample(open_tree(str(root)), made)
        assert after.fingerprint != before.fingerprint
        assert after.digest == before.digest
        if made.mask is not None:
            _append(root / made.mask)
            assert self.sample(open_tree(str(root)), made).digest != before.digest

    # Reading

    def test_masks_are_the_pixels_of_the_files(self, tree: Tree, made: Made) -> None:
        spaces = {space.name: space for space in self.connector.label_spaces(tree)}
        for record in self.records(tree):
            space = spaces[record.label_space]
            expected = made.ids[f"{record.split}/{record.image_id}"]
            with Image.open(io.BytesIO(tree_bytes(record))) as image:
                assert (record.width, record.height) == image.size
            if record.mask is None:
                assert expected.size == 0
                continue
            with Image.open(io.BytesIO(record.mask.bytes or b"")) as image:
                np.testing.assert_array_equal(np.array(image), expected)
            assert expected.shape == (record.height, record.width)
            assert space.allowed()[np.unique(expected)].all()
            values, counts = np.unique(expected, return_counts=True)
            held = {c.id: c.pixels for c in record.classes or ()}
            assert held == dict(zip(values.tolist(), counts.tolist(), strict=True))
            assert Path(record.mask.path or "").is_file() == self.images_are_files

    def test_truth_names_its_format_and_digest(self, tree: Tree) -> None:
        for sample in self.listed(tree):
            record = self.connector.read(tree, sample)
            expected = Provenance("truth", self.connector.format, sample.digest)
            assert record.provenance == expected
            assert (record.split, record.image_id) == (sample.split, sample.image_id)
            assert (record.image.path, record.fingerprint) == (sample.path, sample.fingerprint)

    def test_digests_say_which_records_hold_their_image(self, tree: Tree) -> None:
        for sample in self.listed(tree):
            held = self.connector.read(tree, sample).image.bytes is not None
            assert sample.digest.endswith(EMBEDDED) == held

    def test_records_survive_parquet(self, tree: Tree) -> None:
        records = self.records(tree)
        assert list(from_batch(to_table(records))) == records

    @pytest.mark.parametrize("suffix", [".zip", ".tar"])
    def test_archives_read_as_directories_do(
        self, tree: Tree, root: Path, tmp_path: Path, suffix: str
    ) -> None:
        packed = open_tree(str(pack(root, tmp_path / f"packed{suffix}")))
        records = self.records(packed)
        assert [bare(r) for r in records] == [bare(r) for r in self.records(tree)]
        # A label of a member is put elsewhere as one of a file is.
        target = tmp_path / "target"
        rewrite(self.connector, records, target, self.space(packed))
        assert [bare(r) for r in self.records(open_tree(str(target)))] == [bare(r) for r in records]

    def test_buckets_read_and_write_as_directories_do(
        self, tree: Tree, root: Path, tmp_path: Path
    ) -> None:
        """fsspec's memory file system stands for a bucket: listed, never inspected file by file."""
        bucket = f"memory://{tmp_path.name}"
        sink = open_sink(bucket)
        for name, data in contents(root).items():
            sink.write(f"source/{name}", data)
        records = self.records(open_tree(f"{bucket}/source"))
        assert [bare(r) for r in records] == [bare(r) for r in self.records(tree)]
        rewrite(self.connector, records, f"{bucket}/target", self.space(tree))
        again = self.records(open_tree(f"{bucket}/target"))
        assert [bare(r) for r in again] == [bare(r) for r in records]

    # Bad files

    def check_fails(self, tree: Tree, made: Made, error: type[InputError], named: str) -> None:
        """One sample fails with the error and names the file; the others are read."""
        samples = self.listed(tree)
        assert len(samples) == len(made.ids)
        for sample in samples:
            if sample.image_id == made.sample:
                with pytest.raises(error) as caught:
                    self.connector.read(tree, sample)
                assert named in caught.value.path
            else:
                self.connector.read(tree, sample)

    def test_missing_image(self, tree: Tree, root: Path, made: Made) -> None:
        self._needs_image_files()
        (root / made.image).unlink()
        self.check_fails(tree, made, MissingFile, made.image)

    def _needs_image_files(self) -> None:
        if not self.images_are_files:
            pytest.skip("an image is no file of its own in this format")

    def test_truncated_image(self, tree: Tree, root: Path, made: Made) -> None:
        self._needs_image_files()
        data = (root / made.image).read_bytes()
        (root / made.image).write_bytes(data[: len(data) // 2])
        self.check_fails(tree, made, CorruptImage, made.image)

    def test_missing_mask(self, tree: Tree, root: Path, made: Made) -> None:
        mask = mask_of(root, made)
        mask.unlink()
        self.check_fails(tree, made, MissingFile, mask.name)

    @pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
    def test_truncated_mask(self, tree: Tree, root: Path, made: Made, keep: float) -> None:
        mask = mask_of(root, made)
        data = mask.read_bytes()
        mask.write_bytes(data[: int(keep * len(data))])
        self.check_fails(tree, made, CorruptMask, mask.name)

    def test_mask_of_another_size(self, tree: Tree, root: Path, made: Made) -> None:
        mask = mask_of(root, made)
        with Image.open(mask) as image:
            image.crop((0, 0, image.width - 1, image.height)).save(mask)
        self.check_fails(tree, made, SizeMismatch, mask.name)

    def test_mask_with_a_value_of_no_class(self, tree: Tree, root: Path, made: Made) -> None:
        mask = mask_of(root, made)
        self.spoil(mask)
        self.check_fails(tree, made, self.stray_error, mask.name)

    def test_mask_that_is_a_jpeg(self, tree: Tree, root: Path, made: Made) -> None:
        mask = mask_of(root, made)
        with Image.open(mask) as image:
            image.convert("RGB").save(mask, format="JPEG")
        self.check_fails(tree, made, CorruptMask, mask.name)

    # Writing

    def test_written_records_come_back(self, tree: Tree, root: Path, tmp_path: Path) -> None:
        records, target = self.records(tree), tmp_path / "target"
        written = rewrite(self.connector, records, target, self.space(tree))
        assert [w.loss for w in written] == [{} for _ in records]
        again = open_tree(str(target))
        assert [bare(r) for r in self.records(again)] == [bare(r) for r in records]
        assert self.connector.label_spaces(again) == self.connector.label_spaces(tree)
        for one, two in zip(records, self.records(again), strict=True):
            assert tree_bytes(one) == tree_bytes(two)

    def test_lists_come_back_byte_for_byte(
        self, tree: Tree, root: Path, made: Made, tmp_path: Path
    ) -> None:
        rewrite(self.connector, self.records(tree), tmp_path / "target", self.space(tree))
        for name in made.same_files:
            assert (tmp_path / "target" / name).read_bytes() == (root / name).read_bytes(), name

    def test_writes_the_same_bytes_in_any_order(self, tree: Tree, tmp_path: Path) -> None:
        records = self.records(tree)
        one, two = tmp_path / "one", tmp_path / "two"
        rewrite(self.connector, records, one, self.space(tree))
        rewrite(self.connector, records, two, self.space(tree), backwards=True)
        assert contents(one) == contents(two)

    def test_embedded_images_are_written(self, tree: Tree, tmp_path: Path) -> None:
        records = [replace(r, image=File("/gone/image", tree_bytes(r))) for r in self.records(tree)]
        rewrite(self.connector, records, tmp_path / "target", self.space(tree))
        again = self.records(open_tree(str(tmp_path / "target")))
        assert [bare(r) for r in again] == [bare(r) for r in records]

    def test_image_that_is_gone(self, tree: Tree, tmp_path: Path) -> None:
        record = replace(self.records(tree)[0], image=File(str(tmp_path / "gone.png")))
        with pytest.raises(MissingFile, match="gone"):
            self.connector.write(open_sink(str(tmp_path / "target")), record, self.space(tree))

    def test_name_that_leads_outside(self, tree: Tree, tmp_path: Path) -> None:
        record = replace(self.records(tree)[0], image_id="../../../../outside")
        with pytest.raises(InputError, match="outside"):
            self.connector.write(open_sink(str(tmp_path / "a" / "b")), record, self.space(tree))

    def test_objects_alone_are_painted(self, tmp_path: Path) -> None:
        """Larger objects first; what no object covers is background, else void."""
        if not self.carries_masks:
            pytest.skip("the format holds objects, not masks")
        space = self.native()
        first, second = [c.id for c in space.classes if not c.void and c.name != "background"][:2]
        ground = space.by_name.get("background")
        expected = np.full((9, 11), ground.id if ground else space.ignore_index, space.dtype)
        boxes = [(second, slice(2, 4), slice(3, 6)), (first, slice(1, 8), slice(1, 5))]
        objects = []
        for number, (category, rows, columns) in enumerate(boxes, 1):
            region = np.zeros(expected.shape, np.uint8)
            region[rows, columns] = 1
            objects.append(Instance(number, category, None, None, rle=rle_encode(region)))
        for category, rows, columns in boxes[::-1]:
            expected[rows, columns] = category
        made = make_record(expected, space, "street/1", "train", self.image_suffix)
        record = replace(made, mask=None, classes=None, instances=tuple(objects))
        rewrite(self.connector, [record], tmp_path / "target", space)
        (back,) = self.records(open_tree(str(tmp_path / "target")))
        assert back.mask is not None
        with Image.open(io.BytesIO(back.mask.bytes or b"")) as image:
            np.testing.assert_array_equal(np.array(image), expected)

    def test_two_records_of_one_name(self, tree: Tree, tmp_path: Path) -> None:
        record = self.records(tree)[0]
        with pytest.raises(UsageError, match=record.image_id):
            rewrite(self.connector, [record, record], tmp_path / "target", self.space(tree))

    def test_nothing_to_write(self, tree: Tree, tmp_path: Path) -> None:
        rewrite(self.connector, [], tmp_path / "target", self.space(tree))
        with contextlib.suppress(LayoutError):  # nothing may also be no dataset
            assert self.listed(open_tree(str(tmp_path / "target"))) == []

    def test_unlabelled_record(self, tmp_path: Path) -> None:
        if not self.carries_unlabelled:
            pytest.skip("the format has no place for images without labels")
        record = make_record(None, self.native(), "loose", "unlabelled", self.image_suffix)
        rewrite(self.connector, [record], tmp_path / "target", self.native())
        (back,) = self.records(open_tree(str(tmp_path / "target")))
        assert (back.image_id, back.split, back.mask) == ("loose", "unlabelled", None)

    @settings(
        max_examples=15, deadline=None, suppress_health_check=[HealthCheck.differing_executors]
    )
    @given(data=st.data())
    def test_random_masks_come_back(self, data: st.DataObject) -> None:
        if not self.carries_masks:
            pytest.skip("the format has no dense masks")
        other = label_space("voc-21" if self.connector.native != "voc-21" else "cityscapes-34")
        spaces = [self.native(), other] if self.carries_any_space else [self.native()]
        space = data.draw(st.sampled_from(spaces))
        shape = data.draw(st.tuples(*2 * [st.integers(1, 12)])) if self.one_size else None
        drawn = data.draw(st.lists(class_maps(space, shape), min_size=1, max_size=4))
        records = [
            make_record(ids, space, f"street {n}/frame.{n}", split, self.image_suffix)
            for n, (ids, split) in enumerate(zip(drawn, SPLITS, strict=False))
        ]
        with tempfile.TemporaryDirectory() as folder:
            rewrite(self.connector, records, Path(folder), space)
            tree = open_tree(folder)
            assert self.connector.label_spaces(tree) == (space,)
            back = {r.image_id: r for r in self.records(tree)}
        for record in records:
            found = back.pop(record.image_id)
            assert (found.split, found.label_space) == (record.split, space.name)
            assert bare(found).mask == bare(record).mask
        assert not back


def mask_of(root: Path, made: Made) -> Path:
    """Return the sample's mask; skip where the format keeps masks in a file of many."""
    if made.mask is None:
        pytest.skip("a mask is no file of its own in this format")
    return root / made.mask


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")
