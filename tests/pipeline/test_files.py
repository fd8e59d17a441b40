from __future__ import annotations

import logging
import os
import pickle
import stat
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LayoutError, MissingExtra, MissingFile, UnsafePath
from pipeline.files import locate, open_tree, read_url, safe_name
from tests.pipeline.sources import FILES, JUNK, KINDS, tar_bytes, write_directory, zip_bytes


@pytest.fixture(params=KINDS)
def url(request, tmp_path, memory):
    """Give the same files, litter included, as each kind of source."""
    files = FILES | dict.fromkeys(JUNK, b"junk")
    kind = request.param
    if kind == "directory":
        return write_directory(tmp_path / "d", files)
    if kind == "memory":
        for name, data in files.items():
            memory.pipe_file(f"/bucket/d/{name}", data)
        return "memory://bucket/d"
    method = zipfile.ZIP_STORED if kind == "stored zip" else zipfile.ZIP_DEFLATED
    data = zip_bytes(files, method) if "zip" in kind else tar_bytes(files)
    name = "d.zip" if "zip" in kind else "d.tar"
    if kind == "tar in memory":
        memory.pipe_file(f"/bucket/{name}", data)
        return f"memory://bucket/{name}"
    (tmp_path / name).write_bytes(data)
    return str(tmp_path / name)


class TestEveryKindOfTree:
    def test_walk_lists_all_but_litter_sorted_by_the_whole_name(self, url):
        entries = list(open_tree(url).walk())
        assert [(e.name, e.size) for e in entries] == [(n, len(FILES[n])) for n in sorted(FILES)]
        assert all(e.fingerprint for e in entries)

    def test_walk_below_a_directory_by_suffix_in_any_case(self, url):
        found = [e.name for e in open_tree(url).walk("a/c", (".png",))]
        assert found == ["a/c/D.PNG"]

    def test_names_are_the_direct_children(self, url):
        tree = open_tree(url)
        assert tree.names() == ["a", "a b.jpg", "a.jpg", "zero.jpg", "été.txt"]
        assert tree.names("a") == ["b.jpg", "c"]

    def test_an_absent_directory_is_a_layout_error_that_names_it(self, url):
        tree = open_tree(url)
        for listing in (lambda: tree.names("nope"), lambda: list(tree.walk("nope"))):
            with pytest.raises(LayoutError, match="nope"):
                listing()

    def test_read_gives_the_bytes_by_name_and_by_url(self, url):
        tree = open_tree(url)
        for name, data in FILES.items():
            assert tree.read(name) == data
            assert read_url(tree.url_of(name)) == data
            with tree.open(name) as file:
                file.seek(2)
                assert file.read() == data[2:]

    def test_odd_spellings_of_a_name_are_tidied(self, url):
        assert open_tree(url).read("./a//c/new\nline.jpg") == FILES["a/c/new\nline.jpg"]

    def test_text_is_utf8(self, url):
        assert open_tree(url).read_text("été.txt") == "für\n"

    def test_entry_is_the_walk_s(self, url):
        tree = open_tree(url)
        assert [tree.entry(e.name) for e in tree.walk()] == list(tree.walk())

    def test_a_missing_file_is_an_input_error_that_names_its_url(self, url):
        tree = open_tree(url)
        for name in ("nope.jpg", "a/nope.jpg", "zero.jpg/x"):
            for read in (tree.read, tree.entry, tree.open, tree.header_bytes):
                with pytest.raises(MissingFile) as caught:
                    read(name)
                assert caught.value.path == tree.url_of(name)
            with pytest.raises(MissingFile):
                read_url(tree.url_of(name))

    def test_a_directory_is_no_file(self, url):
        tree = open_tree(url)
        for read in (tree.read, tree.entry):
            with pytest.raises(MissingFile):
                read("a/c")

    @pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/hostname", "..", "x\0y"])
    def test_a_name_that_leads_outside_is_refused(self, url, name):
        tree = open_tree(url)
        for read in (tree.read, tree.entry, tree.exists, tree.isdir):
            with pytest.raises(UnsafePath):
                read(name)

    def test_exists_and_isdir(self, url):
        tree = open_tree(url)
        assert [tree.exists(n) for n in ("a", "a.jpg", "nope")] == [True, True, False]
        assert [tree.isdir(n) for n in ("", "a", "a/c", "a.jpg", "nope")] == [True] * 3 + [
            False
        ] * 2

    def test_header_bytes_are_both_ends_or_all(self, url):
        tree = open_tree(url)
        assert tree.header_bytes("a.jpg") == (b"dot", b"")
        data = FILES["a/c/D.PNG"]
        head, tail = tree.header_bytes("a/c/D.PNG", 1000, 10)
        assert (head, tail) in [(data[:1000], data[-10:]), (data, b"")]

    def test_a_sub_tree_is_the_tree_below(self, url):
        sub = open_tree(url).sub("a")
        assert [e.name for e in sub.walk()] == ["b.jpg", "c/D.PNG", "c/new\nline.jpg"]
        assert sub.read("b.jpg") == read_url(sub.url_of("b.jpg")) == b"slash"
        again = open_tree(sub.url)
        assert list(again.walk()) == list(sub.walk())
        assert sub.sub("c").names() == ["D.PNG", "new\nline.jpg"]

    def test_a_pickled_tree_reads_on_and_holds_no_file(self, url):
        tree = open_tree(url)
        tree.read("a.jpg")
        copied = pickle.dumps(tree)
        assert len(copied) < 500
        assert pickle.loads(copied).read("a/b.jpg") == b"slash"
        assert pickle.loads(copied) == tree

    def test_threads_share_a_tree(self, url):
        tree = pickle.loads(pickle.dumps(open_tree(url)))
        names = sorted(FILES) * 20
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(tree.read, names)) == [FILES[n] for n in names]

    def test_locate_finds_tree_and_name(self, url):
        tree, name = locate(open_tree(url).url_of("a/c/D.PNG"))
        assert tree.read(name) == FILES["a/c/D.PNG"]


class TestOpenTree:
    def test_what_is_not_there_is_one_line_that_names_it(self, tmp_path, memory):
        for url in (str(tmp_path / "no\nwhere"), "memory://nowhere", "zip://::/nowhere.zip"):
            with pytest.raises(LayoutError, match="where"):
                open_tree(url)

    def test_a_file_of_another_kind_is_a_tree_of_one(self, tmp_path):
        write_directory(tmp_path, {"labelled.mat": b"hdf", "other": b""})
        tree = open_tree(str(tmp_path / "labelled.mat"))
        assert tree.names() == ["labelled.mat"]
        assert [e.name for e in tree.walk()] == ["labelled.mat"]
        assert tree.read("labelled.mat") == b"hdf"

    def test_a_compressed_tar_is_refused_with_the_mend(self, tmp_path):
        for name in ("x.tar.gz", "x.tgz", "x.tar"):
            (tmp_path / name).write_bytes(b"\x1f\x8b\x08" + bytes(600))
            with pytest.raises(LayoutError, match="gunzip"):
                open_tree(str(tmp_path / name))

    @pytest.mark.parametrize("name", ["x.zip", "x.tar"])
    def test_half_an_archive_is_refused(self, tmp_path, name):
        make = zip_bytes if name == "x.zip" else tar_bytes
        whole = make({"a.jpg": bytes(5000), "b.jpg": bytes(5000)})
        (tmp_path / name).write_bytes(whole[: len(whole) // 2 if name == "x.zip" else 3000])
        with pytest.raises(LayoutError, match="fetch it again"):
            open_tree(str(tmp_path / name))

    def test_a_file_url_is_a_path(self, tmp_path):
        write_directory(tmp_path, {"a": b"1"})
        assert open_tree(f"file://{tmp_path}").url == str(tmp_path)

    def test_a_relative_path_becomes_absolute(self, tmp_path, monkeypatch):
        write_directory(tmp_path, {"d/a": b"1"})
        monkeypatch.chdir(tmp_path)
        assert open_tree("d").url_of("a") == str(tmp_path / "d" / "a")
        assert read_url("d/a") == b"1"

    def test_a_bucket_without_its_package_names_the_extra(self):
        if find_spec("gcsfs"):
            pytest.skip("gcsfs is installed")
        with pytest.raises(MissingExtra, match=r"segmill\[gcs\]"):
            open_tree("gs://bucket/x")

    def test_credentials_stay_out_of_the_repr(self, memory):
        memory.pipe_file("/b/x", b"")
        assert "hunter2" not in repr(open_tree("memory://b", secret="hunter2"))


class TestLocalTree:
    def test_fingerprint_changes_with_the_file(self, tmp_path):
        path = tmp_path / "a.jpg"
        path.write_bytes(b"one")
        tree = open_tree(str(tmp_path))
        before = tree.entry("a.jpg").fingerprint
        os.utime(path, ns=(1, 1))
        middle = tree.entry("a.jpg").fingerprint
        path.write_bytes(b"four")
        assert len({before, middle, tree.entry("a.jpg").fingerprint}) == 3

    def test_links_inside_are_followed_and_links_outside_are_not(self, tmp_path, caplog):
        write_directory(tmp_path, {"root/d/x.jpg": b"x", "away/secret.jpg": b"s"})
        root = tmp_path / "root"
        (root / "file.jpg").symlink_to("d/x.jpg")
        (root / "folder").symlink_to("d")
        (root / "out.jpg").symlink_to(tmp_path / "away" / "secret.jpg")
        (root / "outside").symlink_to(tmp_path / "away")
        (root / "gone.jpg").symlink_to("d/nothing.jpg")
        tree = open_tree(str(root))
        with caplog.at_level(logging.WARNING):
            entries = {e.name: e.fingerprint for e in tree.walk()}
        assert sorted(entries) == ["d/x.jpg", "file.jpg", "folder/x.jpg", "gone.jpg"]
        assert "left out 2 links" in caplog.text
        assert entries["gone.jpg"] == ""
        assert tree.names() == ["d", "file.jpg", "folder", "gone.jpg"]
        assert tree.read("folder/x.jpg") == tree.read("file.jpg") == b"x"
        for name in ("out.jpg", "outside/secret.jpg"):
            for read in (tree.read, tree.entry):
                with pytest.raises(UnsafePath, match="symbolic link"):
                    read(name)
        with pytest.raises(MissingFile):
            tree.read("gone.jpg")

    def test_a_sub_tree_may_link_to_its_siblings(self, tmp_path):
        write_directory(tmp_path, {"VOC2007/x.jpg": b"x", "VOC2012/y.jpg": b"y"})
        (tmp_path / "VOC2012" / "old").symlink_to("../VOC2007")
        assert [e.name for e in open_tree(str(tmp_path)).sub("VOC2012").walk()] == [
            "old/x.jpg",
            "y.jpg",
        ]

    def test_a_folder_that_is_left_out_of_the_names_is_told_once(self, tmp_path, caplog):
        for name in ("data/train/a.png", "away/b.png"):
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).touch()
        (tmp_path / "data/val").symlink_to(tmp_path / "away")
        tree = open_tree(str(tmp_path / "data"))
        with caplog.at_level(logging.WARNING):
            assert tree.names() == tree.names() == ["train"]
        assert [record.message.count("data/val") for record in caplog.records] == [1]
        assert "name the directory that holds both" in caplog.text

    def test_links_in_a_circle_end(self, tmp_path, caplog):
        write_directory(tmp_path, {"a/x.jpg": b"", "b/y.jpg": b""})
        (tmp_path / "a" / "up").symlink_to("..")
        (tmp_path / "a" / "b").symlink_to("../b")
        (tmp_path / "b" / "a").symlink_to("../a")
        names = [e.name for e in open_tree(str(tmp_path)).walk()]
        assert names == ["a/b/y.jpg", "a/x.jpg", "b/a/x.jpg", "b/y.jpg"]

    def test_the_root_may_itself_be_a_link(self, tmp_path):
        write_directory(tmp_path, {"real/x.jpg": b"x"})
        (tmp_path / "link").symlink_to("real")
        tree = open_tree(str(tmp_path / "link"))
        assert tree.read("x.jpg") == b"x"
        assert tree.url_of("x.jpg") == str(tmp_path / "link" / "x.jpg")

    def test_pipes_are_not_listed(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.jpg")
        assert list(open_tree(str(tmp_path)).walk()) == []

    def test_a_name_that_is_not_utf8_is_listed_printable_and_fails_in_plain_words(self, tmp_path):
        try:
            (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
        tree = open_tree(str(tmp_path))
        [entry] = tree.walk()
        entry.name.encode()
        assert entry.fingerprint == ""
        with pytest.raises(MissingFile, match="not UTF-8"):
            read_url(tree.url_of(entry.name))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_an_unreadable_file_and_directory_say_so(self, tmp_path):
        write_directory(tmp_path, {"d/x.jpg": b"x", "y.jpg": b"y"})
        (tmp_path / "d").chmod(0)
        (tmp_path / "y.jpg").chmod(0)
        tree = open_tree(str(tmp_path))
        with pytest.raises(MissingFile, match="permission denied"):
            tree.read("y.jpg")
        with pytest.raises(LayoutError, match="permission denied"):
            list(tree.walk())
        (tmp_path / "d").chmod(stat.S_IRWXU)

    NAMES = st.text(st.sampled_from("ab. -/é"), min_size=1, max_size=8)

    @settings(max_examples=40, deadline=None)
    @given(st.sets(NAMES, max_size=12))
    def test_walks_agree_with_pathlib_and_with_the_archives(self, tmp_path_factory, names):
        root = tmp_path_factory.mktemp("walk")
        for name in names:
            parts = [p for p in name.split("/") if p.strip(".")]
            path = root.joinpath(*[p.lstrip(".") for p in parts], "f")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        expected = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        assert [e.name for e in open_tree(str(root)).walk()] == expected
        (root.parent / f"{root.name}.zip").write_bytes(zip_bytes(dict.fromkeys(expected, b"")))
        assert [e.name for e in open_tree(f"{root}.zip").walk()] == expected


@given(st.text(st.sampled_from("ab./\0"), max_size=12))
def test_a_safe_name_stays_below_its_root(name):
    try:
        safe = safe_name(name, "root")
    except UnsafePath:
        return
    assert os.path.normpath(f"/r/s/{safe}") == os.path.normpath(f"/r/s/{name}")
    assert f"/r/s/{safe}".rstrip("/") == os.path.normpath(f"/r/s/{safe}")
