"""Sources, models and stores that nobody would make on purpose, through the command line."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.store import Store
from tests.jobs.calls import call
from tests.pipeline.predicting import PLAIN
from tests.samples import write_scenes


@pytest.fixture
def scenes(tmp_path):
    write_scenes(tmp_path / "scenes", 2)
    return sorted((tmp_path / "scenes").rglob("*.*g"))


def label(capsys, source, store, *options, code=0, model=PLAIN):
    return call(capsys, "label", source, store, "--model", model, "--runner", "local", *options,
                code=code)  # fmt: skip


def test_one_image_is_a_source(scenes, tmp_path, capsys):
    assert label(capsys, scenes[0], tmp_path / "s", "--limit", 10**30)[0]["done"] == 1


def test_no_source_is_not_the_working_directory(tmp_path, capsys):
    assert "the images are ''" in label(capsys, "", tmp_path / "s", code=2)[1]


def test_what_a_list_names_wrongly_fails_alone(scenes, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    bad = ["pipe.png", "/dev/zero", "foo://x/y.png", "nul\0.png", "y" * 200_000]
    (tmp_path / "list.txt").write_text("\n".join([*bad, str(scenes[0])]))
    summary, _ = label(capsys, tmp_path / "list.txt", tmp_path / "s", code=3)
    assert (summary["inputs"], summary["done"], summary["failed"]) == (6, 1, 5)
    told = "\n".join(Store.open(tmp_path / "s").failures()["message"].to_pylist())
    for text in ("pipe, socket or device", "Protocol not known", "holds a NUL", "too long"):
        assert text in told


@pytest.mark.parametrize(
    ("column", "text"),
    [(pa.array([["a"]]), "as text"), (pa.array([b"\xff"]), "UTF8"), (None, "not a Parquet file")],
)
def test_a_parquet_list_that_cannot_be_read_says_so(tmp_path, capsys, column, text):
    path = tmp_path / "list.parquet"
    path.write_bytes(b"")
    if column is not None:
        pq.write_table(pa.table({"path": column}), path)
    _, err = label(capsys, path, tmp_path / "s", code=1)
    assert text in err
    assert "unexpected" not in err


def test_a_csv_list_with_an_open_quote_says_where(tmp_path, capsys):
    (tmp_path / "list.csv").write_text('path\n"' + "z" * 200_000)
    assert "line 2 is not CSV" in label(capsys, tmp_path / "list.csv", tmp_path / "s", code=1)[1]


def test_a_pipe_is_no_list(tmp_path, capsys):
    os.mkfifo(tmp_path / "list.csv")
    assert "is a pipe" in label(capsys, tmp_path / "list.csv", tmp_path / "s", code=1)[1]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("zoo:enet?classes=99999999999", "1 to 65534 classes"),
        ("zoo:enet?classes=2&classes=3", "?classes= is given twice"),
    ],
)
def test_a_model_uri_out_of_bounds(scenes, tmp_path, capsys, model, text):
    assert text in label(capsys, scenes[0], tmp_path / "s", code=2, model=model)[1]


@pytest.mark.parametrize("held", [b"{", b"[]", b"{}", b"\xff", b'{"at": "x"}'])
def test_a_torn_run_file_does_not_stop_the_next_run(scenes, tmp_path, capsys, held):
    store = tmp_path / "s"
    label(capsys, scenes[0], store)
    (folder,) = (store / "_segmill" / "runs").iterdir()
    (folder / "finished.json").unlink()
    (folder / "run.json").write_bytes(held)
    assert label(capsys, scenes[0], store)[0]["skipped"] == 1


@pytest.mark.parametrize("gone", [True, False])
def test_a_store_without_a_file_of_its_rows_says_which_store(scenes, tmp_path, capsys, gone):
    store = tmp_path / "s"
    label(capsys, scenes[0], store)
    (rows,) = (store / "data").rglob("*.parquet")
    rows.unlink() if gone else os.truncate(rows, 100)
    _, err = label(capsys, scenes[0], store, code=1)
    told = "a file of this version is gone" if gone else "a file of its rows is missing or damaged"
    assert f"{store}: {told}" in err
    assert "`segmill store history`, `store restore`" in err


@pytest.mark.parametrize("seconds", ["x", "99999999999999"])
def test_a_date_that_is_none(scenes, tmp_path, capsys, monkeypatch, seconds):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", seconds)
    assert "seconds since 1970" in label(capsys, scenes[0], tmp_path / "s", code=2)[1]
