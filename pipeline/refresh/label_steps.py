"""A night's last steps: label what needs it, look at the labels, publish them in one commit."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from pipeline.labelling import LabelJob, label
from pipeline.refresh.drift import Changes, Composition
from pipeline.refresh.find import LISTING, first_of_each, read_listing
from pipeline.refresh.gate import reasons
from pipeline.refresh.hysteresis import Scale
from pipeline.refresh.keys import COLUMNS, Listed, Rows, read_keys
from pipeline.refresh.limits import compare
from pipeline.refresh.night import Rejected, Work
from pipeline.refresh.publish import Publication, Staying, publish
from pipeline.refresh.record import Condition
from pipeline.refresh.settling import Moved, Plan, Task, tasks
from pipeline.samples import with_digest
from pipeline.store import Store
from pipeline.tables.location import is_table, locate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.refresh.settling import Old
    from pipeline.runs.report import RunReport

_SETTLE_SECONDS: Final = 0.02
_BLOCK: Final = 8
"""Neighbours in the listing that are drawn together: they lie together in the store as well."""
STAGED, MOVED = "staged", "moved"


@dataclass(frozen=True, slots=True)
class NightJob(LabelJob):
    """The images of a night's listing that need a label."""

    chosen: Callable[[], Iterator[pa.RecordBatch]] = field(default=lambda: iter(()))
    part: str = ""

    def identity(self) -> list[str]:
        """Return what makes two commands the same run."""
        return ["refresh", self.source, self.digest, self.part, str(self.shard_images)]

    def samples(self) -> Iterator[pa.RecordBatch]:
        """Return those images."""
        return self.chosen()


@dataclass(frozen=True, slots=True, eq=False)
class Todo:
    """Tonight's listing against the labels in force."""

    listed: Listed
    staying: Staying
    needed: NDArray[np.bool_]
    """Of the listing: what has no label of tonight's labeller; an image once."""

    @classmethod
    def of(cls, work: Work) -> Todo:
        """Compare the night's listing with the snapshot that it began with."""
        batches = read_listing(work.nights.tree, f"{work.folder}/{LISTING}")
        listed = Listed.joined([Listed.of(batch) for batch in batches])
        staying = Staying.of(work.base, listed, work.challenger.label_digest)
        once = np.zeros(len(listed.high), np.bool_)
        once[first_of_each(listed)] = True
        return cls(listed, staying, staying.missing(listed) & once)

    def canary(self, count: int) -> NDArray[np.bool_]:
        """Return about `count` of the images that need a label, in blocks of neighbours."""
        places = np.flatnonzero(self.needed)
        blocks = np.arange(len(places)) // _BLOCK
        number = int(blocks[-1]) + 1 if len(blocks) else 0
        wanted = min(number, -(-count // _BLOCK))
        # By the names of the images themselves: the same blocks in every attempt.
        order = np.argsort(self.listed.low[places[::_BLOCK]], kind="stable")[:wanted]
        found = np.zeros(len(self.needed), np.bool_)
        found[places[np.isin(blocks, order)]] = True
        return found


def _samples(work: Work, wanted: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    first = 0
    for batch in read_listing(work.nights.tree, f"{work.folder}/{LISTING}"):
        mine = wanted[first : first + batch.num_rows]
        first += batch.num_rows
        if mine.any():
            yield with_digest(batch.filter(pa.array(mine)), work.challenger.label_digest)


def _staged(work: Work, space: LabelSpace | None = None) -> Store:
    """Return the night's own store of labels that nobody has seen yet."""
    url = work.nights.url(work.night.id, STAGED)
    return Store.open(url) if is_table(url) else Store.create(url, [space or _space(work)])


def _space(work: Work) -> LabelSpace:
    """Return the challenger's classes: by tonight's calibration, without loading the model."""
    calibration = work.calibration()
    return work.space(work.challenger) if calibration is None else calibration.space


def _label(work: Work, todo: Todo, wanted: NDArray[np.bool_], part: str) -> RunReport:
    job = NightJob(
        f"night {work.night.id}",
        work.challenger.label_digest,
        shard_images=work.config.label.shard_images,
        chosen=lambda: _samples(work, wanted),
        part=part,
    )
    return label(
        job,
        _staged(work),
        work.factory(work.challenger),
        choose_runner=work.runner,
        watch=lambda report: work.hooks.watch(part, report),
        on_listed=lambda listed, count: work.hooks.listed(part, listed, count),
    )


def canary(work: Work) -> None:
    """Label a few images of all that need it, and look at them before the rest is labelled.

    Raises:
        Rejected: they differ too much from last night's, or too many fail.
    """
    night, count = work.night, work.config.drift.canary
    todo = Todo.of(work)
    if not count or int(todo.needed.sum()) <= 2 * count:
        return  # labelling all of it is as good
    step = night.begin("canary")
    work.save()
    report = _label(work, todo, todo.canary(count), "canary")
    step.figures |= {"images": report.inputs, "failed": report.failed}
    if report.failed > max(1, work.config.label.allowed(report.inputs)):
        raise Rejected([f"canary: {report.failed} of {report.inputs} images cannot be labelled"])
    _, rows, changes = _settle(work, todo, write=False)
    checks = _renamed(compare(None, rows, changes, work.config.drift.limits()), "canary: ")
    night.checks = checks
    step.figures["churn"] = changes.figures()["churn"]
    why = reasons(checks)
    if why:
        work.save()
        raise Rejected(why)
    work.save(step)


def _renamed(checks: Sequence[Condition], before: str) -> list[Condition]:
    return [
        c.model_copy(update={"name": before + c.name, "why": c.why and before + c.why})
        for c in checks
    ]


def label_images(work: Work) -> None:
    """Label all that needs it into the night's own store.

    Raises:
        Rejected: more images failed than may.
    """
    night = work.night
    step = night.begin("label")
    work.save()
    todo = Todo.of(work)
    report = _label(work, todo, todo.needed, "label")
    night.sums = {n: getattr(report, n) for n in ("inputs", "done", "skipped", "failed")}
    step.figures |= {**night.sums, "seconds": report.to_dict().get("seconds")}
    allowed = work.config.label.allowed(report.inputs)
    if report.failed > allowed:
        work.save()
        raise Rejected(
            [f"{report.failed:,} images could not be labelled, label.max_errors allows {allowed:,}"]
        )
    work.save(step)


# --- what they come to ----------------------------------------------------------------------------


def _settle(work: Work, todo: Todo, *, write: bool) -> tuple[list[Moved], Composition, Changes]:
    """Settle the staged rows against last night's; write them as fragments, unless only looked at.

    The fragments are in the published store's folder, and in none of its versions.
    """
    staged, space = _staged(work), _space(work)
    hysteresis = work.config.hysteresis
    last = None if work.last is None else work.calibration(work.last.night)
    mine = work.calibration()
    scales: tuple[Scale | None, Scale | None] = (None, None)
    if last is not None and mine is not None and last.space == mine.space == space:
        scales = Scale.of(space, mine.maps), Scale.of(space, last.maps)
    url = locate(work.config.labels)
    if write and not is_table(url):  # the first night: a store without rows
        Store.create(url, [space])
    plan = Plan(
        staged, work.base, url, work.nights.url(work.night.id, MOVED) if write else "", space,
        work.night.id, date.fromisoformat(work.night.id[:10]).toordinal(), work.night.began,
        None if hysteresis is None else hysteresis.margin, *scales,
    )  # fmt: skip
    olds = _Olds(todo.staying.rows, staged)
    runner = work.runner(staged.count(), _SETTLE_SECONDS)
    rows, changes, parts = Composition.empty(space), Changes.empty(space), []
    for outcome in runner.map(plan, tasks(staged, staged.fragments(), olds), Task.halves):
        if outcome.result is None:
            raise outcome.error or RuntimeError("a task ended without a result")
        parts.append(outcome.result)
        rows.merge(outcome.result.rows)
        changes.merge(outcome.result.changes)
    return parts, rows, changes


@dataclass(frozen=True, slots=True)
class _Olds:
    """Says where last night's rows of a staged fragment's images lie: of the same file only."""

    rows: Rows
    staged: Store

    def __call__(self, path: str, count: int) -> Sequence[Old | None]:
        if not len(self.rows):
            return [None] * count
        [fragment] = [f for f in self.staged.fragments() if f.path == path]
        found: list[Old | None] = []
        for _, batch in self.staged.scan_fragments(COLUMNS, only=[fragment]):
            high, low, fingerprint, _ = read_keys(batch)
            places = self.rows.by_row.find(high, low)
            there = places >= 0
            there[there] &= self.rows.fingerprint[places[there]] == fingerprint[there]
            for at, known in zip(places.tolist(), there.tolist(), strict=True):
                home = self.rows.paths[self.rows.fragment[at]] if known else ""
                found.append((home, int(self.rows.row[at])) if known else None)
        return found


def check_labels(work: Work) -> None:
    """Settle all labels, judge them, and compare the snapshot to be with the one in force.

    Raises:
        Rejected: a limit is passed.
    """
    night = work.night
    step = night.begin("check")
    work.save()
    todo = Todo.of(work)
    parts, fresh, changes = _settle(work, todo, write=True)
    before, staying = _composed(work, todo, fresh)
    staying.merge(fresh)
    expected = _expected(work)
    limits = work.config.drift.limits()
    checks = compare(before, staying, changes, limits) if fresh.images else []
    checks += _ignored(work, expected)
    canary_checks = [c for c in night.checks if c.name.startswith("canary")]
    night.checks = canary_checks + checks
    night.expected = expected
    number = date.fromisoformat(night.id[:10]).toordinal()
    night.drift = {
        "before": None if before is None else before.figures(),
        "after": staying.figures(number),
        "fresh": fresh.figures(),
        "changes": changes.figures(),
    }
    step.figures |= {"fragments": len(parts), "rows": fresh.images}
    step.figures["unsettled"] = sum(p.unsettled for p in parts)
    why = reasons(checks)
    if why:
        work.save()
        raise Rejected(why)
    work.save(step)


def _composed(work: Work, todo: Todo, fresh: Composition) -> tuple[Composition | None, Composition]:
    """Return what last night's pseudo-labels are made of, and those of them that stay."""
    from pipeline.training.data import Channels

    space = _space(work)
    staying = Composition.empty(space)
    if work.base is None or not len(todo.staying.rows):
        return None, staying
    if any(space.name != s.name for s in work.base.used_spaces()):
        return None, staying  # other classes: nothing to compare
    before, channels = Composition.empty(space), Channels(space)
    rows = todo.staying
    keep: dict[str, set[int]] = {}
    columns = ("height", "width", "label_space", "classes", "extra", "provenance.kind")
    numbers = {path: n for n, path in enumerate(rows.rows.paths)}
    seen: dict[str, int] = {}
    for path, batch in work.base.scan_fragments(columns, 16384):
        first = seen.get(path, 0)
        seen[path] = first + batch.num_rows
        pseudo = np.asarray(
            [kind != "truth" for kind in batch["provenance.kind"].to_pylist()], np.bool_
        )
        before.add_batch(batch.filter(pa.array(pseudo)), work.base, channels)
        if path not in keep:
            mine = rows.stays & (rows.rows.fragment == numbers[path])
            keep[path] = set(rows.rows.row[mine].tolist())
        stays = np.array([first + i in keep[path] for i in range(batch.num_rows)], np.bool_)
        if stays.any():
            staying.add_batch(batch.filter(pa.array(stays)), work.base, channels)
    return before, staying


def _expected(work: Work) -> dict[str, Any]:
    """Say what may be expected of tonight's new labels, and write the lists for people."""
    import pyarrow.parquet as pq

    from pipeline.pseudo.quality import image_schema
    from pipeline.pseudo.ranking import Lookalikes, Named
    from pipeline.pseudo.round import Lists, judge

    staged, calibration = _staged(work), work.calibration()
    if calibration is None or not staged.count():
        return {}
    asked, sink = work.config.lists, work.nights.sink
    scene = Named.parse(asked.scene) if asked.scene else Lookalikes()
    lists = Lists(asked.by_hand, scene, asked.audit, work.night.id)
    runner = work.runner(staged.count(), _SETTLE_SECONDS)
    with (
        sink.stream(f"{work.folder}/quality.parquet") as file,
        pq.ParquetWriter(file, image_schema(), compression="zstd") as writer,
    ):
        judged = judge(staged, calibration, lists, runner, on_images=writer.write_batch)
    from pipeline.pseudo import audit, ranking

    sink.write(f"{work.folder}/by_hand.csv", ranking.to_csv(judged.ranked))
    sink.write(f"{work.folder}/audit.csv", audit.to_csv(judged.drawn))
    for name in ("quality.parquet", "by_hand.csv", "audit.csv"):
        work.night.paths[name.partition(".")[0]] = work.nights.url(work.night.id, name)
    found: dict[str, Any] = judged.figures()["expected"]
    return found


def _ignored(work: Work, expected: dict[str, Any]) -> Iterator[Condition]:
    """Return the conditions on what the thresholds leave out."""
    coverage, drift = expected.get("coverage"), work.config.drift
    if coverage is None or expected.get("images", 0) < drift.least_images:
        return
    ignored = 1 - coverage
    if drift.most_ignored is not None:
        yield _limit("pixels that the thresholds leave out", ignored, drift.most_ignored)
    before = None if work.last is None else work.nights.find(work.last.night)
    known = None if before is None else before.expected.get("coverage")
    if drift.ignored is not None and known is not None and not work.kept:
        rise = ignored - (1 - known)
        yield _limit("rise of pixels that the thresholds leave out", rise, drift.ignored)


def _limit(name: str, figure: float, limit: float) -> Condition:
    return Condition(name=name, kind="drift", figure=figure, limit=limit, passed=figure <= limit)


def publish_night(work: Work) -> None:
    """Publish the night's labels in one commit, with its tag; the champion is of that commit.

    Raises:
        LeaseLost: another process took over.
        PublishedMeanwhile: another night was published since.
    """
    night = work.night
    step = night.begin("publish")
    work.save()
    todo = Todo.of(work)
    parts, _, _ = _settle(work, todo, write=True)  # read back from the notes of the check
    asked = Publication(
        work.config.labels, night.id, work.config.tag_of(night.id), work.challenger,
        None if work.last is None else work.last.night, [p.fragment for p in parts],
        todo.listed, _space(work),
    )  # fmt: skip

    def check() -> None:
        work.hooks.boundary("commit")
        work.check()

    night.published = publish(asked, work.nights, check)
    work.hooks.boundary("committed")
    night.published.removed = int((~todo.staying.stays).sum())
    step.figures |= night.published.model_dump()
    work.save(step)
