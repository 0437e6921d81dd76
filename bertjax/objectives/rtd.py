"""Replaced-token detection: the objective of ELECTRA and DeBERTa-v3.

    loss = generator_weight · masked LM loss of the generator
         + discriminator_weight · mean over real tokens of the cross-entropy of "was this token replaced?"

Clark et al. 2020 (google-research/electra, run_pretraining.py); the sharing of embeddings also after He et al. 2021
(DeBERTaV3). A small generator fills the masks with samples, the discriminator classifies every token. A sample that
happens to be right counts as original. No gradient passes through the sampling. Where we deviate: where a position was
drawn twice (`mask_with_replacement`), the larger of two samples is used; ELECTRA writes the mean of their ids.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from bertjax.data.tokenizer import Vocabulary
from bertjax.fields import check_fields
from bertjax.inputs import check_step, require_params
from bertjax.masking import Corruption, Masking, mask_tokens, put
from bertjax.models.heads import ReplacedHead, ReplacedInContextHead
from bertjax.models.initialise import one_program
from bertjax.models.language import LanguageEncoder, encode, hidden, initialised, word_table
from bertjax.models.layers import Activation, apply
from bertjax.objectives.losses import histogram, real_tokens, scaled, scores, weighted_mean
from bertjax.objectives.mlm import MaskedLM
from bertjax.random import hash_bits, row_keys
from bertjax.types import Array, Batch, Key, Mean, Metrics, Params, Predictions, total


class SharingEncoder(LanguageEncoder, Protocol):
    """Protocol for an encoder that can be generator or discriminator: a LanguageEncoder with these members."""

    activation: Activation
    norm_eps: float

    @property
    def table_sizes(self) -> dict[str, int]:
        """The sizes that must be equal in two encoders that share their embeddings."""
        ...


def electra_discriminator_head(encoder: SharingEncoder) -> ReplacedHead:
    """Build ELECTRA's head, which classifies each token by its own hidden state."""
    return ReplacedHead(encoder.D, encoder.activation, encoder.initializer, encoder.dtype)


def deberta_discriminator_head(encoder: SharingEncoder) -> ReplacedInContextHead:
    """Build DeBERTa-v3's head, which classifies each token by the sum of its hidden state and that of [CLS]."""
    return ReplacedInContextHead(encoder.D, encoder.activation, encoder.norm_eps, encoder.initializer, encoder.dtype)


DiscriminatorHead = Callable[[SharingEncoder], nn.Module]
"""encoder -> the head that finds replaced tokens: called on x_BLD and mask_BL, it returns logits_BL."""


class Sharing(Protocol):
    """Protocol for how two encoders share parameters: which are kept, and which are used."""

    def check(self, generator: SharingEncoder, discriminator: SharingEncoder) -> None:
        """Raise ValueError where these two cannot share."""
        ...

    def keep(self, generator: Params, discriminator: Params) -> tuple[Params, Params]:
        """Return the trained parameters of two encoders, given all of them, freshly initialised."""
        ...

    def use(self, generator: Params, discriminator: Params) -> tuple[Params, Params]:
        """Return all parameters of two encoders, given those that `keep` returned."""
        ...


@dataclass(frozen=True)
class SharedEmbeddings:
    """Share the embedding block, tables and norm, trained by both losses (ELECTRA). The discriminator holds it."""

    def check(self, generator: SharingEncoder, discriminator: SharingEncoder) -> None:
        """See Sharing.check."""
        _same_tables(generator, discriminator)

    def keep(self, generator: Params, discriminator: Params) -> tuple[Params, Params]:
        """See Sharing.keep."""
        return {name: part for name, part in generator.items() if name != "embeddings"}, discriminator

    def use(self, generator: Params, discriminator: Params) -> tuple[Params, Params]:
        """See Sharing.use."""
        return {**generator, "embeddings": discriminator["embeddings"]}, discriminator


@dataclass(frozen=True)
class SeparateEmbeddings:
    """Share nothing."""

    def check(self, generator: SharingEncoder, discriminator: SharingEncoder) -> None:
        """See Sharing.check."""

    def keep(self, generator: Params, discriminator: Params) -> tuple[Params, Params]:
        """See Sharing.keep."""
        return generator, discriminator

    def use(self, generator: Params, discriminator: Params) -> tuple[Params, Params]:
        """See Sharing.use."""
        return generator, discriminator


@dataclass(frozen=True)
class DisentangledEmbeddings:
    """Let the discriminator use stop_gradient(generator's tables) + Δ, where Δ starts at 0 (DeBERTa-v3).

    So only the generator's loss trains the tables, and only the discriminator's its Δ. Parameters that are no table
    (the norm) are not shared.
    """

    def check(self, generator: SharingEncoder, discriminator: SharingEncoder) -> None:
        """See Sharing.check."""
        _same_tables(generator, discriminator)

    def keep(self, generator: Params, discriminator: Params) -> tuple[Params, Params]:
        """See Sharing.keep."""
        deltas = {
            name: jax.tree.map(jnp.zeros_like, part) if "table" in part else part
            for name, part in discriminator["embeddings"].items()
        }
        return generator, {**discriminator, "embeddings": deltas}

    def use(self, generator: Params, discriminator: Params) -> tuple[Params, Params]:
        """See Sharing.use."""
        tables = jax.lax.stop_gradient(generator["embeddings"])
        embeddings = {
            name: jax.tree.map(jnp.add, tables[name], part) if "table" in part else part
            for name, part in discriminator["embeddings"].items()
        }
        return generator, {**discriminator, "embeddings": embeddings}


def _same_tables(generator: SharingEncoder, discriminator: SharingEncoder) -> None:
    sizes = generator.table_sizes, discriminator.table_sizes
    for name in sizes[0] | sizes[1]:
        ours, theirs = (of.get(name) for of in sizes)
        if ours != theirs:
            raise ValueError(
                f"the generator has {name}={ours}, the discriminator {name}={theirs}: to share embeddings make them "
                "equal (E is the width of the tables), or use SeparateEmbeddings"
            )


@dataclass(frozen=True)
class Discriminator:
    """A trained discriminator alone: classify every token as original or replaced."""

    encoder: SharingEncoder
    discriminator_head: DiscriminatorHead = electra_discriminator_head

    @property
    def head(self) -> nn.Module:
        """The discriminator head of the encoder."""
        return self.discriminator_head(self.encoder)

    @property
    def heads(self) -> dict[str, nn.Module]:
        """Its heads by their names among the parameters."""
        return {"rtd": self.head}

    @one_program
    def init(self, rng: Key, batch: Batch) -> Params:
        """Initialise {encoder, head: {rtd}}."""
        encoder_key, head_key = jax.random.split(rng)
        encoder = initialised(self.encoder, encoder_key, batch)
        x_BLD = jnp.zeros((*batch["tokens"].shape, self.encoder.D))
        return {"encoder": encoder, "head": {"rtd": self.head.init(head_key, x_BLD, batch["mask"])["params"]}}

    def encode(self, params: Params, batch: Batch) -> Array:
        """Return hidden states x_BLD."""
        return encode(self.encoder, params, batch)

    def task_logits(self, params: Params, batch: Batch) -> Array:
        """Return `replaced_logits`, the output of this model."""
        return self.replaced_logits(params, batch)

    def replaced_logits(self, params: Params, batch: Batch) -> Array:
        """Return a logit for each token, above 0 where it is predicted to be replaced: f32 [B, L]."""
        return apply(self.head, params["head"]["rtd"], self.encode(params, batch), batch["mask"])


@dataclass(frozen=True)
class ReplacedTokenDetection:
    """Train `generator` to fill masks, and `discriminator` to find the tokens that it replaced.

    corrupt: see masking.Corruption; ELECTRA's is `mask_with_replacement`. discriminator_head: see DiscriminatorHead;
    `electra_discriminator_head` or `deberta_discriminator_head`.
    Raises ValueError for vocabularies that differ, a temperature of 0, tables that cannot be shared.

    Attributes:
        generator: the encoder that fills the masks
        discriminator: the encoder that classifies every token, and is kept for other tasks
        masking: the recipe of masking
        sharing: which parameters the two share
        corrupt: chooses and corrupts positions: see masking.Corruption
        temperature: of the samples
        generator_weight: of the masked LM loss
        discriminator_weight: of the detection loss
    """

    generator: SharingEncoder
    discriminator: SharingEncoder
    masking: Masking
    sharing: Sharing = SharedEmbeddings()
    corrupt: Corruption = mask_tokens
    temperature: float = 1.0
    generator_weight: float = 1.0
    discriminator_weight: float = 50.0
    discriminator_head: DiscriminatorHead = electra_discriminator_head

    def __post_init__(self) -> None:
        check_fields(self)
        if self.generator.V != self.discriminator.V:
            raise ValueError(
                f"the generator has a vocabulary of V={self.generator.V} ids, the discriminator of "
                f"V={self.discriminator.V}: it reads the tokens of the other, so use one for both"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be above 0: all samples would be the argmax")
        if min(self.generator_weight, self.discriminator_weight) < 0:
            raise ValueError(
                f"generator_weight={self.generator_weight} and discriminator_weight={self.discriminator_weight} must "
                "be 0 or more"
            )
        self.sharing.check(self.generator, self.discriminator)
        self.masking.check_vocabulary(self.generator.V)

    @property
    def generator_objective(self) -> MaskedLM:
        """The objective of the generator alone."""
        return MaskedLM(self.generator, self.masking, corrupt=self.corrupt)

    @property
    def discriminator_alone(self) -> Discriminator:
        """The model that serves the discriminator alone."""
        return Discriminator(self.discriminator, self.discriminator_head)

    @property
    def encoder(self) -> SharingEncoder:
        """The encoder that is kept for other tasks: the discriminator."""
        return self.discriminator

    @property
    def head(self) -> nn.Module:
        """The head of the discriminator."""
        return self.discriminator_alone.head

    @one_program
    def init(self, rng: Key, batch: Batch) -> Params:
        """Initialise {generator: {encoder, head: {mlm}}, discriminator: {encoder, head: {rtd}}}."""
        generator_key, discriminator_key = jax.random.split(rng)
        generator = self.generator_objective.init(generator_key, batch)
        discriminator = self.discriminator_alone.init(discriminator_key, batch)
        kept = self.sharing.keep(generator["encoder"], discriminator["encoder"])
        return {
            "generator": {**generator, "encoder": kept[0]},
            "discriminator": {**discriminator, "encoder": kept[1]},
        }

    def complete(self, params: Params) -> Params:
        """Return the tree with all parameters of both encoders, shared ones in both."""
        require_params(params, "generator", "discriminator")
        encoders = self.sharing.use(params["generator"]["encoder"], params["discriminator"]["encoder"])
        return {
            name: {"encoder": encoder, "head": params[name]["head"]}
            for name, encoder in zip(("generator", "discriminator"), encoders, strict=True)
        }

    def part(self, name: str, params: Params) -> tuple["MaskedLM | Discriminator", Params]:
        """Return the generator or the discriminator alone, with all its parameters, as (objective, params)."""
        parts: dict[str, MaskedLM | Discriminator] = {
            "generator": self.generator_objective,
            "discriminator": self.discriminator_alone,
        }
        return parts[name], self.complete(params)[name]

    def encode(self, params: Params, batch: Batch) -> Array:
        """Return hidden states x_BLD of the discriminator."""
        discriminator, params = self.part("discriminator", params)
        return discriminator.encode(params, batch)

    def language_logits(self, params: Params, batch: Batch, positions_BP: Array | None = None) -> Array:
        """Return the generator's logits, as MaskedLM.language_logits."""
        return self.generator_objective.language_logits(self.complete(params)["generator"], batch, positions_BP)

    def special_tokens(self, v: Vocabulary) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the special tokens before and after a text, as (id, segment)."""
        return self.generator_objective.special_tokens(v)

    def expected_targets(self, rows: int, length: int, real_tokens: float) -> dict[str, float]:
        """See ExpectsTargets."""
        return self.generator_objective.expected_targets(rows, length, real_tokens)

    def loss(self, params: Params, batch: Batch, rng: Key, *, train: bool) -> tuple[Array, Metrics]:
        """Return the loss and its metrics.

        `loss/rtd` carries its weight, `cross_entropy/rtd` does not; `replaced/rtd` is the share of tokens that were
        replaced. Without `train` also the histograms `targets/mlm`, and `scores/rtd` [2, bins] of the discriminator's
        logits for original and replaced tokens.
        """
        metrics, _ = self.outputs(params, batch, rng, train=train)
        return total(metrics), metrics

    def outputs(
        self, params: Params, batch: Batch, rng: Key, *, train: bool, delta: Array | None = None
    ) -> tuple[Metrics, Predictions]:
        """Return the metrics of `loss`, and the discriminator's logits of original and replaced, under `rtd`.

        delta: a perturbation of the discriminator's embeddings, see `perturbed_embeddings`; not of the generator's, so
        that the same rng replaces the same tokens.
        """
        check_step(params, ("generator", "discriminator"), batch, rng, self.generator, self.discriminator)
        mask_key, generator_key, sample_key, discriminator_key = jax.random.split(rng, 4)
        params = self.complete(params)
        generator, discriminator = params["generator"], params["discriminator"]

        masked = self.corrupt(mask_key, batch, self.masking)
        _, x_BPD = hidden(
            self.generator, generator, batch, masked.tokens_BL, masked.positions_BP,
            train=train, rngs={"dropout": generator_key},
        )  # fmt: skip
        head = self.generator_objective.head
        logits_BPV = apply(head, generator["head"]["mlm"], x_BPD, word_table(generator["encoder"]))
        metrics = scores("mlm", logits_BPV, masked.targets_BP, masked.weights_BP)
        metrics["loss/mlm"] = scaled(metrics["loss/mlm"], self.generator_weight)

        sampled_BP = sample(sample_key, batch, logits_BPV, self.temperature)
        tokens_BL = jax.vmap(put)(batch["tokens"], masked.positions_BP, sampled_BP, masked.weights_BP > 0)
        replaced_BL = (tokens_BL != batch["tokens"]).astype(jnp.float32)
        x_BLD, _ = hidden(
            self.discriminator, discriminator, batch, tokens_BL, None, delta,
            train=train, rngs={"dropout": discriminator_key},
        )  # fmt: skip
        logits_BL = apply(self.head, discriminator["head"]["rtd"], x_BLD, batch["mask"])
        real_BL = (batch["mask"] > 0).astype(jnp.float32)
        metrics |= _detection_metrics(logits_BL, replaced_BL, real_BL)
        metrics["loss/rtd"] = scaled(metrics["cross_entropy/rtd"], self.discriminator_weight)
        if not train:
            metrics["targets/mlm"] = histogram(self.generator.V, masked.targets_BP, masked.weights_BP)
            metrics["scores/rtd"] = _logit_histograms(logits_BL, replaced_BL, real_BL)
        metrics["tokens/real"] = real_tokens(batch["mask"])
        logits_BLC = jnp.stack([jnp.zeros_like(logits_BL), logits_BL], axis=-1)
        return metrics, {"rtd": (logits_BLC, real_BL)}


def sample(rng: Key, batch: Batch, logits_BPV: Array, temperature: float) -> Array:
    """Draw ids from softmax(logits / temperature): i32 [B, P], with no gradient.

    The argmax of logit + Gumbel noise; the noise comes from a counter hash and fuses with the one reading of the
    logits. The key of a row comes from its example.
    """

    def sample_row(key: Key, logits_PV: Array) -> Array:
        uniform_PV = ((hash_bits(key, logits_PV.shape) >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
        noise_PV = -jnp.log(-jnp.log(uniform_PV))
        return jnp.argmax(logits_PV.astype(jnp.float32) / temperature + noise_PV, axis=-1).astype(jnp.int32)

    return jax.lax.stop_gradient(jax.vmap(sample_row)(row_keys(rng, batch), logits_BPV))


def _detection_metrics(logits_BL: Array, replaced_BL: Array, real_BL: Array) -> Metrics:
    entropy_BL = jax.nn.softplus(logits_BL) - replaced_BL * logits_BL
    right_BL = ((logits_BL > 0) == (replaced_BL > 0)).astype(jnp.float32)
    return {
        f"{name}/rtd": weighted_mean(value_BL, real_BL)
        for name, value_BL in (("cross_entropy", entropy_BL), ("accuracy", right_BL), ("replaced", replaced_BL))
    }


def _logit_histograms(
    logits_BL: Array, replaced_BL: Array, real_BL: Array, bins: int = 4096, widest: float = 16.0
) -> Mean:
    """Count the logits of original and of replaced tokens in bins from -widest to widest: [2, bins]."""
    place_BL = jnp.clip((logits_BL / widest + 1) * (bins / 2), 0, bins - 1).astype(jnp.int32)
    counts = jnp.zeros((2, bins)).at[replaced_BL.astype(jnp.int32), place_BL].add(real_BL)
    return Mean(counts, real_BL.sum())
