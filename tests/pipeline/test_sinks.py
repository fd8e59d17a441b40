from __future__ import annotations

import contextlib
import os
import pickle
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import UnsafePath
from pipeline.files import open_sink, open_tree, read_url
from tests.pipeline.sources import FILES


@pytest.fixture(params=["directory", "memory"])
def sink_url(request, tmp_path, memory):
    return str(tmp_path / "out") if request.param == "directory" else "memory://bucket/out"


class TestEveryKindOfSink:
    def test_what_is_written_is_read_back(self, sink_url):
        sink = open_sink(sink_url)
        for name, data in FILES.items():
            sink.write(name, data)
        assert {e.name: read_url(sink.url_of(e.name)) for e in open_tree(sink_url).walk()} == FILES
        sink.write("a.jpg", memoryview(b"again"))
        assert read_url(sink.url_of("a.jpg")) == b"again"
        assert sink.exists("a.jpg")
        assert not sink.exists("nope")

    @pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "x\0"])
    def test_a_name_that_leads_outside_is_refused(self, sink_url, name):
        sink = open_sink(sink_url)
        with pytest.raises(UnsafePath):
            sink.write(name, b"")
        with pytest.raises(UnsafePath), sink.stream(name):
            pass

    def test_a_stream_appears_when_it_ends_well(self, sink_url):
        sink = open_sink(sink_url)
        with sink.stream("d/big.bin") as file:
            file.write(b"one")
            file.write(b"two")
            assert not sink.exists("d/big.bin")
        assert read_url(sink.url_of("d/big.bin")) == b"onetwo"

    def test_a_stream_that_fails_leaves_what_was_there(self, sink_url):
        sink = open_sink(sink_url)
        sink.write("d/x.bin", b"old")
        with contextlib.suppress(RuntimeError), sink.stream("d/x.bin") as file:
            file.write(b"half")
            raise RuntimeError
        assert read_url(sink.url_of("d/x.bin")) == b"old"
        assert [e.name for e in open_tree(sink_url).walk()] == ["d/x.bin"]

    def test_a_folder_goes_with_all_below_it(self, sink_url):
        sink = open_sink(sink_url)
        for name in (".a/b/1", ".a/b/c/2", ".a.txt", "keep/3"):
            sink.write(name, b"x")
        sink.remove_folder(".a/b")
        sink.remove_folder(".a/never-there")
        names = (".a/b/1", ".a/b/c/2", ".a/b", ".a.txt", "keep/3")
        assert [sink.exists(n) for n in names] == [False, False, False, True, True]
        assert not sink.exists(".a")
        with pytest.raises(UnsafePath):
            sink.remove_folder("../x")

    def test_a_pickled_sink_writes_on(self, sink_url):
        sink = pickle.loads(pickle.dumps(open_sink(sink_url)))
        sink.write("x", b"1")
        assert sink == open_sink(sink_url)
        assert read_url(sink.url_of("x")) == b"1"


class TestLocalSink:
    def test_readers_see_one_whole_version_or_the_other(self, tmp_path):
        sink = open_sink(str(tmp_path))
        versions = [bytes([i]) * 100_000 for i in range(3)]
        sink.write("x", versions[0])
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                for version in versions:
                    sink.write("x", version)

        with ThreadPoolExecutor(2) as pool:
            writers = [pool.submit(write) for _ in range(2)]
            seen = {read_url(sink.url_of("x")) for _ in range(200)}
            stop.set()
            for writer in writers:
                writer.result()
        assert seen <= set(versions)
        assert os.listdir(tmp_path) == ["x"]

    def test_a_name_of_255_bytes_and_a_durable_write(self, tmp_path):
        sink = open_sink(str(tmp_path), durable=True)
        sink.write(f"d/{'n' * 255}", b"1")
        assert os.listdir(tmp_path / "d") == ["n" * 255]

    @pytest.mark.parametrize(
        ("name", "cause"),
        [
            ("x" * 256, "too long"),
            ("x" * 256 + "/a", "too long"),
            ("folder", "a directory is in its place"),
            ("file/a", "a file is in the place of its directory"),
            ("file/a/b", "a file is in the place of its directory"),
        ],
    )
    def test_a_name_without_a_place_is_that_files_own_error(self, tmp_path, name, cause):
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
        with pytest.raises(UnsafePath, match=cause):
            open_sink(str(tmp_path)).write(name, b"data")
        assert {p.name for p in tmp_path.rglob("*")} == {"folder", "file"}

    def test_files_obey_the_umask(self, tmp_path):
        open_sink(str(tmp_path)).write("x", b"")
        mask = os.umask(0)
        os.umask(mask)
        assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~mask
