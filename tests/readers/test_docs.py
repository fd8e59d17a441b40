"""The snippets of the documentation, as they are printed, one after the other."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
_OPTIONAL = ("duckdb", "polars", "datasets", "pandas")


def snippets(page: str) -> list[str]:
    """Return the Python blocks of a page, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.usefixtures("ray_session")
def test_the_ways_to_read_a_store_are_as_documented(world, tmp_path, monkeypatch):
    missing = [name for name in _OPTIONAL if find_spec(name) is None]
    monkeypatch.chdir(Path(world.url).parents[1])  # where stores/voc lies
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    namespace: dict[str, Any] = {}
    expected = {name: world.masks[name] for name in sorted(world.masks)}
    told = 0
    for code in snippets("store.md"):
        if any(re.search(rf"^(import|from) {name}\b", code, re.MULTILINE) for name in missing):
            continue
        namespace.pop("decoded", None)
        exec(compile(code, "docs/store.md", "exec"), namespace)
        for name, ids in namespace.get("decoded", {}).items():
            np.testing.assert_array_equal(ids, expected[name])
            told += 1
    assert namespace["store"].version == 2
    assert namespace["sizes"].num_rows == len(expected)
    assert told >= 2 * len(expected)
    if missing:
        pytest.skip(f"without {', '.join(missing)}: pip install 'segmill[readers]'")
    assert sum(images for _, images, _ in namespace["shares"]) >= len(expected)
    assert sum(namespace["by_split"]["len"]) == len(expected)


def test_a_snippet_for_each_reader_is_there():
    text = "\n".join(snippets("store.md"))
    for word in ("duckdb", "polars", "to_pandas", "load_dataset", "ray.data", "to_pyarrow_dataset"):
        assert word in text


def test_the_loop_in_the_documentation_trains_and_goes_on(world, tmp_path, monkeypatch, capfd):
    """At a tiny size; the second run finds the first one's checkpoint."""
    import torch

    first, script = snippets("use_in_training.md")
    monkeypatch.chdir(Path(world.url).parents[1])
    small = [("(512, 512)", "(32, 32)"), ("batch=8", "batch=4"), ('"checkpoint.pt"', "CHECKPOINT")]
    for old, new in small:
        assert old in first + script
        first, script = first.replace(old, new), script.replace(old, new)
    namespace: dict[str, Any] = {}
    exec(compile(first, "docs/use_in_training.md", "exec"), namespace)
    assert namespace["sample"]["mask"].shape == (32, 32)

    checkpoint = tmp_path / "checkpoint.pt"
    script = script.replace("EPOCHS, CHECKPOINT = 20, CHECKPOINT", "")
    for epochs in (1, 2):
        run = {"__name__": "__main__", "EPOCHS": epochs, "CHECKPOINT": str(checkpoint)}
        exec(compile(script, "docs/use_in_training.md", "exec"), run)
        state = torch.load(checkpoint)["data"]
        assert (state["epoch"], state["seen"]) == (epochs, 0)
    told = capfd.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told if "epoch" in line] == [
        "epoch 1", "epoch 2",
    ]  # fmt: skip
