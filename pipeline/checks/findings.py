"""What validation finds: the kinds of findings, how bad each is, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import pyarrow as pa

Severity = Literal["error", "warning", "info"]
SEVERITIES: Final = ("error", "warning", "info")
"""error: a training or an evaluation breaks or lies; warning: look at it; info: good to know."""


class Kind(NamedTuple):
    """One kind of finding: how bad it is, its title, and the mend."""

    severity: Severity
    title: str
    mend: str


_INGEST: Final = "correct the source and ingest it again"
KINDS: Final[dict[str, Kind]] = {
    # --- the store -------------------------------------------------------------------------------
    "fragment": Kind(
        "error", "Fragments that cannot be read", "restore an older version or ingest again"
    ),
    "row": Kind("error", "Rows that cannot be read", "ingest the image again"),
    "row-repeated": Kind(
        "error", "Rows that stand twice", "ingest the dataset into a new store, by one writer"
    ),
    "label-space": Kind(
        "error", "Label spaces that the store does not describe", "ingest or merge the rows again"
    ),
    "split": Kind("error", "Unknown splits", "ingest with split train, val, test or unlabelled"),
    # --- masks -----------------------------------------------------------------------------------
    "no-label": Kind(
        "warning", "Images to train on without a label", "label them or leave them out"
    ),
    "mask-corrupt": Kind("error", "Masks that do not decode", _INGEST),
    "mask-size": Kind("error", "Masks of another size than their image", _INGEST),
    "mask-ids": Kind(
        "error", "Masks with ids outside the label space", "read it with its own label space"
    ),
    "mask-void": Kind("warning", "Masks that are void throughout", "label the image or drop it"),
    "mask-background": Kind(
        "info", "Masks that show background only", "keep it as a negative, or drop it"
    ),
    "classes": Kind(
        "error", "Class counts that the mask contradicts", "write the row again by segmill"
    ),
    "confidence": Kind("error", "Confidence maps that are bad", "label the image again"),
    "depth": Kind("error", "Depth maps that are bad", _INGEST),
    "image-labels": Kind("error", "Image labels outside the label space", _INGEST),
    # --- objects ---------------------------------------------------------------------------------
    "instance-class": Kind("error", "Objects of a class outside the label space", _INGEST),
    "instance-rle": Kind("error", "Objects with bad run lengths", _INGEST),
    "instance-outside": Kind("error", "Objects outside their image", _INGEST),
    "instance-malformed": Kind("error", "Objects with malformed fields", _INGEST),
    "instance-empty": Kind("warning", "Objects without a pixel", "leave the object out"),
    "instance-id": Kind("warning", "Object ids given twice in an image", "number them anew"),
    "instance-part": Kind("warning", "Parts of objects that are not there", _INGEST),
    "instance-box": Kind(
        "warning", "Boxes that disagree with run lengths", "compute the box from the run lengths"
    ),
    "instance-area": Kind(
        "warning", "Areas that disagree with run lengths", "compute the area from the run lengths"
    ),
    "instance-mask": Kind(
        "warning", "Objects that the mask contradicts", "correct the object or the mask"
    ),
    # --- images ----------------------------------------------------------------------------------
    "image-missing": Kind("error", "Images that are not there", "put the file back"),
    "image-corrupt": Kind("error", "Images that cannot be read", "fetch the file again"),
    "image-size": Kind(
        "error", "Images of another size than their row says", "ingest the image again"
    ),
    # --- several rows ----------------------------------------------------------------------------
    "leakage": Kind(
        "error", "The same image in two splits", "keep it in one split; scores lie otherwise"
    ),
    "duplicate": Kind("warning", "The same image twice in a split", "drop one of the rows"),
    "shared-image": Kind(
        "info", "The same image in several datasets", "let one dataset train and test it"
    ),
    "fingerprint-leakage": Kind(
        "warning", "Equal fingerprints in two splits", "compare the bytes with --images"
    ),
    "fingerprint-duplicate": Kind(
        "info", "Equal fingerprints", "compare the bytes with --images"
    ),
    "near-leakage": Kind("warning", "Look-alikes in two splits", "look at both images"),
    "near-duplicate": Kind("info", "Look-alikes", "look at both images"),
    "id-leakage": Kind(
        "warning", "One image id in two splits", "make sure that these are two images"
    ),
    "id-repeated": Kind(
        "error", "One image id twice in a split", "rename one; an export would overwrite the other"
    ),
    # --- classes ---------------------------------------------------------------------------------
    "class-unseen": Kind("info", "Classes never seen", "expect no score for them"),
    "class-untrained": Kind(
        "warning", "Classes to be scored that no training image shows", "move images to train"
    ),
    "class-unscored": Kind("info", "Classes in one split only", "expect no score for them"),
    "class-rare": Kind("info", "Rare classes", "weigh the loss or sample them more often"),
}  # fmt: skip


class RowName(NamedTuple):
    """How people find a row."""

    dataset: str
    image_id: str
    split: str
    path: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong, or odd: with a row, two rows, or (`row` None) the store as a whole."""

    kind: str
    row: RowName | None
    what: str
    object: int | None = None
    """The id of the object that it is about."""
    other: RowName | None = None

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return KINDS[self.kind].severity

    @property
    def message(self) -> str:
        """What is wrong and what mends it."""
        return f"{self.what}; {KINDS[self.kind].mend}"

    def to_dict(self) -> dict[str, Any]:
        """Return a row of `FINDINGS`."""
        row, other = self.row or _NOWHERE, self.other or _NOWHERE
        return {
            "kind": self.kind,
            "severity": self.severity,
            **row._asdict(),
            "object": self.object,
            "message": self.message,
            **{f"other_{name}": value for name, value in other._asdict().items()},
        }


_NOWHERE: Final = RowName("", "", "", "")
FINDINGS: Final = pa.schema(
    [
        ("kind", pa.string()),
        ("severity", pa.string()),
        ("dataset", pa.string()),
        ("image_id", pa.string()),
        ("split", pa.string()),
        ("path", pa.string()),
        ("object", pa.int64()),
        ("message", pa.string()),
        ("other_dataset", pa.string()),
        ("other_image_id", pa.string()),
        ("other_split", pa.string()),
        ("other_path", pa.string()),
    ]
)
"""The columns of `findings.parquet`; `other_*` name the other row of a pair."""
