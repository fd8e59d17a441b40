"""What a refresh is told: one YAML file, checked whole before anything is touched.

    config = read_config("refresh.yaml")

Relative paths are relative to where the command runs, as on every verb's command line.
`EXAMPLE` is such a file with a comment for each key; a test reads it.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.refresh.limits import Limits

Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Truth(_Part):
    """The store with labels by people, and which of its rows no model ever learns from."""

    store: Text
    held_out: Text = "split = 'val'"


class Images(_Part):
    """What is labelled: a directory, bucket, list or store."""

    source: Text
    dataset: str = ""
    where: str | None = None


class Training(_Part):
    """How a challenger is made, and when it is worth it."""

    recipe: Text
    start: Literal["champion", "recipe"] = "champion"
    """Which weights it starts from."""
    learn_from: Literal["truth", "truth and labels"] = "truth and labels"
    """The labels are the newest published ones, as their night's thresholds show them."""
    method: str | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    epochs: Annotated[int, Field(gt=0)] | None = None
    split: Text = "train"
    val_split: Text = "val"
    """Picks the best weights; other images than `held_out`, or the gate is biased."""
    min_new: Annotated[int, Field(ge=0)] = 1
    """Images that are new or changed since the last training; fewer keep the champion."""
    workers: Annotated[int, Field(ge=1)] | None = None


class Labelling(_Part):
    """How images are labelled; as the options of `segmill label`."""

    tta: str | None = None
    input_size: str | None = None
    window: str | None = None
    overlap: float | None = None
    refine: str = "none"
    precision: str = "fp32"
    batch_size: str = "auto"
    shard_images: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    max_errors: str = "1%"
    """Images that may fail, of those to be labelled: more reject the night."""
    runner: Literal["auto", "local", "ray"] = "auto"
    address: str | None = None
    actors: str | None = None
    gpus_per_actor: Annotated[float, Field(ge=0)] | None = None

    @field_validator("batch_size", "actors", "max_errors", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("max_errors")
    @classmethod
    def _tolerance(cls, value: str) -> str:
        number = value.removesuffix("%")
        if not number.replace(".", "", 1).isdigit() or (number == value and "." in number):
            raise ValueError("is a count or a share as 1%")
        return value

    def allowed(self, inputs: int) -> int:
        """Return how many of the inputs may fail."""
        if self.max_errors.endswith("%"):
            return int(inputs * float(self.max_errors[:-1]) / 100)
        return int(self.max_errors)


class Calibration(_Part):
    """The promise on precision: as `segmill pseudo-label` takes it."""

    target: Annotated[float, Field(gt=0, lt=1)] = 0.95
    quota: Share = 0.5
    bound: Literal["design", "wilson", "bootstrap"] = "design"


class Scores(_Part):
    """Scores, over all classes and of single ones, 0..1."""

    miou: Share | None = None
    classes: dict[str, Share] = Field(default_factory=dict)


class Worse(_Part):
    """By how much the challenger may be worse than the champion; null leaves a condition out."""

    miou: Share | None = 0.005
    """The lower end of the difference's 95 % interval must not lie further below 0."""
    classes: Share | None = 0.05
    """Any class: rejected when its IoU falls by more, and the whole interval is below 0."""


class Gate(_Part):
    """What held-out truth must say before a model labels anything that is published."""

    least: Scores = Scores()
    worse: Worse = Worse()
    fail_if: tuple[str, ...] = ()
    """Conditions as `segmill evaluate --fail-if` takes them."""
    group: str | None = None
    """Images that are resampled together: a column, or COLUMN:REGEX, as `--bootstrap-by`."""

    @field_validator("fail_if")
    @classmethod
    def _conditions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from pipeline.metrics.gates import parse

        for text in value:
            parse(text)
        return value


class Drift(_Part):
    """Limits on what changes between two nights' labels; null leaves one out."""

    canary: Count = 256
    """Images, drawn by a hash of their paths, that are labelled and checked before the rest."""
    least_images: Annotated[int, Field(ge=1)] = 20
    """Shares of fewer images than this are not judged."""
    class_shares: Share | None = 0.1
    """Most total variation distance between the classes' shares, on images of both nights."""
    bucket: Share | None = 0.25
    """The same on all images: new ones may show other things."""
    vanished: Share | None = 0.002
    """A class with this share of the pixels may not shrink to a tenth, on images of both nights."""
    confidence: Share | None = 0.1
    """Most fall of the mean confidence."""
    ignored: Share | None = 0.15
    """Most rise of the share of pixels that the thresholds leave out."""
    most_ignored: Share | None = 0.9
    """Most such share at all: the guard against collapse over many nights."""
    entropy: Share | None = 0.15
    """Most fall of the classes' normalised entropy (0: one class, 1: all alike)."""
    least_entropy: Share | None = 0.05
    """Least such entropy at all: the guard against collapse over many nights."""
    churn: Share | None = 0.3
    """Most share of pixels whose class changes, in images that did not."""
    gone: Share | None = 0.2
    """Most share of labelled images that the listing no longer has: a bucket half listed."""

    def limits(self) -> Limits:
        """Return the limits on compositions and changes."""
        from pipeline.refresh.limits import Limits

        return Limits(**{f.name: getattr(self, f.name) for f in fields(Limits)})


class Hysteresis(_Part):
    """When a pixel gives its label up for another."""

    margin: Share = 0.1
    """The new class must be this much more confident than the old one was."""


class Lists(_Part):
    """Lists for people; as the options of `segmill pseudo-label`."""

    by_hand: Annotated[int, Field(ge=0, le=100_000)] = 100
    audit: Annotated[int, Field(ge=0, le=100_000)] = 50
    scene: str | None = None


class Webhook(_Part):
    """Where the outcome is posted as JSON."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    timeout: Annotated[float, Field(gt=0, le=60)] = 10


class Keep(_Part):
    """What is kept of past nights; the champion always, records of nights always."""

    nights: Annotated[int, Field(ge=1)] = 14
    """Staged labels and pages."""
    models: Annotated[int, Field(ge=1)] = 7
    """Nights whose rejected or replaced models stay."""


class Config(_Part):
    """A refresh."""

    truth: Truth
    images: Images
    labels: Text
    """The published store."""
    work: Text
    """Records, staged labels, pages."""
    models: Text
    model: str | tuple[Text, ...] | None = None
    """Without training: what labels. With it: the first champion."""
    training: Training | Literal["keep"] = "keep"
    label: Labelling = Labelling()
    calibration: Calibration = Calibration()
    gate: Gate = Gate()
    drift: Drift = Drift()
    hysteresis: Hysteresis | None = Hysteresis()
    lists: Lists = Lists()
    tag: str = "night-{night}"
    webhook: Webhook | None = None
    lease_minutes: Annotated[float, Field(gt=0.01, le=1440)] = 10
    """How long a killed run on another machine keeps others out."""
    keep: Keep = Keep()

    @field_validator("tag")
    @classmethod
    def _tagged(cls, value: str) -> str:
        if "{night}" not in value or "/" in value or value.startswith("."):
            raise ValueError("must hold {night}, and no slash, as night-{night}")
        return value

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.training == "keep" and self.model is None:
            raise ValueError("name a model, or a training that makes one")
        places = {"labels": self.labels, "truth.store": self.truth.store, "work": self.work,
                  "models": self.models, "images.source": self.images.source}  # fmt: skip
        seen: dict[str, str] = {}
        for key, place in places.items():
            other = seen.setdefault(_place(place), key)
            if other != key:
                raise ValueError(f"{key} and {other} are the same place: {place}")
        return self

    @property
    def model_uri(self) -> str | None:
        """The configured model, or the ensemble of several, by absolute names."""
        if self.model is None:
            return None
        from pipeline.models.ensemble import uri_of
        from pipeline.models.uri import absolute

        named = (self.model,) if isinstance(self.model, str) else self.model
        return uri_of([absolute(m) for m in named])

    def tag_of(self, night: str) -> str:
        """Return the tag of a night's snapshot."""
        return self.tag.replace("{night}", night)

    def digest(self) -> str:
        """Return a text that is another one for another configuration."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def _place(url: str) -> str:
    from pipeline.files import local_path

    path = local_path(url)
    return url.rstrip("/") if path is None else path.rstrip("/")


def read_config(path: str | Path) -> Config:
    """Read a refresh's file.

    Raises:
        UsageError: it cannot be read, is no YAML, or a key is unknown, missing or out of its range;
            the message names each.
    """
    try:
        held = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path}: cannot be read: {cause}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(held, dict):
        raise UsageError(f"{path}: holds no keys; `segmill refresh --example` prints a file")
    try:
        return Config.model_validate(held)
    except ValidationError as error:
        raise UsageError(f"{path}: {'; '.join(map(_said, error.errors()))}") from None


def _said(fault: Any) -> str:
    place = ".".join(str(p) for p in fault["loc"] if str(p) not in _UNIONS)
    if fault["type"] == "extra_forbidden":
        return f"no key is called {place!r}; known: {', '.join(_known(fault['loc']))}"
    if fault["type"] == "missing":
        return f"{place} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    got = f", not {fault['input']!r}" if isinstance(fault["input"], str | int | float) else ""
    return f"{place}: {message}{got}" if place else message


_UNIONS: Final = ("Training", "literal['keep']", "str", "tuple[constrained-str, ...]")


def _known(place: tuple[Any, ...]) -> list[str]:
    """Return the keys beside one that is none."""
    kind: Any = Config
    for part in (p for p in place[:-1] if p not in _UNIONS):
        held = kind.model_fields[part].annotation
        options = getattr(held, "__args__", (held,))
        kind = next(o for o in options if isinstance(o, type) and issubclass(o, _Part))
    return sorted(kind.model_fields)


EXAMPLE: Final = """\
# segmill refresh refresh.yaml      (docs/refresh.md explains every key)

truth:
  store: stores/camvid            # labels by people
  held_out: "split = 'val'"       # rows that no model learns from: whole sequences, not frames
images:
  source: s3://bucket/frames      # what is labelled: as `segmill label` takes it
  dataset: frames                 # the images' name in the rows
labels: stores/labels             # the published store; made on the first night
work: refresh/work                # records of nights, staged labels, pages
models: refresh/models            # models that nights train; champion.json names the one in force

model: run:models/first           # the first champion; without training, what labels every night
training: keep                    # or:
# training:
#   recipe: camvid-fpn
#   start: champion               # or recipe: weights that it starts from
#   learn_from: truth and labels  # or truth
#   minutes: 60
#   val_split: test               # picks the best weights; not the rows of held_out
#   min_new: 100                  # fewer new images keep the champion

label:
  tta: flip
  max_errors: 1%                  # images that may fail; more reject the night
  runner: auto
calibration:
  target: 0.95                    # precision that is promised
gate:                             # on held-out truth
  least:
    miou: 0.35
    classes: {Road: 0.8}
  worse:                          # than the champion
    miou: 0.005                   # the 95 % interval of the difference must not reach further down
    classes: 0.05                 # no class may fall by more with its whole interval below 0
  fail_if: ["classes.Car.iou < 0.3"]
  group: "image_id:^([^_]+)_"     # frames of one sequence are resampled together
drift:                            # against last night's labels
  canary: 256                     # images that are labelled and checked first
  class_shares: 0.1
  churn: 0.3
  gone: 0.2
hysteresis:
  margin: 0.1                     # a pixel changes its class only for so much more confidence
lists:
  by_hand: 100
  audit: 50
tag: night-{night}
webhook:
  url: https://example.org/hooks/segmill
lease_minutes: 10
keep:
  nights: 14
  models: 7
"""
