from __future__ import annotations

import io
import logging
import os
import stat
import tarfile
import tempfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from pipeline.errors import InputError, LayoutError, MissingFile, UnsafePath
from pipeline.files import open_tree, read_url
from pipeline.trees.archive_index import zip_members
from tests.pipeline.sources import tar_bytes, zip_bytes


@pytest.mark.parametrize("name", ["../evil.jpg", "a/../../evil.jpg", "/etc/evil.jpg"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_that_leads_outside_is_listed_and_fails(tmp_path, kind, name):
    make = zip_bytes if kind == "zip" else tar_bytes
    path = tmp_path / f"x.{kind}"
    path.write_bytes(make({"good.jpg": b"g", name: b"e"}))
    tree = open_tree(str(path))
    assert sorted(e.name for e in tree.walk()) == sorted(["good.jpg", name])
    assert tree.read("good.jpg") == b"g"
    for read in (lambda: tree.read(name), lambda: read_url(tree.url_of(name))):
        with pytest.raises(UnsafePath, match=r"evil"):
            read()
    assert ".." not in tree.names()


def test_links_in_a_tar_are_not_followed_but_hard_links_are(tmp_path, caplog):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"data"))
        for name, kind in (("hard.jpg", tarfile.LNKTYPE), ("soft.jpg", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a.jpg"
            archive.addfile(link)
    with caplog.at_level(logging.WARNING):
        tree = open_tree(str(path))
    assert [e.name for e in tree.walk()] == ["a.jpg", "hard.jpg"]
    assert tree.read("hard.jpg") == b"data"
    assert "soft.jpg" in caplog.text


def test_a_link_in_a_zip_is_left_out(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/hostname")
    assert list(open_tree(str(tmp_path / "x.zip")).walk()) == []


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_in_every_tar_format(tmp_path, format):
    files = {f"./{'d' * 90}/{'f' * 60}.jpg": b"1", "a//b.jpg": b"2"}
    if format != tarfile.USTAR_FORMAT:
        files |= {f"{'é' * 200}.jpg": b"3"}
    (tmp_path / "x.tar").write_bytes(tar_bytes(files, format))
    tree = open_tree(str(tmp_path / "x.tar"))
    expected = {os.path.normpath(name): data for name, data in files.items()}
    assert {e.name: tree.read(e.name) for e in tree.walk()} == expected


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_read_or_refused_by_name(tmp_path, method):
    (tmp_path / "x.zip").write_bytes(zip_bytes({"a": b"data" * 100}, method))
    tree = open_tree(str(tmp_path / "x.zip"))
    if method == zipfile.ZIP_BZIP2:
        assert tree.read("a") == b"data" * 100
    else:
        with pytest.raises(InputError, match="compression method 14"):
            tree.read("a")


def test_a_damaged_member_fails_alone(tmp_path):
    data = bytearray(zip_bytes({"a": b"A" * 500, "b": b"B" * 500}, zipfile.ZIP_STORED))
    data[data.index(b"BBBB")] ^= 1
    (tmp_path / "x.zip").write_bytes(data)
    tree = open_tree(str(tmp_path / "x.zip"))
    assert tree.read("a") == b"A" * 500
    with pytest.raises(InputError, match="checksum"):
        tree.read("b")


def test_a_member_does_not_inflate_past_what_the_index_promises(tmp_path):
    data = zip_bytes({"bomb": bytes(1_000_000)})
    lying = data.replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    (tmp_path / "x.zip").write_bytes(lying)
    with pytest.raises(InputError, match="damaged"):
        open_tree(str(tmp_path / "x.zip")).read("bomb")


def test_an_encrypted_member_says_so(tmp_path):
    data = bytearray(zip_bytes({"a": b"data"}))
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(InputError, match="encrypted"):
        open_tree(str(tmp_path / "x.zip")).read("a")


def test_a_replaced_archive_is_read_anew(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(zip_bytes({"a": b"old"}))
    tree = open_tree(str(path))
    before = tree.entry("a").fingerprint
    (tmp_path / "y").write_bytes(zip_bytes({"a": b"newer"}))
    os.replace(tmp_path / "y", path)
    assert tree.read("a") == b"newer"
    assert tree.entry("a").fingerprint != before


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["zip", "tar", "pax tar"])
def test_members_in_any_order_are_sorted_and_of_two_the_later_counts(tmp_path, kind):
    names = ["z", "a/b", "é.jpg", "a.b", "𝄞", "a/b", "\uffff", "a-b", "z", "m" * 300]
    files = [(name, str(place).encode()) for place, name in enumerate(names)]
    path = tmp_path / f"x.{kind[-3:]}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files:
                archive.writestr(name, data)
    else:
        form = tarfile.PAX_FORMAT if kind == "pax tar" else tarfile.GNU_FORMAT
        with tarfile.open(path, "w", format=form) as tar:
            for name, data in files:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    tree = open_tree(str(path))
    expected = dict(files)
    assert [e.name for e in tree.walk()] == sorted(expected)
    assert {name: tree.read(name) for name in expected} == expected
    assert tree.names() == sorted({name.split("/")[0] for name in names})


def test_a_zip64_is_read_wherever_its_numbers_lie(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 50)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    files = {f"{i}.bin": bytes([i]) * 99 for i in range(9, 0, -1)}
    data = zip_bytes(files, zipfile.ZIP_STORED)
    assert b"PK\6\6" in data
    (tmp_path / "x.zip").write_bytes(b"a program in front" + data)
    tree = open_tree(str(tmp_path / "x.zip"))
    assert {e.name: tree.read(e.name) for e in tree.walk()} == files


def test_the_index_takes_a_name_and_some_bytes_a_member(tmp_path):
    count = 5_000
    files = {f"{'d' * 60}/{i * 7919 % count:05}": b"" for i in range(count)}
    (tmp_path / "x.zip").write_bytes(zip_bytes(files))
    index = open_tree(str(tmp_path / "x.zip"))._index()
    tracemalloc.start()
    with open(tmp_path / "x.zip", "rb") as file:
        index = zip_members(file, "x.zip")
        kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert index.names[17].endswith("/00017")
    assert kept < 150 * count
    assert peak < 300 * count


class TestBigMembers:
    """Members above the limit up to which `open` holds them, set low."""

    DATA = bytes(range(256)) * 2000 + b"the end"

    @pytest.fixture(autouse=True)
    def low(self, monkeypatch):
        monkeypatch.setattr("pipeline.trees.archives.WHOLE", 1000)
        monkeypatch.setattr("pipeline.trees.ranges._PART", 333)
        monkeypatch.setattr("pipeline.trees.archives._AT_ONCE", 1000)

    @pytest.fixture(params=["tar", "stored", "deflated", "bzip2", "far stored", "far deflated"])
    def tree(self, request, tmp_path, memory):
        files = {"first": b"1" * 999, "big.mat": self.DATA, "last": b"2"}
        methods = {"stored": zipfile.ZIP_STORED, "bzip2": zipfile.ZIP_BZIP2}
        kind = request.param.removeprefix("far ")
        if kind == "tar":
            path, data = "x.tar", tar_bytes(files)
        else:
            path, data = "x.zip", zip_bytes(files, methods.get(kind, zipfile.ZIP_DEFLATED))
        if request.param.startswith("far"):
            memory.pipe_file(f"/b/{kind}-{path}", data)
            return open_tree(f"memory://b/{kind}-{path}")
        (tmp_path / path).write_bytes(data)
        return open_tree(str(tmp_path / path))

    def test_they_read_and_seek_like_files_and_are_not_held(self, tree):
        with tree.open("big.mat") as file:
            assert not isinstance(file, io.BytesIO)
            assert file.read() == self.DATA
            assert file.seek(-7, os.SEEK_END) == len(self.DATA) - 7
            assert file.read(100) == b"the end"
            assert file.read(1) == b""
            file.seek(1000)
            assert file.seek(500, os.SEEK_CUR) == 1500
            assert file.read(3) == self.DATA[1500:1503]
            assert file.tell() == 1503
            file.seek(10**9)
            assert file.read() == b""
        with tree.open("first") as file:
            assert isinstance(file, io.BytesIO)

    def test_threads_read_one_at_once_and_it_is_inflated_once(self, tree, monkeypatch):
        made = []
        make = tempfile.TemporaryFile
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **k: made.append(1) or make(**k))
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: tree.open("big.mat").read(), range(16)))
        assert found == [self.DATA] * 16
        assert len(made) <= 1

    def test_a_damaged_one_says_so(self, tmp_path):
        data = bytearray(zip_bytes({"big.mat": os.urandom(5000)}))
        data[2500] ^= 1
        (tmp_path / "x.zip").write_bytes(data)
        with pytest.raises(InputError, match="damaged"):
            open_tree(str(tmp_path / "x.zip")).open("big.mat")

    def test_one_that_inflates_past_its_size_is_refused(self, tmp_path):
        data = zip_bytes({"bomb": bytes(1_000_000)})
        lying = data.replace((1_000_000).to_bytes(4, "little"), (2000).to_bytes(4, "little"))
        (tmp_path / "x.zip").write_bytes(lying)
        with pytest.raises(InputError, match="damaged"):
            open_tree(str(tmp_path / "x.zip")).open("bomb")

    def test_h5py_reads_one_in_its_archive(self, tmp_path):
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "x.mat", "w") as file:
            file["a"] = list(range(5000))
        packed = zip_bytes({"x.mat": (tmp_path / "x.mat").read_bytes()}, zipfile.ZIP_STORED)
        (tmp_path / "mat.zip").write_bytes(packed)
        with h5py.File(open_tree(str(tmp_path / "mat.zip")).open("x.mat")) as file:
            assert file["a"][4999] == 4999


def test_an_archive_that_is_gone_is_the_image_s_failure(tmp_path):
    with pytest.raises(MissingFile, match="archive"):
        read_url(f"zip://a.jpg::{tmp_path}/gone.zip")


def test_a_member_s_name_may_hold_colons(tmp_path):
    (tmp_path / "x.zip").write_bytes(zip_bytes({"a::b.jpg": b"1"}))
    tree = open_tree(str(tmp_path / "x.zip"))
    assert read_url(tree.url_of("a::b.jpg")) == b"1"
    (tmp_path / "q::r.zip").write_bytes(zip_bytes({"a": b"1"}))
    with pytest.raises(LayoutError, match="rename"):
        open_tree(str(tmp_path / "q::r.zip"))


def test_fsspec_reads_our_urls(tmp_path):
    (tmp_path / "x.zip").write_bytes(zip_bytes({"d/a.jpg": b"1"}))
    url = open_tree(str(tmp_path / "x.zip")).url_of("d/a.jpg")
    with fsspec.open(url) as file:
        assert file.read() == b"1"
