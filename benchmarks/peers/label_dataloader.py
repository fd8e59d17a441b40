"""Label a folder by a PyTorch DataLoader that decodes in processes: MODEL IMAGES OUT PROCESSES."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
from label_plain import BATCH, read
from labelling import Plain, files
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, n: int):
        cv2.setNumThreads(1)
        return self.paths[n].stem, read(self.paths[n])


def main() -> None:
    model, images, out, processes = sys.argv[1:]
    plain = Plain(model, int(processes))
    Path(out).mkdir(parents=True)
    loader = DataLoader(
        Images(files(images)), BATCH, num_workers=int(processes), collate_fn=lambda items: items
    )
    for batch in loader:
        cells = plain([pixels for _, pixels in batch])
        for (stem, _), cell in zip(batch, cells, strict=True):
            Path(out, f"{stem}.png").write_bytes(cell)


if __name__ == "__main__":
    main()
