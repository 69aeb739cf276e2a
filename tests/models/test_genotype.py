"""Genotypes as text."""

import pytest

from keras_vmoe.models import Genotype

LARGE = "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180"


def test_the_published_model():
    genotype = Genotype.parse(LARGE)
    assert str(genotype) == LARGE
    assert genotype.stages[2] == (4, 1, 4, 5)
    assert genotype.depths == (5, 2, 5, 2)
    assert genotype.widths == (180, 360, 720, 1024)
    assert genotype.num_heads == (4, 8, 16, 32)
    assert genotype.grids((224, 224)) == ((56, 56), (28, 28), (14, 14), (7, 7))
    assert genotype.grids((225, 100), stride=16) == ((15, 7), (8, 4), (4, 2), (2, 1))
    assert Genotype.parse(genotype) == genotype


def test_what_is_left_out():
    short = Genotype.parse("8,2,3|4,1,2|4,1,4,7|4,1,6|32")
    assert str(short) == "8,2,3,1|4,1,2,1|4,1,4,7|4,1,6,1|32,32"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("8,2,3|4,1,2|4,1,4|32", "Received: 4 in"),
        ("8,2|4,1,2|4,1,4|4,1,6|32", "stage 1.*Received: '8,2'"),
        ("8,2,3|4,1,2|4,1,x|4,1,6|32", "stage 3.*Received: '4,1,x'"),
        ("8,2,3|4,0,2|4,1,4|4,1,6|32", "stage 2.*Received: '4,0,2'"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|32,32,32", "the last part.*Received: '32,32,32'"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|", "the last part.*Received: ''"),
        ("3,2,3|4,1,2|4,1,4|4,1,6|32", "stage 1 must be at least its stride, 4. Received: 3"),
        ("8,2,3|4,1,2|4,1,4|1,1,6|32", "stage 4 must be at least its stride, 2. Received: 1"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|12", "multiple of 8.*Received: 12"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|64,7", "stage 1.*8 heads and a width of 7"),
        (None, "must be text. Received: genotype=None"),
    ],
)
def test_what_does_not_read_is_shown(text, part):
    with pytest.raises(ValueError, match=part):
        Genotype.parse(text)
