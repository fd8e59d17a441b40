"""How often intervals hold the true score, and p-values without a difference fall below 0.05.

    python -m benchmarks.coverage --repeats 1000

Images are drawn from a population whose scores are known exactly; half of its classes are in one to
six of ten images. A minute or two on a core.
"""

from __future__ import annotations

import argparse

import numpy as np

from pipeline.metrics import sums
from pipeline.metrics.bootstrap import intervals
from pipeline.metrics.compare import baseline
from pipeline.metrics.resample import poisson_weights, weighted_sums
from tests.pipeline.tallies import Population, keys_of, space_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=500)
    asked = parser.parse_args()
    print(
        "| classes | images | mIoU % | plain percentile % | accuracy % | class IoU % | p < 0.05 % |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for classes, images in ((5, 10), (5, 30), (5, 100), (19, 30), (19, 100), (19, 400)):
        shares = covered(classes, images, asked.repeats, asked.replicates)
        cells = (f"{100 * share:.1f}" for share in (*shares, false(classes, images, asked.repeats)))
        print(f"| {classes} | {images} | {' | '.join(cells)} |", flush=True)


def covered(classes: int, images: int, repeats: int, replicates: int) -> list[float]:
    """Return the shares of repeats whose interval holds the truth; of classes, the mean share."""
    population, space = Population.of(classes), space_of(classes)
    rng, measure = np.random.default_rng(1), intervals(replicates=replicates)
    truth = population.iou.mean()
    hits = np.zeros((repeats, 4))
    for n in range(repeats):
        tallies, keys = population.draw(rng, images), keys_of(rng, images)
        gathering = measure.start(space)
        gathering.update(tallies, keys, {})
        found = gathering.figures()
        plain = sums.miou(weighted_sums(poisson_weights(keys, replicates), tallies))
        known = [
            c["iou"][0] <= iou <= c["iou"][1]
            for c, iou in zip(found["classes"].values(), population.iou, strict=True)
            if c["iou"] is not None
        ]
        hits[n] = (
            found["miou"][0] <= truth <= found["miou"][1],
            np.quantile(plain, 0.025) <= truth <= np.quantile(plain, 0.975),
            found["pixel_accuracy"][0] <= population.accuracy <= found["pixel_accuracy"][1],
            np.mean(known),
        )
    shares: list[float] = hits.mean(axis=0).tolist()
    return shares


def false(classes: int, images: int, repeats: int) -> float:
    """Return the share of comparisons of equally good predictions that are called different."""
    population, space, rng = Population.of(classes), space_of(classes), np.random.default_rng(2)
    measure = baseline(replicates=100, rounds=199, extremes=0)
    names = {column: ["i"] * images for column in measure.columns}
    called = 0
    for _ in range(repeats):
        this = population.draw(rng, images)
        truth = this[:, 1]
        right = truth * rng.beta(population.right, population.wrong, truth.shape)
        lost = (truth - right).sum(axis=1, keepdims=True)
        other = np.stack([right, truth, right + lost * population.spread], axis=1)
        gathering = measure.start(space)
        gathering.update(this, keys_of(rng, images), names, baseline=np.rint(other).astype(int))
        called += gathering.figures()["miou"]["p"] < 0.05
    return called / repeats


if __name__ == "__main__":
    main()
