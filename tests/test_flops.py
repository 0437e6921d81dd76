import jax
import numpy as np
import pytest
from contract import MASKING, small_albert, small_bert

from bertjax.flops import batch_shapes, model_flops
from bertjax.objectives.mlm import MaskedLM


@pytest.mark.parametrize("encoder", [small_bert(), small_bert(remat="full"), small_albert()], ids=repr)
def test_the_count_is_the_textbook_formula(encoder):
    B, L = 4, 40
    objective = MaskedLM(encoder, MASKING, pair=True)
    D, F, N, V, E = encoder.D, encoder.F, encoder.N, encoder.V, encoder.embedding_width
    layer = 2 * L * (4 * D * D + 2 * D * F) + 2 * 2 * L * L * D
    head = 2 * MASKING.slots(L) * (D * E + E * V)
    project = 2 * L * E * D if encoder.E else 0
    pair = 2 * (D * D + 2 * D)
    expected = 3 * B * (N * layer + head + project + pair)
    assert model_flops(objective, batch_shapes(B, L, ("types", "pair"))) == expected


def test_batch_shapes_are_those_of_a_source(corpus):
    from bertjax.data.pairs import NextSentencePairs

    rows = NextSentencePairs(corpus, 16)
    batch = rows.open("train").rows(np.arange(3))
    shapes = batch_shapes(3, 16, rows.features)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        name: (shape.shape, shape.dtype) for name, shape in shapes.items()
    }
    assert all(isinstance(shape, jax.ShapeDtypeStruct) for shape in shapes.values())
