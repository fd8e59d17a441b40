"""The Connector protocol: list, read, write, finish.

A connector is a frozen, picklable object without state. `list` streams a dataset's samples in a
fixed order; `read` is a pure function of one sample and `write` of one record, and the runner calls
both in parallel, in any order; `finish` runs once, in the driver, and streams over what `write`
returned.

How the formats fit that are not one file an image:

- COCO: `list` scans the JSON once, in a stream, into a spool sorted by image, and hands each sample
  its own annotations' text as `payload`; `write` returns that text, `finish` numbers and joins it.
- NYUDv2: the payload is the row of the .mat; `read` slices that row out of a handle it keeps open,
  and keeps the image's bytes in the record, as no path leads to them.
  `write` puts the row's deflated arrays into a hidden file, as they are too much to return;
  `finish` copies them into the HDF5 file one at a time.
- ADE20K: parts are instances whose `extra` names level and parent; the payload is the folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from pipeline.files import Tree
    from pipeline.label_space import LabelSpace
    from pipeline.loss import Loss
    from pipeline.record import Record, Sample
    from pipeline.trees.sinks import Sink


@dataclass(frozen=True, slots=True)
class Written:
    """What `write` returns: the index entry of one record, and what the format could not express.

    `entry` is what `finish` needs of this record: text or bytes, spooled to disk meanwhile.
    """

    image_id: str
    split: str
    entry: bytes = b""
    loss: dict[str, int] = field(default_factory=dict)


class Connector(Protocol):
    """Reads one dataset format into records, and writes records out in it."""

    @property
    def format(self) -> str:
        """The name that `--format` takes."""

    @property
    def native(self) -> str | None:
        """The label space that the format's own tools expect; None where the format carries any."""

    @property
    def row_bytes(self) -> int:
        """About how many bytes a row takes: work is cut into pieces of bounded size by it.

        With the image only where the format keeps it in the record.
        """

    @property
    def objects_only(self) -> bool:
        """Whether the format holds objects and no masks.

        `write` then gets no mask with a record that has objects: bringing its pixels into another
        label space would be most of the work.
        """

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return every label space that `read` will name, be it in a file of the dataset."""

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return what the dataset says of itself as a whole, as plain JSON: COCO's info, licences.

        A store keeps it beside the label spaces, under the format's name; `finish` gets it back.
        """

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the splits' samples in a fixed order; all splits when none is named.

        `dataset` and `path` together name a sample: where one file holds many images, the path
        ends in what tells them apart (`nyu.mat#17`). A sample whose image or annotation is missing
        is listed all the same: `read` raises then, so that it is counted. A sample whose record
        will hold its image's bytes has a digest that ends in `pipeline.record.EMBEDDED`, and no
        other has.

        Raises:
            LayoutError: a directory or list file that the format promises is missing.
        """

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read one sample.

        Raises:
            InputError: a file of the sample is missing or bad.
        """

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write the files of one record, whose ids are already those of `space`.

        Raises:
            InputError: the record cannot be written (its image is gone, say).
        """

    def finish(
        self,
        sink: Sink,
        written: Iterable[Written],
        space: LabelSpace,
        facts: Mapping[str, Any],
    ) -> Loss | None:
        """Write what is global: split lists, class tables, one JSON.

        `written` comes in the listing's order, and may be gone through as often as is needed.
        `facts` has, by format, what the datasets that the records come from say of themselves.
        """
