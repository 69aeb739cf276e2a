"""Claims as text and as JSON."""

import json
import re

from keras_vmoe.trainers.repro.claims import Claim, table_lines, to_dicts
from keras_vmoe.trainers.repro.paired import Estimate

CLAIMS = [
    Claim("one beats two", "90.00 against 89.00", Estimate(0.01, 0.001, 3)),
    Claim("one keeps up", "90.00 against 90.10", Estimate(-0.001, 0.0001, 3), margin=0.003),
    Claim("one seed says little", "90.00 against 89.00", Estimate(0.01, float("nan"), 1)),
]


def test_a_line_has_the_gain_with_its_interval_and_the_verdict():
    head, *lines = (re.split("  +", line) for line in table_lines(CLAIMS, width=30))
    assert head == ["claim", "accuracy", "gain", "verdict"]
    # 4.303 standard errors: 95 % of two degrees of freedom.
    assert lines[0] == ["one beats two", "90.00 against 89.00", "+1.00 ± 0.43", "holds"]
    assert lines[1][2:] == ["-0.10 ± 0.04", "holds (margin 0.3)"]
    assert lines[2][2:] == ["+1.00", "leans yes"]


def test_json_has_no_nan():
    rows = json.loads(json.dumps(to_dicts(CLAIMS), allow_nan=False))
    assert [row["standard_error"] for row in rows] == [0.001, 0.0001, None]
    assert rows[0]["verdict"] == "holds"
