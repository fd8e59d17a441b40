"""The same few files as a directory, a zip and a tar."""

from __future__ import annotations

import io
import tarfile
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILES = {
    "a b.jpg": b"space",
    "a.jpg": b"dot",
    "a/b.jpg": b"slash",
    "a/c/D.PNG": b"deep" * 50_000,
    "a/c/new\nline.jpg": b"line",
    "été.txt": "für\n".encode(),
    "zero.jpg": b"",
}
JUNK = (".DS_Store", "a/Thumbs.db", "a/.hidden/x.jpg", "__MACOSX/a.jpg", "a/._b.jpg", "desktop.ini")
KINDS = ("directory", "zip", "stored zip", "tar", "memory", "tar in memory")


def write_directory(root: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(root)


def zip_bytes(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tar_bytes(files: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()
