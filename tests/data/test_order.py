"""Repeats, hosts and resuming: which example comes when."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import data
from keras_vmoe.data import order
from tests.data.splits import (
    array_split,
    assert_same_batches,
    labels,
    make_split,
    noise_images,
    numbered_images,
    stream_split,
)

KINDS = ("array", "file", "stream")


def make(split, batch_size=8, image_size=4, **arguments):
    return data.make_dataset(split, batch_size, image_size, **arguments)


@pytest.mark.parametrize(
    ("kind", "repeats", "counts"),
    [(kind, 3, [2, 3, 3]) for kind in KINDS] + [("array", 2, [2] * 4), ("stream", 8, [8])],
)
def test_repeats_come_in_one_batch_apart(kind, repeats, counts, tmp_path):
    split = make_split(kind, numbered_images(24), tmp_path)
    batches = labels(make(split, training=True, repeats=repeats, steps=6))
    for batch in batches:
        distinct, found = np.unique(batch, return_counts=True)
        assert sorted(found) == counts
        # Neighbours differ where they can: mixing mixes neighbours.
        assert len(distinct) == 1 or all(a != b for a, b in itertools.pairwise(batch))
    # An epoch keeps its three steps and takes a part of the examples, each in one batch.
    for epoch in (batches[:3], batches[3:]):
        assert len({label for batch in epoch for label in batch}) == 3 * len(counts)


def test_epochs_of_a_stream_with_repeats_go_through_all_of_it():
    split = stream_split(numbered_images(24))
    batches = labels(make(split, training=True, repeats=2, steps=12))
    passes = [{label for batch in batches[i : i + 6] for label in batch} for i in (0, 6)]
    assert passes == [set(range(24))] * 2
    assert {label for batch in batches[:3] for label in batch} != {
        label for batch in batches[6:9] for label in batch
    }


@pytest.mark.parametrize("kind", KINDS)
def test_repeats_are_changed_otherwise(kind, tmp_path):
    split = make_split(kind, noise_images(8), tmp_path)
    augment = data.Augment(shift=2, flip=True, rotation=20.0)
    batch = next(iter(make(split, image_size=8, training=True, repeats=4, augment=augment)))
    assert len(np.unique(batch["image"].numpy().reshape(8, -1), axis=0)) == 8
    assert len(set(batch["label"].numpy())) == 2


AUGMENT = (data.Flip(), data.ColorJitter(), data.RandomErasing(0.5))
EVERYTHING = {
    "crop": data.InceptionCrop(),
    "augment": AUGMENT,
    "mix": (data.Mixup(0.5), data.CutMix()),
    "num_classes": 20,
    "repeats": 2,
    "image_size": 8,
    "seed": 5,
    "training": True,
}


# Two steps make an epoch.
@pytest.mark.parametrize(
    ("kind", "start", "augment"),
    [
        ("array", 3, (*AUGMENT, data.RandAugment(1, 9))),
        ("stream", 3, AUGMENT),
        *(
            pytest.param(kind, start, (*AUGMENT, data.RandAugment()), marks=pytest.mark.slow)
            for kind in KINDS
            for start in (1, 4, 6)
        ),
    ],
)
def test_a_run_with_everything_on_resumes_exactly(kind, start, augment, tmp_path):
    split = make_split(kind, noise_images(20), tmp_path)
    arguments = EVERYTHING | {"augment": augment}
    whole = list(make(split, steps=7, **arguments).as_numpy_iterator())
    assert whole[0]["image"].shape == (8, 8, 8, 3)
    assert np.abs(whole[0]["image"]).max() <= 1
    assert whole[0]["label"].dtype == np.float32
    np.testing.assert_allclose(whole[0]["label"].sum(1), 1, atol=1e-6)
    tf.random.set_seed(77)
    rest = make(split, start_step=start, steps=7 - start, **arguments)
    assert_same_batches(whole[start:], rest.as_numpy_iterator())
    assert len({batch["image"].tobytes() for batch in whole}) == 7


@pytest.mark.parametrize("kind", ["array", "file"])
def test_hosts_together_make_the_batches_of_one(kind, tmp_path):
    split = make_split(kind, noise_images(21), tmp_path)
    augment = data.Augment(shift=1, rotation=30.0)
    for arguments in (
        {"training": True, "augment": augment, "repeats": 2, "steps": 3, "start_step": 1},
        {"training": False, "pad": True},
    ):
        one = list(make(split, **arguments).as_numpy_iterator())
        hosts = [
            list(make(split, num_shards=2, shard_index=i, **arguments).as_numpy_iterator())
            for i in range(2)
        ]
        joined = [
            {name: np.concatenate([a[name], b[name]]) for name in a}
            for a, b in zip(*hosts, strict=True)
        ]
        # Sines of few numbers may be rounded otherwise than those of many.
        assert_same_batches(one, joined, atol=1e-6)


# Parts of a stream: one, fewer than hosts, uneven ones.
PARTS = (None, (24,), (17, 7), (3, 9, 0, 5, 7))


@pytest.mark.parametrize("parts", PARTS)
def test_hosts_evaluate_each_example_of_a_stream_once(parts):
    split = stream_split(numbered_images(24), part_sizes=parts)
    hosts = [
        list(make(split, pad=True, num_shards=2, shard_index=i).as_numpy_iterator())
        for i in range(2)
    ]
    assert len(hosts[0]) == len(hosts[1])
    batches = [batch for host in hosts for batch in host]
    assert {len(batch["label"]) for batch in batches} == {4}
    found = np.concatenate([batch["label"][batch["mask"]] for batch in batches])
    assert sorted(found) == list(range(24))


@pytest.mark.parametrize("parts", PARTS)
def test_hosts_train_on_their_own_part_of_a_stream(parts):
    split = stream_split(numbered_images(24), part_sizes=parts)
    arguments = {"training": True, "num_shards": 2}
    hosts = []
    for index in range(2):
        whole = list(make(split, shard_index=index, steps=20, **arguments).as_numpy_iterator())
        if index:
            rest = make(split, shard_index=index, steps=2, start_step=5, **arguments)
            assert_same_batches(whole[5:7], rest.as_numpy_iterator())
        assert {len(batch["label"]) for batch in whole} == {4}
        hosts.append({label for batch in whole for label in batch["label"]})
    assert hosts[0] | hosts[1] == set(range(24))
    assert not hosts[0] & hosts[1]


def epochs_of(split, batch_size, num_epochs, **arguments):
    steps = split.num_examples // batch_size
    batches = labels(make(split, batch_size, training=True, steps=num_epochs * steps, **arguments))
    return [batches[i : i + steps] for i in range(0, len(batches), steps)]


@pytest.mark.parametrize("kind", [*KINDS, "parts"])
def test_an_epoch_has_an_order_and_batches_of_its_own(kind, tmp_path, monkeypatch):
    # Windows of 16 are smaller than the split; 44 examples leave a rest of 4.
    monkeypatch.setattr(order, "_SHUFFLE_WINDOW", 16)
    monkeypatch.setattr(order, "_WINDOW_BATCHES", 2)
    split = make_split(kind, numbered_images(44), tmp_path)
    epochs = epochs_of(split, 8, 40)
    for epoch in epochs:
        seen = list(itertools.chain(*epoch))
        assert len(set(seen)) == len(seen) == 40
    # Which examples share a batch changes, and which are left over.
    members = {frozenset(batch) for epoch in epochs for batch in epoch}
    assert len(members) > 0.95 * 40 * 5
    met = [set(itertools.chain(*epoch)) for epoch in epochs]
    assert len(set(range(44)) - set.intersection(*met)) >= (25 if kind != "stream" else 12)
    assert set.union(*met) == set(range(44))


@pytest.mark.parametrize("batch_size", [2, 8])
def test_windows_grow_with_the_batch(batch_size, monkeypatch):
    monkeypatch.setattr(order, "_SHUFFLE_WINDOW", 1)
    split = stream_split(numbered_images(240))
    batches = np.array([batch for epoch in epochs_of(split, batch_size, 4) for batch in epoch])
    spread = np.ptp(batches, axis=1)
    # A window is four batches long, and a batch may lie in two of them.
    assert spread.mean() > batch_size
    assert spread.max() < 8 * batch_size


@pytest.mark.parametrize("start", [1, 4, 5, 9, 12])
@pytest.mark.parametrize("kind", ["stream", "parts"])
def test_streams_of_many_windows_resume_exactly(kind, start, tmp_path, monkeypatch):
    monkeypatch.setattr(order, "_SHUFFLE_WINDOW", 10)
    monkeypatch.setattr(order, "_WINDOW_BATCHES", 1)
    split = make_split(kind, numbered_images(44), tmp_path)
    whole = labels(make(split, training=True, steps=16))
    tf.random.set_seed(start)
    rest = labels(make(split, training=True, start_step=start, steps=16 - start))
    assert whole[start:] == rest


def test_parts_are_read_in_turns_and_in_another_order_each_epoch(monkeypatch):
    monkeypatch.setattr(order, "_SHUFFLE_WINDOW", 1)
    monkeypatch.setattr(order, "_WINDOW_BATCHES", 1)
    monkeypatch.setattr(order, "_CYCLE_LENGTH", 2)
    monkeypatch.setattr(order, "_BLOCK_LENGTH", 4)
    split = stream_split(numbered_images(64), part_sizes=(16,) * 4)
    turns = []
    for epoch in epochs_of(split, 4, 6):
        # Batches are windows of one part: the parts in their turns.
        parts = [{label // 16 for label in batch} for batch in epoch]
        turns.append(tuple(tuple(sorted(part)) for part in parts))
    assert len(set(turns)) > 2


def test_the_parts_make_up_the_split():
    with pytest.raises(ValueError, match="part_sizes: 2 parts of 7 examples.*num_examples=8"):
        stream_split(numbered_images(8), part_sizes=(3, 4))


def test_hosts_draw_other_numbers():
    split = stream_split(np.repeat(noise_images(1), 16, axis=0))
    augment = data.Augment(shift=3, rotation=30.0)
    images = [
        next(iter(make(split, 8, 8, training=True, augment=augment, num_shards=2, shard_index=i)))
        for i in range(2)
    ]
    flat = np.concatenate([batch["image"].numpy() for batch in images]).reshape(8, -1)
    assert len(np.unique(flat, axis=0)) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_batch_is_filled_up(kind, tmp_path):
    split = make_split(kind, numbered_images(11), tmp_path)
    batches = make(split, batch_size=4, pad=True)
    assert batches.element_spec["image"].shape[0] == 4
    found = list(batches.as_numpy_iterator())
    assert [batch["mask"].tolist() for batch in found] == [[True] * 4] * 2 + [[True] * 3 + [False]]
    assert [batch["label"].tolist() for batch in found][2] == [8, 9, 10, 0]
    np.testing.assert_array_equal(found[2]["image"][3], np.zeros_like(found[2]["image"][3]))
    plain = list(make(split, batch_size=4).as_numpy_iterator())
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_array_equal(one["image"][one["mask"]], other["image"])
    rest = make(split, batch_size=4, pad=True, start_step=2)
    assert_same_batches(found[2:], rest.as_numpy_iterator())


@pytest.mark.parametrize("one_by_one", [False, True])
def test_filling_has_label_0(one_by_one):
    split = data.ArraySplit.of(numbered_images(5), np.arange(5) + 7)
    crop = data.CentralCrop(resize=4) if one_by_one else None
    *_, last = make(split, batch_size=4, pad=True, crop=crop).as_numpy_iterator()
    assert last["label"].tolist() == [11, 0, 0, 0]


def test_training_batches_have_a_mask_too_if_asked():
    batch = next(iter(make(array_split(numbered_images(8)), training=True, pad=True)))
    assert batch["mask"].numpy().tolist() == [True] * 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repeats": 0}, "repeats=0"),
        ({"batch_size": 2.0}, "batch_size=2.0: expected a whole number"),
        ({"num_shards": 3}, "batch_size=8 is that of all hosts.*num_shards=3"),
        ({"num_shards": 2, "shard_index": 2}, "shard_index=2 of num_shards=2"),
        ({"num_shards": 0}, "num_shards=0"),
        ({"num_shards": 2}, "num_shards=2: evaluation on several hosts needs pad=True"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(array_split(numbered_images(8)), **arguments)
