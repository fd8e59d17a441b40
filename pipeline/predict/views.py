"""An image seen several times: through windows, at several scales, mirrored, then refined.

The answer is a map of scores at the image's size whose soft-max is the probability of each class:
logits where the image is seen once, else the logarithm of the views' mean probability. What a pixel
gets depends on the image and the options alone, not on batch or memory: images too large to hold
scores of are done in bands of rows from top to bottom.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from pipeline.predict.decide import Decided, Frame, decide, resized_part
from pipeline.predict.refine import refiner
from pipeline.predict.windows import Strip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.predict.decide import Cut
    from pipeline.predict.options import LabelOptions

Size = tuple[int, int]
"""Height and width."""
Rows = tuple[int, int]
"""The first row, and the one after the last."""
View = Callable[[Rows], Tensor]
"""Returns logits [N, C, rows, W] in the image's frame; windows take bands from top to bottom."""

BAND_BYTES: Final = 128 << 20
"""Most that the scores of some images, or of a band of one, take; about four such are held."""
CRF_BYTES: Final = 1 << 30
"""Most that the probabilities of an image take which a dense CRF refines: it holds all at once."""
_LEAST_P: Final = 1e-12
_LEAST_ROWS: Final = 32
"""Rows of a band: refinement does those around a band as well, and windows hold many more."""
_WINDOWS: Final = 8
"""Windows in a forward pass where the user names no batch size."""


class Network(Protocol):
    """A network with its normalisation and padding."""

    def __call__(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Return logits [N, C, *size] of RGB images [N, 3, H, W], 0..255 of any type."""


@dataclass(frozen=True, slots=True)
class Views:
    """A network and the ways in which it sees an image.

    `inside` tells the height and width that an image of a size is brought to before anything else,
    None to leave it.
    Images may come smaller than their `size` (decoded at a reduced size).
    """

    network: Network
    classes: int
    options: LabelOptions
    inside: Callable[[int, int], Size] | None = None
    band_bytes: int = BAND_BYTES

    def labels(self, images: Tensor, size: Size, ids: Tensor, cut: Cut | None = None) -> Decided:
        """Return class ids, confidence and margin [N, *size]; see `decide`.

        `images` are RGB uint8 [N, 3, h, w].
        """
        shape = (len(images), *size)
        margin = self.options.margin
        whole = Decided.empty(shape, ids, margin=margin)
        step = max(1, self.band_bytes // (4 * self.classes * size[0] * size[1]))
        for first in range(0, len(images), step):
            some = slice(first, first + step)
            for rows, scores in self.scores(images[some], size):
                band, at = (scores.shape[2], scores.shape[3]), slice(*rows)
                part = decide(
                    scores, Frame(band, band, band), ids, self.band_bytes, cut, margin=margin
                )
                for target, found in zip(whole, part, strict=True):
                    if target is not None and found is not None:
                        target[some, at] = found
        return whole

    def too_large(self, size: Size) -> str | None:
        """Return why an image of that size cannot be refined, None where it can."""
        if self.options.refine != "densecrf":
            return None
        most = CRF_BYTES // (4 * self.classes)
        if size[0] * size[1] <= most:
            return None
        return f"a dense CRF of {self.classes} classes takes {most:,} pixels at most"

    def bands(self, size: Size) -> list[tuple[int, int]]:
        """Return the ranges of rows in which an image is done: one, unless there are windows.

        A dense CRF takes the whole image at once.
        """
        height, width = size
        if self.options.window is None or self.options.refine == "densecrf":
            return [(0, height)]
        step = max(_LEAST_ROWS, self.band_bytes // (4 * self.classes * width))
        return [(a, min(a + step, height)) for a in range(0, height, step)]

    def scores(self, images: Tensor, size: Size) -> Iterator[tuple[Rows, Tensor]]:
        """Yield bands of rows, and scores float32 [N, C, rows, W], of images uint8 [N, 3, h, w].

        Raises:
            MissingExtra: the refinement needs a package that is not installed.
        """
        refine = refiner(self.options.refine)
        reach = refine.reach if refine else 0
        guide = _guide(images, size) if refine else images
        views = self._views(images, size)
        for rows in self.bands(size):
            if refine is None and len(views) == 1:
                yield rows, views[0](rows)
                continue
            held = max(0, rows[0] - reach), min(size[0], rows[1] + reach)
            p = _mean_probability(views, held)
            if refine:
                p = refine(p, guide[:, :, held[0] : held[1]])
            p = p[:, :, rows[0] - held[0] : rows[1] - held[0]]
            yield rows, p.clamp_min(_LEAST_P).log()

    def _views(self, images: Tensor, size: Size) -> list[View]:
        """Return each view of some images, in the frame of their label maps."""
        found = []
        for scale in self.options.tta.scales:
            own = (images.shape[2], images.shape[3])
            inside = self.inside(*size) if self.inside else own
            if scale != 1:
                inside = (max(1, round(inside[0] * scale)), max(1, round(inside[1] * scale)))
            scaled = images
            if inside != own:
                scaled = F.interpolate(images.float(), inside, mode="bilinear", antialias=True)
            view = self._whole if self.options.window is None else self._windowed
            found += [view(scaled, size, mirrored=m) for m in self.options.tta.mirrored]
        return found

    def _whole(self, images: Tensor, size: Size, *, mirrored: bool) -> View:
        def look(rows: Rows) -> Tensor:
            seen = self.network(images.flip(3) if mirrored else images, size)
            part = seen[:, :, rows[0] : rows[1]]
            return part.flip(3) if mirrored else part

        return look

    def _windowed(self, images: Tensor, size: Size, *, mirrored: bool) -> View:
        window = self.options.window
        assert window is not None
        strip = Strip(
            lambda cut: self.network(cut, window),
            images,
            window,
            self.options.window_overlap,
            batch=self.options.batch_size or _WINDOWS,
            mirrored=mirrored,
        )
        height = images.shape[2]

        def look(rows: Rows) -> Tensor:
            source = _rows_behind(rows, height, size[0])
            part = resized_part(strip.rows(*source), (source[0], height), size, *rows)
            return part.flip(3) if mirrored else part

        return look


def _mean_probability(views: list[View], rows: Rows) -> Tensor:
    total: Tensor | None = None
    for view in views:
        p = view(rows).softmax(dim=1)
        total = p if total is None else total.add_(p)
    assert total is not None, "an image is seen at least once"
    return total.div_(len(views))


def _rows_behind(rows: Rows, source: int, height: int) -> Rows:
    """Return which of `source` rows a bilinear resizing to `height` rows reads for some of them."""
    if source == height:
        return rows
    ends = (rows[0], rows[1] - 1)
    # Rounded just as `resized_part` rounds: a row less on either side would be one too few.
    first, last = (math.floor((r + 0.5) * (source / height) - 0.5) for r in ends)
    return min(max(0, first), source - 1), min(source, max(last, 0) + 2)


def _guide(images: Tensor, size: Size) -> Tensor:
    """Return images at the size of their label maps."""
    if (images.shape[2], images.shape[3]) == size:
        return images
    return F.interpolate(images.float(), size, mode="bilinear").round_().to(torch.uint8)
