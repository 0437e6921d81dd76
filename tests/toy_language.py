"""A language of short texts over five words whose probabilities are known, and the model that knows its posterior."""

import itertools
from functools import cache

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

WORDS, MASK = 5, 5  # ids 0 … 4, and that of the mask
V = WORDS + 1


@cache
def language(length, seed=0):
    """Draw the probability of each text: f64 [5] * length; words depend on each other, and some are rare."""
    weights = np.random.default_rng(seed).gamma(0.7, size=(WORDS,) * length) + 1e-3
    return weights / weights.sum()


@cache
def posterior(length, seed=0):
    """Return log p(word | the words that are not masked), f64 [6 ** length, length, 6], by what is masked.

    A text with masks is a number of `length` digits; -inf stands for the mask, and is everywhere where nothing is.
    """
    whole = language(length, seed)
    for axis in range(length):  # index 5 of an axis: the sum over its words
        whole = np.concatenate([whole, whole.sum(axis, keepdims=True)], axis)
    table = np.full((V,) * length + (length, V), -np.inf)
    for axis in range(length):
        given = np.moveaxis(whole, axis, -1)[..., None, :WORDS]  # for any word here
        given = np.log(given / given.sum(-1, keepdims=True))
        table[..., axis, :WORDS] = np.moveaxis(np.broadcast_to(given, (*given.shape[:-2], V, WORDS)), -2, axis)
    return table.reshape(V**length, length, V)


def number_of(tokens_BL):
    """Return the number of each text: the row of `posterior`."""
    return (tokens_BL * V ** np.arange(tokens_BL.shape[1])[::-1]).sum(1)


def texts(length):
    """Return all texts, i32 [5 ** length, length], in the order of `language`."""
    return np.array(list(itertools.product(range(WORDS), repeat=length)), np.int32)


class Oracle(nn.Module):
    """The encoder of the model that knows the posterior of a language: its hidden states are the logits."""

    length: int
    seed: int = 0
    V: int = V
    D: int = V
    dtype: str = "float32"

    @nn.nowrap
    def language_head(self):
        return Identity(V)

    def hidden(self, tokens_BL, mask_BL, types_BL=None, positions_BP=None, *, train=False):
        x_BLD = self(tokens_BL, mask_BL)
        return x_BLD, x_BLD

    @nn.compact
    def __call__(self, tokens_BL, mask_BL, types_BL=None, *, train=False):
        Word(name="embeddings")()
        table = jnp.asarray(posterior(self.length, self.seed), jnp.float32)
        weights_L = V ** jnp.arange(self.length)[::-1]
        return jnp.maximum(table[(tokens_BL * weights_L[None]).sum(1)], -1e9)


class Word(nn.Module):
    """A word table that nothing reads, where every encoder has it."""

    @nn.compact
    def __call__(self):
        Table(name="word")()


class Table(nn.Module):
    """Its parameters."""

    @nn.compact
    def __call__(self):
        self.param("table", nn.initializers.zeros_init(), (V, 1))


class Identity(nn.Module):
    """The language head that returns the hidden states."""

    V: int
    tied = True

    def __call__(self, x_BPD, table_VE):
        return x_BPD
