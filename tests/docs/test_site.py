"""The documentation builds without a warning, and what it names is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "docs/sample-report/summary.md"]
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FILE = re.compile(
    r"`((?:docs|pipeline|jobs|connectors|benchmarks|tests)/[\w./-]+|ray_cluster\.yaml)`"
)


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        str(source),
        "-d",
        str(out),
    ]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_site_builds_and_fetches_nothing(tmp_path):
    pytest.importorskip("material", reason="pip install 'segmill[docs]'")
    built = build(ROOT / "mkdocs.yml", tmp_path / "site")
    assert built.returncode == 0, built.stderr
    for page in (ROOT / "docs").glob("*.md"):
        text = (tmp_path / "site" / f"{page.stem}.html").read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?([^\"' >]+)", text)
        loaded += re.findall(r"<link[^>]*rel=[\"']?stylesheet[^>]*href=[\"']?([^\"' >]+)", text)
        assert loaded
        assert not [place for place in loaded if re.match(r"(https?:)?//", place)]


def test_a_dead_link_or_anchor_fails_the_build(tmp_path):
    pytest.importorskip("material", reason="pip install 'segmill[docs]'")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/hooks.py").write_text((ROOT / "docs/hooks.py").read_text())
    text = re.sub(r"(?ms)^nav:.*", "", (ROOT / "mkdocs.yml").read_text())
    (tmp_path / "mkdocs.yml").write_text(text)
    for wrong in ("[a](gone.md)", "[a](index.md#gone)", "[a](../gone.yaml)"):
        (tmp_path / "docs/index.md").write_text(f"# A\n\n{wrong}\n")
        assert build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode != 0, wrong
    (tmp_path / "docs/index.md").write_text("# A\n\n[a](#a)\n")
    assert build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode == 0


def test_each_page_can_be_found_by_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [p.name for p in (ROOT / "docs").glob("*.md") if f": {p.name}" not in menu]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_links_to_or_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    text_without_code = re.sub(r"(?ms)^```.*?^```", "", text)
    for place in _LINK.findall(text_without_code):
        if not re.match(r"[a-z]+:", place) and not place.startswith("#"):
            assert (page.parent / place.partition("#")[0]).exists(), place
    for name in _FILE.findall(text):
        made_up = re.search("NAME|(^|[/_])my", name)
        assert made_up or (ROOT / name).exists(), f"{name} is named, and not there"
