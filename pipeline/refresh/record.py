"""The record of a night: what was found, trained, measured, decided and published, as JSON.

    nights = Nights("work")
    nights.write(night)
    nights.read("2026-11-24").status

One file a night, `nights/NIGHT/night.json` below the work directory, written whole after every
step: what a run that was killed goes on from, and what the pages are made of. Shares are 0..1,
times are UTC. A reader leaves keys alone that it doesn't know.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import LayoutError, MissingFile, StoreError, UsageError
from pipeline.files import open_sink, open_tree

if TYPE_CHECKING:
    from pipeline.files import Tree
    from pipeline.trees.sinks import Sink

Status = Literal["running", "published", "rejected", "nothing-new", "failed"]
STEPS: Final = ("find", "train", "calibrate", "gate", "canary", "label", "check", "publish")
"""A night's steps in their order; one that had nothing to do has no entry."""
FILE: Final = "night.json"
_FOLDER: Final = "nights"
_NIGHT: Final = re.compile(r"\d{4}-\d{2}-\d{2}(?:T\d{2}(?:\d{2})?)?")


def now() -> datetime:
    """Return the time, in milliseconds, UTC."""
    time = datetime.now(UTC)
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def check_night(name: str) -> str:
    """Return a night's name: a date, with an hour where there are several a day.

    Names sort as nights follow each other.

    >>> check_night("2026-11-24"), check_night("2026-11-24T0600")
    ('2026-11-24', '2026-11-24T0600')

    Raises:
        UsageError: it is none.
    """
    try:
        if _NIGHT.fullmatch(name) and datetime.fromisoformat(name[:10]):
            return name
    except ValueError:
        pass
    raise UsageError(f"a night is a date as 2026-11-24, or 2026-11-24T0600, not {name!r}")


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", validate_assignment=True)


class Step(_Part):
    """One step: when, and its figures; `ended` is None where it was stopped."""

    name: str
    began: datetime
    ended: datetime | None = None
    figures: dict[str, Any] = Field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """How long it took, of the attempt that ended it."""
        return None if self.ended is None else (self.ended - self.began).total_seconds()


class Images(_Part):
    """Images in the bucket against the labels of the night before.

    listed = same + new + changed + of_truth + repeated.
    """

    listed: int = 0
    same: int = 0
    """With a label, and the same file as then."""
    new: int = 0
    changed: int = 0
    gone: int = 0
    """With a label, and no longer in the bucket."""
    of_truth: int = 0
    """Labelled by people: left alone."""
    repeated: int = 0
    """Listed again under the same name."""


class Model(_Part):
    """A model that a night labelled with, and where it comes from."""

    uri: str
    """What `segmill label --model` takes; several are joined by the ensemble's URI."""
    digest: str
    """Of the network and its weights."""
    label_digest: str
    """Of the network and all that changes its labels: what published rows carry."""
    night: str
    """When it came to be, or was first used."""
    folder: str | None = None
    """The model directory, for a model that a night trained."""
    parent: str | None = None
    """The digest of the model that it was fine-tuned from."""
    recipe: str | None = None
    trained_on: dict[str, Any] = Field(default_factory=dict)
    """Stores and versions that it learned from."""
    scores: dict[str, Any] = Field(default_factory=dict)
    """On held-out truth: miou, pixel_accuracy, classes (name -> iou), images."""


class Condition(_Part):
    """One condition of the gate or of the checks, and what came of it."""

    name: str
    """As people read it: "mIoU, against the champion"."""
    kind: Literal["absolute", "relative", "fail-if", "drift"]
    figure: float | None = None
    """The figure that decides; None where it could not be measured, which fails."""
    interval: tuple[float, float] | None = None
    """95 %, paired bootstrap over images, where there is one."""
    limit: float | None = None
    passed: bool
    why: str | None = None
    """In words, where figure and limit don't say it all."""


class Published(_Part):
    """The snapshot that a night published."""

    store: str
    base_version: int | None = None
    """The version before; None for the first night."""
    version: int
    tag: str
    rows: int
    """Pseudo-labelled rows of the snapshot."""
    added: int = 0
    removed: int = 0
    truth_rows: int = 0


class Attempt(_Part):
    """One process that worked on the night."""

    began: datetime
    host: str
    pid: int
    ended: datetime | None = None
    """None: it was killed, or still runs."""
    outcome: str | None = None


class RolledBack(_Part):
    """That a night's labels were taken back."""

    at: datetime
    to: str | None
    """The night whose labels are in force since."""
    version: int
    """The version that the rollback made."""


class Night(_Part):
    """Everything about one night."""

    id: str
    status: Status = "running"
    began: datetime = Field(default_factory=now)
    ended: datetime | None = None
    config: str = ""
    """A digest of the configuration that it ran by."""
    caught_up: list[str] = Field(default_factory=list)
    """Nights that were missed before it: this one does their work."""
    attempts: list[Attempt] = Field(default_factory=list)
    steps: list[Step] = Field(default_factory=list)
    images: Images = Field(default_factory=Images)
    champion: Model | None = None
    """The model of the labels in force before this night; None before the first."""
    challenger: Model | None = None
    """The model that this night labels with; equal to the champion's where that is kept."""
    kept: bool = False
    """Whether the champion was kept: nothing was trained."""
    gate: list[Condition] = Field(default_factory=list)
    checks: list[Condition] = Field(default_factory=list)
    """Of the canary and of all labels: drift against the night before."""
    drift: dict[str, Any] = Field(default_factory=dict)
    """The figures of `pipeline.refresh.drift`, for all labels of the night."""
    expected: dict[str, Any] = Field(default_factory=dict)
    """Expected quality without truth: `miou`, `accuracy`, `coverage`, `classes`."""
    published: Published | None = None
    rolled_back: RolledBack | None = None
    reasons: list[str] = Field(default_factory=list)
    """Why it was rejected, or failed, one line each."""
    sums: dict[str, int] = Field(default_factory=dict)
    """inputs = done + skipped + failed, of labelling."""
    paths: dict[str, str] = Field(default_factory=dict)
    """Files of the night: thresholds, quality, by_hand, audit, page."""
    webhook: str | None = None
    """What came of telling it: "200", or the error."""

    def step(self, name: str) -> Step | None:
        """Return a step that began, by its name."""
        return next((s for s in self.steps if s.name == name), None)

    def ended_step(self, name: str) -> bool:
        """Tell whether a step is over and need not be done again."""
        step = self.step(name)
        return step is not None and step.ended is not None

    def begin(self, name: str) -> Step:
        """Note that a step begins, anew where it was stopped."""
        self.steps = [s for s in self.steps if s.name != name]
        step = Step(name=name, began=now())
        self.steps.append(step)
        return step

    @property
    def final(self) -> bool:
        """Whether the night is decided: it won't be run again."""
        return self.status in ("published", "rejected")


@dataclass(frozen=True)
class Nights:
    """The records below a work directory, which may be a URL."""

    work: str
    _sink: Sink = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sink", open_sink(self.work, durable=True))

    @property
    def sink(self) -> Sink:
        """The work directory, for writing."""
        return self._sink

    @property
    def tree(self) -> Tree:
        """The work directory, for reading."""
        return open_tree(self.work)

    def folder(self, night: str) -> str:
        """Return a night's folder, relative to the work directory."""
        return f"{_FOLDER}/{night}"

    def url(self, night: str, name: str = "") -> str:
        """Return where a night's file lies."""
        return self._sink.url_of(f"{self.folder(night)}/{name}".rstrip("/"))

    def names(self) -> list[str]:
        """Return the nights that have a record, oldest first."""
        try:
            held = self.tree.names(_FOLDER)
        except LayoutError:
            return []
        return sorted(n for n in held if _NIGHT.fullmatch(n))

    def find(self, night: str) -> Night | None:
        """Return a night's record, None where there is none.

        Raises:
            StoreError: it is damaged.
        """
        name = f"{self.folder(night)}/{FILE}"
        try:
            text = self.tree.read(name)
        except (LayoutError, MissingFile):
            return None
        try:
            return Night.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise StoreError(
                f"{self._sink.url_of(name)}: no record of a night ({place}: {first['msg']}); "
                "restore it, or remove the night's folder to run the night again"
            ) from None

    def read(self, night: str) -> Night:
        """Return a night's record.

        Raises:
            UsageError: there is none.
        """
        found = self.find(night)
        if found is None:
            known = ", ".join(self.names()[-5:]) or "none"
            raise UsageError(f"{self.work}: no night {night!r}; the last: {known}")
        return found

    def newest(self, count: int | None = None) -> list[Night]:
        """Return the records of the last nights, newest first."""
        names = self.names()[::-1][:count]
        return [night for name in names if (night := self.find(name)) is not None]

    def write(self, night: Night) -> None:
        """Write a night's record, whole or not at all."""
        text = night.model_dump_json(indent=1).encode() + b"\n"
        self._sink.write(f"{self.folder(night.id)}/{FILE}", text)
