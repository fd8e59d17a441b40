"""What a night's steps share: its configuration, record, stores, and where work runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.pseudo.calibrate import Calibration
from pipeline.refresh.models import options_of
from pipeline.runner import Resources, choose

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.label_space import LabelSpace
    from pipeline.refresh.config import Config
    from pipeline.refresh.record import Model, Night, Nights, Step
    from pipeline.refresh.state import InForce
    from pipeline.runner import Runner
    from pipeline.runs.report import RunReport
    from pipeline.segmenter import SegmenterFactory
    from pipeline.store import Store

SECONDS_AN_IMAGE = 0.15
THRESHOLDS = "thresholds.json"


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a night tells whoever runs it."""

    say: Callable[[str], None] = lambda text: None
    gpus: Callable[[str | None, str], float] = lambda address, runner: 0.0
    """GPUs of an actor where the configuration names none, given the cluster's address."""
    watch: Callable[[str, RunReport], None] = lambda step, report: None
    listed: Callable[[str, int, int], None] = lambda step, listed, todo: None
    boundary: Callable[[str], None] = lambda name: None
    """Called after each step is written down, and around the commit: for tests that kill there."""


@dataclass(slots=True)
class Rejected(Exception):
    """The night's labels are not to be published."""

    reasons: list[str]


@dataclass
class Work:
    """A night at work."""

    config: Config
    nights: Nights
    night: Night
    truth: Store
    """At the version that the night began with."""
    last: InForce | None
    """The labels in force when it began."""
    check: Callable[[], None]
    """Raises when this process has lost its lease."""
    hooks: Hooks = field(default_factory=Hooks)

    @property
    def folder(self) -> str:
        """The night's folder, relative to the work directory."""
        return self.nights.folder(self.night.id)

    @property
    def base(self) -> Store | None:
        """The published snapshot that the night began with."""
        return None if self.last is None else self.last.store

    @property
    def challenger(self) -> Model:
        """What labels tonight."""
        assert self.night.challenger is not None, "the step that names it comes first"
        return self.night.challenger

    @property
    def kept(self) -> bool:
        """Whether labels are made by what made those in force."""
        mine = self.challenger.label_digest
        return self.last is not None and self.last.champion.label_digest == mine

    def save(self, step: Step | None = None) -> None:
        """Write the record; `step` is over with that.

        Raises:
            LeaseLost: another process works on the night, and the record is its own.
        """
        from pipeline.refresh.record import now

        self.check()

        if step is not None:
            step.ended = now()
        self.nights.write(self.night)
        if step is not None:
            self.hooks.boundary(step.name)

    @property
    def options(self) -> Any:
        """How images are labelled."""
        return options_of(self.config)

    def plain_digest(self, model: Model) -> str:
        """Return what held-out labels of a model carry: hysteresis is not of them."""
        from pipeline.labelling import label_digest

        return label_digest(model.digest, self.options)

    def factory(self, model: Model) -> SegmenterFactory:
        """Return what makes segmenters of a model, which must be what it was; none is loaded."""
        from dataclasses import replace

        from pipeline.segmenter import SegmenterFactory

        options = replace(self.options, device="cuda") if self.gpus else self.options
        return SegmenterFactory(model.uri, options=options, digest=model.digest)

    def space(self, model: Model) -> LabelSpace:
        """Return a model's classes, and check that it can be used as the configuration says.

        Raises:
            ModelError: it cannot be loaded.
            UsageError: it doesn't fit the options.
        """
        from pipeline.predict.options import check_model

        loaded = self.factory(model).load()
        check_model(loaded, self.options)
        return loaded.label_space

    @cached_property
    def gpus(self) -> float:
        """GPUs of an actor."""
        asked = self.config.label
        given = asked.gpus_per_actor
        return self.hooks.gpus(asked.address, asked.runner) if given is None else given

    def runner(self, images: int, seconds: float = SECONDS_AN_IMAGE) -> Runner:
        """Return where work on so many images runs; what takes no model takes no GPU."""
        asked = self.config.label
        gpus = self.gpus if seconds == SECONDS_AN_IMAGE else 0.0
        resources = Resources.parse(asked.actors, gpus=gpus)
        return choose(
            asked.runner, seconds=images * seconds, resources=resources, address=asked.address
        )

    def calibration(self, night: str | None = None) -> Calibration | None:
        """Return a night's calibration, tonight's by default; None where its file is gone."""
        from pipeline.errors import SegmillError

        name = f"{self.nights.folder(night or self.night.id)}/{THRESHOLDS}"
        try:
            return Calibration.from_json(self.nights.tree.read(name), name)
        except (SegmillError, OSError):
            return None
