from __future__ import annotations

import io
import json
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib.util import find_spec
from itertools import islice

import pytest

from pipeline.errors import LayoutError, MissingFile
from pipeline.files import open_sink, open_tree, read_url
from pipeline.store import Store
from pipeline.trees.remote import RemoteTree
from pipeline.trees.s3 import RETRIES, Objects
from pipeline.trees.union import open_source
from tests.connectors.trees import bare, contents
from tests.jobs.calls import call
from tests.pipeline.s3_server import PAGE, Fault

FRAMES = 12


@pytest.fixture(params=["s3fs", "obstore"])
def client(request, monkeypatch):
    """Give each of the two ways to an object."""
    if request.param == "obstore" and not find_spec("obstore"):
        pytest.skip("obstore is not installed")
    quick = {"init_backoff": timedelta(milliseconds=20), "max_backoff": timedelta(seconds=1)}
    monkeypatch.setitem(RETRIES, "backoff", quick | {"base": 2})
    if request.param == "s3fs":
        monkeypatch.setattr("pipeline.trees.remote.Objects.of", lambda *_: None)
    return request.param


def upload(url: str, files: dict[str, bytes]) -> None:
    sink = open_sink(url)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: sink.write(name, files[name]), files))


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    """Make a small dataset of street scenes; return its root."""
    from pipeline.streetscenes import write_dataset

    root = tmp_path_factory.mktemp("camvid")
    write_dataset(str(root), FRAMES, height=48, width=64, seed=0)
    return root


class TestObjects:
    def test_listing_takes_a_request_a_page(self, s3, bucket, client):
        names = [f"d/{i:03}.jpg" for i in range(25)]
        upload(bucket, dict.fromkeys(names, b"x"))
        s3.reset()
        entries = list(open_tree(bucket).walk("d"))
        assert [e.name for e in entries] == names
        assert all(e.size == 1 and e.fingerprint for e in entries)
        assert s3.count("GET .*list-type=2.*d%2F") == 3

    def test_a_tree_of_folders_is_one_listing(self, s3, bucket):
        pytest.importorskip("obstore")
        names = [*sorted(f"d/{i % 7}/{i:03}.jpg" for i in range(40)), "d2/x.jpg"]
        upload(bucket, dict.fromkeys(names, b"x"))
        tree = open_tree(bucket)
        s3.reset(Fault("GET .*list-type=2.*continuation", 503, every=2))
        assert [e.name for e in tree.walk("d")] == names[:-1]
        assert s3.count("GET .*list-type=2") - s3.state().faults[0].hits == 4
        assert [e.name for e in tree.walk()] == names

    def test_a_big_directory_is_opened_by_a_page_each_question(self, s3, bucket, monkeypatch):
        pytest.importorskip("obstore")
        monkeypatch.setattr("pipeline.trees.s3._PAGE", PAGE)
        upload(bucket, {f"d/e/{i:03}.jpg": b"x" for i in range(35)})
        s3.reset()
        tree = open_source(f"{bucket}/d/e")  # is it a directory, and one of archives?
        assert s3.count("GET .*list-type=2") == len(s3.state().requests) == 2
        s3.reset()
        assert tree.isdir("")
        assert open_tree(bucket).isdir("d")
        assert not tree.isdir("000.jpg")
        assert not tree.isdir("nope")
        assert s3.count("GET .*continuation") == 0

    def test_both_ways_list_alike(self, s3, bucket, monkeypatch):
        import boto3

        pytest.importorskip("obstore")
        keys = ["a", "a.jpg", "a/", "a/b", "a-/c", "e/", "e.f/", "empty", "m/", "m/n/", "m/n/o.png",
                "m/zero.txt", ".h/x", "été/ü#?&%20.png", "z/.y", "m.jpg"]  # fmt: skip
        put = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{s3.upstream}").put_object
        for key in keys:
            empty = key.endswith("/") or key in ("empty", "m/zero.txt")
            put(Bucket=bucket[5:], Key=key, Body=b"" if empty else b"data")
        by_keys = list(open_tree(bucket).walk())
        assert {"a", "a/b", "empty", "m/zero.txt"} < {e.name for e in by_keys}
        asked = ["", "a", "a.jpg", "a-", "e", "e.f", "empty", "m", "m/n", "m/zero.txt", "nope"]
        tree = open_tree(bucket)
        are_dirs = [tree.isdir(n) for n in asked]
        below = {under: list(open_tree(bucket).walk(under)) for under in ("a", "e", "m")}
        monkeypatch.setattr("pipeline.trees.remote.Objects.of", lambda *_: None)
        assert by_keys == list(open_tree(bucket).walk())
        tree = open_tree(bucket)
        assert [tree.isdir(n) for n in asked] == are_dirs
        assert below == {under: list(open_tree(bucket).walk(under)) for under in below}
        assert [open_tree(bucket).entry(e.name) for e in by_keys] == by_keys

    def test_a_listing_that_stops_goes_on_by_directories(self, s3, bucket, monkeypatch, caplog):
        pytest.importorskip("obstore")
        names = [f"d/{i:03}.jpg" for i in range(25)]
        upload(bucket, dict.fromkeys(names, b"x"))
        pages = Objects.pages

        def breaks_off(self, path, after):
            yield from islice(pages(self, path, after), 1)
            raise type("InvalidPathError", (Exception,), {})("empty segment")

        monkeypatch.setattr("pipeline.trees.s3._PAGE", 10)
        monkeypatch.setattr(Objects, "pages", breaks_off)
        assert [e.name for e in open_tree(bucket).walk()] == names
        assert "directory by directory" in caplog.text

    def test_keys_out_of_order_are_refused_not_lost(self, s3, bucket, monkeypatch):
        pytest.importorskip("obstore")
        upload(bucket, dict.fromkeys(["a.jpg", "b.jpg"], b"x"))
        pages = Objects.pages
        monkeypatch.setattr(Objects, "pages", lambda *a: (page[::-1] for page in pages(*a)))
        with pytest.raises(LayoutError, match="out of order"):
            list(open_tree(bucket).walk())

    def test_names_of_all_kinds_come_back(self, s3, bucket, client):
        files = {"a b+c.jpg": b"1", "été/ü#?&%20.png": b"2", "q=1/x": b"3", "empty": b""}
        upload(bucket, files)
        tree = open_tree(bucket)
        assert {e.name: tree.read(e.name) for e in tree.walk()} == files
        assert {name: read_url(tree.url_of(name)) for name in files} == files

    def test_whole_files_and_both_ends_take_one_request_each(self, s3, bucket, client):
        data = bytes(range(256)) * 1000
        upload(bucket, {"big.bin": data, "small.bin": data[:100]})
        tree = open_tree(bucket)
        s3.reset()
        assert tree.read("big.bin") == data
        assert len(s3.state().requests) == 1
        assert tree.header_bytes("small.bin") == (data[:100], b"")
        assert len(s3.reset().requests) == 2
        assert tree.header_bytes("big.bin") == (data[:65536], data[-64:])
        seen = s3.state()
        assert len(seen.requests) == 2
        assert seen.body_bytes == 65536 + 64

    def test_what_is_missing_says_so(self, s3, bucket, client):
        upload(bucket, {"a": b"1"})
        tree = open_tree(bucket)
        for read in (tree.read, tree.entry, tree.open, tree.header_bytes):
            with pytest.raises(MissingFile, match="no such file"):
                read("nope.jpg")
        assert not tree.exists("nope.jpg")
        with pytest.raises(LayoutError, match="no-such-bucket"):
            open_tree("s3://no-such-bucket-here")

    def test_a_pickled_tree_and_sink_work_on(self, s3, bucket, client):
        upload(bucket, {"a": b"1"})
        tree, sink = pickle.loads(pickle.dumps((open_tree(bucket), open_sink(bucket))))
        sink.write("b", tree.read("a"))
        assert tree.read("b") == b"1"
        sink.remove("b")
        sink.remove("b")
        assert not sink.exists("b")

    def test_a_stream_appears_whole_or_not_at_all(self, s3, bucket):
        sink = open_sink(bucket)
        with pytest.raises(ZeroDivisionError), sink.stream("list.txt") as file:
            file.write(b"half" * (1 // 0))
        assert not sink.exists("list.txt")
        with sink.stream("list.txt") as file:
            file.write(b"whole")
            s3.reset()
        assert [r.partition(" ")[0] for r in s3.state().requests] == ["PUT"]
        assert open_tree(bucket).read("list.txt") == b"whole"

    def test_a_big_stream_is_uploaded_in_parts(self, s3, bucket):
        sink = open_sink(bucket)
        block = bytes(1 << 20)
        with sink.stream("big.bin") as file:
            for _ in range(101):
                file.write(block)
        assert s3.count(r"PUT .*partNumber=") > 1
        assert open_tree(bucket).entry("big.bin").size == 101 << 20


class TestFaults:
    @pytest.mark.parametrize("status", [500, 503, 0])
    def test_a_read_that_fails_by_chance_is_made_again(self, s3, bucket, client, status):
        data = bytes(range(256)) * 800
        upload(bucket, {"a.bin": data})
        tree = open_tree(bucket)
        s3.reset(Fault(r"GET .*a\.bin", status, most=2))
        assert tree.read("a.bin") == data
        assert tree.header_bytes("a.bin") == (data[:65536], data[-64:])
        assert s3.state().faults[0].hits == 2

    @pytest.mark.parametrize("status", [500, 503])
    def test_a_write_that_fails_by_chance_is_made_again(self, s3, bucket, client, status):
        sink = open_sink(bucket)
        s3.reset(Fault(r"PUT .*a\.bin", status, most=2))
        sink.write("a.bin", b"data" * 100)
        assert s3.state().faults[0].hits == 2
        assert open_tree(bucket).read("a.bin") == b"data" * 100

    def test_listing_questions_and_removal_survive(self, s3, bucket):
        upload(bucket, {f"d/{i}": b"1" for i in range(25)})
        s3.reset(Fault(".", 503, every=2))
        tree = open_tree(bucket)
        assert len(list(tree.walk())) == 25
        assert tree.exists("d/3")
        assert tree.entry("d/3").size == 1
        open_sink(bucket).remove("d/3")
        assert not tree.exists("d/3")


@pytest.mark.skipif(not find_spec("obstore"), reason="obstore is not installed")
class TestFallback:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setitem(RETRIES, "max_retries", 1)
        backoff = dict.fromkeys(("init_backoff", "max_backoff"), timedelta(milliseconds=1))
        monkeypatch.setitem(RETRIES, "backoff", backoff | {"base": 2})

    def test_a_spell_of_errors_is_that_request_s_alone_and_told_once(self, s3, bucket, caplog):
        sink = open_sink(bucket)
        for name in "abc":
            s3.reset(Fault(f"PUT .*/{name}", 503, most=3))
            sink.write(name, b"data")
            assert s3.state().faults[0].hits == 3
        assert sink._remote._objects.used
        assert caplog.text.count("s3fs takes over requests that fail") == 1
        assert [open_tree(bucket).read(name) for name in "abc"] == [b"data"] * 3

    def test_a_bucket_that_may_be_read_but_not_listed_is_read_by_obstore(self, s3, bucket):
        upload(bucket, {"d/a": b"data"})
        s3.reset(Fault("GET .*list-type", 403))
        tree = RemoteTree(f"{bucket}/d")
        with pytest.raises(LayoutError, match="cannot be reached"):
            tree.isdir("")
        assert tree.read("a") == b"data"
        assert tree._remote._objects.used

    @pytest.mark.parametrize(("works_before", "used"), [(False, False), (True, True)])
    def test_a_first_answer_that_refuses_switches_it_off(self, s3, bucket, works_before, used):
        sink = open_sink(bucket)
        if works_before:
            sink.write("x", b"1")
        s3.reset(Fault("PUT .*/a", 403, most=1))
        sink.write("a", b"data")
        assert sink._remote._objects.used is used
        assert open_tree(bucket).read("a") == b"data"


class TestArchives:
    def test_a_zip_is_read_by_ranges(self, s3, bucket, client, camvid):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, data in contents(camvid).items():
                archive.writestr(name, data)
            archive.writestr("ballast.bin", bytes(12 << 20))
            for name, data in contents(camvid).items():
                archive.writestr(f"again/{name}", data)
        upload(bucket, {"d.zip": packed.getvalue()})
        s3.reset()
        tree = open_tree(f"{bucket}/d.zip")
        files = contents(camvid)
        assert {name: tree.read(name) for name in files} == files
        assert s3.state().body_bytes < 5 << 20


def rows(store: str) -> list[object]:
    return sorted((bare(r) for r in Store.open(store).records()), key=lambda r: r.image_id)


class TestDatasets:
    def test_convert_fetches_each_file_once(self, s3, bucket, client, camvid, tmp_path, capsys):
        upload(f"{bucket}/d", contents(camvid))
        s3.reset(latency=0.02)
        out = tmp_path / "far"
        args = ("--from", "camvid-11", "--to", "camvid-11", "--runner", "local")
        summary, _ = call(capsys, "convert", f"{bucket}/d", out, *args)
        assert summary["done"] == FRAMES
        seen = s3.state()
        fetched = [r for r in seen.requests if ".png" in r]
        assert len(fetched) == len(set(fetched)) == 2 * FRAMES
        assert seen.most_at_once > 4
        call(capsys, "convert", camvid, tmp_path / "near", *args)
        assert contents(out) == contents(tmp_path / "near")

    def test_all_from_bucket_to_bucket_in_bad_weather(
        self, s3, bucket, client, camvid, tmp_path, capsys
    ):
        upload(f"{bucket}/d", contents(camvid))
        slow, broken = Fault("GET", 503, every=7), Fault("PUT", 500, every=6)
        s3.reset(slow, broken, Fault("GET .*png", 0, every=5), Fault("HEAD", 503, every=5))
        how = ("--format", "camvid-11", "--runner", "local")
        far, _ = call(capsys, "ingest", f"{bucket}/d", f"{bucket}/store", *how, "--embed-images")
        near, _ = call(capsys, "ingest", camvid, tmp_path / "store", *how, "--embed-images")
        assert (far["inputs"], far["done"], far["failed"]) == (FRAMES, FRAMES, 0)
        assert far["done"] == near["done"]
        assert all(fault.hits for fault in s3.reset(slow).faults)
        assert rows(f"{bucket}/store") == rows(str(tmp_path / "store"))
        s3.reset(slow, broken)
        call(capsys, "export", f"{bucket}/store", f"{bucket}/out", *how)
        tree = open_tree(f"{bucket}/out")
        call(capsys, "export", tmp_path / "store", tmp_path / "out", *how)
        assert {e.name: tree.read(e.name) for e in tree.walk()} == contents(tmp_path / "out")

    def test_a_bad_image_fails_alone(self, s3, bucket, client, camvid, tmp_path, capsys):
        files = contents(camvid)
        names = sorted(n for n in files if n.startswith("train/"))
        files[names[0]] = files[names[0]][:100]
        del files[names[1]]
        upload(f"{bucket}/d", files)
        args = ("--from", "camvid-11", "--to", "camvid-11", "--runner", "local")
        summary, _ = call(
            capsys, "convert", f"{bucket}/d", tmp_path / "o", *args, "--max-errors", "2"
        )
        assert (summary["done"], summary["failed"]) == (FRAMES - 2, 2)
        lines = (tmp_path / "o" / "segmill-errors.jsonl").read_text().splitlines()
        errors = {json.loads(line)["error"] for line in lines}
        assert errors == {"CorruptImage", "MissingFile"}
