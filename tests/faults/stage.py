"""Where the faults happen: a bucket of images, `segmill label` as a process, and its result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipeline.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.record import Record

ROOT = Path(__file__).resolve().parents[2]
MODEL = "python:tests.faults.model:make?classes=11&label_space=camvid-11"
IMAGES = 60
POISON = "0031"
"""The magenta image."""


@dataclass
class Job:
    """A `segmill label` in a process of its own."""

    process: subprocess.Popen[str]

    def kill(self) -> None:
        """End the driver as a power cut would: it gets no word in."""
        self.process.kill()
        self.process.communicate()

    def end(self, code: int | None = 0) -> tuple[dict[str, Any], str]:
        """Wait for its end; return the summary and what it said on stderr."""
        out, err = self.process.communicate(timeout=400)
        assert code in (None, self.process.returncode), err
        return (json.loads(out.splitlines()[-1]) if out else {}), err

    def sum(self, code: int = 0) -> dict[str, Any]:
        """Wait for its end; return the summary, whose sum holds."""
        report, _ = self.end(code)
        assert report["inputs"] == report["done"] + report["skipped"] + report["failed"]
        return report


@dataclass
class Stage:
    """A directory for the images, the model's steering files and the stores of one test session."""

    place: Path
    env: dict[str, str] = field(default_factory=dict)
    before: str = ""
    """What the process of a job runs first."""

    @property
    def images(self) -> Path:
        return self.place / "images"

    def environment(self) -> dict[str, str]:
        """Return the environment of every process on this stage; by it they are found again."""
        ours = {
            "SEGMILL_TEST_DIR": str(self.place),
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "disabled",
            "OMP_NUM_THREADS": "1",
        }
        return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | ours | self.env

    def spawn(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=self.environment(),
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )

    def label(self, store: str | Path, *args: str, images: str = "", **options: Any) -> Job:
        """Begin to label the images, the whole of it in shards of four."""
        source = images or str(self.images)
        jobs = ("-c", f"{self.before}; import jobs.__main__ as j; j.run()")
        how = () if "--shard-images" in args else ("--shard-images", "4")
        command = (*(jobs if self.before else ("-m", "jobs")), "label", source, str(store))
        command += ("--model", MODEL, "--json", *how, *args)
        return Job(self.spawn(*command, stderr=subprocess.PIPE, **options))

    def steer(self, **files: str) -> None:
        """Tell the models what to do from now on, and forget what they did."""
        for name in ("log", "hold", "pause", "poison"):
            (self.place / name).unlink(missing_ok=True)
        for name, text in files.items():
            (self.place / name).write_text(text)

    def seen(self) -> list[tuple[int, str, int]]:
        """Return who labelled: process, node and number of images, a row a batch."""
        log = self.place / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        rows = [line.split() for line in lines]
        return [(int(pid), node, int(count)) for pid, node, count in rows if count]

    def at_work(self, count: int) -> set[int]:
        """Return the processes that label, once they are so many; else none."""
        pids = {pid for pid, _, _ in self.seen()}
        return pids if len(pids) >= count else set()

    def sweep(self) -> list[str]:
        """End every process of this stage that is left, and return what they were."""
        left = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SEGMILL_TEST_DIR") == str(self.place):
                    left.append(" ".join(process.cmdline())[:200])
                    process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
        return left


def wait_for(what: Callable[[], Any], job: Job | None = None, seconds: float = 300) -> Any:
    """Return the first true answer; fail when the job ends before there is one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := what():
            return answer
        if job is not None and job.process.poll() is not None:
            raise AssertionError(f"ended too early: {job.process.communicate()}")
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def rows(store: str | Path) -> list[Record]:
    """Return a store's rows less what says who made them, and when."""
    found = Store.open(store).records()
    plain = (replace(r, provenance=replace(r.provenance, run="", at=None)) for r in found)
    return sorted(plain, key=lambda r: r.image_id)


def failures(store: str | Path) -> list[dict[str, Any]]:
    return Store.open(store).failures().to_pylist()
