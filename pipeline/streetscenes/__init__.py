"""Generated street scenes: a seeded camera in made-up streets, with exact labels.

    rgb, ids = scene(seed=7, height=240, width=320)      # ids in label space camvid-11
    write_dataset("scenes", 1000, seed=7, workers=2)     # SegNet's layout: --format camvid-11

The tour, the tests and the benchmarks need data that no licence binds and no download fetches.
One core draws about 65 scenes of 320x240 a second and writes about 50 of them.
"""

from pipeline.streetscenes.dataset import write_dataset
from pipeline.streetscenes.street import scene

__all__ = ["scene", "write_dataset"]
