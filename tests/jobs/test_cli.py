"""The command line's shell: help is quick and light, errors are one line, exit codes hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import VERBS
from jobs.demo import _find, _fresh
from jobs.doctor import _bare, _guarded, _problem
from pipeline.errors import LayoutError
from pipeline.streetscenes import write_dataset

_HEAVY = "cv2 deltalake pandas pyarrow.dataset ray torch transformers"
_LOADED = """
import contextlib, io, json, sys
from jobs.__main__ import main
heavy = sys.argv[2].split()
out = io.StringIO()
with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
    main(sys.argv[1].split())
print(json.dumps([[m for m in heavy if m in sys.modules], out.getvalue()]))
"""


def _python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, timeout=120
    )


def _segmill(*words: str) -> subprocess.CompletedProcess[str]:
    return _python("-m", "jobs", *words)


def test_help_lists_every_verb_and_imports_nothing_heavy():
    loaded, text = json.loads(_python("-c", _LOADED, "--help", _HEAVY).stdout)
    assert loaded == []
    for verb, line in VERBS.items():
        assert f"  {verb}" in text
        assert line in text


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_help_imports_nothing_heavy(verb: str):
    loaded, text = json.loads(_python("-c", _LOADED, f"{verb} --help", _HEAVY).stdout)
    assert loaded == []
    assert f"segmill {verb}" in text
    if verb not in {"store", "jobs"}:  # their own verbs have it
        assert "--json" in text


def test_an_unknown_verb_is_a_usage_error_with_a_guess():
    ended = _segmill("lable")
    assert ended.returncode == 2
    assert "did you mean 'label'?" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_unknown_option_is_a_usage_error():
    assert _segmill("doctor", "--jsno").returncode == 2


def test_version_is_one_line():
    assert len(_segmill("--version").stdout.splitlines()) == 1


def test_doctor_says_what_is_here_as_json():
    ended = _segmill("doctor", "--json")
    summary = json.loads(ended.stdout.splitlines()[-1])
    found = {check["name"]: check for check in summary["checks"]}
    assert ended.returncode == (1 if summary["broken"] else 0)
    assert {"python", "cores", "memory", "torch", "ray", "ray cluster"} <= found.keys()
    assert found["python"]["state"] == "ok"
    assert all(check["mend"] for check in summary["checks"] if check["state"] == "broken")


def test_doctor_reads_requirements_as_pip_does():
    assert [_bare(r) for r in ("ray[default]>=2", "numpy", "a-b~=1 ", "x ; y")] == [
        "ray", "numpy", "a-b", "x",
    ]  # fmt: skip
    assert _problem("numpy>=2.0") is None
    assert "999" in (_problem("numpy>=999.0") or "")
    assert _problem("no-such-package-of-ours") == "not installed"


def test_a_check_that_fails_by_itself_is_a_finding():
    def memory():
        raise OSError("no such device")
        yield

    (finding,) = _guarded(memory)
    assert (finding.name, finding.state) == ("memory", "warning")
    assert "no such device" in finding.found


def test_demo_finds_camvid_below_a_folder(tmp_path: Path):
    below = tmp_path / "segnet" / "CamVid"
    write_dataset(below, 10, height=16, width=16)
    write_dataset(tmp_path / "a-sample", 2, height=16, width=16, splits=(1, 0, 1))
    assert _find(tmp_path) == _find(below) == below
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayoutError, match="SegNet's layout"):
        _find(tmp_path / "empty")
    with pytest.raises(LayoutError):
        _find(tmp_path / "absent")


def test_demo_never_touches_an_earlier_tour(tmp_path: Path):
    first = _fresh(tmp_path)
    (first / "mine.txt").write_text("kept")
    second = _fresh(tmp_path)
    assert second != first
    assert list(second.iterdir()) == []
    assert (first / "mine.txt").read_text() == "kept"


def test_demo_says_which_step_failed(tmp_path: Path):
    broken = tmp_path / "CamVid"
    write_dataset(broken, 5, height=16, width=16)
    for annotation in (broken / "trainannot").iterdir():
        annotation.write_bytes(b"not a picture")
    ended = _segmill("demo", "--data", str(broken), "--out", str(tmp_path / "out"))
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("segmill demo: segmill ingest")
    assert "exit code 3" in last


@pytest.mark.slow
def test_the_tour_ends_with_a_score(tmp_path: Path):
    words = ("--out", str(tmp_path), "--minutes", "0.15", "--images", "30", "--json")
    ended = _segmill("demo", *words)
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert 0 <= summary["miou"] <= 1
    assert list(summary["step_seconds"]) == [
        "generate", "ingest", "train", "label", "evaluate", "gallery",
        "night 1", "night 2", "night 3",
    ]  # fmt: skip
    assert summary["nights"] == ["published", "published", "rejected"]
    assert Path(summary["paths"]["nights"]).is_file()
    report = (tmp_path / "tour-001" / "report" / "index.html").read_text(encoding="utf-8")
    assert "<html" in report
