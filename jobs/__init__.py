"""The commands: one file each, which parses, plans, runs and summarises; thin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

VERBS: Final[Mapping[str, str]] = {
    "ingest": "Read a dataset into a label store.",
    "export": "Write a label store out as a dataset.",
    "convert": "Turn one dataset format into another, streaming.",
    "label": "Label images in bulk with a model.",
    "pseudo-label": "Label a bucket softly; calibrate, and estimate the labels' quality.",
    "refresh": "Refresh a bucket's labels every night: train, gate, label, publish or reject.",
    "train": "Train a model on a label store.",
    "models": "List the networks that there are, and what each costs.",
    "evaluate": "Score labels against truth: mIoU and a report.",
    "store": "Look after a label store: info, stats, history, restore, ...",
    "gallery": "Write a page to look at labels.",
    "submit": "Run a verb on a Ray cluster, as a job of it.",
    "jobs": "List, follow and stop the jobs of a Ray cluster.",
    "demo": "Run the whole tour on generated street scenes.",
    "doctor": "Say what this machine has and what is missing.",
}
"""Each verb and its line in --help; verb V is the typer app `APP` in jobs/V.py, imported on use."""
