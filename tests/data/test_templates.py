import numpy as np
import pytest

from bertjax.data.templates import BERT, ROBERTA, XLNET, framed, specials
from bertjax.data.tokenizer import Vocabulary

V = Vocabulary(size=100, pad=0, unk=1, cls=2, sep=3, mask=4)


@pytest.mark.parametrize(
    ("template", "tokens", "types", "places"),
    [
        (BERT.text, [2, 10, 11, 3], [0, 0, 0, 0], (1, -1, 0)),
        (BERT.pair, [2, 10, 11, 3, 20, 3], [0, 0, 0, 0, 1, 1], (1, 4, 0)),
        (ROBERTA.pair, [2, 10, 11, 3, 3, 20, 3], [0] * 7, (1, 5, 0)),
        (ROBERTA.option, [2, 20, 3, 10, 11, 3], [0] * 6, (3, 1, 0)),
        (XLNET.text, [10, 11, 3, 2], [0, 0, 0, 2], (0, -1, 3)),
        (XLNET.question, [20, 3, 10, 11, 3, 2], [0, 0, 1, 1, 1, 2], (2, 0, 5)),
    ],
)
def test_each_family_frames_texts_in_its_own_way(template, tokens, types, places):
    row = framed(template, V, [10, 11], [20])
    np.testing.assert_array_equal(row.tokens, tokens)
    np.testing.assert_array_equal(row.types, types)
    assert (row.a, row.b, row.cls) == places
    assert specials(template) == len(tokens) - 2 - (row.b >= 0)
