"""`segmill doctor`: each thing that is missing is named, with its mend; no secret is ever told."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple

import pytest

from jobs import checkup, doctor
from tests.jobs.calls import call

_SECRET = "s3cr3t-of-mine"
_ASKED = [name for variables, _, _ in checkup._KEYS.values() for name in variables]


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """Give a home without files, and an environment that names no credentials."""
    monkeypatch.setenv("HOME", str(tmp_path))
    paired = [name for pair in checkup._PAIRS for name in pair]
    for name in (*_ASKED, *paired, *checkup._FILES, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN",
                 "RAY_AUTH_TOKEN_PATH", "JAVA_HOME"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def states(group) -> dict[str, tuple[str, str, str]]:
    return {check.name: (check.state, check.found, check.mend) for check in group()}


def test_what_is_bad_has_a_mend_and_what_is_good_has_none(capsys, bare):
    summary, _ = call(capsys, "doctor")
    checks = summary["checks"]
    names = [check["name"] for check in checks]
    for name in (
        "python", "compiled", "memory", "disk", "temp disk", "open files", "clock", "libdeflate",
        "ray", "torch", "RAY_AUTH_MODE", "java", "key: aws", "extra [s3]",
    ):  # fmt: skip
        assert name in names
    assert {check["state"] for check in checks} <= {"ok", "absent", "warning", "broken"}
    for check in checks:
        assert check["found"]
        if check["state"] in {"broken", "warning"}:
            assert check["mend"], check
    assert summary["warning"] == [c["name"] for c in checks if c["state"] == "warning"]


def test_people_see_each_finding_and_its_mend(capsys, bare, monkeypatch):
    from jobs.__main__ import main

    monkeypatch.setattr(doctor, "_GROUPS", (checkup.credentials, checkup.ray_token))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", _SECRET)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(SystemExit, match="0"):
        main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if "AWS_SECRET_ACCESS_KEY is not" in line)
    assert lines[at].split()[0] == "warning"
    assert lines[at + 1].strip() == "-> set AWS_SECRET_ACCESS_KEY"
    assert any("get-auth-token" in line for line in lines)


def test_credentials_are_told_by_name_only(capsys, bare, monkeypatch):
    for name in (*_ASKED, "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "AWS_CA_BUNDLE"):
        monkeypatch.setenv(name, f"{_SECRET}-{name}")
    (bare / ".aws").mkdir()
    (bare / ".aws/credentials").write_text(_SECRET)
    monkeypatch.setattr(doctor, "_GROUPS", (checkup.credentials, checkup.ray_token, doctor._ray))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    summary, err = call(capsys, "doctor")
    assert _SECRET not in str(summary) + err
    found = {check["name"]: check for check in summary["checks"]}
    assert "AWS_ACCESS_KEY_ID" in found["key: aws"]["found"]
    assert "~/.aws/credentials" in found["key: aws"]["found"]
    assert found["RAY_AUTH_MODE"]["found"] == "token; token in RAY_AUTH_TOKEN"


def test_no_credentials_are_no_fault(bare):
    found = states(checkup.credentials)
    assert {state for state, _, _ in found.values()} == {"absent"}
    assert len(found) == len(checkup._KEYS)


def test_half_a_credential_is(bare, monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(bare / "gone.json"))
    state, found, mend = states(checkup.credentials)["credentials"]
    assert state == "warning"
    assert "not there" in found
    assert "GOOGLE_APPLICATION_CREDENTIALS" in mend


@pytest.mark.parametrize(
    ("environment", "state", "word"),
    [
        ({}, "ok", "not set"),
        ({"RAY_AUTH_MODE": "disabled"}, "ok", "disabled"),
        ({"RAY_AUTH_MODE": "token"}, "warning", "none"),
        ({"RAY_AUTH_MODE": "tokens"}, "warning", "no mode"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/absent"}, "warning", "none"),
        ({"RAY_AUTH_TOKEN_PATH": "/absent"}, "warning", "names no file"),
    ],
)
def test_rays_token(bare, monkeypatch, environment, state, word):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (found,) = checkup.ray_token()
    assert found.state == state
    assert word in found.found
    assert bool(found.mend) == (state == "warning")


def test_a_token_in_the_home_is_found(bare, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    (bare / ".ray").mkdir()
    (bare / ".ray/auth_token").write_text(_SECRET)
    (found,) = checkup.ray_token()
    assert (found.state, found.mend) == ("ok", "")
    assert _SECRET not in found.found


def test_a_clock_that_is_off_is_named(bare, monkeypatch):
    monkeypatch.chdir(bare)
    monkeypatch.setattr(checkup, "_ntp", lambda: None)
    assert states(checkup.clock)["clock"][0] == "ok"
    real = os.stat

    def ahead(path, **options):
        found = real(path, **options)
        return type(found)((*found[:8], found.st_mtime + 3600, found.st_ctime))

    monkeypatch.setattr(checkup.os, "stat", ahead)
    state, found, mend = states(checkup.clock)["clock"]
    assert state == "warning"
    assert "+3600 s" in found or "+3599 s" in found
    assert "NTP" in mend


def test_a_clock_that_nobody_keeps_is_a_warning(bare, monkeypatch):
    monkeypatch.chdir(bare)
    monkeypatch.setattr(checkup, "_ntp", lambda: False)
    assert states(checkup.clock)["clock"][0] == "warning"


def test_a_disk_that_ray_takes_for_full_is_named(bare, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000 << 30, 960 << 30, 40 << 30))
    state, found, mend = states(checkup.temp_disk)["temp disk"]
    assert (state, "96% used" in found) == ("warning", True)
    assert "RAY_TMPDIR" in mend


def test_a_low_limit_of_open_files_and_little_shared_memory_are_named(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    assert states(doctor._limits)["open files"][0::2] == (
        "warning", "Ray on many cores runs out: ulimit -n 4096",
    )  # fmt: skip
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64 << 20, 0, 64 << 20))
    found = states(doctor._machine)
    assert found["disk"][0] == "warning"
    if os.path.isdir("/dev/shm"):
        assert found["/dev/shm"][0] == "warning"
        assert "--shm-size" in found["/dev/shm"][2]


def test_codecs_and_java(monkeypatch, bare):
    import imagecodecs

    assert states(checkup.codecs)["libdeflate"][0] == "ok"
    monkeypatch.setattr(imagecodecs.DEFLATE, "available", False)
    state, _, mend = states(checkup.codecs)["libdeflate"]
    assert (state, "pip install" in mend) == ("broken", True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    state, _, mend = states(checkup.java)["java"]
    assert (state, "Spark" in mend) == ("absent", True)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    assert states(checkup.java)["java"] == ("ok", "/usr/bin/java", "")


def test_every_extra_of_the_package_is_explained():
    from importlib.metadata import metadata

    known = set(metadata("segmill").get_all("Provides-Extra") or [])
    assert known <= set(doctor._OPTIONAL)
