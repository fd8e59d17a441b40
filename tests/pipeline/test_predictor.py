"""The predictor: what a device does with a batch, judged by torch's own functions and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812

from pipeline.errors import ImageTooLarge, ModelError
from pipeline.label_space import label_space
from pipeline.models.loaded import LoadedModel, Preprocessing
from pipeline.models.logits import at_size
from pipeline.predict.compiled import Compiled
from pipeline.predict.decide import Frame, bands, decide, resized_rows
from pipeline.predict.options import LabelOptions
from pipeline.predict.predictor import Pending, Picture, Predicted, Predictor
from pipeline.predict.shapes import BatchSizes, padded_length
from pipeline.predict.stream import Stream
from pipeline.spent import OWN, Spent

CPU = torch.device("cpu")
SIDES = st.integers(1, 40)


class Strided(nn.Module):
    """Eleven classes at 1/8 of the input; refuses batches of more than `most` images."""

    def __init__(self, most=1000, channels=11, says="CPUAllocator: can't allocate memory"):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.conv = nn.Conv2d(3, channels, 8, stride=8)
        self.most, self.says, self.batches = most, says, []

    def forward(self, x):
        self.batches.append(len(x))
        if len(x) > self.most:
            raise RuntimeError(f"[enforce fail] {self.says}")
        return 5 * self.conv(x)


def predictor(module=None, size=None, multiple=8, **options):
    prep = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), size, multiple)
    model = LoadedModel(module or Strided(), label_space("camvid-11"), prep, "test", "d")
    model.module.eval().requires_grad_(False)
    return Predictor(model, CPU, LabelOptions(device="cpu", **options))


def pictures(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Picture(rng.integers(0, 256, (*size, 3), np.uint8), size, f"{n}.jpg")
        for n, size in enumerate(sizes)
    ]


def same(a, b):
    return (a.ids == b.ids).all() and (a.confidence == b.confidence).all()


@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.integers(1, 12), st.booleans())
@settings(deadline=None, max_examples=60)
def test_rows_are_those_of_the_whole_whatever_the_band(source, size, rows, channels_last):
    logits = torch.randn(2, 5, *source, generator=torch.Generator().manual_seed(1))
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    whole = resized_rows(logits, size, 0, size[0])
    expected = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)
    for start in range(0, size[0], rows):
        stop = min(start + rows, size[0])
        assert torch.equal(resized_rows(logits, size, start, stop), whole[:, :, start:stop])


@pytest.mark.parametrize(
    "frame",
    [
        Frame((48, 64), (45, 61), (45, 61)),  # the image's own size, padded
        Frame((48, 64), (48, 64), (97, 131)),  # resized
        Frame((48, 64), (41, 60), (97, 131)),  # resized and padded
    ],
)
@pytest.mark.parametrize("stride", [1, 8])
def test_decisions_don_t_depend_on_the_memory_that_they_may_take(frame, stride):
    shape = (3, 7, frame.seen[0] // stride, frame.seen[1] // stride)
    logits = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([9, 8, 7, 6, 5, 4, 3], dtype=torch.uint8)
    whole = decide(logits, frame, ids, 1 << 30)
    for most in (1, 10_000, 300_000):
        found = decide(logits, frame, ids, most)
        assert torch.equal(found[0], whole[0])
        # The order in which exponentials are summed may differ, and with it the last bit.
        assert (found[1].int() - whole[1]).abs().max() <= 1
        assert (found[1] == whole[1]).float().mean() > 0.999
    p, best = at_size(logits, frame.inside, 16, frame.size).softmax(1).max(1)
    assert (whole[0] == ids[best]).float().mean() > 0.9999
    assert (whole[1].float() - 255 * p).abs().max() < 0.51


def test_a_huge_image_is_decided_in_bands_of_bounded_memory():
    """10,000 x 10,000 pixels of 150 classes: 60 GB of logits, of which 32 MB are held."""
    logits, most = torch.zeros(1, 150, 40, 40), 32 << 20
    rows = most // (4 * 150 * 10_000)
    parts = bands(logits, Frame((10_000, 10_000), (10_000, 10_000), (10_000, 10_000)), rows)
    where, part = next(parts)
    assert where == slice(0, 5)
    assert part.shape == (1, 150, 5, 10_000)
    assert part.numel() * 4 <= most


@given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from([1, 8, 32]), st.floats(0, 1))
def test_padding_stays_below_its_limit(height, width, multiple, limit):
    padded = [padded_length(n, multiple, limit) for n in (height, width)]
    least = [padded_length(n, multiple, 0) for n in (height, width)]
    assert all(p % multiple == 0 and p >= n for p, n in zip(padded, least, strict=True))
    if padded != least:
        steps = [n + multiple for n in (height, width)]  # what the multiple itself may add
        allowed = max(least[0] * least[1], (1 + limit) * steps[0] * steps[1])
        assert padded[0] * padded[1] <= allowed


def test_labels_don_t_depend_on_those_beside_them_in_a_batch():
    p = predictor(pad_limit=0.2)
    images = pictures((200, 306), (206, 309), (199, 310), (200, 306))
    assert len({p.input_shape(*i.size) for i in images}) == 1
    together = p.predict(images)
    assert [t.ids.shape for t in together] == [i.size for i in images]
    for image, one in zip(images, together, strict=True):
        (alone,) = p.predict([image])
        assert (alone.ids != one.ids).mean() < 1e-4
        assert np.abs(alone.confidence.astype(int) - one.confidence).max() <= 1


def test_with_a_size_of_its_own_nothing_is_padded_by_the_limit():
    assert predictor(size=(64, 96), pad_limit=0.5).input_shape(481, 333) == (64, 96)
    assert predictor().input_shape(481, 333) == (488, 336)
    assert predictor(pad_limit=0.1).input_shape(481, 333) == (496, 336)


@pytest.mark.parametrize(
    "says",
    [
        "DefaultCPUAllocator: can't allocate memory",
        "CUDA error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_a_batch_too_large_is_halved_and_none_is_lost(says):
    module = Strided(most=3, says=says)
    p = predictor(module, batch_size=8)
    images = pictures(*[(16, 24)] * 8, (16, 17))
    found = p.predict(images)
    assert module.batches == [9, 4, 2, 2, 5, 2, 3]
    for image, one in zip(images, found, strict=True):
        (alone,) = p.predict([image])
        assert same(alone, one)
    assert p.batches.of((16, 24)) == 2


def test_an_image_too_large_by_itself_is_its_own_failure():
    found = predictor(Strided(most=0)).predict(pictures((16, 24), (16, 24)))
    assert [type(f) for f in found] == [ImageTooLarge, ImageTooLarge]
    assert [f.path for f in found] == ["0.jpg", "1.jpg"]


def test_other_errors_of_the_model_are_not_taken_for_memory():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        predictor(Broken()).predict(pictures((16, 24)))
    with pytest.raises(ModelError, match="7 classes"):
        predictor(Strided(channels=7)).predict(pictures((16, 24)))


def test_batches_grow_to_what_fits_and_stay_there():
    sizes, shape, tried = BatchSizes(None, most=64), (10, 10), []
    for _ in range(8):
        count = sizes.of(shape)
        tried.append(count)
        while count > 21:  # what the device holds
            sizes.too_many(shape, count)
            count = sizes.of(shape)
        sizes.went_well(shape, count)
    assert tried == [8, 16, 32, 16, 16, 16, 16, 16]
    assert sizes.of((4096, 4096)) == 2, "a batch that grows by itself is bounded in pixels"
    fixed = BatchSizes(5)
    fixed.went_well(shape, 5)
    assert fixed.of(shape) == 5


def test_pictures_decoded_smaller_get_labels_of_their_own_size():
    p = predictor(size=(64, 96))
    small = pictures((100, 140))[0]
    (found,) = p.predict([Picture(small.pixels, (400, 560), "a.jpg")])
    assert found.ids.shape == found.confidence.shape == (400, 560)


class Recorder:
    """A predictor that computes nothing and writes down when it was asked for what."""

    batches = BatchSizes(2)

    def __init__(self):
        self.log = []

    def input_shape(self, height, width):
        return height, width

    def start(self, images):
        names = "".join(i.path for i in images)
        self.log.append(f"start {names}")
        return Asked(self, names)


class Asked:
    def __init__(self, recorder, names):
        self.recorder, self.names = recorder, names

    def result(self):
        self.recorder.log.append(f"result {self.names}")
        return list(self.names)

    def device_seconds(self):
        return 0.0


class Item:
    def __init__(self, name, side):
        self.sample = name
        self.picture = Picture(np.zeros((side, side, 3), np.uint8), (side, side), name)


def test_a_batch_is_started_while_the_one_before_is_computed():
    from concurrent.futures import ThreadPoolExecutor

    recorder, sides = Recorder(), dict(zip("abcdefg", (4, 4, 8, 4, 4, 8, 4), strict=True))
    with ThreadPoolExecutor(2) as pool:
        stream = Stream(recorder, Spent(), pool, lambda decoded, one: (decoded.sample, one))
        found = list(stream.run("abcdefg", lambda name: Item(name, sides[name])))
    assert sorted(found) == [(name, name) for name in "abcdefg"]
    assert recorder.log == [
        "start ab", "start de", "result ab", "start cf", "result de", "start g", "result cf",
        "result g",
    ]  # fmt: skip


def test_images_of_many_shapes_don_t_pile_up(monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr("pipeline.predict.stream._HELD_BYTES", 3 * (81 + 9 + 64))
    recorder, sides = Recorder(), dict(zip("abcd", (8, 3, 9, 2), strict=True))
    with ThreadPoolExecutor(1) as pool:
        stream = Stream(recorder, Spent(), pool, lambda decoded, one: (decoded.sample, one))
        assert len(list(stream.run("abcd", lambda name: Item(name, sides[name])))) == 4
    assert recorder.log == [
        "start c", "start a", "result c", "start b", "result a", "start d", "result b", "result d",
    ]  # fmt: skip


def test_seconds_are_booked_by_stage_and_none_twice():
    now = [0.0]
    spent = Spent(lambda: now[0])
    with spent.on("wait"):
        now[0] += 3
    with spent.on("forward"):
        now[0] += 5
    spent.move(2, "wait", "forward")
    spent.move(-1, "wait", "forward")
    assert spent.of("forward") == 7
    spent.move(9, "wait", "forward")
    assert spent.take() == {"wait": 0, "forward": 8}
    assert spent.take() == {}
    assert set(OWN) == {"wait", "forward", "collect"}


def test_a_compiled_network_says_the_same_and_a_missing_compiler_is_no_end(caplog):
    module = Strided().eval()
    x = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = module(x)
        torch.testing.assert_close(Compiled(module, "eager")(x), expected)

        def broken(graph, inputs):
            raise OSError("no compiler here")

        again = Compiled(module, broken)
        for _ in range(2):
            torch.testing.assert_close(again(x), expected)
    assert caplog.text.count("--compile") == 1


def test_an_answer_of_parts_is_in_the_order_of_the_batch():
    p = predictor()
    images = pictures((16, 24), (16, 20), (16, 24), (15, 24))
    pending = p.start(images)
    assert isinstance(pending, Pending)
    found = pending.result()
    assert [f.ids.shape for f in found if isinstance(f, Predicted)] == [i.size for i in images]
    for image, one in zip(images, found, strict=True):
        assert same(p.predict([image])[0], one)
    assert pending.device_seconds() > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_says_what_the_cpu_says():
    images = pictures(*[(64, 96)] * 5, (61, 90), (64, 96))
    on_cpu = predictor().predict(images)
    p = predictor()
    module = Strided().eval().to("cuda")
    model = LoadedModel(module, p._space, p._model.preprocessing, "test", "d")
    on_gpu = Predictor(model, torch.device("cuda"), LabelOptions()).predict(images)
    for a, b in zip(on_cpu, on_gpu, strict=True):
        assert (a.ids == b.ids).mean() > 0.999
