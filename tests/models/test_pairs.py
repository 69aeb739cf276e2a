"""What `fit` and `evaluate` report of pairs whose last batch is not full."""

import numpy as np
import pytest

from keras_vmoe import ops
from tests.models import tiny


def test_accuracy_is_of_pairs_and_not_of_batches():
    model, pairs = tiny.limoe(), tiny.pairs(3)
    parts = [{name: x[rows] for name, x in pairs.items()} for rows in (slice(2), slice(2, 3))]
    hits = [ops.contrastive_hits(ops.contrastive_outputs(model(part))[0]) for part in parts]
    two, one = (np.asarray(each).mean() for each in hits)
    assert (two, one) == (0.5, 1.0), "one pair alone is always right"
    model.compile()
    found = model.evaluate(pairs, batch_size=2, verbose=0, return_dict=True)
    assert found["accuracy"] == pytest.approx((2 * two + one) / 3)


def test_a_replica_without_pairs_has_a_loss():
    model = tiny.limoe(auxiliary_losses=())
    model.compile()
    none = {name: x[:0] for name, x in model(tiny.pairs(1)).items()}
    assert float(model.compute_loss(y_pred=none)) == 0
    assert float(model._accuracy.result()) == 0
