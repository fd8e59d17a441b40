"""Label a folder by Daft: MODEL IMAGES OUT PROCESSES; DAFT_SITE names where it is installed.

download -> decode -> a class on processes -> write_parquet, as its documentation has it.
"""

from __future__ import annotations

import os
import sys

sys.path.append(os.environ["DAFT_SITE"])

import daft
from daft import DataType, col


def main() -> None:
    model, images, out, processes = sys.argv[1:]

    @daft.cls(max_concurrency=int(processes), use_process=True)
    class Label:
        def __init__(self) -> None:
            from labelling import Plain

            self.plain = Plain(model)

        @daft.method.batch(return_dtype=DataType.binary(), batch_size=8)
        def masks(self, pixels):
            return self.plain(pixels.to_pylist())

    (
        daft.from_glob_path(f"{images}/*.jpg")
        .select("path")
        .with_column("image", col("path").download().decode_image(mode="RGB"))
        .with_column("mask", Label().masks(col("image")))
        .select("path", "mask")
        .write_parquet(out)
    )


if __name__ == "__main__":
    main()
