"""Models of nights: the champion, the challenger, how one becomes the other, what is kept."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import LayoutError
from pipeline.files import open_sink, open_tree
from pipeline.models.uri import parse
from pipeline.refresh.record import Model

if TYPE_CHECKING:
    from pipeline.predict.options import LabelOptions
    from pipeline.refresh.config import Config
    from pipeline.refresh.record import Night, Nights

POINTER: Final = "champion.json"


def options_of(config: Config) -> LabelOptions:
    """Return how images are labelled: soft labels, with confidence and margin."""
    from pipeline.predict.options import LabelOptions

    asked = config.label
    return LabelOptions.parse(
        batch_size=asked.batch_size,
        input_size=asked.input_size,
        window=asked.window,
        tta=asked.tta,
        min_confidence=None,
        overlap=asked.overlap,
        refine=asked.refine,
        precision=asked.precision,
        confidence=True,
        margin=True,
        kind="pseudo",
    )


def row_digest(config: Config, digest: str) -> str:
    """Return what published rows carry: what labels, and all that changes its labels."""
    from pipeline.labelling import label_digest

    plain = label_digest(digest, options_of(config))
    if config.hysteresis is None:
        return plain
    parts = [plain, "hysteresis", config.hysteresis.margin]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def digest_of(uri: str) -> str:
    """Return a model's digest; of a model directory without loading it.

    Raises:
        ModelError: there is no such model.
    """
    from pipeline.models.directory import read_description

    parsed = parse(uri)
    if parsed.kind == "run" and not parsed.options:
        found = read_description(parsed.name).get("digest")
        if found:
            return str(found)
    from pipeline.segmenter import SegmenterFactory

    return SegmenterFactory(uri).load().digest


def named(config: Config, uri: str, night: str, **more: Any) -> Model:
    """Return the model that a URI names, as a night records it."""
    digest = digest_of(uri)
    return Model(
        uri=uri, digest=digest, label_digest=row_digest(config, digest), night=night, **more
    )


def point_to(config: Config, model: Model, night: str) -> None:
    """Write which model is in force, for people and other tools; the store's log is what counts."""
    held = {"night": night, **model.model_dump(mode="json")}
    text = json.dumps(held, indent=1).encode() + b"\n"
    open_sink(config.models, durable=True).write(POINTER, text)


def tidy(config: Config, nights: Nights, champion: Model | None) -> list[str]:
    """Remove models of older nights than are kept, never the champion's; return their nights.

    Models that published labels of a kept night were made with stay as well.
    """
    sink = open_sink(config.models)
    recent = nights.names()[::-1][: config.keep.models]
    kept = {*recent, *([] if champion is None else [champion.night])}
    try:
        there = open_tree(config.models).names()
    except LayoutError:
        return []
    gone = [name for name in there if name in set(nights.names()) - kept]
    for name in gone:
        sink.remove_folder(name)
    return gone


def trained_last(nights: Nights, before: str) -> Night | None:
    """Return the last night before this one that trained a model."""
    for night in nights.newest():
        step = night.step("train")
        if night.id < before and step is not None and step.figures.get("trained"):
            return night
    return None


def fresh_images(nights: Nights, night: Night) -> int:
    """Return the images that are new or changed since the last training, or at all."""
    tonight = night.images.new + night.images.changed
    last = trained_last(nights, night.id)
    if last is None:
        return tonight
    waited = last.images.new + last.images.changed if last.published is None else 0
    later = [n for n in nights.newest() if last.id < n.id < night.id and n.published is not None]
    return max(0, tonight + sum(n.images.new + n.images.changed for n in later) - waited)
