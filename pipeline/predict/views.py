"""An image seen several times: through windows, at several scales, mirrored, then refined.

The answer is a map of scores at the image's size whose soft-max is the probability of each class:
logits where the image is seen once, else the logarithm of the views' mean probability. What a pixel
gets depends on the image and the options alone, not on batch or memory: images too large to hold
scores of are done in bands of rows, each band from all windows that touch it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from pipeline.predict.decide import Frame, decide, resized_part
from pipeline.predict.refine import refiner
from pipeline.predict.windows import blended

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.predict.decide import Cut
    from pipeline.predict.options import LabelOptions

Size = tuple[int, int]
"""Height and width."""

BAND_BYTES: Final = 128 << 20
"""Most that the scores of some images, or of a band of one, take; about four such are held."""
CRF_BYTES: Final = 1 << 30
"""Most that the probabilities of an image take which a dense CRF refines: it holds all at once."""
_LEAST_P: Final = 1e-12
_WINDOWS: Final = 8
"""Windows in a forward pass where the user names no batch size."""
_LEAST_WINDOWS: Final = 3


class Network(Protocol):
    """A network with its normalisation and padding."""

    def __call__(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Return logits [N, C, *size] of RGB images [N, 3, H, W], 0..255 of any type."""


@dataclass(frozen=True, slots=True)
class Views:
    """A network and the ways in which it sees an image.

    `input_size` is the height and width that images are brought to before anything else, None to
    leave them. Images may come smaller than their `size` (decoded at a reduced size).
    """

    network: Network
    classes: int
    options: LabelOptions
    input_size: Size | None = None
    band_bytes: int = BAND_BYTES

    def labels(
        self, images: Tensor, size: Size, ids: Tensor, cut: Cut | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return class ids [N, *size] and confidence uint8 [N, *size]; see `decide`.

        `images` are RGB uint8 [N, 3, h, w].
        """
        shape = (len(images), *size)
        best = torch.empty(shape, dtype=ids.dtype, device=images.device)
        confidence = torch.empty(shape, dtype=torch.uint8, device=images.device)
        step = max(1, self.band_bytes // (4 * self.classes * size[0] * size[1]))
        for first in range(0, len(images), step):
            some = slice(first, first + step)
            for rows in self.bands(size):
                scores = self.scores(images[some], size, rows)
                band = (scores.shape[2], scores.shape[3])
                at = slice(*rows)
                best[some, at], confidence[some, at] = decide(
                    scores, Frame(band, band, band), ids, self.band_bytes, cut
                )
        return best, confidence

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
        # Windows across a band's edge are run twice: a band is a few windows high at least.
        inside = (self.input_size or size)[0] * self.options.tta.scales[0]
        least = math.ceil(_LEAST_WINDOWS * self.options.window[0] * height / inside)
        step = max(least, self.band_bytes // (4 * self.classes * width))
        return [(a, min(a + step, height)) for a in range(0, height, step)]

    def scores(self, images: Tensor, size: Size, rows: tuple[int, int]) -> Tensor:
        """Return scores float32 [N, C, rows, W] of RGB images uint8 [N, 3, h, w].

        Raises:
            MissingExtra: the refinement needs a package that is not installed.
        """
        refine = refiner(self.options.refine)
        views = self.options.tta.views
        if refine is None and len(views) == 1:
            return self._seen(images, size, rows, *views[0])
        reach = refine.reach if refine else 0
        held = max(0, rows[0] - reach), min(size[0], rows[1] + reach)
        total: Tensor | None = None
        for view in views:
            p = self._seen(images, size, held, *view).softmax(dim=1)
            total = p if total is None else total.add_(p)
        assert total is not None, "an image is seen at least once"
        total /= len(views)
        if refine:
            total = refine(total, _guide(images, size)[:, :, held[0] : held[1]])
        return total[:, :, rows[0] - held[0] : rows[1] - held[0]].clamp_min(_LEAST_P).log()

    def _seen(
        self, images: Tensor, size: Size, rows: tuple[int, int], scale: float, mirrored: bool
    ) -> Tensor:
        """Return the logits of one view, brought back to the image's frame."""
        own = (images.shape[2], images.shape[3])
        if mirrored:
            images = images.flip(3)
        inside = self.input_size or own
        if scale != 1:
            inside = (max(1, round(inside[0] * scale)), max(1, round(inside[1] * scale)))
        if inside != own:
            images = F.interpolate(images.float(), inside, mode="bilinear", antialias=True)
        if self.options.window is None:
            found = self.network(images, size)[:, :, rows[0] : rows[1]]
        else:
            found = self._by_windows(images, size, rows, self.options.window)
        return found.flip(3) if mirrored else found

    def _by_windows(
        self, images: Tensor, size: Size, rows: tuple[int, int], window: Size
    ) -> Tensor:
        def forward(cut: Tensor) -> Tensor:
            return self.network(cut, window)

        height = images.shape[2]
        source = _rows_behind(rows, height, size[0])
        overlap, batch = self.options.window_overlap, self.options.batch_size or _WINDOWS
        found = blended(forward, images, window, overlap, batch=batch, rows=source)
        return resized_part(found, (source[0], height), size, *rows)


def _rows_behind(rows: tuple[int, int], source: int, height: int) -> tuple[int, int]:
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
