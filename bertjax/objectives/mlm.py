"""Masked language modelling with an optional pair term: the objective of BERT, RoBERTa and ALBERT.

    loss = Σ w·nll / Σ w over the chosen positions  +  mean nll of the pair label, where there is one

Devlin et al. 2018 (google-research/bert run_pretraining.py); Lan et al. 2019 for sentence order. The pair term is
next-sentence prediction or sentence order, depending on the labels that the source writes to `pair`; the head is the
same. Where we deviate: no 1e-5 in the denominator; instead the loss of a batch without targets is 0.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from bertjax.data.tokenizer import Vocabulary
from bertjax.fields import check_fields
from bertjax.inputs import check_ids, check_step
from bertjax.masking import Corruption, Masking, mask_tokens
from bertjax.models.heads import PairHead
from bertjax.models.initialise import one_program
from bertjax.models.language import LanguageEncoder, encode, hidden, initialised, word_table
from bertjax.models.layers import apply
from bertjax.objectives.losses import histogram, real_tokens, scores
from bertjax.types import Array, Batch, Key, Metrics, Params, Predictions, total


@dataclass(frozen=True)
class MaskedLM:
    """Train `encoder` to predict the tokens that `corrupt` chose by the recipe `masking`.

    pair: add the pooler and the two-way classification of `pair` labels. corrupt: see masking.Corruption.
    Raises ValueError where an id of `masking` exceeds V.
    """

    encoder: LanguageEncoder
    masking: Masking
    pair: bool = False
    corrupt: Corruption = mask_tokens

    def __post_init__(self) -> None:
        check_fields(self)
        self.masking.check_vocabulary(self.encoder.V)

    @property
    def head(self) -> nn.Module:
        """The language head of the encoder."""
        return self.encoder.language_head()

    @property
    def pair_head(self) -> PairHead:
        """The pooler and two-way classifier for the encoder."""
        return PairHead(self.encoder.D, 2, self.encoder.initializer, self.encoder.dtype)

    @property
    def heads(self) -> dict[str, nn.Module]:
        """Its heads by their names among the parameters."""
        return {"mlm": self.head} | ({"pair": self.pair_head} if self.pair else {})

    @one_program
    def init(self, rng: Key, batch: Batch) -> Params:
        """Initialise {encoder, head: {mlm, pair}}; `pair` only where the objective has it."""
        encoder_key, mlm_key, pair_key = jax.random.split(rng, 3)
        encoder = initialised(self.encoder, encoder_key, batch)
        x_BLD = jnp.zeros((*batch["tokens"].shape, self.encoder.D))
        # A head that is the word table alone has no parameters.
        head = {"mlm": self.head.init(mlm_key, x_BLD[:, :1], word_table(encoder)).get("params", {})}
        if self.pair:
            head["pair"] = self.pair_head.init(pair_key, x_BLD)["params"]
        return {"encoder": encoder, "head": head}

    def encode(self, params: Params, batch: Batch) -> Array:
        """Return hidden states x_BLD of uncorrupted tokens."""
        return encode(self.encoder, params, batch)

    def language_logits(self, params: Params, batch: Batch, positions_BP: Array | None = None) -> Array:
        """Return logits_BPV at `positions_BP`, where the tokens are masks, or at every position if None."""
        _, x_BPD = hidden(self.encoder, params, batch, None, positions_BP)
        return apply(self.head, params["head"]["mlm"], x_BPD, word_table(params["encoder"]))

    def special_tokens(self, v: Vocabulary) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the special tokens before and after a text, as (id, segment)."""
        return [(v.cls, 0)], [(v.sep, 0)]

    def expected_targets(self, rows: int, length: int, real_tokens: float) -> dict[str, float]:
        """See ExpectsTargets."""
        return {"loss/mlm": self.masking.expected_targets(rows, length, real_tokens)}

    def loss(self, params: Params, batch: Batch, rng: Key, *, train: bool) -> tuple[Array, Metrics]:
        """Return the loss and its metrics; without `train` also histograms of the targets of both terms.

        The entropy of the pair labels is below ln 2: more than half of BERT's pairs are random, and more of them in
        shorter rows. Raises ValueError where the batch lacks an array that the masking unit or the pair term reads.
        """
        metrics, _ = self.outputs(params, batch, rng, train=train)
        return total(metrics), metrics

    def outputs(
        self, params: Params, batch: Batch, rng: Key, *, train: bool, delta: Array | None = None
    ) -> tuple[Metrics, Predictions]:
        """Return the metrics of `loss`, and the predictions that they score, under `mlm` and `pair`.

        delta: a perturbation of the embeddings, see `perturbed_embeddings`. Raises ValueError where the batch lacks an
        array that the masking unit or the pair term reads.
        """
        check_step(params, ("encoder", "head"), batch, rng, self.encoder)
        if self.pair and "pair" not in batch:
            raise ValueError("the pair term needs `pair` in the batch: use rows of pairs, or pair=false")
        if self.pair:
            check_ids("pair", batch["pair"], 2, "it is 0 where a pair is in order, else 1")
        mask_key, dropout_key = jax.random.split(rng)
        masked = self.corrupt(mask_key, batch, self.masking)
        x_BLD, x_BPD = hidden(
            self.encoder, params, batch, masked.tokens_BL, masked.positions_BP, delta,
            train=train, rngs={"dropout": dropout_key},
        )  # fmt: skip
        logits_BPV = apply(self.head, params["head"]["mlm"], x_BPD, word_table(params["encoder"]))
        metrics = scores("mlm", logits_BPV, masked.targets_BP, masked.weights_BP)
        predictions = {"mlm": (logits_BPV, masked.weights_BP)}
        if not train:
            metrics["targets/mlm"] = histogram(self.encoder.V, masked.targets_BP, masked.weights_BP)
        if self.pair:
            logits_BC = apply(self.pair_head, params["head"]["pair"], x_BLD)
            real_B = batch["mask"].any(axis=1).astype(jnp.float32)
            metrics |= scores("pair", logits_BC, batch["pair"], real_B)
            predictions["pair"] = (logits_BC, real_B)
            if not train:
                metrics["targets/pair"] = histogram(2, batch["pair"], real_B)
        metrics["tokens/real"] = real_tokens(batch["mask"])
        return metrics, predictions
