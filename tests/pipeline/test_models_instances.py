"""Objects from boxes and queries, judged by torchvision's and transformers' own post-processing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from pipeline import masks
from pipeline.errors import ModelError, UsageError
from pipeline.label_space import label_space
from pipeline.models import load_model
from pipeline.models.classes import numbered_space
from pipeline.models.directory import save_model
from pipeline.models.loaded import BoxMasks, LoadedModel, Objects, Preprocessing, QueryMasks
from pipeline.predict.instances import Canvas, find
from pipeline.predict.options import LabelOptions
from pipeline.predict.predictor import Predictor
from tests.pictures import picture

SPACE = numbered_space(4)
PLAIN = Preprocessing((0.0,) * 3, (1.0,) * 3)
FEW = {"min_size": 64, "max_size": 96, "rpn_post_nms_top_n_test": 40, "box_detections_per_img": 15}
RCNN = "torchvision:maskrcnn_resnet50_fpn?classes=4&" + "&".join(f"{k}={v}" for k, v in FEW.items())


def model_of(task, score=0.5, most=100, space=SPACE):
    objects = Objects(task, score, most)
    return LoadedModel(nn.Identity(), space, PLAIN, "test", "", objects=objects)


def pixels(instance, size):
    rle = {"size": list(size), "counts": instance.rle.encode()}
    return coco.decode(rle).astype(bool)


def check_whole(instances, size):
    """Boxes and areas are what pycocotools says of the run lengths; numbers count from 1."""
    assert [i.id for i in instances] == list(range(1, len(instances) + 1))
    assert [i.score for i in instances] == sorted((i.score for i in instances), reverse=True)
    for one in instances:
        rle = {"size": list(size), "counts": one.rle.encode()}
        assert one.area == coco.area(rle) > 0
        assert list(one.bbox) == list(coco.toBbox(rle))


# --- boxes -------------------------------------------------------------------------------------


def some_boxes(n, size, seed):
    """Boxes of all kinds: tiny, of the whole image, over its edges, of no width."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-0.3, 0.95, size=(n, 2)) * size[::-1]
    ends = np.maximum(corners + rng.uniform(0, 1, size=(n, 2)) ** 3 * size[::-1] * 1.5, 1)
    boxes = torch.tensor(np.concatenate([corners, ends], axis=1), dtype=torch.float32)
    return BoxMasks(
        boxes,
        torch.tensor(rng.uniform(0, 1, n), dtype=torch.float32),
        torch.tensor(rng.integers(0, 4, n)),
        torch.tensor(rng.uniform(0, 1, (n, 28, 28)), dtype=torch.float32),
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [(50, 70), (7, 90)])
def test_boxes_are_pasted_as_torchvision_does(size, seed):
    raw = some_boxes(30, size, seed)
    found = find(raw, model_of("instance", 0.3), Canvas(size, 1, size)).instances
    check_whole(found, size)
    pasted = paste_masks_in_image(raw.masks[:, None], raw.boxes, size)[:, 0] > 0.5
    want = [
        (float(raw.scores[i]), SPACE.train_ids[int(raw.channels[i])], pasted[i].numpy())
        for i in raw.scores.argsort(descending=True)
        if raw.scores[i] >= 0.3 and pasted[i].any()
    ]
    assert len(found) == len(want) > 5
    for ours, (score, category, mask) in zip(found, want, strict=True):
        assert (ours.score, ours.category) == (score, category)
        assert np.array_equal(pixels(ours, size), mask)


def test_boxes_of_a_resized_input_are_scaled_back():
    raw = some_boxes(20, (40, 60), 1)
    small = find(raw, model_of("instance"), Canvas((40, 60), 1, (80, 180))).instances
    grown = replace(raw, boxes=raw.boxes * torch.tensor([3.0, 2.0, 3.0, 2.0]))
    large = find(grown, model_of("instance"), Canvas((80, 180), 1, (80, 180))).instances
    assert small == large


def test_most_and_score_bound_the_objects():
    raw = some_boxes(50, (50, 70), 2)
    every = find(raw, model_of("instance", 0.0), Canvas((50, 70), 1, (50, 70))).instances
    few = find(raw, model_of("instance", 0.0, most=5), Canvas((50, 70), 1, (50, 70))).instances
    assert few == every[: len(few)]
    assert 1 <= len(few) <= 5 < len(every)
    none = find(raw, model_of("instance", 1.0), Canvas((50, 70), 1, (50, 70))).instances
    assert none == ()


@pytest.fixture(scope="module")
def rcnn():
    return load_model(RCNN + "&score=0&box_score_thresh=0.0")


def test_mask_rcnn_is_torchvisions(rcnn):
    """The whole way: their network on the image, their masks at its size, thresholded."""
    theirs = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=5, box_score_thresh=0.0, **FEW
    ).eval()
    own = rcnn.module.get_submodule("net").state_dict()
    theirs.load_state_dict(own, strict=False)
    image = np.random.default_rng(0).integers(0, 256, (45, 75, 3), dtype=np.uint8)
    predictor = Predictor(rcnn, torch.device("cpu"), LabelOptions())
    first, second = predictor.predict([picture(image), picture(image[::-1].copy())])
    alone = predictor.predict([picture(image[::-1].copy())])[0]
    assert first.ids is None
    assert first.confidence is None
    with torch.inference_mode():
        want = theirs([torch.from_numpy(image).permute(2, 0, 1) / 255])[0]
    seen = want["masks"][:, 0].numpy() > 0.5
    drawn = [i for i in range(len(seen)) if seen[i].any()]
    assert len(first.instances) == len(drawn) > 10
    check_whole(first.instances, (45, 75))
    agree = 0
    for ours, i in zip(first.instances, drawn, strict=True):
        assert ours.score == pytest.approx(float(want["scores"][i]), abs=1e-4)
        agree += (pixels(ours, (45, 75)) == seen[i]).mean() / len(drawn)
    assert agree > 0.99
    assert [i.score for i in second.instances] == pytest.approx(
        [i.score for i in alone.instances], abs=1e-4
    )


def test_a_directory_holds_mask_rcnn_and_what_it_keeps(rcnn, tmp_path):
    model = load_model(RCNN + "&score=0.25&most=7")
    assert model.objects == Objects("instance", 0.25, 7)
    assert model.digest != rcnn.digest
    save_model(model, str(tmp_path / "m"))
    again = load_model(str(tmp_path / "m"))
    assert (again.digest, again.objects) == (model.digest, model.objects)
    changed = load_model(f"run:{tmp_path / 'm'}?score=0.5")
    assert changed.objects == Objects("instance", 0.5, 7)
    assert changed.digest != model.digest


def test_cocos_91_labels_are_our_80_classes(monkeypatch):
    """Weights with torchvision's categories; the tensors come from a file."""
    net = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    state = {k: v for k, v in net.state_dict().items() if "num_batches" not in k}
    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", lambda *a, **k: state)
    model = load_model("torchvision:maskrcnn_resnet50_fpn?weights=DEFAULT")
    assert model.label_space.name == "coco-80"
    labels = model.module.get_buffer("labels").tolist()
    by_id = {k: label_space("coco-80").train_ids[c] for k, c in enumerate(labels) if c >= 0}
    assert by_id == {i: i for i in label_space("coco-80").train_ids}  # the ids are COCO's own
    assert [k for k, c in enumerate(labels) if c < 0][:3] == [0, 12, 26]
    assert {m.eps for m in model.module.modules() if type(m).__name__ == "FrozenBatchNorm2d"} == {0}


# --- queries -----------------------------------------------------------------------------------


def some_queries(seed, queries=12, classes=4, size=(96, 96)):
    """Logits sharp enough that some queries pass a threshold and some overlap."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    centre, radius = rng.uniform(0, 1, (queries, 2)) * size, rng.uniform(4, 40, queries)
    away = [np.hypot(rows - c[0], columns - c[1]) - r for c, r in zip(centre, radius, strict=True)]
    return QueryMasks(
        torch.tensor(rng.normal(size=(queries, classes + 1)) * 3, dtype=torch.float32),
        torch.tensor(-np.array(away) / 3 + rng.normal(size=(queries, 1, 1)), dtype=torch.float32),
    )


def as_output(raw):
    return SimpleNamespace(
        class_queries_logits=raw.classes[None], masks_queries_logits=raw.masks[None],
        patch_offsets=None,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_instances_are_those_of_mask2formers_processor(seed):
    """Their fixed intermediate size, 384, is the image's here, so that nothing is resized twice."""
    from transformers import Mask2FormerImageProcessor

    raw, size = some_queries(seed), (384, 384)
    found = find(raw, model_of("instance"), Canvas(size, 1, size)).instances
    theirs = Mask2FormerImageProcessor().post_process_instance_segmentation(
        as_output(raw), threshold=0.5, target_sizes=[size], return_binary_maps=True
    )[0]
    segments = sorted(theirs["segments_info"], key=lambda s: -s["score"])
    assert len(found) == len(segments)
    check_whole(found, size)
    for ours, segment in zip(found, segments, strict=True):
        assert ours.category == SPACE.train_ids[segment["label_id"]]
        assert ours.score == pytest.approx(segment["score"], abs=1e-5)
        mask = theirs["segmentation"][segment["id"]].numpy() == 1
        assert np.array_equal(pixels(ours, size), mask)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("score", [0.3, 0.7])
def test_panoptic_is_that_of_eomts_processor(seed, score):
    from transformers import EomtImageProcessor

    size, stuff = (96, 96), {2, 3}
    classes = tuple(replace(c, isthing=c.id not in stuff) for c in SPACE.classes)
    space = replace(SPACE, classes=classes)
    raw = some_queries(seed)
    found = find(raw, model_of("panoptic", score, space=space), Canvas(size, 1, size))
    theirs = EomtImageProcessor().post_process_panoptic_segmentation(
        as_output(raw), [size], threshold=score, stuff_classes=list(stuff),
        size={"shortest_edge": 96, "longest_edge": 96},
    )[0]  # fmt: skip
    segmentation = theirs["segmentation"].numpy()
    want = np.full(size, space.ignore_index)
    for segment in theirs["segments_info"]:
        want[segmentation == segment["id"]] = segment["label_id"]
    assert np.array_equal(found.ids, want)
    things = [s for s in theirs["segments_info"] if s["label_id"] not in stuff]
    things.sort(key=lambda s: -s["score"])
    assert [i.category for i in found.instances] == [s["label_id"] for s in things]
    for ours, segment in zip(found.instances, things, strict=True):
        assert np.array_equal(pixels(ours, size), segmentation == segment["id"])
    check_whole(found.instances, size)
    assert ((found.confidence > 0) == (found.ids != space.ignore_index)).all()


def test_no_query_finds_anything():
    raw = some_queries(0)
    raw.classes[:, -1] = 50
    for task in ("instance", "panoptic"):
        found = find(raw, model_of(task), Canvas((60, 40), 1, (60, 40)))
        assert found.instances == ()
    assert (found.ids == SPACE.ignore_index).all()
    assert not found.confidence.any()


def test_stuff_makes_no_instances():
    raw = some_queries(3)
    space = replace(SPACE, classes=tuple(replace(c, isthing=c.id == 1) for c in SPACE.classes))
    found = find(raw, model_of("instance", 0.01, space=space), Canvas((96, 96), 1, (96, 96)))
    assert {i.category for i in found.instances} == {1}


def test_padding_is_cut_off_before_masks_are_resized():
    raw = some_queries(1, size=(24, 32))  # a quarter of an input 96 x 128, of an image 80 x 100
    whole = find(raw, model_of("instance", 0.2), Canvas((80, 100), 32, (80, 100))).instances
    full = nn.functional.interpolate(raw.masks[None], (96, 128), mode="bilinear")[0]
    cut = QueryMasks(raw.classes, full[:, :80, :100])
    found = find(cut, model_of("instance", 0.2), Canvas((80, 100), 1, (80, 100))).instances
    assert [i.rle for i in whole] == [i.rle for i in found]
    assert len({i.rle for i in found}) > 3


@pytest.mark.parametrize(
    ("options", "words"),
    [("score=2", r"0\.\.1"), ("score=high", r"0\.\.1"), ("most=0", "most"), ("most=x", "whole")],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(UsageError, match=words):
        load_model(f"{RCNN}&{options}")


def test_a_mask_of_a_panoptic_model_is_a_cell(tmp_path):
    """A record of such a model has a mask, its classes and the things; it round-trips."""
    raw = some_queries(2)

    class Fake(nn.Module):
        def forward(self, image):
            return [raw] * len(image)

    model = replace(model_of("panoptic", 0.3), module=Fake())
    predictor = Predictor(model, torch.device("cpu"), LabelOptions())
    one = predictor.predict([picture(np.zeros((48, 96, 3), np.uint8))])[0]
    assert one.ids.shape == one.confidence.shape == (48, 96)
    assert np.array_equal(masks.decode(masks.encode(one.ids, SPACE.cell_palette())), one.ids)


def test_wrong_number_of_classes():
    with pytest.raises(ModelError, match=r"80 classes.*'voc-21' has 21"):
        load_model(
            "torchvision:maskrcnn_resnet50_fpn?weights=DEFAULT",
            label_space="voc-21",
            weights="x.pth",
        )


def test_records_of_an_instance_model(tmp_path):
    from pipeline.segmenter import SegmenterFactory
    from pipeline.trees.listing import list_images
    from tests.samples import write_scenes

    write_scenes(tmp_path, 3)
    uri = f"{RCNN}&score=0&box_score_thresh=0.0&most=4"
    segmenter = SegmenterFactory(uri, options=LabelOptions(batch_size=2, confidence=True))()
    for sample, record in segmenter(list(list_images(str(tmp_path)))):
        assert record.image_id == sample.image_id
        assert (record.mask, record.classes, record.confidence) == (None, None, None)
        assert 0 < len(record.instances) <= 4
        check_whole(record.instances, (record.height, record.width))
        assert {i.category for i in record.instances} <= set(SPACE.train_ids)
