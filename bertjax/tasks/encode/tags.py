"""Encode sentences of tagged words. Neighbouring sentences are context: google-research/bert issue 223."""

from collections.abc import Iterator, Sequence

import numpy as np

from bertjax.data.templates import Templates, framed, specials
from bertjax.data.tokenizer import Tokenizer
from bertjax.tasks.encode.sequences import Tokenized, tokenized
from bertjax.tasks.examples import Words
from bertjax.tasks.reading import Notes
from bertjax.tasks.task import Task


def encode_tags(
    examples: Sequence[Words], tokenizer: Tokenizer, notes: Notes, *, task: Task, templates: Templates, length: int
) -> Tokenized:
    """Encode sentences, each word scored at its first token; the rest of a row is context from the same document.

    A sentence longer than a row is split over several rows, so that every word is scored once. Neighbouring sentences
    fill the remaining room, half before and half after.
    """
    template, v = templates.text, tokenizer.vocabulary
    room = length - specials(template)
    pieces = [_pieces_of_words(example, tokenizer, notes) for example in examples]
    sequences, example_of_row = [], []
    words: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for begin, end in _documents(examples):
        ids = np.concatenate([ids for ids, _ in pieces[begin:end]])
        bounds = np.concatenate([[0], np.cumsum([len(ids) for ids, _ in pieces[begin:end]])])
        for number in range(begin, end):
            firsts = pieces[number][1]
            marked = np.full(len(pieces[number][0]), -1)
            marked[firsts] = np.arange(len(firsts))
            tags = np.full(len(marked), -1)
            if examples[number].tags:
                tags[firsts] = _tag_numbers(task, examples[number], notes)
            cuts = list(_cuts(firsts, len(marked), room))
            notes[f"sentences longer than {length} tokens, split over several rows"] += len(cuts) > 1
            for left, right in cuts:
                start, stop = (int(bounds[number - begin]) + place for place in (left, right))
                before, after = _context_around(start, stop, len(ids), room)
                row = framed(template, v, ids[start - before : stop + after].tolist())
                sequences.append(row)
                example_of_row.append(number)
                for column, values in ((words, marked), (labels, tags)):
                    whole = np.full(len(row.tokens), -1, np.int32)
                    whole[row.a + before : row.a + before + right - left] = values[left:right]
                    column.append(whole)
    nothing = np.zeros(0, np.int32)
    known = all(example.tags for example in examples)
    flat_words, flat_labels = (np.concatenate([nothing, *column]) for column in (words, labels))
    return tokenized(
        sequences, flat_labels if known else None, example_of_row=np.array(example_of_row, np.int64), words=flat_words
    )


def _tag_numbers(task: Task, example: Words, notes: Notes) -> list[int]:
    """Return the label numbers of a sentence's tags, those of entities with marks converted to IOB2."""
    tags = task.tags(example.origin, example.tags)
    notes["tags in another scheme than IOB2, converted"] += sum(a != b for a, b in zip(tags, example.tags, strict=True))
    return [task.number(f"{example.origin}, word {place}", tag) for place, tag in enumerate(tags, 1)]


def _pieces_of_words(example: Words, tokenizer: Tokenizer, notes: Notes) -> tuple[np.ndarray, np.ndarray]:
    """Encode a sentence: its ids, and the index of each word's first piece. A word without pieces becomes [UNK]."""
    text = " ".join(example.words)
    sizes = np.array([len(word) for word in example.words])
    # The space before a word belongs to it, as in vocabularies whose pieces include the leading space.
    word_of = np.repeat(np.arange(len(sizes)), sizes + (np.arange(len(sizes)) > 0))
    encoding = tokenizer.encode(text)
    last = np.maximum(encoding.offsets[:, 1] - 1, encoding.offsets[:, 0])
    owners = word_of[np.minimum(last, len(word_of) - 1)]
    ids = encoding.ids
    missing = np.setdiff1d(np.arange(len(sizes)), owners)
    notes["words without any token in the vocabulary, encoded as unknown"] += len(missing)
    places = np.searchsorted(owners, missing)
    ids = np.insert(ids, places, tokenizer.vocabulary.unk)
    owners = np.insert(owners, places, missing)
    return ids, np.searchsorted(owners, np.arange(len(sizes)))


def _documents(examples: Sequence[Words]) -> Iterator[tuple[int, int]]:
    """Yield the range (first, end) of the sentences of each document."""
    begin = 0
    for number in range(1, len(examples) + 1):
        if number == len(examples) or examples[number].document != examples[begin].document:
            yield begin, number
            begin = number


def _cuts(firsts: np.ndarray, size: int, room: int) -> Iterator[tuple[int, int]]:
    """Split a sentence of `size` pieces into runs of whole words of at most `room`; a longer word is split itself."""
    begin = 0
    while size - begin > room:
        ends = firsts[(firsts > begin) & (firsts <= begin + room)]
        end = int(ends[-1]) if len(ends) else begin + room
        yield begin, end
        begin = end
    if begin < size:
        yield begin, size


def _context_around(start: int, stop: int, size: int, room: int) -> tuple[int, int]:
    """Divide the room left beside pieces start .. stop: how many pieces of context before them and after them."""
    left = room - (stop - start)
    before = min(start, left // 2)
    after = min(size - stop, left - before)
    return min(start, left - after), after
