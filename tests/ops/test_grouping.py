"""Batches of any size in groups of whole images, and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_vmoe.ops.grouping import group_images, ungroup_images


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from([None, 1, 2]),
    st.data(),
)
def test_groups_hold_the_images_in_order(batch, length, per_group, mask_rank, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    tokens = rng.normal(size=(batch, length, 2))
    mask = None if mask_rank is None else rng.random((batch, length)[:mask_rank]) < 0.6
    groups = group_images(tokens, per_group, mask)
    size = min(batch, per_group)
    count = -(-batch // size)
    assert tuple(groups.tokens.shape) == (count, size * length, 2)
    back = np.asarray(ungroup_images(groups.tokens, batch, length))
    np.testing.assert_array_equal(back, tokens)
    real = np.ones((batch, length), bool)
    if mask is not None:
        real &= mask.reshape(batch, -1)
    padded = np.concatenate([real, np.zeros((count * size - batch, length), bool)])
    if groups.mask is None:
        assert mask is None
        assert padded.all()
        assert groups.images is None
    else:
        np.testing.assert_array_equal(np.asarray(groups.mask), padded.reshape(count, size * length))
        wanted = padded.any(1).reshape(count, size).sum(1)
        np.testing.assert_array_equal(np.asarray(groups.images), wanted)


def test_full_groups_need_no_mask():
    groups = group_images(np.zeros((6, 2, 1), "float32"), 3)
    assert groups.mask is None
    assert groups.images is None


@pytest.mark.parametrize("batch", [1, 4, 5])
def test_modalities_go_with_their_tokens(batch):
    modality = np.random.default_rng(0).integers(0, 3, (batch, 4))
    tokens = modality[..., None].astype("float32")
    groups = group_images(tokens, 2, modality=modality)
    assert groups.modality.shape == groups.tokens.shape[:2]
    np.testing.assert_array_equal(np.asarray(groups.modality), np.asarray(groups.tokens)[..., 0])
    assert group_images(tokens, 2).modality is None


@pytest.mark.parametrize("per_group", [1, 3])
def test_unknown_batch(per_group):
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, 2, 1]), tf.TensorSpec([None], tf.bool)])
    def there_and_back(tokens, mask):
        groups = group_images(tokens, per_group, mask)
        return groups.tokens, groups.mask, ungroup_images(groups.tokens, tf.shape(tokens)[0], 2)

    for batch in (1, 2, 3, 7):
        tokens = np.arange(batch * 2, dtype="float32").reshape(batch, 2, 1)
        mask = np.arange(batch) % 2 == 0
        static = group_images(tokens, per_group, mask)
        found = [part.numpy() for part in there_and_back(tokens, mask)]
        np.testing.assert_array_equal(found[0], np.asarray(static.tokens))
        np.testing.assert_array_equal(found[1], np.asarray(static.mask))
        np.testing.assert_array_equal(found[2], tokens)


@pytest.mark.parametrize(
    ("tokens", "arguments", "message"),
    [
        (np.zeros((2, 3)), (2,), "tokens must have shape"),
        (np.zeros((2, 3, 1)), (0,), "images_per_group=0"),
        (np.zeros((2, 3, 1)), (2, np.ones((2, 3, 1), bool)), "mask must have shape"),
        (np.zeros((2, 3, 1)), (2, np.ones(3, bool)), r"mask.*\(3,\)"),
        (np.zeros((2, 3, 1)), (2, np.ones((2, 1), bool)), r"mask.*\(2, 1\)"),
        (np.zeros((2, 3, 1)), (2, None, np.zeros((2, 4))), r"modality.*\(2, 4\)"),
    ],
)
def test_bad_input_is_named(tokens, arguments, message):
    with pytest.raises(ValueError, match=message):
        group_images(tokens, *arguments)
