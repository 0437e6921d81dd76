"""Encode texts whose every piece is tagged, as the token-classification pipeline of transformers reads them."""

from collections.abc import Sequence

import numpy as np

from bertjax.data.templates import Templates, framed, specials
from bertjax.data.tokenizer import Tokenizer
from bertjax.tasks.encode.questions import sliding_windows
from bertjax.tasks.encode.sequences import Tokenized, tokenized
from bertjax.tasks.reading import Notes


def encode_pieces(
    texts: Sequence[str], tokenizer: Tokenizer, notes: Notes, *, templates: Templates, length: int
) -> Tokenized:
    """Encode each text whole, or in windows that overlap by a quarter; a piece is tagged in its first window.

    So the pieces that fit in a row get the tags that they get if the rest of the text is truncated.
    """
    room = length - specials(templates.text)
    sequences, example_of_row, pieces = [], [], []
    encoded = [tokenizer.encode(text) for text in texts]
    for number, encoding in enumerate(encoded):
        ids, done = encoding.ids.tolist(), 0
        notes[f"texts longer than {length} tokens, tagged in windows"] += len(ids) > room
        for start, size in sliding_windows(len(ids), room, room - room // 4):
            row = framed(templates.text, tokenizer.vocabulary, ids[start : start + size])
            marked = np.full(len(row.tokens), -1, np.int32)
            marked[row.a + done - start : row.a + size] = np.arange(done, start + size)
            done = start + size
            sequences.append(row)
            example_of_row.append(number)
            pieces.append(marked)
    flat = np.concatenate([np.zeros(0, np.int32), *pieces])
    return tokenized(sequences, None, example_of_row=np.array(example_of_row, np.int64), words=flat, contexts=encoded)
