"""From what a model finds to objects at the image's size: boxes with small masks, or queries.

Each object is drawn by itself and leaves the device as the crop that holds it: memory is a few maps
of the image's size, however many objects there are. Objects come best score first, numbered from 1;
boxes and areas are those of the mask's pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from pipeline.instances import rle_encode_at
from pipeline.models.loaded import BoxMasks, QueryMasks
from pipeline.models.logits import at_size
from pipeline.record import Instance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.label_space import LabelSpace
    from pipeline.models.loaded import LoadedModel, Objects

_MASK: Final = 0.5
"""Probability from which a pixel is the object's."""
_SEEN: Final = 0.8
"""A segment of which less than this share is not covered by others is dropped (Mask2Former)."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """The sizes, height and width, that a model's answer is brought back through.

    `inside` is what the image was resized to, `multiple` what that was padded to for the model,
    `size` the image's own.
    """

    inside: tuple[int, int]
    multiple: int
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Found:
    """The objects of one image; for a panoptic model a label map of class ids and confidence.

    `ids` [H, W] in the label space's pixel type, the ignore index where no segment is; `confidence`
    uint8 [H, W] = round(255 p), p of class times p of mask.
    """

    instances: tuple[Instance, ...]
    ids: NDArray[np.uint8] | NDArray[np.uint16] | None = None
    confidence: NDArray[np.uint8] | None = None


def find(raw: BoxMasks | QueryMasks, model: LoadedModel, canvas: Canvas) -> Found:
    """Return what a model found in one image."""
    objects, space = model.objects, model.label_space
    assert objects is not None
    if isinstance(raw, BoxMasks):
        return Found(_numbered(_from_boxes(raw, objects, canvas), space, canvas.size))
    if objects.task == "panoptic":
        return _panoptic(raw, objects, space, canvas)
    return Found(_numbered(_from_queries(raw, objects, space, canvas), space, canvas.size))


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One object's pixels: a crop bool [h, w] and its (row, column) in the image."""

    channel: int
    score: float
    crop: NDArray[np.bool_]
    corner: tuple[int, int]


def _numbered(
    drawn: Sequence[_Drawn], space: LabelSpace, size: tuple[int, int]
) -> tuple[Instance, ...]:
    return tuple(_instance(number, one, space, size) for number, one in enumerate(drawn, 1))


def _instance(number: int, one: _Drawn, space: LabelSpace, size: tuple[int, int]) -> Instance:
    (y, x), (height, width) = one.corner, one.crop.shape
    return Instance(
        id=number,
        category=space.train_ids[one.channel],
        bbox=(float(x), float(y), float(width), float(height)),
        area=float(np.count_nonzero(one.crop)),
        rle=rle_encode_at(one.crop, one.corner, size),
        score=one.score,
    )


def _cut(mask: Tensor, at: tuple[int, int] = (0, 0)) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return the crop of a bool mask [h, w] that holds its pixels, and its corner beyond `at`.

    A mask without pixels has a crop of no size.
    """
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    if not len(rows):
        return np.zeros((0, 0), dtype=np.bool_), at
    ends = torch.stack([rows[0, 0], rows[-1, 0], columns[0, 0], columns[-1, 0]])
    top, bottom, left, right = ends.tolist()
    crop = mask[top : bottom + 1, left : right + 1].cpu().numpy()
    return crop, (at[0] + top, at[1] + left)


def _from_boxes(raw: BoxMasks, objects: Objects, canvas: Canvas) -> list[_Drawn]:
    """Draw boxes' masks at the image's size, as torchvision's `paste_masks_in_image` does."""
    from torchvision.models.detection.roi_heads import expand_boxes, expand_masks  # slow to import

    order = raw.scores.float().argsort(descending=True, stable=True)
    order = order[raw.scores[order] >= objects.score][: objects.most]
    down, across = (canvas.size[i] / canvas.inside[i] for i in (0, 1))
    scale = torch.tensor([across, down, across, down], device=raw.boxes.device)
    masks, grown = expand_masks(raw.masks[order, None].float(), 1)
    boxes = expand_boxes(raw.boxes[order].float() * scale, grown).to(torch.int64).tolist()
    scores, channels = raw.scores[order].tolist(), raw.channels[order].tolist()
    drawn = []
    for mask, box, score, channel in zip(masks, boxes, scores, channels, strict=True):
        crop, corner = _pasted(mask, box, canvas.size)
        if crop.size:
            drawn.append(_Drawn(channel, score, crop, corner))
    return drawn


def _pasted(
    mask: Tensor, box: Sequence[int], size: tuple[int, int]
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return a mask [1, m, m] stretched over its box and cut to the image."""
    x0, y0, x1, y1 = box
    wide, high = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
    full = F.interpolate(mask[None], (high, wide), mode="bilinear", align_corners=False)[0, 0]
    top, left = max(y0, 0), max(x0, 0)
    bottom, right = min(y1 + 1, size[0]), min(x1 + 1, size[1])
    if bottom <= top or right <= left:
        return np.zeros((0, 0), dtype=np.bool_), (0, 0)
    seen = full[top - y0 : bottom - y0, left - x0 : right - x0]
    return _cut(seen > _MASK, (top, left))


def _at_size(masks: Tensor, canvas: Canvas) -> Iterator[Tensor]:
    """Yield mask logits [Q, h, w] one by one at the image's size, float [H, W]."""
    for mask in masks:
        yield at_size(mask[None, None], canvas.inside, canvas.multiple, canvas.size)[0, 0]


def _from_queries(
    raw: QueryMasks, objects: Objects, space: LabelSpace, canvas: Canvas
) -> list[_Drawn]:
    """Return the best pairs of query and class whose score is high enough.

    A score is the class's probability times the mean probability of the mask's own pixels
    (Mask2Former's instance inference). Classes that the label space knows as stuff make no objects.
    """
    classes = raw.classes.softmax(dim=-1)[:, :-1]
    stuff = [space.by_id[i].isthing is False for i in space.train_ids]
    classes = classes.masked_fill(torch.tensor(stuff, device=classes.device), -1.0)
    best, places = classes.flatten().sort(descending=True, stable=True)
    # As many pairs as there are queries; the mask's mean is at most 1 and can only lower a score.
    kept = places[: len(classes)][best[: len(classes)] >= objects.score]
    queries, channels = kept // classes.shape[1], (kept % classes.shape[1]).tolist()
    shares = classes.flatten()[kept].tolist()
    drawn = []
    masks = _at_size(raw.masks[queries], canvas)
    for mask, channel, share in zip(masks, channels, shares, strict=True):
        inside = mask > 0
        score = share * _mean(mask.sigmoid(), inside)
        if score < objects.score:
            continue
        crop, corner = _cut(inside)
        if crop.size:
            drawn.append(_Drawn(channel, score, crop, corner))
    drawn.sort(key=lambda one: -one.score)
    return drawn[: objects.most]


def _mean(values: Tensor, inside: Tensor) -> float:
    """Return the mean of values where `inside`, in double precision; 0 where it is nowhere."""
    return float((values.double() * inside).sum() / (inside.sum() + 1e-6))


def _panoptic(raw: QueryMasks, objects: Objects, space: LabelSpace, canvas: Canvas) -> Found:
    """Give each pixel to the query whose class score times mask probability is highest.

    A query keeps its pixels where its own mask is above one half; it is dropped when others cover
    more than a fifth of its mask (Cheng 2022, arXiv 2112.01527, panoptic inference). Stuff is one
    segment a class in the mask; things are objects.
    """
    scores, channels = raw.classes.softmax(dim=-1).max(dim=-1)
    nothing = raw.classes.shape[-1] - 1
    kept = ((channels != nothing) & (scores > objects.score)).nonzero()[:, 0]
    kept = kept[scores[kept].argsort(descending=True, stable=True)][: objects.most]
    owner, best, own, areas = _contest(raw.masks[kept], scores[kept], canvas)
    won = [int((owner == place).sum()) for place in range(len(kept))]
    ids = torch.full(canvas.size, space.ignore_index, dtype=torch.int32, device=owner.device)
    segment = torch.zeros(canvas.size, dtype=torch.bool, device=owner.device)
    drawn = []
    for place, query in enumerate(kept.tolist()):
        if not won[place] or not areas[place] or won[place] <= _SEEN * areas[place]:
            continue
        mine = (owner == place) & own
        channel = int(channels[query])
        ids[mine] = space.train_ids[channel]
        segment |= mine
        if space.by_id[space.train_ids[channel]].isthing is not False:
            crop, corner = _cut(mine)
            if crop.size:
                drawn.append(_Drawn(channel, float(scores[query]), crop, corner))
    p = torch.where(segment, best, 0.0)
    confidence = (p * 255).round().to(torch.uint8).cpu().numpy()
    labels: NDArray[Any] = ids.cpu().numpy().astype(space.dtype)
    return Found(_numbered(drawn, space, canvas.size), labels, confidence)


def _contest(
    masks: Tensor, scores: Tensor, canvas: Canvas
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Return each pixel's best query and score, whether that query's mask holds it, and areas.

    The first three are maps [H, W], -1 where there is no query; an area is a whole mask's.
    """
    device = masks.device
    owner = torch.full(canvas.size, -1, dtype=torch.int32, device=device)
    best = torch.full(canvas.size, -1.0, device=device)
    own = torch.zeros(canvas.size, dtype=torch.bool, device=device)
    areas = []
    for place, mask in enumerate(_at_size(masks, canvas)):
        p = mask.sigmoid()
        held, weighed = p >= _MASK, p * scores[place]
        areas.append(int(held.sum()))
        better = weighed > best
        owner = torch.where(better, place, owner)
        best = torch.where(better, weighed, best)
        own = torch.where(better, held, own)
    return owner, best.clamp_min(0.0), own, areas
