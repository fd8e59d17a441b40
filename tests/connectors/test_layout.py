"""Roots, fingerprints, lists: what the formats of folders share."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.layout import MISSING, Fingerprints, digest, find_root, lines_of, read_list
from connectors.list_files import ListFiles, OnePlaceEach, one_line
from pipeline.errors import LayoutError, UnsafePath, UsageError
from pipeline.files import open_sink, open_tree
from pipeline.tables.fingerprints import FingerprintTable
from pipeline.trees.union import open_source
from tests.connectors.trees import put

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path


def has_mark(names: Collection[str]) -> bool:
    return "mark" in names


@pytest.mark.parametrize("prefix", ["", "a/", "a/b/", "a/v1.0/c/"])
def test_root_is_found_below(tmp_path: Path, prefix: str) -> None:
    put(tmp_path, f"{prefix}mark", "")
    put(tmp_path, "a/other.txt", "")
    assert find_root(open_tree(str(tmp_path)), "a mark", has_mark) == prefix


def test_the_highest_root_counts_and_must_be_the_only_one(tmp_path: Path) -> None:
    put(tmp_path, "a/mark", "")
    put(tmp_path, "b/c/mark", "")
    tree = open_tree(str(tmp_path))
    assert find_root(tree, "a mark", has_mark) == "a/"
    put(tmp_path, "d/mark", "")
    with pytest.raises(LayoutError, match="a/, d/"):
        find_root(tree, "a mark", has_mark)


def test_too_deep_is_no_root(tmp_path: Path) -> None:
    put(tmp_path, "a/b/c/d/mark", "")
    with pytest.raises(LayoutError, match="expected a mark"):
        find_root(open_tree(str(tmp_path)), "a mark", has_mark)


@pytest.mark.parametrize("kind", ["directory", "bucket"])
def test_fingerprints_in_any_order(tmp_path: Path, kind: str) -> None:
    url = str(tmp_path) if kind == "directory" else f"memory://{tmp_path.name}-prints"
    sink = open_sink(url)
    for name in "bdf":
        sink.write(f"x/{name}", name.encode() * 3)
    tree = open_tree(url)
    prints = Fingerprints(tree, "x")
    asked = ["x/a", "x/b", "x/c", "x/f", "x/g", "x/d", "x/a", "x/h", "x/../../y"]
    found = [prints.of(name) for name in asked]
    there = {name: tree.entry(name).fingerprint for name in ("x/b", "x/d", "x/f")}
    assert found == [there.get(name, MISSING) for name in asked]
    assert Fingerprints(tree, "nowhere").of("nowhere/a") == MISSING


@pytest.fixture
def requests(memory: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what a file system is asked."""
    asked: Counter[str] = Counter()

    def count(name: str) -> None:
        ask = getattr(type(memory), name)

        def counted(*args: Any, **options: Any) -> Any:
            asked[name] += 1
            return ask(*args, **options)

        monkeypatch.setattr(type(memory), name, counted)

    for name in ("info", "ls", "exists", "isdir"):
        count(name)
    return asked


@pytest.mark.parametrize("source", ["memory://d", "memory://e,memory://d"])
@pytest.mark.parametrize("descending", [False, True])
def test_a_bucket_s_folder_is_listed_once_in_whatever_order_it_is_asked(
    memory: Any, requests: Counter[str], source: str, descending: bool
) -> None:
    names = [f"x/{i:03}" for i in range(200)]
    for name in names:
        memory.pipe_file(f"/d/{name}", name.encode())
    memory.pipe_file("/e/y/a", b"")
    tree = open_source(source)
    expected = [tree.entry(name).fingerprint for name in names]
    requests.clear()
    asked = [(n, f) for name, f in zip(names, expected, strict=True)
             for n, f in ((name, f), (name + ".no", MISSING))]  # fmt: skip
    if descending:
        asked = asked[::-1]
    prints = Fingerprints(tree, "x")
    assert [prints.of(name) for name, _ in asked] == [found for _, found in asked]
    urls = [tree.url_of(name) for name in names]
    assert urls == [f"memory://d/{name}" for name in names]
    assert sum(requests.values()) < 20


def test_what_lies_outside_the_folder_is_asked_for(memory: Any) -> None:
    for name in ("x/a", "y/b", "x/.hidden"):
        memory.pipe_file(f"/d/{name}", b"1")
    tree = open_tree("memory://d")
    prints = Fingerprints(tree, "x")
    for name in ("x/a", "y/b", "x/.hidden", "x/../y/b", "x//a"):
        assert prints.of(name) == tree.entry(name).fingerprint


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=9) | st.binary(
    min_size=16, max_size=16).map(bytes.hex) | st.just("x" * 300)))  # fmt: skip
def test_the_table_gives_fingerprints_as_they_were(found: dict[str, str]) -> None:
    table = FingerprintTable()
    for name, fingerprint in found.items():
        table.add(name, fingerprint)
    assert {name: table.find(name) for name in found} == found
    assert table.find("no such name") is None


def test_a_label_behind_a_link_out_of_the_tree_is_missing_not_absent(tmp_path: Path) -> None:
    put(tmp_path, "away/masks/a.png", "")
    put(tmp_path, "data/masks/b.png", "")
    (tmp_path / "data/masks/a.png").symlink_to(tmp_path / "away/masks/a.png")
    (tmp_path / "data/more").symlink_to(tmp_path / "away/masks")
    tree = open_tree(str(tmp_path / "data"))
    asked = ("masks/a.png", "masks/b.png", "masks/c.png", "more/a.png")
    found = [Fingerprints(tree, "masks").find(name) for name in asked]
    there = tree.entry("masks/b.png").fingerprint
    assert found == [MISSING, there, None, MISSING]


def test_digest_tells_its_parts_apart() -> None:
    texts = [digest("voc", 1, "ab", "c"), digest("voc", 1, "a", "bc"), digest("voc", 2, "ab", "c")]
    assert len({*texts, digest("camvid", 1, "ab", "c")}) == 4
    assert {len(text) for text in texts} == {16}


def test_lists_as_editors_leave_them(tmp_path: Path) -> None:
    put(tmp_path, "list.txt", b"\xef\xbb\xbfa\r\n\r\n  b \nb\na\nlast")
    put(tmp_path, "latin.txt", "münchen\n".encode("latin-1"))
    tree = open_tree(str(tmp_path))
    assert read_list(tree, "list.txt") == ["a", "b", "last"]
    assert list(lines_of(tree, "list.txt")) == ["a", "", "  b ", "b", "a", "last"]
    assert list(lines_of(tree, "latin.txt")) == ["münchen"]


@given(st.lists(st.integers(0, 99), unique=True, max_size=9), st.randoms(use_true_random=False))
def test_lines_go_to_their_places(numbers: list[int], random: object) -> None:
    lines = [(n, f"image {n}") for n in numbers]
    random.shuffle(lines)  # type: ignore[attr-defined]
    sink = open_sink("memory://lists")
    with ListFiles(sink, or_else="l.txt") as files:
        for place, line in lines:
            files.add("l.txt", line, place)
    text = open_tree("memory://lists").read_text("l.txt")
    assert text == "".join(f"image {n}\n" for n in sorted(numbers))


def test_an_error_leaves_no_list(tmp_path: Path) -> None:
    def write() -> None:
        with ListFiles(open_sink(str(tmp_path)), or_else="l.txt") as files:
            files.add("l.txt", "a")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a\tb", "a\nb", " a", "a\r"])
def test_names_that_do_not_fit_a_line(name: str) -> None:
    with pytest.raises(UnsafePath, match="line"):
        one_line(name)


@pytest.mark.parametrize("name", [".a", "a/.b", "a/..b/c", "__MACOSX/a", ".."])
def test_names_that_no_listing_shows(name: str) -> None:
    with pytest.raises(UnsafePath, match="hidden"):
        one_line(name)
    assert one_line("a.b/c..d./e") == "a.b/c..d./e"


def test_two_of_one_place() -> None:
    places = OnePlaceEach("voc")
    places.check("a")
    places.check("b")
    with pytest.raises(UsageError, match="voc has one place"):
        places.check("a")


@given(st.lists(st.integers(0, 60), max_size=90), st.integers(0, 4000))
def test_the_first_place_that_comes_again_is_named(numbers: list[int], before: int) -> None:
    places, seen = OnePlaceEach("voc"), set[int]()
    for number in range(before):
        places.check(f"before/{number}")
    for number in numbers:
        if number in seen:
            with pytest.raises(UsageError, match=f"'train/{number}'"):
                places.check(f"train/{number}")
        else:
            places.check(f"train/{number}")
        seen.add(number)
