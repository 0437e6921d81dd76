"""Predictions for a notebook, from one place.

model = bertjax.load("runs/sst2/best")
list(bertjax.infer.classify(model, ["A fine film."]))

As the commands do, each prediction first checks that model and tokenizer belong together and that the tokenizer covers
the words of the texts. Warnings go to `say` if the function takes it and it is given, else to standard error.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial, wraps
from inspect import signature
from itertools import chain
from typing import Any, ParamSpec, TypeVar

from bertjax.checkpoints.export import convert as convert
from bertjax.checkpoints.export import save_hf as save_hf
from bertjax.checkpoints.trained import Model as Model
from bertjax.checkpoints.trained import load as load
from bertjax.fields import check_kind
from bertjax.inference import embed as embedding
from bertjax.inference import fill_mask as masks
from bertjax.inference import infill as holes
from bertjax.inference import predict
from bertjax.inference.compatible import check_texts, check_tokenizer
from bertjax.inference.score import score as score
from bertjax.terminal import show
from bertjax.texts import several, several_choices, several_or_pairs, several_questions

__all__ = [
    "Model", "answer", "choose", "classify", "convert", "embed", "fill_mask", "generate", "infill", "load", "save_hf",
    "score", "tag",
]  # fmt: skip

P = ParamSpec("P")
Result = TypeVar("Result")

CHECKED_WORDS = 2_000
"""Words that are checked in each call, the first ones; this takes under a tenth of a second."""


def __dir__() -> list[str]:
    """List the public names, for completion."""
    return sorted(__all__)


def _checked(run: Callable[P, Result], reads: Callable[[Any], list[Any]] = several) -> Callable[P, Result]:
    """Wrap a prediction so that it first checks its model and texts; the commands check them themselves.

    reads: makes a list of its inputs.
    """

    @wraps(run)
    def checked(*args: P.args, **options: P.kwargs) -> Result:
        given = signature(run).bind(*args, **options)
        first, second, *_ = given.signature.parameters
        model, texts = given.arguments[first], reads(given.arguments[second])
        check_kind("model", model, Model, ", such as bertjax.load returns")
        given.arguments[second] = texts  # an iterator can be read only once
        check_tokenizer(model, "this model")
        say = given.arguments.get("say", partial(show, file=sys.stderr))
        check_texts(model, chain.from_iterable(map(_strings, texts)), say, most_words=CHECKED_WORDS)
        return run(*given.args, **given.kwargs)

    return checked


def _strings(text: Any) -> Iterator[str]:
    """Yield all texts of one input: a text, a pair, or a context and its endings."""
    if isinstance(text, str):
        yield text
    else:
        for part in text:
            yield from _strings(part)


answer = _checked(predict.answer, several_questions)
choose = _checked(predict.choose, several_choices)
classify = _checked(predict.classify, several_or_pairs)
embed = _checked(embedding.embed)
fill_mask = _checked(masks.fill_mask)
generate = _checked(holes.generate)
infill = _checked(holes.infill)
tag = _checked(predict.tag)
