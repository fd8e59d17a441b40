"""What a submitted job takes along, and what it must find there: code, files, paths, variables."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from jobs import VERBS
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PACKAGES: Final = ("connectors", "pipeline", "jobs")
HERE_ONLY: Final = {"submit", "jobs"}
LARGEST_BYTES: Final = 100 << 20
"""Ray keeps what is uploaded in the head's memory, and takes no more than this."""
PLACES: Final = {
    "src", "dst", "store", "stores", "images", "out", "truth", "pred", "baseline", "unlabelled",
    "report", "tensorboard", "metrics", "data", "config",
}  # fmt: skip
"""Parameters that name a place whatever their value; others do where such a file is here."""
_LEFT_OUT: Final = ("__pycache__", "*.pyc")
_SECRET: Final = re.compile(
    r"(^|_)(SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIALS?)(_|$)|(ACCESS|API|ACCOUNT|PRIVATE)_?KEY(_|$)"
)
_LOGIN: Final = re.compile(r"\w+://[^/\s@]*:[^/\s@]+@")
_SIGNED: Final = re.compile(
    r"://\S*[?&](sig|signature|x-amz-\w[\w-]*|x-goog-\w[\w-]*|(\w*_)?(token|secret|password|key))=",
    re.IGNORECASE,
)
"""A URL that is a right by itself: presigned, or with a token of shared access."""
_SCHEME: Final = re.compile(r"^[a-z][a-z0-9+.-]*:")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A verb's command line, read as the verb would read it."""

    verb: str
    args: tuple[str, ...]
    places: tuple[str, ...]
    """The values that name local files or directories."""


def parse_verb(command: Sequence[str]) -> Parsed:
    """Read a command line as its verb would, so that a mistake is told before it is sent.

    Raises:
        UsageError: there is no such verb, it can't be submitted, or it refuses the arguments.
    """
    verb, *args = command
    if verb not in VERBS:
        raise UsageError(f"no verb is called {verb!r}; `segmill --help` lists them")
    if verb in HERE_ONLY:
        raise UsageError(f"{verb} talks to a cluster from outside; it is not submitted")
    _no_logins(command)
    params = _params(verb, args)
    return Parsed(verb, tuple(args), tuple(_places(params)))


def _params(verb: str, args: Sequence[str]) -> dict[str, Any]:
    import typer

    command: Any = typer.main.get_command(import_module(f"jobs.{verb.replace('-', '_')}").APP)
    rest = list(args)
    while hasattr(command, "commands"):
        found = command.commands.get(rest[0]) if rest else None
        if found is None:
            raise UsageError(f"segmill {verb}: one of {', '.join(command.commands)} must follow")
        command, rest = found, rest[1:]
    try:
        return dict(command.make_context(f"segmill {verb}", rest).params)
    except Exception as error:
        said = getattr(error, "format_message", None)
        if said is None:
            raise
        raise UsageError(f"{verb}: {said()}") from None


def _places(params: dict[str, Any]) -> Iterator[str]:
    """Yield the values that name something on a file system of this machine."""
    for name, value in params.items():
        for text in value if isinstance(value, (list, tuple)) else (value,):
            if not isinstance(text, str) or "://" in text or not text:
                continue
            path = _SCHEME.sub("", text).partition("?")[0]
            if name in PLACES or (path and os.path.exists(path)):
                yield path


def _no_logins(words: Sequence[str]) -> None:
    """Raise UsageError for a URL with a password or a signature: Ray shows a job's command."""
    for word in words:
        if _LOGIN.search(word) or _SIGNED.search(word):
            raise UsageError(
                "a URL holds a login, and Ray shows a job's command line to all who see the "
                "cluster; give the nodes the rights (an instance profile, their environment)"
            )


def check_places(parsed: Parsed, included: Sequence[str], *, address: str) -> list[str]:
    """Return warnings about paths of a job on other machines.

    Raises:
        UsageError: a path is relative: there it would lie in the job's own temporary folder.
    """
    said = []
    for place in dict.fromkeys(parsed.places):
        if any(_holds(root, place) for root in included):
            continue
        if not os.path.isabs(place):
            raise UsageError(
                f"{place}: the cluster at {address} does not see this machine's files; give a "
                "bucket's URL or an absolute path on storage that all nodes mount, or send small "
                f"files along with --include {place}"
            )
        said.append(f"{place} must be storage that every node mounts under that name")
    return said


def _holds(root: str, place: str) -> bool:
    root, place = os.path.normpath(root), os.path.normpath(place)
    return place == root or place.startswith(root + os.sep)


def variables(pairs: Sequence[str]) -> dict[str, str]:
    """Read KEY=VALUE, or KEY with this process's value.

    Raises:
        UsageError: one is neither, or looks like a secret, which Ray would show.
    """
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise UsageError(f"--env takes KEY=VALUE, not {key!r}")
        if _SECRET.search(key.upper()):
            raise UsageError(
                f"--env {key}: Ray shows a job's variables to all who see the cluster; put secrets "
                "into the nodes' own environment, or give the nodes a role"
            )
        if not equals and key not in os.environ:
            raise UsageError(f"--env {key}: not set here, and no value given")
        found[key] = value if equals else os.environ[key]
        if _LOGIN.search(found[key]) or _SIGNED.search(found[key]):
            raise UsageError(f"--env {key}: its value holds a login, which Ray would show")
    return found


def gpu_options(parsed: Parsed, gpus: float | None) -> list[str]:
    """Return the options by which a verb's own workers take so many GPUs in all.

    Raises:
        UsageError: the verb has no use for GPUs, or its own options say something else.
    """
    if gpus is None:
        return []
    given = {arg.partition("=")[0] for arg in parsed.args}
    if parsed.verb == "label":
        return _label_gpus(parsed.args, given, gpus)
    if parsed.verb == "train":
        return _train_gpus(given, gpus)
    hint = "; its configuration says so" if parsed.verb == "refresh" else ""
    raise UsageError(f"--gpus: {parsed.verb} does not take a number of GPUs{hint}")


def _label_gpus(args: Sequence[str], given: set[str], gpus: float) -> list[str]:
    """Return a segmenter a GPU, or more where the user gives each a share."""
    if "--actors" in given:
        raise UsageError("give --gpus or --actors, not both")
    if gpus == 0:
        return ["--gpus-per-actor", "0"]
    if "--gpus-per-actor" in given:
        each = _value_of(args, "--gpus-per-actor")
        return ["--actors", f"1:{max(1, int(gpus / each))}"] if each else []
    if gpus < 1:
        return ["--gpus-per-actor", f"{gpus:g}", "--actors", "1"]
    return ["--gpus-per-actor", "1", "--actors", f"1:{_whole_gpus(gpus)}"]


def _train_gpus(given: set[str], gpus: float) -> list[str]:
    """Return one of Ray Train's workers a GPU."""
    if given & {"--workers", "--gpu", "--cpu"}:
        raise UsageError("give --gpus, or --workers with --gpu or --cpu, not both")
    return ["--gpu", "--workers", str(_whole_gpus(gpus))] if gpus else ["--cpu"]


def _whole_gpus(gpus: float) -> int:
    if gpus != int(gpus):
        raise UsageError(f"--gpus takes whole GPUs here, or for label a share of one, not {gpus:g}")
    return int(gpus)


def _value_of(args: Sequence[str], option: str) -> float:
    """Return the number that an option of the verb has."""
    for arg, after in zip(args, (*args[1:], ""), strict=True):
        name, equals, value = arg.partition("=")
        if name == option:
            return float(value if equals else after)
    return 0.0


def job_name(parsed: Parsed) -> str:
    """Return the name of the job that runs a command: the same for the same command.

    >>> job_name(Parsed("label", ("a", "b"), ()))
    'segmill-label-1055a6a22e'
    """
    digest = hashlib.sha256(json.dumps([parsed.verb, *parsed.args]).encode()).hexdigest()
    return f"segmill-{parsed.verb}-{digest[:10]}"


def pack(folder: Path, included: Sequence[str]) -> int:
    """Copy segmill's code and the files to send along into a folder; return their bytes.

    Nothing else goes: a checkout may hold a virtual environment, stores and data beside the code.

    Raises:
        UsageError: a file to send lies outside the working directory, or all is too large.
    """
    targets = {path: _inside(path) for path in included}
    code = {name: import_module(name).__path__[0] for name in PACKAGES}
    total = _check_size([*code.values(), *targets])
    ignore = shutil.ignore_patterns(*_LEFT_OUT)
    for name, source in code.items():
        shutil.copytree(source, folder / name, ignore=ignore)
    for path, target in targets.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        if os.path.isdir(path):
            shutil.copytree(path, folder / target, ignore=ignore, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, folder / target)
    return total


def _check_size(paths: Sequence[str]) -> int:
    """Return the bytes of files and folders, before any is copied: data may lie in them.

    Raises:
        UsageError: they are more than Ray takes, or no plain files.
    """
    total, largest, biggest = 0, 0, ""
    for path in _files(paths):
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{path}: not a file that can be sent; leave it out")
        total += found.st_size
        if found.st_size > largest:
            largest, biggest = found.st_size, path
        if total > LARGEST_BYTES:
            raise UsageError(
                f"more than {LARGEST_BYTES >> 20} MiB to send, which is what Ray takes; the "
                f"largest so far is {biggest} ({largest >> 20} MiB): put it into the bucket and "
                "name its URL"
            )
    return total


def _files(paths: Sequence[str]) -> Iterator[str]:
    """Yield files, and those in folders, as they are copied."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for root, folders, names in os.walk(path):
            folders[:] = [name for name in folders if name != "__pycache__"]
            links = [name for name in folders if os.path.islink(os.path.join(root, name))]
            if links:  # they may lead round in circles
                raise UsageError(f"{root}/{links[0]}: a link to a folder; send the folder itself")
            yield from (os.path.join(root, n) for n in names if not n.endswith(".pyc"))


def _inside(path: str) -> str:
    """Return a path below the working directory as it is seen from there."""
    target = os.path.relpath(os.path.abspath(path))
    if target.startswith(".."):
        raise UsageError(f"--include {path}: must lie below {os.getcwd()}, to keep its name there")
    if target.split(os.sep)[0] in (*PACKAGES, "."):
        raise UsageError(f"--include {path}: name the files to send, not the folder of the code")
    if not os.path.exists(path):
        raise UsageError(f"--include {path}: no such file or directory")
    return target
