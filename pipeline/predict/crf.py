"""Dense CRF (Krähenbühl and Koltun, NIPS 2011) by the package pydensecrf2, extra `crf`; on the CPU.

Mean field on a fully connected graph with a smoothness kernel over positions and an appearance
kernel over positions and colours, filtered on a permutohedral lattice. Deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from pipeline.errors import MissingExtra

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_LEAST_P: Final = 1e-8


@dataclass(frozen=True, slots=True)
class DenseCrf:
    """Mean field with the kernels that DeepLab v2 was published with.

    Widths are standard deviations, in pixels and in levels of 0..255.
    """

    steps: int = 10
    smooth_weight: float = 3.0
    smooth_xy: float = 3.0
    colour_weight: float = 4.0
    colour_xy: float = 49.0
    colour_rgb: float = 5.0

    @property
    def reach(self) -> int:
        """Every pixel looks at every other: images are refined whole."""
        return 1 << 30

    def __call__(self, p: Tensor, images: Tensor) -> Tensor:
        """Return the mean field's marginals float32 [N, C, H, W], on p's device."""
        probabilities = p.cpu().numpy()
        rgb = images.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
        found = [self.marginals(q, i) for q, i in zip(probabilities, rgb, strict=True)]
        return torch.from_numpy(np.stack(found)).to(p.device)

    def marginals(self, p: NDArray[np.float32], rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the marginals [C, H, W] of probabilities [C, H, W] and an image [H, W, 3].

        Raises:
            MissingExtra: pydensecrf2 is not installed.
        """
        try:
            from pydensecrf.densecrf import DenseCRF2D
        except ImportError:
            raise MissingExtra("--refine densecrf", "crf") from None
        field: Any = DenseCRF2D(p.shape[2], p.shape[1], p.shape[0])
        unary = -np.log(np.maximum(p, _LEAST_P)).reshape(p.shape[0], -1)
        field.setUnaryEnergy(np.ascontiguousarray(unary, np.float32))
        field.addPairwiseGaussian(sxy=self.smooth_xy, compat=self.smooth_weight)
        field.addPairwiseBilateral(
            sxy=self.colour_xy,
            srgb=self.colour_rgb,
            rgbim=np.ascontiguousarray(rgb),
            compat=self.colour_weight,
        )
        return np.array(field.inference(self.steps), np.float32).reshape(p.shape)
