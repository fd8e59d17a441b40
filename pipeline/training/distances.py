"""Distances of pixels to edges of label maps: data for losses, computed on the CPU by OpenCV.

Void pixels belong to no region: they end none, and lie in none, so that padding changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Mask = NDArray[np.bool_]
    Distances = NDArray[np.float32]


def to_nearest(goal: Mask) -> Distances:
    """Return each pixel's Euclidean distance to the nearest goal [H, W]; there must be one."""
    import cv2

    away = cv2.distanceTransform((~goal).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(away, np.float32)


def to_edges(target: Tensor, ignore_index: int) -> Tensor:
    """Return each pixel's distance to the nearest edge pixel of its image, float32 [N, H, W].

    An edge pixel has a 4-neighbour of another class. Infinite where an image has no edge.
    """
    found = []
    for labels in target.cpu().numpy():
        edge = _edges(labels, ignore_index)
        away = to_nearest(edge) if edge.any() else np.full(labels.shape, np.inf, np.float32)
        found.append(away)
    return torch.from_numpy(np.stack(found)).to(target.device)


def _edges(labels: NDArray[np.int64], ignore_index: int) -> Mask:
    valid, edge = labels != ignore_index, np.zeros(labels.shape, np.bool_)
    for one, other in (
        (np.s_[1:, :], np.s_[:-1, :]),
        (np.s_[:, 1:], np.s_[:, :-1]),
    ):
        differs = (labels[one] != labels[other]) & valid[one] & valid[other]
        edge[one] |= differs
        edge[other] |= differs
    return edge


def signed(target: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Return signed distances to each class's region, float32 [N, C, H, W], 0 on void.

    Outside: pixels to the region; inside: 1 - pixels to what is not of it. 0 in an image that lacks
    the class or has nothing else.
    """
    found = np.zeros((len(target), classes, *target.shape[1:]), np.float32)
    for image, labels in zip(found, target.cpu().numpy(), strict=True):
        valid = labels != ignore_index
        for number in np.unique(labels[valid]).tolist():
            inside = labels == number
            outside = valid & ~inside
            if outside.any():
                image[number][outside] = to_nearest(inside)[outside]
                image[number][inside] = 1 - to_nearest(outside)[inside]
    return torch.from_numpy(found).to(target.device)


def field(masks: Tensor, valid: Tensor) -> Tensor:
    """Return each valid pixel's distance to the other side of its mask, float32 [N, C, H, W].

    `masks` are boolean [N, C, H, W], `valid` [N, 1, H, W]. 0 where a mask is empty or full.
    """
    counted = valid.expand(-1, masks.shape[1], -1, -1).cpu().numpy()
    found = np.zeros(masks.shape, np.float32)
    for image, inside, there in zip(found, masks.cpu().numpy(), counted, strict=True):
        for out, mask, scored in zip(image, inside, there, strict=True):
            outside = scored & ~mask
            if mask.any() and outside.any():
                out[outside] = to_nearest(mask)[outside]
                out[mask] = to_nearest(outside)[mask]
    return torch.from_numpy(found).to(masks.device)
