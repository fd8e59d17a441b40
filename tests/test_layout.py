"""The tree's rules: imports run one way, heavy libraries stay at home, files are short."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pipeline", "connectors", "jobs")
"""From the innermost: a file may import from its own folder and those before it."""
TORCH = (
    "pipeline/models/", "pipeline/predict/", "pipeline/training/", "pipeline/segmenter.py",
    "pipeline/dataset.py",  # the public data set of torch: nothing of ours imports it
)  # fmt: skip
RAY = ("pipeline/ray_runner.py", "pipeline/training/")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
MOST_LINES = 500


@cache
def _imports(path: Path) -> set[str]:
    """Return the names of all modules that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def _top(path: Path) -> set[str]:
    return {name.split(".")[0] for name in _imports(path)}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_is_something_to_check():
    assert len(FILES) > 20


def test_imports_run_one_way():
    """They run jobs -> connectors -> pipeline."""
    wrong = {}
    for path in FILES:
        own = FOLDERS.index(_name(path).split("/")[0])
        wrong[_name(path)] = {*FOLDERS[own + 1 :], "tests", "benchmarks"} & _top(path)
    assert {name: outer for name, outer in wrong.items() if outer} == {}


def test_heavy_libraries_stay_where_they_belong():
    wrong = [
        (_name(path), library)
        for path in FILES
        # A verb may ask torch for GPUs, inside its function: tests/jobs/test_cli.py.
        if not _name(path).startswith("jobs/")
        for library, homes in (("torch", TORCH), ("ray", RAY))
        if not _name(path).startswith(homes) and library in _top(path)
    ]
    assert wrong == []


def test_connectors_know_nothing_of_each_others_formats():
    """Files of a format import the shared ones and their own: `voc.py` and `voc_objects.py`."""
    from connectors import CONNECTORS

    owners = {target.partition(":")[0].rpartition(".")[2] for target in CONNECTORS.values()}
    families = {min((o for o in owners if name.startswith(o)), key=len) for name in owners}

    def family(module: str) -> str | None:
        name = module.rpartition(".")[2]
        return next((f for f in families if name == f or name.startswith(f + "_")), None)

    assert family("connectors.voc_objects") == "voc"
    for path in FILES:
        if _name(path).startswith("connectors/") and (own := family(path.stem)):
            met = {family(m) for m in _imports(path) if m.startswith("connectors.")}
            assert met <= {own, None}, path


def test_files_can_be_read_in_one_sitting():
    python = [
        p for folder in (*FOLDERS, "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py")
    ]
    long = {
        _name(path): lines
        for path in python
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not long


def test_the_cluster_file_is_what_ray_accepts():
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (ROOT / "ray_cluster.yaml").read_text(encoding="utf-8")
    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    workers = {k: v for k, v in config["available_node_types"].items() if v is not head}
    assert {"GPU" in worker["resources"] for worker in workers.values()} == {True, False}
    for worker in workers.values():
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert worker["min_workers"] == 0


def test_the_cluster_is_closed_to_strangers():
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8"))
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert all("ulimit -n 65536" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "--autoscaling-config" in starts[0]
    assert "0.0.0.0" not in " ".join(starts)


def test_the_cluster_installs_what_exists():
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8"))
    for target, source in config["file_mounts"].items():
        if target.startswith("/home/ray/segmill/"):
            assert (ROOT / source).exists()
