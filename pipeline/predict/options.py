"""What a user says of how images are labelled."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from pipeline.errors import MissingExtra, UsageError
from pipeline.numbers import whole
from pipeline.predict.thresholds import Thresholds
from pipeline.predict.tta import Augmentation

if TYPE_CHECKING:
    from pipeline.models.loaded import LoadedModel

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: Final = get_args(Precision)
Decoding = Literal["full", "reduced"]
DECODINGS: Final = get_args(Decoding)
Refine = Literal["none", "guided", "densecrf"]
REFINERS: Final = get_args(Refine)
OVERLAP: Final = 0.25
_LEAST_WINDOW, _MOST_WINDOW = 16, 8192
_MOST_INPUT: Final = 16_384
_MOST_OVERLAP: Final = 0.9
"""More would run a network over every pixel more than a hundred times."""


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """How images are labelled.

    Batch size, threads, device and compilation don't change the labels, but for rounding.
    """

    batch_size: int | None = None
    """Images in a forward pass; None: what fits and is fast, by the shape of the input."""
    precision: Precision = "fp32"
    confidence: bool = False
    margin: bool = False
    """Keep how far a pixel's class leads, in the cell of its confidence."""
    input_size: tuple[int, int] | None = None
    """Height and width that images are resized to for the model; None: what the model says."""
    pad_limit: float = 0.0
    """Share of pixels that padding may add, so that images of nearly one size share a batch."""
    decode: Decoding = "full"
    """reduced: JPEGs are decoded at 1/2, 1/4 or 1/8 where the model's input is smaller still."""
    compile: bool = False
    kind: Literal["model", "pseudo"] = "model"
    device: str = "auto"
    threads: int | None = None
    """Threads that read, decode and encode beside the device; None: by the cores and devices."""
    window: tuple[int, int] | None = None
    """Height and width of a sliding window; images keep their size unless `input_size` is given."""
    overlap: float | None = None
    """Share of a window that it has in common with the next; None: `OVERLAP`."""
    tta: Augmentation = field(default_factory=Augmentation)
    refine: Refine = "none"
    min_confidence: Thresholds = field(default_factory=Thresholds)

    @classmethod
    def parse(
        cls,
        *,
        batch_size: str,
        input_size: str | None,
        window: str | None,
        tta: str | None,
        min_confidence: str | None,
        **plain: Any,
    ) -> LabelOptions:
        """Read options as a user writes them: sizes as HxW, `auto` as no batch size.

        Raises:
            UsageError: an option is malformed or out of its range.
        """
        return cls(
            batch_size=_batch(batch_size),
            input_size=_size("--input-size", input_size),
            window=_size("--window", window),
            tta=Augmentation() if tta is None else Augmentation.parse(tta),
            min_confidence=(
                Thresholds() if min_confidence is None else Thresholds.parse(min_confidence)
            ),
            **plain,
        )

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"--precision takes fp32, bf16 or fp16, not {self.precision!r}")
        if self.decode not in DECODINGS:
            raise UsageError(f"--decode takes full or reduced, not {self.decode!r}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size is at least 1, or auto, not {self.batch_size}")
        if not 0 <= self.pad_limit <= 1:
            raise UsageError(f"--pad-limit is a share, 0 to 1, not {self.pad_limit}")
        if self.refine not in REFINERS:
            raise UsageError(f"--refine takes {', '.join(REFINERS)}, not {self.refine!r}")
        if self.input_size and not all(1 <= n <= _MOST_INPUT for n in self.input_size):
            size = "{}x{}".format(*self.input_size)
            raise UsageError(f"--input-size is 1 to {_MOST_INPUT} pixels a side, not {size}")
        if self.margin and not self.confidence:
            raise UsageError("--margin is kept beside the confidence: give --confidence too")
        self._check_window()

    def _check_window(self) -> None:
        if self.window and not all(_LEAST_WINDOW <= n <= _MOST_WINDOW for n in self.window):
            size = "{}x{}".format(*self.window)
            raise UsageError(
                f"--window is {_LEAST_WINDOW} to {_MOST_WINDOW} pixels a side, not {size}"
            )
        if self.overlap is None:
            return
        if self.window is None:
            raise UsageError("--overlap is of windows: give --window HxW with it")
        if not 0 <= self.overlap <= _MOST_OVERLAP:
            raise UsageError(
                f"--overlap is a share of the window, 0 to {_MOST_OVERLAP:g}, not {self.overlap:g}"
            )

    @property
    def window_overlap(self) -> float:
        """Return the share of a window that it has in common with the next."""
        return OVERLAP if self.overlap is None else self.overlap

    @property
    def in_views(self) -> bool:
        """Tell whether labels take more than one plain look at an image."""
        return bool(self.window) or self.refine != "none" or self.tta != Augmentation()

    def output_identity(self) -> list[str]:
        """Return what, beyond the model, changes the labels: part of the model digest."""
        size = "native" if self.input_size is None else "{}x{}".format(*self.input_size)
        said = [self.precision, size, f"confidence={self.confidence}"]
        # What is at its default goes unsaid: labels made before the option was there stay valid.
        if self.pad_limit:
            said.append(f"pad_limit={self.pad_limit:g}")
        if self.decode != "full":
            said.append(f"decode={self.decode}")
        if self.window:
            said.append("window={}x{}".format(*self.window))
            said.append(f"overlap={float(self.window_overlap)!r}")
        if self.tta != Augmentation():
            said.append(f"tta={self.tta}")
        if self.refine != "none":
            said.append(f"refine={self.refine}")
        if self.margin:
            said.append("margin=True")
        if self.min_confidence:
            said.append(f"min_confidence={self.min_confidence}")
        return said


def _batch(text: str) -> int | None:
    if text == "auto":
        return None
    number = whole(text)
    if number is None:
        raise UsageError(f"--batch-size is a number, or auto, not {text!r}")
    return number


def _size(option: str, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, width = (whole(side) for side in text.lower().partition("x")[::2])
    if not height or not width:
        raise UsageError(f"{option} is HxW, like 360x480, not {text!r}")
    return height, width


def _check_channels(model: LoadedModel, options: LabelOptions) -> None:
    """Check what a model takes beside colours.

    Raises:
        UsageError: it takes more than can be given, or what only plain labelling gives.
    """
    channels, depth = getattr(model.module, "in_channels", 3), model.preprocessing.depth
    if channels != (3 if depth is None else 4):
        raise UsageError(
            f"{model.uri} takes {channels} channels; images to label have 3, and depth in metres "
            "makes a fourth for a model that says how to scale it: one that `segmill train` wrote"
        )
    if depth is not None and options.in_views:
        raise UsageError(
            f"{model.uri} takes depth; --window, --tta and --refine are for models of colours"
        )


def check_model(model: LoadedModel, options: LabelOptions) -> None:
    """Check that options fit a model and this machine: before work starts, and on each worker.

    Raises:
        UsageError: a threshold names no class of the model, an ensemble leaves the size open, a
            model that finds objects is asked for what is done to label maps, or one takes other
            channels than there are.
        MissingExtra: the refinement needs a package that is not installed.
    """
    options.min_confidence.by_channel(model.label_space)
    _check_channels(model, options)
    if model.objects is not None and (options.in_views or options.min_confidence):
        raise UsageError(
            f"{model.uri} finds objects; --window, --tta, --refine and --min-confidence are for "
            "label maps: leave them out (its URI takes ?score= for the objects that are kept)"
        )
    if options.refine == "densecrf" and find_spec("pydensecrf") is None:
        raise MissingExtra("--refine densecrf", "crf")
    if model.architecture.kind != "ensemble" or options.input_size or options.window:
        return
    inputs = [m["preprocessing"] for m in model.architecture.options["members"]]
    sizes = {str(p["size"] or p.get("edge")) for p in inputs}
    if len(sizes) > 1:
        raise UsageError(
            f"{model.uri}: the models were trained on inputs of different sizes (height and width "
            f"{', '.join(sorted(sizes))}); give --input-size or --window"
        )
