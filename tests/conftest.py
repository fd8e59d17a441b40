"""Fixtures that every test may use: real data, when it is there, and one Ray session."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Two workers share two cores: threads of one's arithmetic would only wait for the other's. Before
# torch is there, and for every process that a test starts.
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # a training takes all cores: its threads must not spin


# A busy machine is no failure; where a test names no number of examples, fifty are enough.
settings.register_profile("suite", max_examples=50, deadline=None)
settings.load_profile("suite")

LONG = {"test_any_to_any", "test_methods", "test_models", "test_nyuv2_mat", "test_s3",
        "test_training_ways", "test_zoo", "test_zoo_use"}  # fmt: skip
"""Files of fifteen seconds and more, Ray, jobs and faults aside."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests in one of pytest-xdist's processes, and all that use Ray in one as well.

    So what a module makes is made once, and the suite has one Ray session. What takes long comes
    first: it must not be the last to begin.
    """
    on_ray = {item.path for item in items if "ray_session" in getattr(item, "fixturenames", ())}

    def turn(item: pytest.Item) -> int:
        whole = item.path.parent.name in {"jobs", "faults", "cluster"}
        return 0 if item.path in on_ray else 1 if whole else 2 if item.path.stem in LONG else 3

    for item in items:
        group = "ray" if item.path in on_ray else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=turn)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real sample data; skip where it is absent."""
    root = (
        Path(os.environ.get("SEGMILL_TEST_DATA", ""))
        if os.environ.get("SEGMILL_TEST_DATA")
        else Path(__file__).resolve().parents[2] / "shared" / "data"
    )
    if not root.is_dir():
        pytest.skip(
            "no real data: set SEGMILL_TEST_DATA to a folder holding camvid/, voc2012/, ..."
        )
    return root


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Take back the threads that a module's trainings gave torch."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Keep fetched models out of the user's cache."""
    os.environ["SEGMILL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def ray_session():
    """Start the suite's one Ray session: 4 CPUs in name, 2 fake GPUs, loopback only."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    ray.init(
        address="local",  # not the cluster that runs on this machine, where there is one
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def memory():
    """Give fsspec's memory file system, empty again afterwards."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
