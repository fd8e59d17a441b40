"""The errors a caller may want to catch, one tree; each is also a built-in error.

`InputError` is the one that is data: a job writes it to the store's errors table and goes on. Every
other error ends the job with one line on stderr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class SegmillError(Exception):
    """Any failure that segmill explains in one line."""


class InputError(SegmillError, ValueError):
    """One image or annotation is bad: it names the file, the cause and the mend."""

    def __init__(self, path: str, cause: str, mend: str) -> None:
        self.path, self.cause, self.mend = path, cause, mend
        super().__init__(f"{path}: {cause}; {mend}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        # Exceptions with their own signature don't survive pickling between workers without this.
        return type(self), (self.path, self.cause, self.mend)


class MissingFile(InputError, FileNotFoundError):
    """A file that the listing or an annotation names is not there."""

    __str__ = Exception.__str__  # OSError would print the arguments as (errno, text)


class CorruptImage(InputError):
    """The bytes are not a whole image that a decoder reads."""


class ImageTooLarge(InputError):
    """The image's header promises more pixels than the limit allows."""


class CorruptMask(InputError):
    """The bytes of a mask are not a whole PNG, or of a mode that holds no class ids."""


class SizeMismatch(InputError):
    """The mask's height and width differ from its image's."""


class LabelOutOfRange(InputError):
    """A mask holds a value that its label space does not define."""


class UnknownColour(InputError):
    """A colour mask holds colours that its class table does not define."""


class BadAnnotation(InputError):
    """An annotation (XML, JSON, .mat) is malformed or contradicts itself."""


class UnsafePath(InputError):
    """A name in an archive or annotation leads outside its root."""


class PoisonInput(InputError):
    """An input killed the process that worked on it, more than once."""


class WorkerDied(SegmillError):
    """The processes that do the work die, or their devices do, and no input is the cause."""


class NoSpace(SegmillError, OSError):
    """A disk, or a quota on it, is full: nothing half-written is left behind."""

    __str__ = Exception.__str__  # OSError would print the arguments as (errno, text)


class UsageError(SegmillError, ValueError):
    """The caller asked for something that does not exist or cannot be combined."""


class TooManyErrors(SegmillError):
    """More inputs failed than the caller tolerates: the job was stopped."""


class UnknownName(UsageError):
    """A name is in no registry; the message lists the names that are."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(f"no {kind} is called {name!r}; choose from: {', '.join(self.known)}")

    def __reduce__(self) -> tuple[type[UnknownName], tuple[str, str, list[str]]]:
        return UnknownName, (self.kind, self.name, self.known)


class LayoutError(SegmillError, FileNotFoundError):
    """A directory is not the dataset that its format promises."""

    __str__ = Exception.__str__


class RemapError(SegmillError, ValueError):
    """No remap leads from one label space to the other."""


class StoreError(SegmillError):
    """The label store cannot do what was asked."""


class NotAStore(StoreError, FileNotFoundError):
    """The path holds no label store."""

    __str__ = Exception.__str__


class StoreTooNew(StoreError):
    """The store was written by a newer segmill, in a schema this one does not know."""


class CommitConflict(StoreError):
    """Another writer replaced the same rows first, again and again."""


class WriteFailed(StoreError):
    """The store's file system refused a commit, or did not say whether it took it."""


class ModelError(SegmillError):
    """A model cannot be loaded, or does not fit its label space."""


class MissingExtra(SegmillError, ImportError):
    """A feature needs an optional package that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        self.feature, self.extra = feature, extra
        super().__init__(f"{feature} needs an optional package: pip install 'segmill[{extra}]'")

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        return MissingExtra, (self.feature, self.extra)


class SumMismatch(SegmillError, AssertionError):
    """Inputs were lost or doubled: inputs differ from done + skipped + failed. A bug of ours."""
