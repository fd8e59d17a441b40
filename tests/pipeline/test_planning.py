"""What makes planning exact and small: keys, indexes, the anti-join, choices, the outlook."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.run import Run
from pipeline.runner import LocalRunner
from pipeline.runs import keys as hashing
from pipeline.runs.choice import Choice
from pipeline.runs.drive import execute
from pipeline.runs.index import Index, KeyPile, joined
from pipeline.runs.keys import as_bytes, as_numbers, keys_of, row_key, row_keys, spread
from pipeline.runs.ledger import Ledger, State
from pipeline.runs.orphans import Orphans
from pipeline.runs.outlook import foresee, past_rate, trial_rate
from pipeline.runs.planning import Planner
from pipeline.samples import (
    SCHEMA,
    batches_of,
    compact,
    cut,
    of_batch,
    one_ahead,
    to_batch,
)
from pipeline.store import Store
from tests.pipeline.run_jobs import NAMES, run_job
from tests.samples import SPACE, Labelling, sample

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.builds(
    lambda t, n: t * n, st.text(st.sampled_from("a\0é/"), min_size=1, max_size=3),
    st.sampled_from([1, 2, 300, 700]),
)  # fmt: skip


def formula(dataset: str, path: str) -> bytes:
    """The key by whole numbers of any length, as the module's head says."""
    lanes = []
    for lane in range(4):
        total = 0
        for field, text in (("path", path), ("dataset", dataset)):
            data = text.encode()
            words = [len(data)]
            words += [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
            factors = hashing._multipliers(field, len(words))
            total += sum(int(factors[n, lane]) * word for n, word in enumerate(words))
        lanes.append(total % 2**64 >> 32)
    return b"".join(lane.to_bytes(4, "big") for lane in lanes)


class TestKeys:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=12), st.integers(0, 3))
    def test_a_column_and_each_row_give_what_the_formula_gives(self, rows, skipped):
        datasets, paths = (
            pa.array([""] * skipped + [row[n] for row in rows], pa.string())[skipped:]
            for n in (0, 1)
        )
        wanted = [formula(*row) for row in rows]
        assert row_keys(datasets, paths) == wanted
        assert row_keys(datasets.dictionary_encode(), paths.cast(pa.large_string())) == wanted
        assert [row_key(*row) for row in rows] == wanted

    def test_what_differs_has_another_key(self):
        texts = ["", "\0", "\0\0\0\0", "a", "a\0", "\0a", "aaaa", "aaaa\0", "b" * 1024, "b" * 1025]
        rows = [(a, b) for a in texts for b in texts]
        assert len({row_key(*row) for row in rows}) == len(rows)
        marks = pa.array(texts)
        same = pa.array(["x"] * len(texts))
        for columns in ((marks, same), (same, marks)):
            assert len(set(keys_of(same, same, *columns).label.tolist())) == len(texts)

    def test_no_two_of_many_names_in_a_series_agree_in_a_half(self):
        """A half is 64 bits: among 200,000 names two agree with a chance of 10^-9."""
        paths = pa.array([f"s3://b/{n % 100}/img_{n:07d}.jpg" for n in range(200_000)])
        keys = keys_of(pa.array([""] * len(paths)), paths, paths, paths)
        for half in keys:
            assert len(np.unique(half)) == len(paths)

    def test_keys_are_the_same_for_good(self):
        """Golden: other processes, machines and versions reckon with them."""
        assert row_key("photos", "s3://bucket/a.jpg").hex() == "40dc82d83385d954429b91633a04822f"
        assert int(spread(pa.array(["s3://bucket/a.jpg"]), "part")[0]) == 0xC64909EF1C0756D4

    def test_nulls_are_empty_texts(self):
        none, empty = pa.array([None, "a"], pa.string()), pa.array(["", "a"])
        assert row_keys(none, none) == row_keys(empty, empty)
        assert row_keys(none.dictionary_encode(), none) == row_keys(empty, empty)


class TestIndex:
    @pytest.fixture(params=[1 << 20, 50])
    def _held(self, request, monkeypatch):
        monkeypatch.setattr("pipeline.runs.index.HELD_ROWS", request.param)

    @pytest.mark.usefixtures("_held")
    def test_it_finds_what_a_dictionary_finds(self):
        """Many keys share their upper half, some all of it; rows come in several batches."""
        rng = np.random.default_rng(0)
        rows = rng.integers(0, 2**64, (1000, 4), np.uint64)
        rows[100:500, 0] = rows[rng.integers(0, 100, 400), 0]
        rows[500:600, :2] = rows[:100, :2]
        rows[-1, 0] = rows[-2, 0] = 2**64 - 1
        pile = KeyPile(4)
        for batch in np.array_split(rows, 9):
            pile.add(*batch.T)
        assert pile.rows == 1000
        index = Index.of(pile)
        held: dict[tuple[int, int], Counter] = {}
        for high, low, label, home in rows.tolist():
            held.setdefault((high, low), Counter())[label, home] += 1
        asked = np.concatenate([rows[:, :2], rng.integers(0, 2**64, (50, 2), np.uint64)])
        asked[-20:, 0] = rows[:20, 0]
        found: dict[int, Counter] = {}
        for numbers, at in index.hits(asked[:, 0], asked[:, 1]):
            for number, place in zip(numbers.tolist(), at.tolist(), strict=True):
                row = int(index.label[place]), int(index.home[place])
                found.setdefault(number, Counter())[row] += 1
        for number, key in enumerate(map(tuple, asked.tolist())):
            assert found.get(number, Counter()) == held.get(key, Counter())

    @pytest.mark.usefixtures("_held")
    def test_indexes_join_without_what_is_gone(self):
        rng = np.random.default_rng(1)
        rows = rng.integers(0, 2**64, (300, 4), np.uint64)
        rows[:, 3] %= 4
        parts = []
        for some in np.split(rows, 3):
            pile = KeyPile(4)
            pile.add(*some.T)
            parts.append(Index.of(pile))
        whole = joined(parts, np.array([True, False, True, False]))
        left = rows[rows[:, 3] % 2 == 0]
        order = np.argsort(left[:, 0])
        for column, wanted in zip((whole.high, whole.low, whole.label, whole.home), left.T,
                                  strict=True):  # fmt: skip
            assert column.tolist() == wanted[order].tolist()

    def test_an_empty_index_has_nothing(self):
        index = Index.of(KeyPile(4))
        assert list(index.hits(np.arange(3, dtype=np.uint64), np.zeros(3, np.uint64))) == []

    def test_bytes_and_numbers_are_the_same(self):
        keys = [row_key("a", str(n)) for n in range(50)]
        assert as_bytes(*as_numbers(keys)) == keys


class TestSamples:
    def test_they_come_back_from_a_batch(self):
        listed = [
            sample("a"),
            replace(sample("b"), payload={"x": [1, None]}, split="val"),
            replace(sample("c"), payload={"x": [1, None]}),
            replace(sample("d"), payload=0),
        ]
        assert of_batch(to_batch(listed)) == listed
        assert to_batch(listed).schema == SCHEMA
        assert of_batch(to_batch([])) == []

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 7))
    def test_cutting_keeps_the_rows(self, sizes, rows):
        names = iter(range(1000))
        batches = [to_batch([sample(str(next(names))) for _ in range(size)]) for size in sizes]
        pieces = list(cut(batches, rows))
        assert [s for p in pieces for s in of_batch(p)] == [s for b in batches for s in of_batch(b)]
        assert [p.num_rows for p in pieces[:-1]] == [rows] * (len(pieces) - 1)
        assert all(0 < p.num_rows <= rows for p in pieces)

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 4), st.integers(1, 5))
    def test_long_payloads_are_cut_by_bytes_between_cells(self, sizes, cell, cells):
        names, rows = iter(range(1000)), cell * cells
        listed = [[noted(next(names), 300) for _ in range(size)] for size in sizes]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.samples.MOST_BYTES", 1000)
            pieces = list(cut(map(to_batch, listed), rows, cell))
        assert [s for p in pieces for s in of_batch(p)] == [s for some in listed for s in some]
        assert all(p.num_rows % cell == 0 for p in pieces[:-1])
        assert all(0 < p.num_rows <= rows for p in pieces)

    def test_batches_of_long_payloads_are_short(self, monkeypatch):
        monkeypatch.setattr("pipeline.samples.MOST_BYTES", 1000)
        listed = [noted(n, 300 if n > 100 else 1) for n in range(200)]
        batches = list(batches_of(listed))
        assert [s for b in batches for s in of_batch(b)] == listed
        assert all(b.num_rows <= 4 for b in batches if b["image_id"][0].as_py() > "101")

    def test_a_compact_slice_holds_its_own_texts_alone(self):
        batch = to_batch([*(noted(n, 5) for n in range(40)), sample("40"), sample("41")])
        for start, size in ((0, 42), (7, 5), (38, 4), (3, 0)):
            part = compact(batch.slice(start, size))
            assert of_batch(part) == of_batch(batch.slice(start, size))
            assert part.schema == SCHEMA
            assert len(part["payload"].dictionary) <= size
        same = to_batch([sample(str(n)) for n in range(9)])
        assert compact(same) is same

    def test_samples_become_batches_in_order_and_the_first_come_at_once(self):
        taken = []
        feed = (taken.append(n) or sample(str(n)) for n in range(300))
        batches = batches_of(feed)
        first = next(batches)
        assert len(taken) <= 2
        rest = [s for b in batches for s in of_batch(b)]
        assert of_batch(first) + rest == [sample(str(n)) for n in range(300)]

    def test_a_thread_that_works_ahead_keeps_order_and_errors(self):
        def items():
            yield from range(5)
            raise ValueError("broken")

        feed = one_ahead(items())
        assert [next(feed) for _ in range(5)] == list(range(5))
        with pytest.raises(ValueError, match="broken"):
            next(feed)
        assert list(one_ahead([])) == []


def noted(number, length):
    """Return a sample whose payload nobody else has."""
    return replace(sample(f"{number:03d}"), payload=[number, "x" * length])


class Kept:
    """Takes shards as a plan does."""

    def __init__(self):
        self.shards = []

    def add(self, samples):
        assert len(samples["payload"].dictionary) <= samples.num_rows  # not all of the batch's
        self.shards.append([s.image_id for s in of_batch(samples)])

    def flush(self):
        pass


def planned(ledger, listing, shard_rows, batch_rows=None):
    plan = Kept()
    planner = Planner(ledger, Orphans([]), plan, shard_rows)
    batches = listing if batch_rows is None else cut([to_batch(listing)], batch_rows)
    planner.read(batches, lambda listed, todo: None)
    return planner, plan.shards


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "labels", [SPACE])


class TestPlanner:
    @pytest.mark.parametrize("held_rows", [1 << 20, 100])
    def test_against_a_loop_over_dictionaries(self, store, monkeypatch, held_rows):
        monkeypatch.setattr("pipeline.runs.index.HELD_ROWS", held_rows)
        monkeypatch.setattr("pipeline.runs.planning._BATCH_ROWS", 64)
        chance = random.Random(0)
        rows = [sample(f"{n:04d}", chance.choice(["f0", "f1"]), chance.choice(["d0", "d1"]))
                for n in range(600)]  # fmt: skip
        _, after = run_job(store, rows, shard_rows=97)
        listing = [sample(f"{chance.randrange(900):04d}", dataset=chance.choice(["toy", "other"]))
                   for _ in range(1500)]  # fmt: skip
        held = {(s.dataset, s.path): (s.fingerprint, s.digest) for s in rows}
        first: dict = {}
        for listed in listing:
            first.setdefault((listed.dataset, listed.path), listed)
        states = [held.get(key) for key in first]
        planner, shards = planned(Ledger.of(after), listing, 8)
        assert planner.listed == 1500
        assert planner.repeated == 1500 - len(first)
        assert planner.changed == sum(s not in (None, ("f0", "d0")) for s in states)
        assert planner.todo == sum(s != ("f0", "d0") for s in states)
        missing = [s for s in listing if held.get((s.dataset, s.path)) != ("f0", "d0")]
        assert [i for shard in shards for i in shard] == [s.image_id for s in missing]
        assert max(map(len, shards)) <= 8
        again = {k for k, n in Counter((s.dataset, s.path) for s in listing).items() if n > 1}
        assert planner.again == {row_key(*k): held.get(k) == ("f0", "d0") for k in again}
        for batch_rows in (1, 50, 1500):
            assert planned(Ledger.of(after), listing, 8, batch_rows)[1] == shards

    def test_whole_cells_stay_and_thin_ones_are_put_together(self, store):
        names = [f"{n:03d}" for n in range(100)]
        done = [n for n in names[:80] if int(n) % 10]
        _, after = run_job(store, map(sample, done))
        _, shards = planned(Ledger.of(after), map(sample, names), 10)
        assert shards == [[f"{n}0" for n in ("00", "01", "02", "03", "04", "05", "06", "07")],
                          names[80:90], names[90:]]  # fmt: skip

    def test_payloads_change_no_shard(self, store, monkeypatch):
        _, after = run_job(store, [sample(f"{n:03d}") for n in range(0, 300, 7)])
        plain = planned(Ledger.of(after), [sample(f"{n:03d}") for n in range(300)], 8)
        monkeypatch.setattr("pipeline.samples.MOST_BYTES", 2000)
        held = planned(Ledger.of(after), [noted(n, 100) for n in range(300)], 8)
        assert held[1] == plain[1]
        assert (held[0].todo, held[0].listed) == (plain[0].todo, 300)

    def test_without_a_store_all_is_to_do(self):
        planner, shards = planned(None, map(sample, NAMES), 3)
        assert (planner.listed, planner.todo, planner.changed) == (10, 10, 0)
        assert [len(s) for s in shards] == [3, 3, 3, 1]

    def test_nothing_listed(self):
        planner, shards = planned(None, [], 3)
        assert (planner.listed, planner.todo, shards) == (0, 0, [])


def listed_batches(count: int, rows: int = 1000):
    samples = [replace(sample(f"{n:05d}"), path=f"s3://b/{n:05d}.jpg") for n in range(count)]
    return list(cut([to_batch(samples)], rows))


def ids(batches):
    return [i for b in batches for i in b["image_id"].to_pylist()]


class TestChoice:
    def test_parts_take_each_image_once_and_evenly(self):
        batches = listed_batches(20_000)
        for count in (2, 3, 7):
            parts = [ids(Choice.parse(shard=f"{i}/{count}").of(batches))
                     for i in range(1, count + 1)]  # fmt: skip
            assert sorted(i for part in parts for i in part) == ids(batches)
            for part in parts:
                # Six standard deviations of a binomial.
                assert abs(len(part) - 20_000 / count) < 6 * (20_000 / count) ** 0.5

    def test_a_part_does_not_depend_on_what_else_is_listed(self):
        batches = listed_batches(2000)
        whole = ids(Choice.parse(shard="2/3").of(batches))
        assert ids(Choice.parse(shard="2/3").of(batches[1:])) == [i for i in whole if i >= "01000"]

    def test_a_sample_lies_within_a_larger_one(self):
        batches = listed_batches(20_000)
        taken = [set(ids(Choice.parse(sample=s).of(batches))) for s in ("0.5%", "1%", "2%", "50%")]
        for less, more in pairwise(taken):
            assert less < more
        for share, found in zip((0.005, 0.01, 0.02, 0.5), taken, strict=True):
            assert abs(len(found) - 20_000 * share) < 6 * (20_000 * share) ** 0.5
        assert ids(Choice.parse(sample="100%").of(batches)) == ids(batches)

    def test_a_sample_is_spread_over_the_parts(self):
        batches = listed_batches(20_000)
        both = ids(Choice.parse(shard="1/2", sample="10%").of(batches))
        assert abs(len(both) - 1000) < 6 * 1000**0.5
        plain = set(ids(Choice.parse(sample="10%").of(batches)))
        assert set(both) == plain & set(ids(Choice.parse(shard="1/2").of(batches)))

    def test_neighbours_are_taken_independently(self):
        """Gaps between those taken are geometric, as by chance; a plain sum spaces them evenly."""
        at = np.array([int(i) for i in ids(Choice.parse(sample="10%").of(listed_batches(20_000)))])
        gaps = np.diff(at)
        assert abs(np.mean(gaps == 1) - 0.1) < 0.05
        assert abs(np.std(gaps) - 90**0.5) < 1.5

    def test_a_limit_ends_the_listing(self):
        seen = []
        batches = (seen.append(b) or b for b in listed_batches(3000))
        assert ids(Choice.parse(limit=1500).of(batches)) == ids(listed_batches(1500))
        assert len(seen) == 2
        assert ids(Choice.parse(limit=0).of(listed_batches(10))) == []
        assert ids(Choice.parse(limit=99).of(listed_batches(10))) == ids(listed_batches(10))
        half = ids(Choice.parse(shard="1/2").of(listed_batches(3000)))
        assert ids(Choice.parse(limit=5, shard="1/2").of(listed_batches(3000))) == half[:5]

    def test_each_choice_is_a_run_of_its_own(self):
        choices = [Choice.parse(), Choice.parse(limit=5), Choice.parse(shard="1/2"),
                   Choice.parse(shard="2/2"), Choice.parse(sample="1%"),
                   Choice.parse(limit=5, sample="1%")]  # fmt: skip
        assert len({tuple(c.identity) for c in choices}) == len(choices)
        assert Choice.parse(shard="1/1", sample="100%").identity == Choice().identity == []
        assert Choice.parse(sample="1.0%") == Choice(sample=Fraction(1, 100))

    @pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "-1/2", "1/0", "1/2/3", ""])
    def test_a_wrong_part_is_told(self, text):
        with pytest.raises(UsageError, match="I/N"):
            Choice.parse(shard=text)

    @pytest.mark.parametrize("text", ["0%", "101%", "1", "0.01", "-1%", "nan%", ""])
    def test_a_wrong_share_is_told(self, text):
        with pytest.raises(UsageError, match="--sample"):
            Choice.parse(sample=text)


def files_of(path):
    return sorted((p.relative_to(path).as_posix(), p.stat().st_mtime_ns) for p in path.rglob("*"))


class TestOutlook:
    def test_it_says_what_the_run_then_does_and_writes_nothing(self, store, tmp_path):
        _, after = run_job(store, [sample(n, "f1" if n == "i01" else "f0") for n in NAMES[:4]])
        listing = [*map(sample, NAMES), sample("i07"), sample("i00")]
        before = files_of(tmp_path / "labels")
        told = foresee(after, None, listing, 3)
        assert files_of(tmp_path / "labels") == before
        assert (told.listed, told.done_already, told.to_do, told.changed, told.repeated) == (
            12, 3, 6, 1, 2,
        )  # fmt: skip
        report, _ = run_job(after, listing)
        assert (report.inputs, report.done, report.changed) == (12, told.work, told.changed)
        assert report.repeated == told.repeated

    def test_what_a_run_left_behind_is_not_done_again(self, store):
        """It had written three, one of them of a changed image, when it was killed."""
        from pipeline.run import Shard, ShardWriter

        _, after = run_job(store, [sample("i01", "old")])
        identity = {"kind": "truth", "identity": ["x"]}
        run = Run.begin(after, "toy", **identity)
        ShardWriter(Labelling(), after.sink(), run)()(Shard.of([sample(n) for n in NAMES[:3]]))
        held = Run.unfinished(after, "toy", **identity)
        told = foresee(after, held, map(sample, NAMES), 3)
        assert (told.adopted, told.to_do, told.changed, told.work) == (3, 7, 0, 7)
        report, _ = run_job(after, map(sample, NAMES))
        assert (report.adopted, report.done, report.changed) == (3, 7, 0)

    def test_the_trial_is_of_the_same_few_whatever_the_order(self):
        samples = [sample(f"{n:04d}") for n in range(500)]
        told = foresee(None, None, samples, 16)
        assert len(told.trial) == 17
        random.Random(1).shuffle(samples)
        assert set(foresee(None, None, samples, 64).trial) == set(told.trial)

    def test_a_trial_labels_each_once_and_times_all_but_the_first(self, tmp_path):
        log = tmp_path / "log"
        trial = tuple(map(sample, NAMES))
        rate = trial_rate(Labelling(log=str(log), bad=frozenset({"i03"})), trial)
        assert log.read_text().split() == NAMES
        assert (rate.source, rate.images, rate.of) == (
            "trial", 9, tuple(s.path for s in trial[1:]),
        )  # fmt: skip
        assert trial_rate(Labelling(), trial[:1]).images == 1
        assert trial_rate(Labelling(), ()) is None

    def test_the_rate_is_that_of_finished_runs_of_the_same_labeller(self, store):
        for turn, (digest, gpus) in enumerate([("d0", 0.0), ("d0", 1.0), ("d1", 0.0)]):
            run = Run.begin(store.latest(), "label", kind="model", identity=[str(turn)])
            listing = [sample(f"{turn}-{n}", digest=digest) for n in range(40)]
            execute(
                store.latest(), listing, Labelling(), run=run,
                choose_runner=lambda count: LocalRunner(1),
                facts={"model_digest": digest, "gpus_per_worker": gpus},
            )  # fmt: skip
        Run.begin(store.latest(), "label", kind="model", identity=["unfinished"])
        tree = store.tree()
        rate = past_rate(tree, "label", "d0", 1.0)
        assert (rate.source, rate.images, len(rate.of)) == ("history", 40, 1)
        assert rate.images_per_second > 0
        assert past_rate(tree, "label", "d1", 0.0).of != rate.of
        assert past_rate(tree, "label", "d1", 1.0) is None
        assert past_rate(tree, "other", "d0", 0.0) is None

    def test_time_and_cost_are_by_the_formula(self):
        told = foresee(None, None, [sample(f"{n:05d}") for n in range(7200)], 256)
        rate = replace(trial_rate(Labelling(), told.trial), images_per_second=10.0)
        figures = told.figures(rate, workers=4, gpus=0.5, price=3.0)
        assert figures["expected_seconds"] == 7200 / 10 / 4
        assert figures["worker_hours"] == 7200 / 10 / 3600
        assert figures["gpu_hours"] == 0.5 * 7200 / 10 / 3600
        assert figures["cost"] == 0.3
        assert "cost" not in told.figures(rate, workers=1, gpus=1.0, price=None)
        assert told.figures(None, workers=1, gpus=1.0, price=None)["rate"] is None


def test_states_are_ordered_as_the_ledger_takes_the_greatest():
    assert State.NEW < State.CHANGED < State.DONE
