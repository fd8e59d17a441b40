"""Losses over pixels that have a class: each `(logits, target, ignore_index)` to one number.

Logits are float32 [N, C, H, W], targets int64 [N, H, W] with classes 0 .. C - 1 or `ignore_index`.
Whatever adds ignored pixels - padding, a void image in the batch - changes no value, and no ignored
pixel gets a gradient. Where all pixels are ignored the loss is 0. Losses on regions average over
the classes that the batch's truth shows.

`criterion` makes the weighted sum that a recipe names.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import torch
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.errors import UnknownName, UsageError
from pipeline.training import distances

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor


class Loss(Protocol):
    """What every loss is; options are keywords with defaults, `weights` are the classes' [C]."""

    def __call__(
        self, logits: Tensor, target: Tensor, ignore_index: int, *, weights: Tensor | None = None
    ) -> Tensor:
        """Return the loss, a float32 scalar."""
        ...


# --- of single pixels ----------------------------------------------------------------------------


class _Valid(NamedTuple):
    """The pixels that count, in a row: nothing that follows can see another one."""

    logits: Tensor
    """[V, C]."""
    target: Tensor
    """[V]."""
    image: Tensor
    """[V]: the place in the batch that each comes from."""

    @classmethod
    def of(cls, logits: Tensor, target: Tensor, ignore_index: int) -> _Valid:
        valid = target != ignore_index
        return cls(logits.movedim(1, -1)[valid], target[valid], valid.nonzero()[:, 0])

    def each(self, weights: Tensor | None = None) -> Tensor:
        """Return each pixel's cross-entropy [V], times its class's weight."""
        return F.cross_entropy(self.logits, self.target, weights, reduction="none")

    def mass(self, weights: Tensor | None) -> Tensor | int:
        """Return what a mean over the pixels divides by: their number, or their weights' sum."""
        return max(1, len(self.target)) if weights is None else _floored(weights[self.target].sum())


def _floored(value: Tensor) -> Tensor:
    return value.clamp_min(1e-6)


def cross_entropy(
    logits: Tensor, target: Tensor, ignore_index: int, *, weights: Tensor | None = None
) -> Tensor:
    """Return the mean of -w_y log p_y over the pixels, divided by the mean of w_y."""
    total = F.cross_entropy(logits, target, weights, ignore_index=ignore_index, reduction="sum")
    return total / _floored(mass(target, ignore_index, weights))


def mass(target: Tensor, ignore_index: int, weights: Tensor | None = None) -> Tensor:
    """Return how much the pixels weigh together: what joins means over parts of a batch."""
    valid = target != ignore_index
    if weights is None:
        return valid.sum().float()
    return (weights[target.masked_fill(~valid, 0)] * valid).sum()


def focal(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    *,
    weights: Tensor | None = None,
    gamma: float = 2.0,
) -> Tensor:
    """Return the mean of -(1 - p_y)^gamma log p_y, weighted as cross-entropy (gamma 0 is that).

    Lin et al. 2017 (1708.02002), of softmax, as segmentation uses it.
    """
    pixels = _Valid.of(logits, target, ignore_index)
    entropy = pixels.each()
    scaled = (-torch.expm1(-entropy)).clamp_min(0) ** gamma * entropy
    if weights is not None:
        scaled = scaled * weights[pixels.target]
    return scaled.sum() / pixels.mass(weights)


def top_k(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    *,
    weights: Tensor | None = None,
    share: float = 0.1,
) -> Tensor:
    """Return the mean of the largest `share` of the pixels' cross-entropies (at least one)."""
    pixels = _Valid.of(logits, target, ignore_index)
    kept = min(len(pixels.target), max(1, round(share * len(pixels.target))))
    return pixels.each(weights).topk(kept).values.sum() / max(1, kept)


def ohem(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    *,
    weights: Tensor | None = None,
    threshold: float = 0.7,
    least: float = 0.0625,
) -> Tensor:
    """Return the mean cross-entropy of the pixels with p_y under `threshold`.

    Where those are fewer than the share `least` of all, that many hardest ones. Online hard example
    mining as the real-time networks (ICNet, BiSeNet) train with it.
    """
    pixels = _Valid.of(logits, target, ignore_index)
    hard = int((pixels.each().detach() > -torch.tensor(threshold).log()).sum())
    kept = min(len(pixels.target), max(hard, round(least * len(pixels.target)), 1))
    order = pixels.each().detach().topk(kept).indices
    return pixels.each(weights)[order].sum() / max(1, kept)


def iou_balanced(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    *,
    weights: Tensor | None = None,
    eta: float = 1.5,
) -> Tensor:
    """Return cross-entropy in which images that are segmented well already weigh more.

    Wu et al. 2019 (1908.05641), there of detected boxes, here of images: an image's cross-entropy
    weighs its soft IoU to the power of eta, scaled so that the sum over the batch stays what it
    was; the weights carry no gradient.
    """
    pixels = _Valid.of(logits, target, ignore_index)
    total = logits.new_zeros(len(logits)).index_add(0, pixels.image, pixels.each(weights))
    with torch.no_grad():
        quality = torch.stack(
            [_soft_iou(pixels, pixels.image == image) for image in range(len(logits))]
        )
        scaled = quality**eta
        balance = total.sum() / _floored((scaled * total).sum())
        factor = scaled * balance if bool((scaled * total).sum() > 0) else torch.ones_like(scaled)
    return (factor * total).sum() / pixels.mass(weights)


def _soft_iou(pixels: _Valid, where: Tensor) -> Tensor:
    """Return the mean over the classes that some pixels show of their soft IoU."""
    overlap = _Overlap.of(_Valid(*(part[where] for part in pixels)))
    shown = overlap.truth > 0
    if not bool(shown.any()):
        return pixels.logits.new_zeros(())
    union = overlap.predicted + overlap.truth - overlap.both
    return (overlap.both / _floored(union))[shown].mean()


def distance_penalised(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    *,
    weights: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Return the mean of (1 + exp(-d / scale)) times the cross-entropy; d: pixels to an edge.

    Caliva et al. 2019 (1908.03679). An edge pixel of the truth has a neighbour, up, down, left or
    right, of another class; void makes no edge. Images without an edge are penalised nowhere.
    """
    pixels = _Valid.of(logits, target, ignore_index)
    away = distances.to_edges(target, ignore_index)[target != ignore_index]
    return ((1 + torch.exp(-away / scale)) * pixels.each(weights)).sum() / pixels.mass(weights)


# --- of regions ----------------------------------------------------------------------------------


class _Overlap(NamedTuple):
    """Sums over pixels for each class [C]: of p where truth is the class, of p, of truth."""

    both: Tensor
    predicted: Tensor
    truth: Tensor

    @classmethod
    def of(cls, pixels: _Valid, power: int = 1) -> _Overlap:
        shares = pixels.logits.softmax(1)
        right = shares.gather(1, pixels.target[:, None])[:, 0]
        none = shares.new_zeros(shares.shape[1])
        return cls(
            none.index_add(0, pixels.target, right),
            (shares**power).sum(0),
            none.index_add(0, pixels.target, torch.ones_like(right)),
        )


def _over_shown(values: Tensor, shown: Tensor, weights: Tensor | None) -> Tensor:
    """Return the (weighted) mean over the classes that the truth shows; 0 where it shows none."""
    each = shown.float() if weights is None else shown * weights
    return (values * each).sum() / _floored(each.sum())


def dice(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    *,
    weights: Tensor | None = None,
    smooth: float = 0.0,
    squared: bool = False,
) -> Tensor:
    """Return 1 - (2 sum p y + s) / (sum p + sum y + s), the sums over the batch.

    `squared` puts sum p^2 into the denominator (V-Net, Milletari et al. 2016, 1606.04797).
    """
    both, predicted, truth = _Overlap.of(
        _Valid.of(logits, target, ignore_index), 2 if squared else 1
    )
    value = 1 - (2 * both + smooth) / _floored(predicted + truth + smooth)
    return _over_shown(value, truth > 0, weights)


def tversky(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    *,
    weights: Tensor | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 0.0,
) -> Tensor:
    """Return 1 - TP / (TP + alpha FP + beta FN), of soft counts (Salehi et al. 2017, 1706.05721).

    alpha = beta = 1 is the Jaccard loss, 1/2 the Dice loss.
    """
    both, predicted, truth = _Overlap.of(_Valid.of(logits, target, ignore_index))
    below = both + alpha * (predicted - both) + beta * (truth - both)
    return _over_shown(1 - (both + smooth) / _floored(below + smooth), truth > 0, weights)


def sensitivity_specificity(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    *,
    weights: Tensor | None = None,
    share: float = 0.1,
) -> Tensor:
    """Return share * sum (y - p)^2 y / sum y + (1 - share) * sum (y - p)^2 (1 - y) / sum (1 - y).

    Brosch et al. 2015. A small share favours specificity.
    """
    pixels = _Valid.of(logits, target, ignore_index)
    truth = F.one_hot(pixels.target, logits.shape[1]).float()
    wrong = (truth - pixels.logits.softmax(1)) ** 2
    missed = (wrong * truth).sum(0) / truth.sum(0).clamp_min(1)
    claimed = (wrong * (1 - truth)).sum(0) / (1 - truth).sum(0).clamp_min(1)
    return _over_shown(share * missed + (1 - share) * claimed, truth.sum(0) > 0, weights)


def lovasz(
    logits: Tensor, target: Tensor, ignore_index: int, *, weights: Tensor | None = None
) -> Tensor:
    """Return the Lovasz extension of the Jaccard loss (Berman et al. 2018, 1705.08790).

    By segmentation-models-pytorch. It knows no class weights.
    """
    from segmentation_models_pytorch.losses import LovaszLoss

    _unweighted("lovasz", weights)
    pixels = _Valid.of(logits, target, ignore_index)
    if not len(pixels.target):
        return pixels.logits.sum()
    found: Tensor = LovaszLoss("multiclass")(pixels.logits.T[None, :, :, None], pixels.target[None])
    return found


# --- of shapes -----------------------------------------------------------------------------------


def boundary(
    logits: Tensor, target: Tensor, ignore_index: int, *, weights: Tensor | None = None
) -> Tensor:
    """Return the mean over pixels and classes of p times the signed distance to the truth's edge.

    Kervadec et al. 2018 (1812.07032), distances as in its authors' code: pixels to the class
    outside, one less and negative inside; 0 where an image lacks the class, or has nothing else.
    It may be negative, and is meant beside Dice, with a weight that grows (`ramp_to`).
    """
    valid = target != ignore_index
    away = distances.signed(target, logits.shape[1], ignore_index)
    value = (away * logits.softmax(1)).sum((0, 2, 3)) / _floored(valid.sum())
    each = torch.ones_like(value) if weights is None else weights
    return (value * each).sum() / _floored(each.sum())


def hausdorff(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    *,
    weights: Tensor | None = None,
    alpha: float = 2.0,
) -> Tensor:
    """Return the mean of (p - y)^2 (d_p^alpha + d_y^alpha) over pixels and classes.

    Karimi and Salcudean 2019 (1904.10030): d is a pixel's distance to the edge of {p > 0.5} and of
    the truth, on whichever side; both are data without gradients. Slow: distances of every
    prediction, on the CPU.
    """
    valid = (target != ignore_index)[:, None]
    shares = logits.softmax(1)
    classes = torch.arange(logits.shape[1], device=target.device)[:, None, None]
    truth = target[:, None] == classes
    with torch.no_grad():
        field = sum(distances.field(mask & valid, valid) ** alpha for mask in (shares > 0.5, truth))
    wrong = torch.where(valid, (shares - truth.float()) ** 2 * field, 0.0)
    value = wrong.sum((0, 2, 3)) / _floored(valid.sum())
    each = torch.ones_like(value) if weights is None else weights
    return (value * each).sum() / _floored(each.sum())


def _unweighted(name: str, weights: Tensor | None) -> None:
    if weights is not None:
        raise UsageError(f"loss {name!r} knows no class weights; set class_weights: none for it")


# --- by name, and in sums ------------------------------------------------------------------------

LOSSES: Final[Mapping[str, Callable[..., Tensor]]] = {
    "cross-entropy": cross_entropy,
    "focal": focal,
    "top-k": top_k,
    "ohem": ohem,
    "iou-balanced": iou_balanced,
    "distance-penalised": distance_penalised,
    "dice": dice,
    "jaccard": partial(tversky, alpha=1.0, beta=1.0),
    "tversky": tversky,
    "sensitivity-specificity": sensitivity_specificity,
    "lovasz": lovasz,
    "boundary": boundary,
    "hausdorff": hausdorff,
}


class Term(Protocol):
    """A part of a recipe's loss."""

    @property
    def name(self) -> str:
        """The loss, a key of `LOSSES`."""
        ...

    @property
    def weight(self) -> float:
        """Its factor in the sum."""
        ...

    @property
    def ramp_to(self) -> float | None:
        """The factor at the end of the run, where it grows or falls evenly; None: it stays."""
        ...

    @property
    def class_weights(self) -> bool:
        """Whether the recipe's class weights go into it."""
        ...

    @property
    def options(self) -> Mapping[str, float | bool]:
        """The loss's own options."""
        ...


@dataclass(frozen=True, slots=True)
class Criterion:
    """The weighted sum of losses that a network is trained with."""

    ignore_index: int
    weights: Tensor | None
    terms: tuple[tuple[Term, Loss], ...]

    def __call__(self, logits: Tensor, labels: Tensor, share: float = 0.0) -> Tensor:
        """Return the loss of logits [N, C, h, w] on labels [N, H, W] of any integer type.

        Logits are brought to the labels' size, in float32 whatever autocast says. `share` is how
        much of the run is over, 0 to 1.
        """
        with torch.autocast(logits.device.type, enabled=False):
            scores, target = logits.float(), labels.long()
            if scores.shape[-2:] != target.shape[-2:]:
                scores = F.interpolate(
                    scores, target.shape[-2:], mode="bilinear", align_corners=False
                )
            total = scores.new_zeros(())
            for term, loss in self.terms:
                end = term.weight if term.ramp_to is None else term.ramp_to
                factor = term.weight + (end - term.weight) * share
                weights = self.weights if term.class_weights else None
                total = total + factor * loss(scores, target, self.ignore_index, weights=weights)
        return total

    def mass(self, labels: Tensor) -> Tensor:
        """Return what a mean over parts of a batch weighs each part by."""
        weighted = any(term.class_weights for term, _ in self.terms)
        return mass(labels.long(), self.ignore_index, self.weights if weighted else None)


def criterion(terms: Sequence[Term], ignore_index: int, weights: Tensor | None) -> Criterion:
    """Return the sum of a recipe's losses.

    Raises:
        UnknownName: a loss is none of `LOSSES`.
        UsageError: a loss has no such option, or knows no class weights.
    """
    made = []
    for term in terms:
        if term.name not in LOSSES:
            raise UnknownName("loss", term.name, LOSSES)
        loss = LOSSES[term.name]
        parameters = inspect.signature(loss).parameters.values()
        fixed = loss.keywords if isinstance(loss, partial) else {}
        known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "weights"]
        known = [name for name in known if name not in fixed]
        for name in term.options:
            if name not in known:
                raise UsageError(
                    f"loss {term.name!r} has no option {name!r}; it has: {', '.join(known) or '-'}"
                )
        if loss is lovasz and term.class_weights:
            _unweighted(term.name, weights)
        made.append((term, partial(loss, **term.options)))
    return Criterion(ignore_index, weights, tuple(made))
