from __future__ import annotations

import glob
import logging
import os
import posixpath
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import LayoutError, MissingFile, UnsafePath, UsageError
from pipeline.files import read_url
from pipeline.trees import listing, manifest
from pipeline.trees.listing import list_images
from tests.pipeline.sources import tar_bytes, write_directory, zip_bytes

FILES = {
    "b/x 1.JPG": b"1",
    "b/y.png": b"22",
    "a.jpg": b"333",
    "notes.txt": b"no image",
    ".hidden.jpg": b"",
    "Thumbs.db": b"",
    "ü\n.tif": b"4444",
}
IDS = ["a", "b/x 1", "b/y", "ü\n"]


def ids(source: str, **options) -> list[str]:
    return [s.image_id for s in list_images(source, **options)]


@pytest.fixture
def root(tmp_path):
    return write_directory(tmp_path / "photos", FILES)


class TestSources:
    def test_a_directory(self, root):
        found = list(list_images(root))
        assert [s.image_id for s in found] == IDS
        assert found[0].path == f"{root}/a.jpg"
        assert {s.dataset for s in found} == {"photos"}
        assert {s.split for s in found} == {"unlabelled"}
        assert all(s.fingerprint for s in found)

    @pytest.mark.parametrize("kind", ["zip", "tar"])
    def test_an_archive(self, tmp_path, kind):
        make = zip_bytes if kind == "zip" else tar_bytes
        (tmp_path / f"set.{kind}").write_bytes(make(FILES | {"../evil.jpg": b"x"}))
        found = {s.image_id: s for s in list_images(str(tmp_path / f"set.{kind}"))}
        assert sorted(found) == ["../evil", *IDS]
        assert found["a"].dataset == "set"
        assert read_url(found["a"].path) == b"333"
        with pytest.raises(UnsafePath):
            read_url(found["../evil"].path)

    def test_a_bucket_prefix(self, memory):
        for name, data in FILES.items():
            memory.pipe_file(f"/bucket/photos/{name}", data)
        found = list(list_images("memory://bucket/photos/"))
        assert [s.image_id for s in found] == IDS
        assert [len(read_url(s.path)) for s in found] == [3, 1, 2, 4]
        assert ids("memory://bucket/photos/b/*.png") == ["y"]
        assert ids("memory://*/photos/*.jpg") == ["bucket/photos/a"]

    def test_one_image(self, root):
        [sample] = list_images(f"{root}/a.jpg", dataset="mine")
        assert (sample.image_id, sample.path, sample.dataset) == ("a", f"{root}/a.jpg", "mine")

    def test_a_link_that_leads_outside_is_left_out_with_a_warning(self, root, tmp_path, caplog):
        write_directory(tmp_path / "away", {"x.jpg": b""})
        os.symlink(tmp_path / "away" / "x.jpg", f"{root}/z.jpg")
        with caplog.at_level(logging.WARNING):
            assert ids(root) == IDS
        assert "z.jpg" in caplog.text

    @pytest.mark.parametrize(
        "source", ["nowhere", "nowhere/*.jpg", "nowhere.txt", "memory://nowhere"]
    )
    def test_what_is_not_there_is_an_error_that_names_it(self, source, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(LayoutError, match="nowhere"):
            list_images(source)

    def test_a_directory_called_like_an_image_or_a_manifest(self, tmp_path):
        root = write_directory(tmp_path / "list.txt", {"x.jpg/y.jpg": b"", "x.jpg/z.txt": b""})
        assert ids(root) == ["x.jpg/y"]


class TestPatterns:
    @pytest.mark.parametrize("pattern", ["*.jpg", "b/*", "*/*.png", "**/*.png", "[!a]/*.JPG",
                                         "**/*", "b/? 1.JPG", "?/[wxy]*"])  # fmt: skip
    def test_it_matches_what_glob_matches(self, root, pattern):
        theirs = glob.glob(f"{root}/{pattern}", recursive=True)
        images = [p for p in theirs if p.lower().endswith((".jpg", ".png", ".tif"))]
        assert [s.path for s in list_images(f"{root}/{pattern}")] == sorted(images)

    def test_an_id_is_the_path_below_the_fixed_part(self, root):
        assert ids(f"{os.path.dirname(root)}/*/b/*") == ["photos/b/x 1", "photos/b/y"]

    def test_a_suffix_of_its_own_is_asked_for(self, tmp_path):
        root = write_directory(tmp_path, {"a.img": b"", "b.dat": b"", "c.img": b""})
        assert ids(f"{root}/*.img") == ["a", "c"]

    def test_a_pattern_without_a_match_is_an_error(self, root):
        with pytest.raises(LayoutError, match=r"q\*\.jpg"):
            ids(f"{root}/q*.jpg")

    def test_a_directory_whose_name_looks_like_a_pattern(self, tmp_path):
        root = write_directory(tmp_path / "best [2024]?", {"a.jpg": b""})
        assert ids(root) == ["a"]

    def test_inside_an_archive(self, tmp_path):
        (tmp_path / "x.zip").write_bytes(zip_bytes(FILES))
        assert ids(f"zip://b/*.png::{tmp_path}/x.zip") == ["y"]


class TestManifests:
    LINES = ("b/y.png", "a.jpg", "gone.jpg", "b/x 1.JPG")

    def write(self, root: str, suffix: str, column: str = "path") -> str:
        path = f"{root}/list{suffix}"
        lines = list(self.LINES)
        if suffix == ".parquet":
            pq.write_table(pa.table({"n": [1] * 4, column: lines}), path)
        elif suffix == ".csv":
            with open(path, "w") as file:
                file.write(f"n,{column}\n" + "".join(f'1,"{line}"\n' for line in lines))
        else:
            with open(path, "w", newline="") as file:
                file.write("\ufeff" + "\r\n".join(lines) + "\r\n\n")
        return path

    @pytest.mark.parametrize("suffix", [".txt", ".csv", ".parquet"])
    def test_each_kind_sorted_and_relative_to_itself(self, root, suffix):
        found = list(list_images(self.write(root, suffix)))
        assert [s.image_id for s in found] == ["a", "b/x 1", "b/y", "gone"]
        assert [s.path for s in found] == [f"{root}/{n}" for n in sorted(self.LINES)]
        listed = {s.path: s.fingerprint for s in list_images(root)}
        assert [s.fingerprint for s in found[:3]] == [listed[s.path] for s in found[:3]]

    def test_a_missing_image_is_listed_and_fails_when_read(self, root):
        gone = next(s for s in list_images(self.write(root, ".txt")) if s.image_id == "gone")
        assert gone.fingerprint == ""
        with pytest.raises(MissingFile, match=r"gone\.jpg"):
            read_url(gone.path)

    @pytest.mark.parametrize("suffix", [".csv", ".parquet"])
    def test_a_manifest_without_the_column_names_those_it_has(self, root, suffix):
        with pytest.raises(LayoutError, match="'path' among n, file"):
            list_images(self.write(root, suffix, "file"))

    def test_paths_elsewhere_and_twice(self, root, memory, tmp_path):
        memory.pipe_file("/bucket/m.png", b"m")
        (tmp_path / "x.zip").write_bytes(zip_bytes({"z/in.jpg": b"z"}))
        write_directory(tmp_path, {"up.jpg": b"u"})
        lines = ["a.jpg", f"{root}/a.jpg", "./b/../a.jpg", "../up.jpg", "memory://bucket/m.png",
                 f"zip://z/in.jpg::{tmp_path}/x.zip", f"file://{root}/b/y.png"]  # fmt: skip
        with open(f"{root}/list.txt", "w") as file:
            file.write("\n".join(lines))
        found = list(list_images(f"{root}/list.txt"))
        assert sorted(len(read_url(s.path)) for s in found) == [1, 1, 1, 2, 3]
        assert all(s.fingerprint for s in found)
        assert {"a", "b/y", "bucket/m", "z/in"} < {s.image_id for s in found}

    def test_fingerprints_it_brings_are_believed(self, root):
        table = pa.table({"path": ["b/y.png", "a.jpg"], "fingerprint": ["etag", None]})
        pq.write_table(table, f"{root}/list.parquet")
        assert [s.fingerprint for s in list_images(f"{root}/list.parquet")] == ["", "etag"]

    def test_on_a_bucket(self, memory):
        memory.pipe_file("/bucket/d/a.jpg", b"1")
        memory.pipe_file("/bucket/list.txt", b"d/a.jpg\nd/gone.jpg\n")
        found = list(list_images("memory://bucket/list.txt"))
        assert [s.path for s in found] == ["memory://bucket/d/a.jpg", "memory://bucket/d/gone.jpg"]
        assert bool(found[0].fingerprint) > bool(found[1].fingerprint)
        walked = list(list_images("memory://bucket/d"))
        assert walked[0].fingerprint == found[0].fingerprint

    def test_more_lines_than_one_chunk(self, tmp_path):
        names = [f"{i:05d}.jpg" for i in range(3000)]
        (tmp_path / "list.txt").write_text("\n".join(reversed(names)))
        assert ids(str(tmp_path / "list.txt")) == [n[:-4] for n in names]


class TestLongManifests:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        """Sorts on disk from twenty rows on."""
        small = {"_ROWS": 7, "_RUN_ROWS": 20, "_PIECE_ROWS": 3, "_RANGE_ROWS": 9}
        for name, value in small.items():
            monkeypatch.setattr(f"pipeline.trees.manifest.{name}", value)

    @pytest.mark.parametrize("suffix", [".txt", ".csv", ".parquet"])
    @pytest.mark.parametrize("order", ["sorted", "shuffled", "backwards"])
    def test_any_order_gives_the_same_sorted_list(self, tmp_path, suffix, order):
        names = [f"d{n % 7}/{n // 2:03d}.jpg" for n in range(300)]  # some are named twice
        names = {"sorted": sorted(names), "backwards": sorted(names)[::-1],
                 "shuffled": random.Random(0).sample(names, len(names))}[order]  # fmt: skip
        source, prints = str(tmp_path / f"list{suffix}"), [f"e{n}" for n in names]
        if suffix == ".parquet":
            pq.write_table(pa.table({"path": names, "fingerprint": prints}), source)
        elif suffix == ".csv":
            lines = [f'{mark},"{name}"' for name, mark in zip(names, prints, strict=True)]
            Path(source).write_text("\n".join(["fingerprint,path", *lines]))
        else:
            Path(source).write_text("\n".join(names))
        found = list(list_images(source))
        assert [s.path for s in found] == [f"{tmp_path}/{n}" for n in sorted(set(names))]
        assert [s.image_id for s in found] == [n[:-4] for n in sorted(set(names))]
        if suffix != ".txt":
            assert [s.fingerprint for s in found] == [f"e{n}" for n in sorted(set(names))]

    def test_one_name_in_several_places(self, tmp_path):
        """The same name comes of several roots: it is no repetition."""
        paths = [f"s3://b{n % 5}/x/{n // 5:02d}.jpg" for n in range(100)]
        random.Random(0).shuffle(paths)
        source = str(tmp_path / "list.parquet")
        pq.write_table(pa.table({"path": paths, "fingerprint": paths}), source)
        found = list(list_images(source))
        assert [s.path for s in found] == sorted(paths)
        assert all(s.fingerprint == s.path for s in found)

    def test_text_that_is_no_utf8_is_latin_1(self, tmp_path):
        lines = [f"{n:03d}.jpg" for n in range(60)] + ["é.jpg"]
        (tmp_path / "list.txt").write_bytes("\n".join(lines).encode("latin-1"))
        assert ids(str(tmp_path / "list.txt")) == [n[:-4] for n in lines]


class TestColumns:
    """What is done by columns is what is done by the name."""

    NAME = st.text(st.sampled_from("ab./-\n é"), max_size=8)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(NAME.map(lambda n: n + ".jpg") | NAME, min_size=1, max_size=8))
    def test_stems(self, names):
        found = listing._stems(pa.array(names)).to_pylist()
        assert found == [posixpath.splitext(name)[0] for name in names]

    PATH = st.text(st.sampled_from("ab./@?:"), min_size=1, max_size=8)
    LEAD = st.sampled_from(["", "/", "s3://", "/data/set/", "s3://b/d/", "file:///data/", "~/",
                            "memory://", "zip://x::/", "FILE://"])  # fmt: skip

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.builds("{}{}".format, LEAD, PATH), min_size=1, max_size=6),
           st.sampled_from(["/data/set", "/", "s3://b/d", "s3://b//d", "memory://"]))  # fmt: skip
    def test_paths(self, texts, base):
        def by_name():
            paths = [manifest._resolve(base, text) for text in texts]
            return [manifest._name_of(base, path) for path in paths], paths

        try:
            wanted = by_name()
        except UsageError:
            with pytest.raises(UsageError):
                manifest._resolved(base, pa.array(texts))
            return
        names, paths = manifest._resolved(base, pa.array(texts))
        assert (names.to_pylist(), paths.to_pylist()) == wanted

    def test_ids_do_not_depend_on_where_a_batch_ends(self, tmp_path):
        names = sorted({f"{a}{b}" for a in ("a", "a.b", "a.jpg", "b", "ab") for b in
                        (".jpg", ".png", ".JPG", ".jpg.png", "/x.jpg", "/x.png")})  # fmt: skip

        def in_batches(rows):
            taken, found = [], []
            for at in range(0, len(names), rows):
                batch, taken = listing._ids(pa.array(names[at : at + rows]), taken)
                found += batch.to_pylist()
            return found

        whole = in_batches(1000)
        assert len(set(whole)) == len(names)
        for rows in range(1, len(names)):
            assert in_batches(rows) == whole


class TestIds:
    def test_of_two_that_differ_in_the_suffix_the_later_keeps_it(self, tmp_path):
        names = ["a.jpg", "a.png", "a.png.jpg", "a.JPG", "d/a.jpg", "a.d/x.jpg", "b.png"]
        root = write_directory(tmp_path, dict.fromkeys(names, b""))
        by_name = {os.path.relpath(s.path, root): s.image_id for s in list_images(root)}
        assert by_name["a.JPG"] == "a"
        assert (by_name["a.jpg"], by_name["a.png"]) == ("a.jpg", "a.png")
        assert by_name["a.png.jpg"] == "a.png.jpg"
        assert by_name["b.png"] == "b"

    PARTS = st.text(st.sampled_from("ab.-0"), min_size=1, max_size=3)
    NAME = st.builds("{}{}".format, PARTS, st.sampled_from([".jpg", ".png", ".jpg.png"]))

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.one_of(NAME, st.builds("{}/{}".format, PARTS, NAME)), min_size=1, max_size=9)
    )
    @example(["a.jpg", "a.k.png", "a.png", "a.png.jpg"])
    def test_ids_are_unique_and_depend_on_names_only(self, tmp_path_factory, names):
        root = tmp_path_factory.mktemp("ids")
        path = root / "list.txt"
        path.write_text("\n".join(names))
        found = list(list_images(str(path)))
        assert len(found) == len({posixpath.normpath(n) for n in names})
        assert len({s.image_id for s in found}) == len(found)
        path.write_text("\n".join(reversed(names)))
        assert list(list_images(str(path))) == found


def test_listing_streams(tmp_path, monkeypatch):
    """The first sample comes before the second directory is opened."""
    write_directory(tmp_path, {"a/1.jpg": b"", "b/2.jpg": b""})
    found = list_images(str(tmp_path))
    assert next(found).image_id == "a/1"
    os.rename(tmp_path / "b" / "2.jpg", tmp_path / "b" / "3.jpg")
    assert [s.image_id for s in found] == ["b/3"]


def test_threads_may_list_at_once(root):
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ids, [root] * 8)) == [IDS] * 8


@pytest.mark.parametrize(
    "url", ["https://me:secret@host/a.png", "https://b.host/a.png?X-Amz-Signature=abc"]
)
def test_urls_with_credentials_are_refused_and_not_repeated(tmp_path, url):
    manifest = tmp_path / "list.txt"
    manifest.write_text(url + "\n")
    for source in (str(manifest), url):
        with pytest.raises(UsageError, match="credentials") as caught:
            list(list_images(source))
        assert "secret" not in str(caught.value)
        assert "abc" not in str(caught.value)
