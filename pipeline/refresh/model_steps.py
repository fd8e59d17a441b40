"""A night's first steps: what is there, and which model may label it.

Each takes the night's `Work`, writes what it finds into the record, and can be taken again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ModelError, SegmillError, UsageError
from pipeline.labelling import LabelJob, label
from pipeline.refresh import gate as gates
from pipeline.refresh.config import Training
from pipeline.refresh.find import LISTING, find
from pipeline.refresh.models import fresh_images, named, trained_last
from pipeline.refresh.night import THRESHOLDS, Rejected, Work
from pipeline.store import Store
from pipeline.tables.location import is_table, locate

if TYPE_CHECKING:
    from pipeline.pseudo.calibrate import Calibration
    from pipeline.refresh.record import Model

_CHEAP: Final = 0.03
"""Seconds that reading a pair of label maps takes."""


def find_images(work: Work) -> None:
    """List the bucket; say what is new, changed and gone."""
    night, step = work.night, work.night.begin("find")
    found = find(work.config, work.truth, work.base, work.nights.sink, f"{work.folder}/{LISTING}")
    night.images = found.images
    step.figures |= found.images.model_dump()
    step.figures["truth_version"] = found.truth_version
    step.figures["base_version"] = None if work.base is None else work.base.version
    step.figures["base_night"] = None if work.last is None else work.last.night
    counted = found.images
    work.hooks.say(
        f"{counted.listed:,} images listed: {counted.new:,} new, {counted.changed:,} changed, "
        f"{counted.gone:,} gone, {counted.of_truth:,} labelled by people"
    )
    work.save(step)


def _gone_too_many(work: Work) -> None:
    """Reject a night whose listing lacks much of what is labelled: the bucket is half there.

    Raises:
        Rejected: it does.
    """
    images, limit = work.night.images, work.config.drift.gone
    held = images.same + images.changed + images.gone
    if limit is not None and held and images.gone / held > limit:
        raise Rejected(
            [
                f"{images.gone:,} of {held:,} labelled images are gone from the listing; "
                f"{100 * limit:g} % is allowed (drift.gone)"
            ]
        )


def choose_model(work: Work) -> None:
    """Train a challenger, or take the configured model, or keep the champion.

    Raises:
        UsageError: there is no model to begin with.
        SegmillError: training failed.
    """
    _gone_too_many(work)
    night, config = work.night, work.config
    champion = None if work.last is None else work.last.champion
    step = night.begin("train")
    work.save()
    training = config.training
    if isinstance(training, Training) and _is_due(work, training):
        night.challenger = _trained(work, training, champion)
        step.figures |= {"trained": True, "truth_version": work.truth.version}
        step.figures |= night.challenger.trained_on
    else:
        uri = config.model_uri
        if isinstance(training, Training) and champion is not None:
            uri = champion.uri
        night.challenger = _kept(work, uri or (champion.uri if champion else None), champion)
        step.figures["trained"] = False
    night.kept = work.kept
    work.save(step)


def _kept(work: Work, uri: str | None, champion: Model | None) -> Model:
    if uri is None:
        raise UsageError("there is no champion yet: name one with `model`, or a `training`")
    if champion is None or champion.uri != uri:
        parent = None if champion is None else champion.digest
        return named(work.config, uri, work.night.id, parent=parent)
    now = named(work.config, uri, champion.night)
    if now.digest != champion.digest:  # the same name, other weights
        return now.model_copy(update={"night": work.night.id, "parent": champion.digest})
    return champion.model_copy(update={"label_digest": now.label_digest})


def _is_due(work: Work, training: Training) -> bool:
    """Tell whether there is enough new to train on, or no model yet."""
    if work.last is None and work.config.model is None:
        return True
    last = trained_last(work.nights, work.night.id)
    if last is not None:
        step = last.step("train")
        if step is not None and step.figures.get("truth_version") != work.truth.version:
            return True
    elif work.last is None:  # the configured model is the first champion
        return False
    return fresh_images(work.nights, work.night) >= training.min_new


def _trained(work: Work, training: Training, champion: Model | None) -> Model:
    """Train, or go on with tonight's training; the model directory is the night's own."""
    from pipeline.training.launch import Where, launch
    from pipeline.training.recipe import read_recipe
    from pipeline.training.supervised import Listener, Plan

    start = champion if training.start == "champion" else None
    if start is not None and not start.uri.startswith("run:"):
        start = None  # a program or an ensemble has no weights to go on with
    recipe = read_recipe(
        training.recipe,
        model=None if start is None else start.uri,
        method=training.method,
        minutes=training.minutes,
        epochs=training.epochs,
    )
    store, source = _learned_from(work, training)
    out = f"{work.config.models.rstrip('/')}/{work.night.id}"
    others = work.base if "unlabelled" in recipe.method.needs else None
    plan = Plan(store, recipe, out, training.split, training.val_split, unlabelled=others)
    where = Where(work.config.label.runner, training.workers, work.config.label.address)

    def told(row: dict[str, Any]) -> None:
        work.hooks.say(f"epoch {row['epoch']}: mIoU {row.get('miou')}, {row['seconds']:.0f} s")

    result = launch(plan, where, Listener(epoch=told))
    folder = locate(out)
    model = named(
        work.config,
        f"run:{folder}",
        work.night.id,
        folder=folder,
        parent=None if start is None else start.digest,
        recipe=training.recipe,
        trained_on=source,
    )
    if result.digest != model.digest:
        raise ModelError(f"{folder}: changed since it was trained")
    return model


def _learned_from(work: Work, training: Training) -> tuple[Store, dict[str, Any]]:
    """Return what to learn from, and what it is: truth, and labels of one snapshot at most."""
    from pipeline.pseudo.view import View
    from pipeline.refresh.mixed_store import MixedStore

    source: dict[str, Any] = {"truth": work.truth.url, "truth_version": work.truth.version}
    if work.last is None or training.learn_from == "truth":
        return work.truth, source
    calibration = work.calibration(work.last.night)
    if calibration is None:
        work.hooks.say(f"thresholds of night {work.last.night} are gone: learning from truth alone")
        return work.truth, source
    labels = work.last.store
    source |= {"labels": labels.url, "labels_version": labels.version, "night": work.last.night}
    return MixedStore(work.truth, labels, View(calibration=calibration), training.split), source


# --- held-out truth -------------------------------------------------------------------------------


def held_out(work: Work, model: Model) -> Store:
    """Label the held-out images with a model, once for each model.

    Raises:
        SegmillError: the model cannot be loaded.
    """
    digest = work.plain_digest(model)
    url = work.nights.sink.url_of(f"held_out/{digest[:20]}")
    store = Store.open(url) if is_table(url) else Store.create(url, [work.space(model)])
    report = label(
        LabelJob(work.truth.url, digest, where=work.config.truth.held_out),
        store,
        work.factory(model),
        choose_runner=work.runner,
        watch=lambda report: work.hooks.watch("held-out", report),
        on_listed=lambda listed, todo: work.hooks.listed("held-out", listed, todo),
    )
    if not report.inputs:
        where = work.config.truth.held_out
        raise UsageError(f"{work.truth.url}: no row is held out ({where}); see truth.held_out")
    return store.latest()


def calibrate_model(work: Work) -> None:
    """Find tonight's thresholds by held-out truth."""
    from pipeline.pseudo.bounds import REPLICATES
    from pipeline.pseudo.calibrate import Goal, calibrate
    from pipeline.pseudo.held_out import gather

    step, config = work.night.begin("calibrate"), work.config
    work.save()
    known = _known_calibration(work)
    if known is None:
        store = held_out(work, work.challenger)
        replicates = REPLICATES if config.calibration.bound == "bootstrap" else 0
        held = gather(
            work.truth, store, work.runner(store.count(), _CHEAP),
            where=config.truth.held_out, replicates=replicates,
        )  # fmt: skip
        asked = config.calibration
        facts = {"held_out": held.images, "unpredicted": held.unpredicted, "failed": held.failed}
        known = calibrate(held, Goal(asked.target, asked.quota, asked.bound))
        known.facts.update(_facts(work))
        step.figures |= facts
    step.figures |= {"of": _identity(work), "temperature": known.temperature}
    step.figures["ece"] = {"before": known.ece_before, "after": known.ece_after}
    step.figures["by_quota"] = known.listed("starved", "unmet", "few", "unseen")
    work.nights.sink.write(f"{work.folder}/{THRESHOLDS}", known.to_json().encode() + b"\n")
    work.night.paths["thresholds"] = work.nights.url(work.night.id, THRESHOLDS)
    work.save(step)


def _identity(work: Work) -> dict[str, Any]:
    """Return what makes two nights' calibrations the same."""
    return {
        "truth": [work.truth.url, work.truth.version],
        "held_out": work.config.truth.held_out,
        "labels": work.plain_digest(work.challenger),
        "goal": work.config.calibration.model_dump(),
    }


def _known_calibration(work: Work) -> Calibration | None:
    """Return the calibration of the labels in force, where tonight's would be the same."""
    if work.last is None:
        return None
    before = work.nights.find(work.last.night)
    step = None if before is None else before.step("calibrate")
    if step is None or step.figures.get("of") != _identity(work):
        return None
    return work.calibration(work.last.night)


def _facts(work: Work) -> dict[str, str]:
    return {
        "truth": f"{work.truth.url}, version {work.truth.version}",
        "held-out rows": work.config.truth.held_out,
        "model": work.challenger.uri,
        "model_digest": work.plain_digest(work.challenger),
    }


def pass_gate(work: Work) -> None:
    """Score the challenger, and the champion on the same images.

    Raises:
        Rejected: a condition says no.
        SegmillError: nothing could be scored.
    """
    night, config = work.night, work.config
    step = night.begin("gate")
    work.save()
    mine = held_out(work, work.challenger)
    theirs = None
    if work.last is not None and not work.kept:
        theirs = held_out(work, work.last.champion)
    figures = gates.measure(
        work.truth, config.truth.held_out, mine, theirs,
        work.runner(mine.count(), _CHEAP), config.gate.group,
    )  # fmt: skip
    if not figures["done"]:
        raise SegmillError(f"{work.truth.url}: no held-out image has truth and a label")
    scores = gates.told(figures)
    night.challenger = work.challenger.model_copy(update={"scores": scores})
    night.gate = gates.judge(config.gate, figures)
    step.figures |= scores
    if figures.get("baseline"):
        step.figures["champion"] = figures["baseline"]["miou"]
    why = gates.reasons(night.gate)
    if why:
        work.save()
        raise Rejected(why)
    work.save(step)
