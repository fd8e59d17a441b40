"""A night from end to end: find, train, calibrate, gate, label, check, publish or reject.

    night = refresh(config, "2026-11-24", hooks)

Every step is written down when it is over, so that a run that was killed goes on with the next one;
what a step left half done, its own means take up again (labelling, training and settling resume).
Until the publishing commit, last night's labels are in force.
"""

from __future__ import annotations

import os
import platform
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import UsageError
from pipeline.refresh.label_steps import (
    MOVED,
    STAGED,
    canary,
    check_labels,
    label_images,
    publish_night,
)
from pipeline.refresh.lease import Lease, LeaseLost
from pipeline.refresh.model_steps import calibrate_model, choose_model, find_images, pass_gate
from pipeline.refresh.models import options_of, point_to, tidy
from pipeline.refresh.night import Hooks, Rejected, Work
from pipeline.refresh.pages import write_pages
from pipeline.refresh.record import Attempt, Night, Nights, check_night, now
from pipeline.refresh.state import InForce, in_force, open_published
from pipeline.store import Store
from pipeline.tables.location import locate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.refresh.config import Config
    from pipeline.refresh.record import Model

_STEPS: Final[Mapping[str, Callable[[Work], None]]] = {
    "find": find_images,
    "train": choose_model,
    "calibrate": calibrate_model,
    "gate": pass_gate,
    "canary": canary,
    "label": label_images,
    "check": check_labels,
    "publish": publish_night,
}
_MOST_MISSED: Final = 366


def refresh(config: Config, name: str, hooks: Hooks | None = None, *, again: bool = False) -> Night:
    """Do a night's work, or go on with it; return its record.

    A night that is published or rejected is left as it is; `again` does a rejected or failed one
    anew, from its listing on.

    Raises:
        LeaseHeld: another refresh is at work.
        UsageError: a later night is published already.
        SegmillError: a step failed; the record says so, and the same command goes on.
    """
    check_night(name)
    options_of(config)  # what is wrong with them is told before anything is made
    hooks = hooks or Hooks()
    with Lease.take(locate(config.labels), config.lease_minutes) as lease:
        nights = Nights(config.work)
        found = in_force(open_published(config.labels), nights)
        night = _opened(config, nights, name, found, again=again)
        if night.final and not again:
            return night
        _close_others(nights, found, name, hooks)
        work = _work(config, nights, night, found, lease, hooks)
        _attempt(work, found)
        return night


def _opened(
    config: Config, nights: Nights, name: str, found: InForce | None, *, again: bool
) -> Night:
    """Return the night's record: a new one, or the one to go on with."""
    night = nights.find(name)
    if found is not None and found.night > name and (night is None or not night.final):
        raise UsageError(
            f"night {found.night} is published already, and {name} is before it: nights go forward"
        )
    if night is None:
        night = Night(id=name, caught_up=_missed(nights, name))
    if again and night.status == "published":
        raise UsageError(f"night {name} is published; --rollback takes it back")
    published = found is not None and found.night == name
    if published or (night.final and not again):
        return night
    if again or night.status == "nothing-new" or _is_stale(night, found, config):
        _forget(config, nights, night)
    return night


def _is_stale(night: Night, found: InForce | None, config: Config) -> bool:
    """Tell whether what was done is of other labels in force, or of another configuration."""
    step = night.step("find")
    if step is None or step.ended is None:
        return bool(night.steps)
    base = None if found is None else found.night
    return step.figures.get("base_night") != base or night.config != config.digest()


def _forget(config: Config, nights: Nights, night: Night) -> None:
    """Begin a night anew."""
    _remove_work(config, nights, night.id)
    if night.challenger is not None and night.challenger.folder and night.published is None:
        from pipeline.files import open_sink

        open_sink(config.models).remove_folder(night.id)
    kept = {n: getattr(night, n) for n in ("id", "began", "attempts", "caught_up")}
    for key, value in Night(**kept):
        setattr(night, key, value)


def _remove_work(config: Config, nights: Nights, name: str) -> None:
    for folder in (STAGED, MOVED):
        nights.sink.remove_folder(f"{nights.folder(name)}/{folder}")
    store = open_published(config.labels)
    if store is not None and not any(_of_night(f.path, name) for f in store.fragments()):
        store.sink().remove_folder(f"data/night-{name}")


def _of_night(path: str, name: str) -> bool:
    return path.startswith(f"data/night-{name}/")


def _missed(nights: Nights, name: str) -> list[str]:
    """Return the days without a night since the last one."""
    before = [n for n in nights.names() if n < name]
    if not before:
        return []
    last, tonight = date.fromisoformat(before[-1][:10]), date.fromisoformat(name[:10])
    days = min((tonight - last).days - 1, _MOST_MISSED)
    return [str(last + timedelta(days=n + 1)) for n in range(days)]


def _close_others(nights: Nights, found: InForce | None, name: str, hooks: Hooks) -> None:
    """Put an end to earlier nights that were killed: this one does their work."""
    for other in nights.newest(30):
        if other.status != "running" or other.id >= name:
            continue
        if found is not None and found.night == other.id:
            other.status = "published"  # killed between the commit and the record
        else:
            other.status = "failed"
            other.reasons.append(f"it was killed, and night {name} does its work")
            hooks.say(f"night {other.id} was not finished; {name} does its work")
        other.ended = now()
        nights.write(other)


def _work(
    config: Config,
    nights: Nights,
    night: Night,
    found: InForce | None,
    lease: Lease,
    hooks: Hooks,
) -> Work:
    """Return the night at work, on the snapshots that it began with."""
    step = night.step("find")
    truth_version = None if step is None else step.figures.get("truth_version")
    truth = Store.open(config.truth.store, truth_version)
    last = found if found is None or found.night != night.id else None
    if last is not None and step is not None and step.ended is not None:
        base = Store.open(config.labels, step.figures["base_version"])
        last = InForce(base, last.night, last.champion, last.version)
    return Work(config, nights, night, truth, last, lease.check, hooks)


def _attempt(work: Work, found: InForce | None) -> None:
    """Do what is left of a night, and write down how it ended."""
    night = work.night
    night.status, night.config, night.reasons = "running", work.config.digest(), []
    if work.last is not None:
        night.champion = work.last.champion
    attempt = Attempt(began=now(), host=platform.node(), pid=os.getpid())
    night.attempts = [*night.attempts, attempt]
    work.save()
    try:
        if found is not None and found.night == night.id:
            _finish_published(work, found)
        else:
            _steps(work)
    except Rejected as rejected:
        night.status, night.reasons = "rejected", rejected.reasons
        _remove_moved(work)
        _tidy(work, None if work.last is None else work.last.champion)
    except LeaseLost:
        raise  # the record is another process's by now
    except (Exception, KeyboardInterrupt) as error:
        night.status = "failed"
        night.reasons = [" ".join(str(error).split()) or type(error).__name__]
        _end(work, attempt)
        raise
    _end(work, attempt)


def _steps(work: Work) -> None:
    night = work.night
    for name, step in _STEPS.items():
        if night.ended_step(name):
            continue
        step(work)
        if name == "train" and _nothing_new(work):
            night.status = "nothing-new"
            return
    night.status = "published"
    _after_publication(work)


def _nothing_new(work: Work) -> bool:
    """Tell whether the snapshot in force is what tonight would publish."""
    images = work.night.images
    return work.kept and not (images.new or images.changed or images.gone)


def _finish_published(work: Work, found: InForce) -> None:
    """Do what is left of a night whose commit is there: its tag, its record, the pointer."""
    night, tag = work.night, work.config.tag_of(work.night.id)
    step = night.step("publish") or night.begin("publish")
    if night.published is None:
        night.published = published_as(found, tag)
    night.challenger = night.challenger or found.champion
    step.figures |= night.published.model_dump()
    night.status = "published"
    work.save(step)
    _after_publication(work)


def published_as(found: InForce, tag: str) -> Any:
    """Return the record of a publication whose commit is there, and make sure of its tag."""
    from pipeline.refresh.publish import tagged

    return tagged(Store.open(found.store.url, found.version), tag)


def _after_publication(work: Work) -> None:
    config, night = work.config, work.night
    point_to(config, work.challenger, night.id)
    _tidy(work, work.challenger)


def _tidy(work: Work, champion: Model | None) -> None:
    """Remove old models and what old nights staged; records, thresholds, lists and pages stay."""
    gone = tidy(work.config, work.nights, champion)
    if gone:
        work.hooks.say(f"models of old nights removed: {', '.join(gone)}")
    for name in work.nights.names()[::-1][work.config.keep.nights :]:
        for part in (STAGED, MOVED, "listing.parquet"):
            remove = work.nights.sink.remove if "." in part else work.nights.sink.remove_folder
            remove(f"{work.nights.folder(name)}/{part}")


def _remove_moved(work: Work) -> None:
    """Remove what a rejected night wrote beside the published labels; no version names it."""
    store = open_published(work.config.labels)
    if store is not None:
        store.sink().remove_folder(f"data/night-{work.night.id}")
    work.nights.sink.remove_folder(f"{work.folder}/{MOVED}")


def _end(work: Work, attempt: Attempt) -> None:
    attempt.ended, attempt.outcome = now(), work.night.status
    work.night.ended = attempt.ended
    announce(work.config, work.night, work.hooks)


def announce(config: Config, night: Night, hooks: Hooks) -> None:
    """Write a night's record and the pages, and tell its outcome where the configuration says."""
    nights = Nights(config.work)
    nights.write(night)
    why = write_pages(nights, night)
    if why is not None:
        hooks.say(why)
    nights.write(night)
    if config.webhook is not None:
        from pipeline.refresh.webhook import tell

        night.webhook = tell(config.webhook, night)
        nights.write(night)
