"""Say what this machine has, and what is missing.

    segmill doctor

Exits with 0 when segmill can work here, with warnings where it would work badly; with 1 when
something that it needs is missing or broken. Starts nothing, writes nothing that stays.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import sys
import tempfile
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from jobs.checkup import (
    Check,
    State,
    clock,
    codecs,
    credentials,
    java,
    ray_token,
    temp_disk,
)
from jobs.console import EXIT_FAILED, DebugOption, JsonOption, command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_GIB: Final = 1 << 30
_OPTIONAL: Final = {
    "s3": "stores and images on S3",
    "gcs": "stores and images on Google Cloud Storage",
    "azure": "stores and images on Azure",
    "onnx": "models as ONNX files",
    "onnx-gpu": "models as ONNX files, on GPUs (instead of [onnx])",
    "crf": "label --refine densecrf",
    "lite0": "the weights of EfficientNet-Lite0",
    "readers": "stores in DuckDB, Polars, pandas and Hugging Face's datasets",
    "docs": "the documentation's site",
    "dev": "tests and linters",
}
_IMPORTED: Final = (
    "numpy",
    "cv2",
    "imagecodecs",
    "pyarrow",
    "deltalake",
    "torch",
    "torchvision",
    "ray",
)
"""Packages with compiled parts: an installed one may still fail to load."""


@APP.command()
def doctor(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Say what this machine has and what is missing."""
    checks: list[Check] = []
    with command("doctor", as_json=as_json, debug=debug) as summary:
        for group in _GROUPS:
            for check in _guarded(group):
                checks.append(check)
                if not as_json:
                    _print(check)
        summary.figures["checks"] = [asdict(check) for check in checks]
        for state in ("warning", "broken"):
            summary.figures[state] = [check.name for check in checks if check.state == state]
    broken = [check.name for check in checks if check.state == "broken"]
    if broken:
        print(f"segmill doctor: broken: {', '.join(broken)}", file=sys.stderr)
        raise SystemExit(EXIT_FAILED)


def _guarded(group: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Yield a group's checks; one that fails by itself is a finding, not the end."""
    try:
        yield from group()
    except Exception as error:  # a machine's oddity must not hide what the other checks say
        yield Check(group.__name__.strip("_"), "warning", f"could not look: {error}")


def _print(check: Check) -> None:
    """Print a finding for people, its mend below it."""
    print(f"  {check.state:8} {check.name:14} {check.found}")
    if check.mend:
        print(f"  {'':8} {'':14} -> {check.mend}")


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    good = sys.version_info >= (3, 11)
    yield Check("python", "ok" if good else "broken", found, "" if good else "use Python 3.11+")
    try:
        yield Check("segmill", "ok", version("segmill"))
    except PackageNotFoundError:
        mend = "pip install -e . in the checkout"
        yield Check("segmill", "warning", "not installed, running from its sources", mend)
    from pipeline.metrics.confusion import compiled_counter

    there = compiled_counter() is not None
    mend = "" if there else "scoring takes twice as long: install a C compiler, then segmill again"
    yield Check("compiled", "ok", "pixel counter" if there else "nothing, NumPy counts", mend)


def _machine() -> Iterator[Check]:
    """Look at cores, memory and disks."""
    import psutil

    from pipeline.runner import cores

    yield Check("cores", "ok", f"{cores()} of {os.cpu_count()} usable")
    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"
    tight = memory.available < 2 * _GIB
    mend = "Ray and one segmenter take 2 GiB: --runner local, or fewer actors" if tight else ""
    yield Check("memory", "warning" if tight else "ok", found, mend)
    disk = shutil.disk_usage(Path.cwd())
    tight = disk.free < 5 * _GIB
    found = f"{disk.free / _GIB:.0f} of {disk.total / _GIB:.0f} GiB free in this directory"
    mend = "stores and Ray's spilled objects need room" if tight else ""
    yield Check("disk", "warning" if tight else "ok", found, mend)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        tight = size < _GIB
        mend = "Ray's object store falls back to disk: docker run --shm-size=4g" if tight else ""
        yield Check("/dev/shm", "warning" if tight else "ok", f"{size / _GIB:.1f} GiB", mend)


def _limits() -> Iterator[Check]:
    """Look at the limit of open files."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    tight = 0 < soft < 4096
    mend = f"Ray on many cores runs out: ulimit -n {min(65536, hard)}" if tight else ""
    yield Check("open files", "warning" if tight else "ok", f"{soft} (at most {hard})", mend)


def _writable() -> Iterator[Check]:
    """Try to write where segmill and Ray write."""
    for name, folder in (
        ("this directory", Path.cwd()),
        ("temp directory", Path(tempfile.gettempdir())),
    ):
        try:
            with tempfile.TemporaryFile(dir=folder):
                yield Check(name, "ok", f"{folder} is writable")
        except OSError as error:
            # Ray and downloads need the second; the first only matters when stores go there.
            state: State = "broken" if name == "temp directory" else "warning"
            mend = "set TMPDIR" if state == "broken" else "give stores and reports other paths"
            yield Check(name, state, f"{folder}: {error.strerror}", mend)


def _requirements() -> list[str]:
    try:
        return requires("segmill") or []
    except PackageNotFoundError:
        return []


def _packages() -> Iterator[Check]:
    """Look for each required package, and for each optional one by its extra."""
    optional: dict[str, list[str]] = {}
    bad = 0
    for line in _requirements():
        wanted, _, marker = line.partition(";")
        extra = re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", marker)
        problem = _problem(wanted.strip())
        if extra:
            optional.setdefault(extra[1], []).extend([wanted.strip()] if problem else [])
        elif problem:
            bad += 1
            yield Check(_bare(wanted), "broken", problem, f"pip install '{wanted.strip()}'")
    if not bad and optional:
        yield Check("packages", "ok", "all that segmill requires are installed")
    for name, missing in optional.items():
        use = _OPTIONAL.get(name, "")
        if missing:
            install = " ".join(f"'{wanted}'" for wanted in missing)
            yield Check(f"extra [{name}]", "absent", f"for {use}", f"pip install {install}")
        else:
            yield Check(f"extra [{name}]", "ok", f"for {use}")


def _bare(requirement: str) -> str:
    """Return the name in a requirement.

    >>> _bare("ray[default,train]>=2.55")
    'ray'
    """
    return re.split(r"[\s\[<>=!~;(]", requirement.strip(), maxsplit=1)[0]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text.split("+")[0])[:3])


def _problem(requirement: str) -> str | None:
    """Return what is wrong with an installed package, None when it meets the requirement."""
    try:
        found = version(_bare(requirement))
    except PackageNotFoundError:
        return "not installed"
    least = re.search(r">=\s*([\d.]+)", requirement)
    if least and _numbers(found) < _numbers(least[1]):
        return f"version {found}, {least[1]} or newer is needed"
    return None


def _loading() -> Iterator[Check]:
    """Import the packages with compiled parts."""
    for name in _IMPORTED:
        try:
            module = import_module(name)
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            mend = "apt-get install libgl1, or opencv-python-headless" if "libGL" in text else ""
            mend = (
                mend
                or f"pip install --force-reinstall {name.replace('cv2', 'opencv-python-headless')}"
            )
            yield Check(name, "broken", f"does not load: {text}", mend)
        else:
            yield Check(name, "ok", str(getattr(module, "__version__", "loads")))


def _gpus() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            found = f"{card.name}, {card.total_memory / _GIB:.0f} GiB, CUDA {torch.version.cuda}"
            yield Check(f"gpu {number}", "ok", found)
    elif Path("/dev/nvidia0").exists():
        found = f"there, but torch {torch.__version__} cannot use it"
        yield Check(
            "gpu", "warning", found, "install a torch that fits the driver: nvidia-smi tells"
        )
    else:
        yield Check("gpu", "absent", "none: models run on the CPU")


def _ray() -> Iterator[Check]:
    """Look for a Ray cluster that jobs would join; start none."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in {"", "auto"}:
        note = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray/ray_current_cluster"
        address = note.read_text().strip() if note.is_file() else ""
    if not address:
        yield Check("ray cluster", "absent", "none running; jobs start Ray here when it pays")
        return
    target = re.sub(r"^\w+://", "", address).split("/")[0]
    host, _, port = target.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            yield Check("ray cluster", "ok", f"{address} answers")
    except (OSError, ValueError):
        mend = "unset RAY_ADDRESS, or `ray stop` what is left of it"
        yield Check("ray cluster", "warning", f"{address} does not answer", mend)


_GROUPS: Final = (
    _python, _machine, temp_disk, _limits, _writable, clock, _packages, _loading, codecs, _gpus,
    _ray, ray_token, credentials, java,
)  # fmt: skip
