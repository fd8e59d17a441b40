"""The supercategories of COCO's categories, things and stuff, as its files name them."""

from __future__ import annotations

from typing import Final

_GROUPS: Final = {
    "person": "person",
    "vehicle": "bicycle, car, motorcycle, airplane, bus, train, truck, boat",
    "outdoor": "traffic light, fire hydrant, stop sign, parking meter, bench",
    "animal": "bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe",
    "accessory": "backpack, umbrella, handbag, tie, suitcase",
    "sports": (
        "frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
        "surfboard, tennis racket"
    ),
    "kitchen": "bottle, wine glass, cup, fork, knife, spoon, bowl",
    "food": "banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake",
    "furniture": "chair, couch, potted plant, bed, dining table, toilet",
    "electronic": "tv, laptop, mouse, remote, keyboard, cell phone",
    "appliance": "microwave, oven, toaster, sink, refrigerator",
    "indoor": "book, clock, vase, scissors, teddy bear, hair drier, toothbrush",
    "textile": (
        "banner, blanket, curtain, pillow, towel, rug-merged, cloth, clothes, mat, napkin, rug, "
        "textile-other"
    ),
    "building": "bridge, house, roof, tent, building-other-merged, building-other, skyscraper",
    "raw-material": "cardboard, paper-merged, metal, paper, plastic",
    "furniture-stuff": (
        "counter, door-stuff, light, mirror-stuff, shelf, stairs, cabinet-merged, table-merged, "
        "cabinet, cupboard, desk-stuff, furniture-other, table"
    ),
    "floor": (
        "floor-wood, floor-other-merged, carpet, floor-marble, floor-other, floor-stone, floor-tile"
    ),
    "plant": (
        "flower, tree-merged, grass-merged, branch, bush, grass, leaves, moss, plant-other, "
        "straw, tree"
    ),
    "food-stuff": "fruit, food-other-merged, food-other, salad, vegetable",
    "ground": (
        "gravel, platform, playingfield, railroad, road, sand, snow, pavement-merged, "
        "dirt-merged, dirt, ground-other, mud, pavement"
    ),
    "structural": "net, fence-merged, cage, fence, railing, structural-other",
    "water": "river, sea, water-other, fog, waterdrops",
    "wall": (
        "wall-brick, wall-stone, wall-tile, wall-wood, wall-other-merged, wall-concrete, "
        "wall-other, wall-panel"
    ),
    "window": "window-blind, window-other",
    "ceiling": "ceiling-merged, ceiling-other, ceiling-tile",
    "sky": "sky-other-merged, clouds, sky-other",
    "solid": "mountain-merged, rock-merged, hill, mountain, rock, solid-other, stone, wood",
    "other": "other",
}

SUPERCATEGORY: Final = {
    name: group for group, names in _GROUPS.items() for name in names.split(", ")
}
"""By the category's name; names are those of the panoptic and the stuff files."""
