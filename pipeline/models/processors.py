"""Image processors' configurations (`preprocessor_config.json`) as `Preprocessing`.

Plain dictionaries in, so that an exported model beside such a file needs no transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pipeline.models.loaded import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, ShortestEdge

if TYPE_CHECKING:
    from collections.abc import Mapping

MULTIPLE: Final = 32
"""What sides are padded to where a model does not say: most halve their input five times."""
_FIXED: Final = frozenset({"beit", "data2vec-vision", "eomt", "eomt_dinov3"})
"""Plain vision transformers that take one input size only: `image_size` of their configuration."""


def preprocessing_of(
    processor: Mapping[str, Any] | None, config: Mapping[str, Any]
) -> Preprocessing:
    """Return what an image processor does; ImageNet's normalisation where there is none.

    What it may do beyond is left out: a centre crop, since all pixels are to be labelled, and
    cutting into patches, which is the caller's. Resizing is always bilinear with antialiasing.
    """
    fixed = _fixed_size(config)
    if processor is None:
        return Preprocessing(IMAGENET_MEAN, IMAGENET_STD, fixed, 1 if fixed else MULTIPLE)
    mean, std = _normalisation(processor)
    size, edge = _size(processor)
    if fixed is not None:
        if edge is not None and processor.get("do_pad") and fixed[0] == fixed[1]:
            # The whole image inside the square, which padding to a multiple of its side fills.
            return Preprocessing(mean, std, None, fixed[0], ShortestEdge(fixed[0], fixed[0]))
        return Preprocessing(mean, std, size or fixed, 1)
    if size is not None:
        return Preprocessing(mean, std, size, 1)
    multiple = int(processor.get("size_divisor") or MULTIPLE)
    return Preprocessing(mean, std, None, multiple, edge)


def flips_channels(processor: Mapping[str, Any] | None) -> bool:
    """Whether the model takes BGR (MobileViT does)."""
    return bool(processor and processor.get("do_flip_channel_order"))


def _normalisation(
    processor: Mapping[str, Any],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation for pixels in 0..1, whatever the processor scales by."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if processor.get("do_normalize", not flips_channels(processor)):  # MobileViT's default is no
        mean = tuple(map(float, processor.get("image_mean") or IMAGENET_MEAN))
        std = tuple(map(float, processor.get("image_std") or IMAGENET_STD))
    if flips_channels(processor):  # theirs are in the order of the flipped channels
        mean, std = mean[::-1], std[::-1]
    rescale = processor.get("do_rescale", True)
    scale = 255 * float(processor.get("rescale_factor") or 1 / 255) if rescale else 255.0
    return tuple(v / scale for v in mean), tuple(v / scale for v in std)


def _size(processor: Mapping[str, Any]) -> tuple[tuple[int, int] | None, ShortestEdge | None]:
    """Return a fixed input size, or a shorter side; neither where the image stays as it is."""
    size = processor.get("size")
    if not processor.get("do_resize", True) or size is None:
        return None, None
    if isinstance(size, int):  # as old configurations have it
        return ((size, size), None) if processor.get("default_to_square", True) else (
            None, ShortestEdge(size, processor.get("max_size")),
        )  # fmt: skip
    height, width, short = size.get("height"), size.get("width"), size.get("shortest_edge")
    if height and width:
        return (int(height), int(width)), None
    if not short:
        return None, None
    longest, divisor = size.get("longest_edge"), processor.get("size_divisor")
    return None, ShortestEdge(int(short), int(longest) if longest else None, int(divisor or 1))


def _fixed_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the only input size that a plain vision transformer takes."""
    size = config.get("image_size")
    if config.get("model_type") not in _FIXED or size is None:
        return None
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
