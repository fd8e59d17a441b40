from __future__ import annotations

import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import LayoutError, MissingFile, UnsafePath, UsageError
from pipeline.files import read_url
from pipeline.trees.union import open_source
from tests.connectors.trees import contents
from tests.jobs.calls import call
from tests.pipeline.sources import tar_bytes, write_directory, zip_bytes

IMAGES = {"train/b.jpg": b"image b", "train/a.jpg": b"image a", "images.txt": b"i"}
LABELS = {"train/a.png": b"label a", "train/b.png": b"label b", "labels.txt": b"l"}
ALL = IMAGES | LABELS


@pytest.fixture(params=["named", "a directory of archives", "zip and tar", "in a bucket", "mixed"])
def url(request, tmp_path, memory):
    """Give two halves of a dataset in each way in which they may come."""
    images, labels = tmp_path / "images.zip", tmp_path / "labels.zip"
    if request.param == "in a bucket":
        memory.pipe_file("/b/d/images.zip", zip_bytes(IMAGES))
        memory.pipe_file("/b/d/labels.tar", tar_bytes(LABELS))
        memory.pipe_file("/b/d/README.md", b"read me")
        return "memory://b/d"
    images.write_bytes(zip_bytes(IMAGES))
    if request.param == "mixed":
        return f"{images},{write_directory(tmp_path / 'unpacked', LABELS)}"
    if request.param == "zip and tar":
        labels = tmp_path / "labels.tar"
        labels.write_bytes(tar_bytes(LABELS))
        return f"{images},{labels}"
    labels.write_bytes(zip_bytes(LABELS))
    if request.param == "named":
        return f"{images},{labels}"
    write_directory(tmp_path, {"README": b"", "md5sums.txt": b"", "a.zip.md5": b"", ".x": b""})
    return str(tmp_path)


class TestUnion:
    def test_walk_is_that_of_one_directory(self, url):
        entries = list(open_source(url).walk())
        assert [(e.name, e.size) for e in entries] == [(n, len(ALL[n])) for n in sorted(ALL)]
        assert [e.name for e in open_source(url).walk("train", (".png",))] == [
            "train/a.png",
            "train/b.png",
        ]

    def test_names_and_questions(self, url):
        tree = open_source(url)
        assert tree.names() == ["images.txt", "labels.txt", "train"]
        assert tree.names("train") == ["a.jpg", "a.png", "b.jpg", "b.png"]
        assert [tree.isdir(n) for n in ("", "train", "nope", "labels.txt")] == [True, True] + [
            False
        ] * 2
        assert [tree.exists(n) for n in ("train/a.png", "train", "nope")] == [True, True, False]

    def test_every_file_reads_by_name_and_by_url(self, url):
        tree = open_source(url)
        for name, data in ALL.items():
            assert tree.read(name) == read_url(tree.url_of(name)) == data
            assert tree.header_bytes(name) == (data, b"")
            assert tree.open(name).read() == data
        assert [tree.entry(e.name) for e in tree.walk()] == list(tree.walk())

    def test_its_url_opens_it_again_and_so_does_its_sub_tree_s(self, url):
        tree = open_source(url)
        assert list(open_source(tree.url).walk()) == list(tree.walk())
        sub = tree.sub("train")
        assert sub.names() == ["a.jpg", "a.png", "b.jpg", "b.png"]
        assert [e.name for e in open_source(sub.url).walk()] == sub.names()

    def test_what_none_has_is_missing_where_its_neighbours_are(self, url):
        tree = open_source(url)
        for read in (tree.read, tree.open, tree.entry, tree.header_bytes):
            with pytest.raises(MissingFile, match=r"train/c\.jpg"):
                read("train/c.jpg")
        with pytest.raises(LayoutError, match="nope"):
            list(tree.walk("nope"))
        with pytest.raises(UnsafePath):
            tree.read("../x")

    def test_pickles_and_threads_share_it(self, url):
        tree = pickle.loads(pickle.dumps(open_source(url)))
        names = sorted(ALL) * 10
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(tree.read, names)) == [ALL[n] for n in names]


def test_of_two_files_of_one_name_the_first_counts_and_a_difference_is_told(tmp_path, caplog):
    (tmp_path / "1.zip").write_bytes(zip_bytes({"d/same": b"1", "d/other": b"1", "d/only": b"1"}))
    (tmp_path / "2.zip").write_bytes(zip_bytes({"d/same": b"1", "d/other": b"2"}))
    tree = open_source(f"{tmp_path}/1.zip,{tmp_path}/2.zip")
    with caplog.at_level(logging.WARNING):
        assert [e.name for e in tree.walk()] == ["d/only", "d/other", "d/same"]
    assert "1 files differ" in caplog.text
    assert "other" in caplog.text
    assert tree.read("d/other") == b"1"


@pytest.mark.parametrize(
    "name",
    ["d/classes.tsv", "annotations/instances_train2017.json", "train.txt", "ImageSets/a/b.txt"],
)
def test_of_two_files_that_speak_for_the_whole_neither_counts(tmp_path, name):
    one, two, three = (
        write_directory(tmp_path / n, {name: text, f"{n}.jpg": b"", "d/x.txt": n.encode()})
        for n, text in (("a", b"1" * 70_000), ("b", b"1" * 70_000), ("c", b"1" * 69_999 + b"2"))
    )
    same, differing = open_source(f"{one},{two}"), open_source(f"{one},{three}")
    assert same.read(name) == b"1" * 70_000
    for ask in (differing.read, differing.open, differing.read_text):
        with pytest.raises(LayoutError, match=f"{one}/{name} and {three}/{name} differ"):
            ask(name)
    assert differing.read("d/x.txt") == b"a"  # a file among many: the first counts, walk warns


def test_an_archive_of_bare_files_lies_in_a_folder_of_its_name(tmp_path):
    (tmp_path / "Stills.zip").write_bytes(zip_bytes({"Stills/a.png": b"1"}))
    (tmp_path / "Labels.zip").write_bytes(zip_bytes({"a_L.png": b"2", "b_L.png": b"3"}))
    tree = pickle.loads(pickle.dumps(open_source(str(tmp_path))))
    assert [e.name for e in tree.walk()] == ["Labels/a_L.png", "Labels/b_L.png", "Stills/a.png"]
    assert tree.names() == ["Labels", "Stills"]
    assert tree.names("Labels") == ["a_L.png", "b_L.png"]
    assert tree.entry("Labels/a_L.png") == next(tree.walk("Labels"))
    assert read_url(tree.url_of("Labels/b_L.png")) == tree.read("Labels/b_L.png") == b"3"
    assert tree.sub("Labels").read("a_L.png") == b"2"
    assert not tree.exists("a_L.png")
    with pytest.raises(MissingFile, match=r"Labels\.zip"):
        tree.read("Labels/c_L.png")


BARE = zip_bytes({"a.png": b"1", "b.png": b"2"})
REOPENED = {
    "directory": ("", {"x/a.png": b"1"}),
    "one file": ("a.txt", {"a.txt": b"1", "b.txt": b"2"}),
    "bare archive": ("Stills.zip", {"Stills.zip": BARE}),
    "directory of one bare archive": ("", {"Stills.zip": BARE, "README": b""}),
    "directory of one archive": ("", {"d.tar": tar_bytes({"x/a.png": b"1"})}),
    "directory of archives": ("", {"S.zip": BARE, "d.tar": tar_bytes({"S/c.png": b"1"})}),
    "named": ("S.zip,d", {"S.zip": BARE, "d/S/c.png": b"3"}),
    "named, all bare": ("S.zip,T.zip", {"S.zip": BARE, "T.zip": BARE}),
    "comma in its name": ("a,b", {"a,b/S.zip": BARE}),
}


@pytest.mark.parametrize("far", [False, True], ids=["local", "in a bucket"])
@pytest.mark.parametrize("kind", REOPENED)
def test_a_source_s_url_opens_the_same_files_again(tmp_path, memory, kind, far):
    asked, files = REOPENED[kind]
    if far and kind == "one file":
        pytest.skip("a single file in a bucket is no source")
    root = "memory://d" if far else write_directory(tmp_path, files)
    for name, data in files.items() if far else ():
        memory.pipe_file(f"/d/{name}", data)
    parts = [asked] if asked == "a,b" else asked.split(",")
    tree = open_source(",".join(f"{root}/{part}".rstrip("/") for part in parts))
    entries = list(tree.walk())
    again = pickle.loads(pickle.dumps(open_source(tree.url)))
    assert list(again.walk()) == entries
    assert [again.read(e.name) for e in entries] == [tree.read(e.name) for e in entries]
    assert list(open_source(tree.sub("").url).walk()) == entries
    for name in filter(tree.isdir, tree.names()):
        sub = tree.sub(name)
        assert list(open_source(sub.url).walk()) == list(sub.walk()) != []


def test_a_directory_with_anything_else_in_it_is_a_directory(tmp_path):
    write_directory(tmp_path, {"d.zip": zip_bytes({"x": b"1"}), "train/a.jpg": b""})
    assert open_source(str(tmp_path)).names() == ["d.zip", "train"]


def test_one_archive_in_a_directory_is_that_archive(tmp_path):
    write_directory(tmp_path, {"VOC.tar": tar_bytes({"VOCdevkit/x": b"1"}), "README.txt": b""})
    assert open_source(str(tmp_path)).read("VOCdevkit/x") == b"1"


def test_a_compressed_tar_among_them_is_refused_with_the_mend(tmp_path):
    write_directory(tmp_path, {"a.zip": zip_bytes({"x": b"1"}), "b.tar.gz": b"\x1f\x8b"})
    with pytest.raises(LayoutError, match="gunzip"):
        open_source(str(tmp_path))


def test_a_comma_in_a_name_that_is_there_parts_nothing(tmp_path):
    write_directory(tmp_path, {"a,b/x": b"1"})
    assert open_source(f"{tmp_path}/a,b").read("x") == b"1"


def test_what_is_not_there_is_named(tmp_path):
    (tmp_path / "1.zip").write_bytes(zip_bytes({"x": b"1"}))
    with pytest.raises(LayoutError, match=r"2\.zip: no such file"):
        open_source(f"{tmp_path}/1.zip,{tmp_path}/2.zip")
    with pytest.raises(LayoutError, match="no such file"):
        open_source(f"{tmp_path}/1.zip,")
    with pytest.raises(UsageError, match="credentials"):
        open_source(f"{tmp_path}/1.zip,https://me:secret@host/2.zip")


def test_an_archive_in_an_archive_is_told_with_the_mend(tmp_path, caplog):
    inner = zip_bytes({"panoptic_train2017/x.png": b"1"})
    (tmp_path / "p.zip").write_bytes(zip_bytes({"annotations/panoptic_train2017.zip": inner}))
    with caplog.at_level(logging.WARNING):
        open_source(str(tmp_path / "p.zip")).names()
    assert "annotations/panoptic_train2017.zip" in caplog.text
    assert "unzip -j" in caplog.text


def test_the_official_two_archives_of_camvid_ingest_as_unpacked(shared_data, tmp_path, capsys):
    root = shared_data / "camvid" / "full32"
    if not root.is_dir():
        pytest.skip("no camvid/full32 in the real data")
    zips = tmp_path / "zips"
    zips.mkdir()
    files = contents(root)
    for folder, inside in (
        ("701_StillsRaw_full", "701_StillsRaw_full/"),
        ("LabeledApproved_full", ""),
    ):
        part = {
            n.replace(f"{folder}/", inside): data
            for n, data in files.items()
            if n.startswith(folder)
        }
        (zips / f"{folder}.zip").write_bytes(zip_bytes(part))
    args = ("--from", "camvid", "--to", "camvid", "--runner", "local", "--max-errors", "100%")
    packed, _ = call(capsys, "convert", zips, tmp_path / "packed", *args)
    plain, _ = call(capsys, "convert", root, tmp_path / "plain", *args)
    assert packed["done"] == plain["done"] > 0
    found, expected = contents(tmp_path / "packed"), contents(tmp_path / "plain")
    for files in (found, expected):
        files.pop("segmill-errors.jsonl", None)  # names the archive or the directory
    assert found == expected
