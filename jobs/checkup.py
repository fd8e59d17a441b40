"""What doctor looks at around segmill: codecs, clock, credentials, Ray's token, Java.

Of credentials only the names of variables and files are told, never a value, and no file is read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

State = Literal["ok", "absent", "warning", "broken"]
_SKEW: Final = 60.0
"""Seconds. S3 refuses requests from 15 minutes on, but a lease of minutes suffers before."""
_FULL: Final = 0.95
"""The share from which Ray takes a disk for full, and refuses to spill to it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: what was looked at, how it is, what was found, and the mend when it is bad.

    `absent` is something optional that is not here.
    """

    name: str
    state: State
    found: str
    mend: str = ""


def codecs() -> Iterator[Check]:
    """Look for libdeflate, by which every mask cell is written and read."""
    import imagecodecs

    there = bool(imagecodecs.DEFLATE.available)
    found = imagecodecs.deflate_version() if there else "imagecodecs is built without libdeflate"
    mend = "" if there else "pip install --force-reinstall --only-binary :all: imagecodecs"
    yield Check("libdeflate", "ok" if there else "broken", found, mend)


def temp_disk() -> Iterator[Check]:
    """Look at the disk where Ray keeps its sessions and spills objects."""
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    disk = shutil.disk_usage(folder)
    full = 1 - disk.free / max(1, disk.total)
    found = f"{disk.free / (1 << 30):.0f} GiB free in {folder}, {full:.0%} used"
    tight = full > _FULL
    mend = f"Ray stops spilling at {_FULL:.0%}: make room, or set RAY_TMPDIR to another disk"
    yield Check("temp disk", "warning" if tight else "ok", found, mend if tight else "")


def clock() -> Iterator[Check]:
    """Compare the clock with that of the file system, and ask whether it is kept by the network."""
    with tempfile.NamedTemporaryFile(dir=Path.cwd()) as file:
        file.write(b"x")
        file.flush()
        skew = os.stat(file.name).st_mtime - time.time()
    mend = "set this machine's clock by NTP: `timedatectl set-ntp true`, or chrony"
    if abs(skew) > _SKEW:
        found = f"the file system's clock is {skew:+.0f} s from this machine's"
        yield Check("clock", "warning", found, mend)
        return
    kept = _ntp()
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if kept is False:
        yield Check("clock", "warning", f"{now}, not kept by NTP", mend)
    else:
        yield Check("clock", "ok", now + (", kept by NTP" if kept else ""))


def _ntp() -> bool | None:
    """Tell whether the system keeps its clock by the network; None where it does not say."""
    try:
        asked = subprocess.run(
            ["timedatectl", "show", "-p", "NTPSynchronized", "--value"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return {"yes": True, "no": False}.get(asked.stdout.strip())


_KEYS: Final = {
    "aws": (
        ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE",
         "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        ("~/.aws/credentials", "~/.aws/config"),
        "s3:// (a role of the machine works without)",
    ),
    "gcloud": (
        ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"),
        ("~/.config/gcloud/application_default_credentials.json",),
        "gs:// (a role of the machine works without)",
    ),
    "azure": (
        ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY",
         "AZURE_STORAGE_SAS_TOKEN", "AZURE_CLIENT_ID"),
        ("~/.azure/azureProfile.json",),
        "az:// (a role of the machine works without)",
    ),
    "hugging face": (
        ("HF_TOKEN",),
        ("~/.cache/huggingface/token",),
        "gated models of hf:NAME",
    ),
}  # fmt: skip
"""The variables and files where each service's clients find credentials, and what for."""

_PAIRS: Final = (
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
    ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCOUNT_NAME"),
)
"""Variables that say nothing without the other."""
_FILES: Final = ("GOOGLE_APPLICATION_CREDENTIALS", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CA_BUNDLE")


def credentials() -> Iterator[Check]:
    """Say where credentials would be found, by the names of variables and files alone."""
    for service, (variables, files, use) in _KEYS.items():
        there = [name for name in variables if os.environ.get(name)]
        there += [name for name in files if Path(name).expanduser().is_file()]
        found = f"{', '.join(there)}: for {use}" if there else f"none found, for {use}"
        yield Check(f"key: {service}", "ok" if there else "absent", found)
    for name, other in _PAIRS:
        if os.environ.get(name) and not os.environ.get(other):
            yield Check("credentials", "warning", f"{name} is set, {other} is not", f"set {other}")
    for name in _FILES:
        path = os.environ.get(name)
        if path and not Path(path).expanduser().is_file():
            mend = f"correct the path in {name}, or unset it"
            yield Check("credentials", "warning", f"{name} names a file that is not there", mend)


def ray_token() -> Iterator[Check]:
    """Look at how Ray would authenticate, and for a token where it takes one."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode not in {"", "token", "disabled"}:
        mend = "set it to token, or to disabled for a machine of your own"
        yield Check("RAY_AUTH_MODE", "warning", f"{mode!r} is no mode that Ray has", mend)
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    places = {
        "RAY_AUTH_TOKEN": bool(os.environ.get("RAY_AUTH_TOKEN")),
        "RAY_AUTH_TOKEN_PATH": bool(named) and Path(named or "").expanduser().is_file(),
        "~/.ray/auth_token": Path("~/.ray/auth_token").expanduser().is_file(),
    }
    there = next((name for name, found in places.items() if found), None)
    told = mode or "not set: Ray chooses (a token, from 2.60 on)"
    if mode == "token" and there is None:
        mend = "`ray get-auth-token --generate` makes one; give the cluster's nodes the same"
        yield Check("RAY_AUTH_MODE", "warning", "token, but there is none", mend)
    elif named and not places["RAY_AUTH_TOKEN_PATH"]:
        mend = "correct RAY_AUTH_TOKEN_PATH, or unset it"
        yield Check("RAY_AUTH_MODE", "warning", "RAY_AUTH_TOKEN_PATH names no file", mend)
    else:
        yield Check("RAY_AUTH_MODE", "ok", told + (f"; token in {there}" if there else ""))


def java() -> Iterator[Check]:
    """Look for Java, which only Spark needs."""
    where = shutil.which("java")
    if where is None and os.environ.get("JAVA_HOME"):
        home = Path(os.environ["JAVA_HOME"]) / "bin/java"
        where = str(home) if home.is_file() else None
    mend = "" if where else "only to read stores with Spark: apt-get install default-jre-headless"
    yield Check("java", "ok" if where else "absent", where or "none", mend)
