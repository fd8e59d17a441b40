"""The cluster files are what Ray, Kubernetes, systemd and cron take; broken ones are not."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import zipfile
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from tests.cluster.kuberay_schema import check
from tests.faults.stage import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

LAUNCHER = ("ray_cluster.yaml", "docs/cluster/onprem.yaml", "docs/cluster/gcp.yaml")
KUBERAY = ("raycluster", "rayjob", "nightly")
SYSTEMD = ROOT / "docs" / "cluster" / "systemd"
CRON = ROOT / "docs" / "cluster" / "cron" / "segmill"


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def launch_check(config: dict[str, Any]) -> dict[str, Any]:
    """Fill a cluster file out as `ray up` does and check it by Ray's own schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled = prepare_config(copy.deepcopy(config))
    validate_config(filled)
    return dict(filled)


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_takes_the_file(name):
    config = read(name)
    filled = launch_check(config)
    assert filled["max_workers"] >= 2
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        if "ray start" in command:
            assert "RAY_AUTH_MODE=token" in command
            assert "0.0.0.0" not in command
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    sources = {path for path in config["file_mounts"].values() if not path.startswith("~")}
    assert {"connectors", "pipeline", "jobs", "pyproject.toml"} <= sources
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize("name", LAUNCHER)
@pytest.mark.parametrize("broken", ["misspelt", "head", "provider"])
def test_ray_refuses_a_broken_file(name, broken):
    config = read(name)
    if broken == "misspelt":
        config["idle_timeout_minute"] = 3
    elif broken == "head" and "head_node_type" in config:
        config["head_node_type"] = "nothing"
    elif broken == "head":
        del config["provider"]["head_ip"]
    else:
        config["provider"] = {"type": "nowhere"}
    with pytest.raises(BaseException):  # noqa: B017, PT011  # Ray's own, of many kinds
        launch_check(config)


def test_a_user_is_told_where_to_choose_and_machines_are_tagged():
    for name in (*LAUNCHER, *(f"docs/cluster/kuberay/{name}.yaml" for name in KUBERAY)):
        assert "CHOOSE" in (ROOT / name).read_text(), name
    nodes = read("ray_cluster.yaml")["available_node_types"]
    for kind in nodes.values():
        (tags,) = kind["node_config"]["TagSpecifications"]
        assert {"Key": "project", "Value": "segmill"} in tags["Tags"]
    assert {"CPU", "GPU"} == set(nodes["head"]["resources"])
    assert not any(nodes["head"]["resources"].values())


def test_ssh_is_open_to_nobody_in_particular():
    rules = read("ray_cluster.yaml")["provider"]["security_group"]["IpPermissions"]
    ranges = [r["CidrIp"] for rule in rules for r in rule["IpRanges"]]
    assert ranges
    assert "0.0.0.0/0" not in ranges


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_takes_the_file(name):
    check(read(f"docs/cluster/kuberay/{name}.yaml"))


def _drop_containers(doc: dict[str, Any]) -> None:
    del doc["spec"]["headGroupSpec"]["template"]["spec"]["containers"]


def _number_param(doc: dict[str, Any]) -> None:
    doc["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def _misspell(doc: dict[str, Any]) -> None:
    doc["spec"]["concurencyPolicy"] = doc["spec"].pop("concurrencyPolicy")


@pytest.mark.parametrize(
    ("name", "breaks"),
    [("raycluster", _drop_containers), ("rayjob", _number_param), ("nightly", _misspell)],
)
def test_kubernetes_refuses_a_broken_file(name: str, breaks: Callable[[Any], None]):
    document = read(f"docs/cluster/kuberay/{name}.yaml")
    breaks(document)
    with pytest.raises(jsonschema.ValidationError):
        check(document)


def test_one_cluster_in_all_of_kuberay():
    standing = read("docs/cluster/kuberay/raycluster.yaml")["spec"]
    assert read("docs/cluster/kuberay/rayjob.yaml")["spec"]["rayClusterSpec"] == standing
    assert standing["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert standing["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert standing["authOptions"] == {"mode": "token"}
    gpus = [
        group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        for group in standing["workerGroupSpecs"]
    ]
    assert gpus == [None, "1"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_takes_the_units_and_refuses_a_broken_one(tmp_path):
    for unit in SYSTEMD.iterdir():
        shutil.copy(unit, tmp_path)

    def verify() -> str:
        units = sorted(map(str, tmp_path.iterdir()))
        done = subprocess.run(
            ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60
        )
        return "\n".join(line for line in done.stderr.splitlines() if "segmill" in line)

    assert not verify()
    timer = tmp_path / "segmill-refresh.timer"
    timer.write_text(timer.read_text().replace("01:30:00", "25:30:00"))
    assert verify()


FIELD = r"(\*|\d+(-\d+)?(,\d+(-\d+)?)*)(/\d+)?"
LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def cron_entry(line: str) -> tuple[str, str]:
    """Return the user and the command of a line of /etc/cron.d; ValueError for a bad time."""
    *times, user, command = line.split(None, 6)
    for text, (low, high) in zip(times, LIMITS, strict=True):
        if not re.fullmatch(FIELD, text):
            raise ValueError(text)
        if not all(low <= int(n) <= high for n in re.findall(r"\d+", text.partition("/")[0])):
            raise ValueError(text)
    return user, command


def test_cron_takes_the_line_and_refuses_a_broken_one():
    lines = [x for x in CRON.read_text().splitlines() if x[:1] not in {"", "#"}]
    entries = [x for x in lines if not re.match(r"[A-Z_]+=", x)]
    (entry,) = entries
    user, command = cron_entry(entry)
    assert user == "segmill"
    assert " refresh " in command
    assert "%" not in command, "cron makes a new line of it"
    with pytest.raises(ValueError, match="25"):
        cron_entry(entry.replace("30 1 ", "30 25 ", 1))


def test_a_checkout_is_small_enough_to_send(tmp_path):
    """What `ray job submit --working-dir .` packs: Ray takes 100 MiB."""
    from ray._private.runtime_env.packaging import create_package

    for place in ("stores", "models"):
        assert f"/{place}/" in (ROOT / ".rayignore").read_text()
    target = tmp_path / "package.zip"
    create_package(str(ROOT), target, include_gitignore=True, excludes=[".git", ".venv"])
    names = zipfile.ZipFile(target).namelist()
    assert target.stat().st_size < 20 << 20
    assert {"jobs/label.py", "pipeline/models/zoo.py"} <= set(names)
    assert not [n for n in names if n.startswith((".venv/", ".git/", "docs/"))]
