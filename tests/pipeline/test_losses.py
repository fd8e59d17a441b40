"""Each loss beside its formula, written once more in NumPy with loops, and what all promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from pipeline.errors import UnknownName, UsageError
from pipeline.training.losses import LOSSES, criterion
from pipeline.training.recipe import LossTerm
from pipeline.training.weighting import class_weights

VOID = 255
CLASSES = 4
WEIGHTS = np.array([0.5, 1.0, 2.0, 3.0])


def sample(seed: int = 0, size: tuple[int, ...] = (2, 7, 9)) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and labels in patches; some void; class 3 occurs in no truth."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (size[0], size[1] // 3 + 1, size[2] // 3 + 1))
    labels = coarse.repeat(3, 1).repeat(3, 2)[:, : size[1], : size[2]]
    labels[rng.random(labels.shape) < 0.15] = VOID
    logits = rng.normal(0, 2, (size[0], CLASSES, *size[1:]))
    return torch.tensor(logits, dtype=torch.float64).float(), torch.tensor(labels)


def softmax(logits: torch.Tensor) -> np.ndarray:
    x = logits.double().numpy()
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def pixels(logits, labels):
    """Yield (probabilities, class, image) of each pixel that counts."""
    p, y = softmax(logits), labels.numpy()
    for place in np.argwhere(y != VOID).tolist():
        n, i, j = place
        yield p[n, :, i, j], int(y[n, i, j]), n


def nearest(labels: np.ndarray, at: tuple[int, int], goal) -> float:
    """Return the distance from a pixel to the nearest one for which goal holds."""
    h, w = labels.shape
    return min(
        (np.hypot(at[0] - i, at[1] - j) for i in range(h) for j in range(w) if goal(i, j)),
        default=np.inf,
    )


def cross_entropy(logits, labels, w):
    rows = [(-w[y] * np.log(p[y]), w[y]) for p, y, _ in pixels(logits, labels)]
    return sum(r[0] for r in rows) / sum(r[1] for r in rows)


def focal(logits, labels, w):
    rows = [(w[y] * -((1 - p[y]) ** 2) * np.log(p[y]), w[y]) for p, y, _ in pixels(logits, labels)]
    return sum(r[0] for r in rows) / sum(r[1] for r in rows)


def top_k(logits, labels, w):
    rows = sorted((-w[y] * np.log(p[y]) for p, y, _ in pixels(logits, labels)), reverse=True)
    return np.mean(rows[: max(1, round(0.1 * len(rows)))])


def ohem(logits, labels, w):
    rows = [(p[y], -w[y] * np.log(p[y])) for p, y, _ in pixels(logits, labels)]
    hard = [loss for p, loss in rows if p < 0.7]
    assert len(hard) > 0.0625 * len(rows)
    return np.mean(hard)


def iou_balanced(logits, labels, w):
    entropy, weight = np.zeros(len(labels)), 0.0
    for p, y, n in pixels(logits, labels):
        entropy[n] += -w[y] * np.log(p[y])
        weight += w[y]
    quality = []
    for n in range(len(labels)):
        shares = []
        for c in range(CLASSES):
            own = [(p[c], y == c) for p, y, image in pixels(logits, labels) if image == n]
            both = sum(q for q, t in own if t)
            if any(t for _, t in own):
                shares.append(both / (sum(q for q, _ in own) + sum(t for _, t in own) - both))
        quality.append(np.mean(shares) ** 1.5)
    factor = np.array(quality) * entropy.sum() / (np.array(quality) * entropy).sum()
    return (factor * entropy).sum() / weight


def distance_penalised(logits, labels, w):
    y, total, weight = labels.numpy(), 0.0, 0.0
    p = softmax(logits)
    for n in range(len(y)):
        lab = y[n]

        def edge(i, j, lab=lab):
            around = [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
            inside = [a for a in around if 0 <= a[0] < lab.shape[0] and 0 <= a[1] < lab.shape[1]]
            return lab[i, j] != VOID and any(lab[a] != lab[i, j] and lab[a] != VOID for a in inside)

        for i, j in np.argwhere(lab != VOID).tolist():
            c = lab[i, j]
            away = nearest(lab, (i, j), edge)
            total += (1 + np.exp(-away)) * -w[c] * np.log(p[n, c, i, j])
            weight += w[c]
    return total / weight


def regions(logits, labels):
    for c in range(CLASSES):
        rows = [(p[c], float(y == c)) for p, y, _ in pixels(logits, labels)]
        if any(t for _, t in rows):
            yield c, np.array([r[0] for r in rows]), np.array([r[1] for r in rows])


def over_shown(values, w):
    return sum(w[c] * v for c, v in values) / sum(w[c] for c, _ in values)


def dice(logits, labels, w):
    found = [
        (c, 1 - 2 * (p * y).sum() / (p.sum() + y.sum())) for c, p, y in regions(logits, labels)
    ]
    return over_shown(found, w)


def jaccard(logits, labels, w):
    found = [(c, 1 - (p * y).sum() / (p + y - p * y).sum()) for c, p, y in regions(logits, labels)]
    return over_shown(found, w)


def tversky(logits, labels, w):
    found = []
    for c, p, y in regions(logits, labels):
        tp, fp, fn = (p * y).sum(), (p * (1 - y)).sum(), ((1 - p) * y).sum()
        found.append((c, 1 - tp / (tp + 0.3 * fp + 0.7 * fn)))
    return over_shown(found, w)


def sensitivity_specificity(logits, labels, w):
    found = []
    for c, p, y in regions(logits, labels):
        square = (y - p) ** 2
        missed, claimed = (square * y).sum() / y.sum(), (square * (1 - y)).sum() / (1 - y).sum()
        found.append((c, 0.1 * missed + 0.9 * claimed))
    return over_shown(found, w)


def lovasz(logits, labels, w):
    """Sum the sorted errors times the Jaccard index's growth, set by set."""
    del w
    found = []
    for _, p, y in regions(logits, labels):
        errors = np.abs(y - p)
        order, before, total = np.argsort(-errors, kind="stable"), 0.0, 0.0
        wrong = np.zeros(len(y), bool)
        for k in order:
            wrong[k] = True
            kept = (y == 1) & ~wrong
            union = (y == 1) | wrong
            jaccard_loss = 1 - kept.sum() / union.sum()
            total += errors[k] * (jaccard_loss - before)
            before = jaccard_loss
        found.append(total)
    return np.mean(found)


def boundary(logits, labels, w):
    p, y = softmax(logits), labels.numpy()
    total = np.zeros(CLASSES)
    for n in range(len(y)):
        for c in range(CLASSES):
            inside = y[n] == c
            outside = (y[n] != c) & (y[n] != VOID)
            if not inside.any() or not outside.any():
                continue
            for i, j in np.argwhere(y[n] != VOID).tolist():
                goal = outside if inside[i, j] else inside
                away = nearest(y[n], (i, j), lambda a, b, goal=goal: goal[a, b])
                total[c] += p[n, c, i, j] * (1 - away if inside[i, j] else away)
    return (total / (y != VOID).sum() * w).sum() / w.sum()


def hausdorff(logits, labels, w):
    p, y = softmax(logits), labels.numpy()
    valid, total = y != VOID, np.zeros(CLASSES)
    for n in range(len(y)):
        for c in range(CLASSES):
            field = np.zeros(y[n].shape)
            for mask in (p[n, c] > 0.5, y[n] == c):
                inside, outside = mask & valid[n], ~mask & valid[n]
                if inside.any() and outside.any():
                    to_inside = distance_transform_edt(~inside)
                    to_outside = distance_transform_edt(~outside)
                    field += np.where(inside, to_outside, to_inside) ** 2
            wrong = (p[n, c] - (y[n] == c)) ** 2 * field
            total[c] += wrong[valid[n]].sum()
    return (total / valid.sum() * w).sum() / w.sum()


FORMULAS = {
    "cross-entropy": cross_entropy,
    "focal": focal,
    "top-k": top_k,
    "ohem": ohem,
    "iou-balanced": iou_balanced,
    "distance-penalised": distance_penalised,
    "dice": dice,
    "jaccard": jaccard,
    "tversky": tversky,
    "sensitivity-specificity": sensitivity_specificity,
    "lovasz": lovasz,
    "boundary": boundary,
    "hausdorff": hausdorff,
}
NEVER_ZERO = {"boundary"}  # it rewards being inside, by any amount
NO_WEIGHTS = {"lovasz"}


def test_every_loss_has_a_formula():
    assert set(FORMULAS) == set(LOSSES)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_the_value_is_the_formulas(name, weighted):
    logits, labels = sample()
    if weighted and name in NO_WEIGHTS:
        with pytest.raises(UsageError, match="class_weights"):
            LOSSES[name](logits, labels, VOID, weights=torch.tensor(WEIGHTS))
        return
    weights = torch.tensor(WEIGHTS).float() if weighted else None
    value = LOSSES[name](logits, labels, VOID, weights=weights)
    want = FORMULAS[name](logits, labels, WEIGHTS if weighted else np.ones(CLASSES))
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(want), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_the_values_slope(name):
    logits, labels = sample(3, (1, 4, 5))
    if name == "lovasz":  # the library's code is of float32
        slope = (lambda x: LOSSES[name](x.float(), labels, VOID).double(), 3e-3, 3e-3)
    else:
        slope = (lambda x: LOSSES[name](x, labels, VOID), 1e-6, 1e-5)
    logits = logits.double().requires_grad_()
    if name in {"hausdorff", "iou-balanced"}:  # parts of them are data, on purpose
        LOSSES[name](logits, labels, VOID).backward()
        assert logits.grad.abs().sum() > 0
        return
    loss, step, most = slope
    assert torch.autograd.gradcheck(loss, logits, eps=step, atol=most)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_change_no_value_and_get_no_gradient(name):
    logits, labels = sample(1)
    plain = LOSSES[name](logits, labels, VOID)
    rng = torch.Generator().manual_seed(5)
    wide = torch.randn(3, CLASSES, 12, 13, generator=rng) * 50
    void = torch.full((3, 12, 13), VOID)
    wide[:2, :, :7, :9], void[:2, :7, :9] = logits, labels
    wide.requires_grad_()
    padded = LOSSES[name](wide, void, VOID)
    assert float(padded) == pytest.approx(float(plain), rel=1e-5, abs=1e-7)
    padded.backward()
    assert wide.grad.isfinite().all()
    assert not wide.grad.movedim(1, -1)[void == VOID].any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_of_void_teaches_nothing(name):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = LOSSES[name](logits, torch.full((1, 4, 4), VOID), VOID)
    loss.backward()
    assert float(loss) == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("name", sorted(set(LOSSES) - NEVER_ZERO))
def test_a_perfect_prediction_costs_nothing(name):
    _, labels = sample(2)
    sure = torch.nn.functional.one_hot(labels.clamp(max=CLASSES - 1), CLASSES).movedim(-1, 1)
    assert float(LOSSES[name](sure * 100.0, labels, VOID)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_worse_prediction_costs_more(name):
    _, labels = sample(2)
    sure = torch.nn.functional.one_hot(labels.clamp(max=CLASSES - 1), CLASSES).movedim(-1, 1)
    good, bad = (LOSSES[name](sure * float(k), labels, VOID) for k in (3, -3))
    assert good < bad


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_do_no_harm(name):
    logits, labels = sample(4)
    loss = criterion([LossTerm(name=name)], VOID, None)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss((logits * 30).bfloat16(), labels.to(torch.uint8))
    assert value.dtype == torch.float32
    assert value.isfinite()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), height=st.integers(1, 12), width=st.integers(1, 12))
def test_focal_of_gamma_0_and_tversky_of_halves_are_old_friends(seed, height, width):
    logits, labels = sample(seed, (2, height, width))
    same = [
        (LOSSES["focal"](logits, labels, VOID, gamma=0.0), LOSSES["cross-entropy"]),
        (LOSSES["tversky"](logits, labels, VOID, alpha=0.5, beta=0.5), LOSSES["dice"]),
        (LOSSES["top-k"](logits, labels, VOID, share=1.0), LOSSES["cross-entropy"]),
    ]
    for value, loss in same:
        assert float(value) == pytest.approx(float(loss(logits, labels, VOID)), abs=1e-5)


def test_a_sum_weighs_and_ramps_its_terms():
    logits, labels = sample()
    weights = torch.tensor(WEIGHTS).float()
    terms = [
        LossTerm.model_validate("cross-entropy"),
        LossTerm(name="dice", weight=0.5, ramp_to=2.5, class_weights=False),
    ]
    loss = criterion(terms, VOID, weights)
    first = LOSSES["cross-entropy"](logits, labels, VOID, weights=weights)
    second = LOSSES["dice"](logits, labels, VOID)
    assert torch.allclose(loss(logits, labels), first + 0.5 * second)
    assert torch.allclose(loss(logits, labels, share=0.5), first + 1.5 * second)
    assert float(loss.mass(labels)) == pytest.approx(
        sum(WEIGHTS[y] for y in labels.flatten().tolist() if y != VOID)
    )


def test_what_a_recipe_gets_wrong_is_named():
    with pytest.raises(UnknownName, match="dice"):
        criterion([LossTerm(name="dyce")], VOID, None)
    with pytest.raises(UsageError, match="gamma"):
        criterion([LossTerm(name="focal", options={"gama": 1})], VOID, None)
    with pytest.raises(UsageError, match="alpha"):
        criterion([LossTerm(name="jaccard", options={"alpha": 1})], VOID, None)
    with pytest.raises(UsageError, match="class_weights"):
        criterion([LossTerm(name="lovasz")], VOID, torch.ones(3))


def test_the_effective_number_of_one_pixel_is_one():
    few = class_weights("effective-number", np.array([1, 2, 0]), np.array([3, 3, 0]))
    assert few is not None
    assert few[0] / few[1] == pytest.approx(2, rel=1e-4)
    many = class_weights("effective-number", np.array([10**11, 10**12]), np.array([1, 1]))
    assert many is not None
    assert many[0] / many[1] == pytest.approx(1, rel=1e-4)
