"""Data for the figures, made by hand, and a reader of what they write."""

import csv

import numpy as np
from matplotlib import image as image_file

from keras_vmoe import analysis
from keras_vmoe.analysis.routing_statistics import GATE_BINS

CLASSES, E, T = 3, 4, 5  # a token in front of 2x2 patches


def statistics(name="encoder_block_1_moe", router="top_k", seed=0, images=(2, 3, 1)):
    """The statistics of a layer with four experts; every number is different."""
    rng = np.random.default_rng(seed)
    images = np.array(images)
    tokens = int(images.sum()) * T
    histogram = np.zeros((2, GATE_BINS), int)
    histogram[0, 30], histogram[0, 49], histogram[1, 10] = tokens - 3, 3, tokens
    return analysis.LayerStatistics(
        layer=name,
        router=router,
        images_per_class=images,
        class_weight=rng.uniform(0, 3, (CLASSES, E)),
        class_count=rng.integers(0, 9, (CLASSES, E)),
        position_weight=rng.uniform(0, 2, (T, E)),
        position_count=rng.integers(0, 6, (T, E)),
        chosen=np.array([tokens, tokens]),
        taken=np.array([tokens - 2, tokens - 8]),
        taken_tokens=tokens - 1,
        slots=40,
        gate_histogram=histogram,
        gate_sum=np.array([0.6, 0.2]) * tokens,
        experts_per_image=np.array([0, 1, 0, 3, 2]),
    )


def layers(count=2, router="top_k"):
    names = [f"encoder_block_{2 * i + 1}_moe" for i in range(count)]
    return {name: statistics(name, router, seed=i) for i, name in enumerate(names)}


def run(name, sparse, accuracy, flops=1e12, seconds=60.0, seed=0, few_shot=None, /, **arguments):
    return analysis.RunSummary(
        name, sparse, accuracy, flops, seconds, seed, 1000, few_shot or {}, arguments
    )


def rows(path):
    """The CSV beside a picture, numbers as numbers; the picture is one with something in it."""
    pixels = image_file.imread(path)
    assert min(pixels.shape[:2]) > 100
    assert pixels[..., :3].std() > 0.02
    with open(path.with_suffix(".csv"), newline="") as file:
        return [{n: _number(v) for n, v in row.items()} for row in csv.DictReader(file)]


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def column(path, name):
    return [row[name] for row in rows(path)]
