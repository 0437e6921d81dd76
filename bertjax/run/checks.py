"""Check, before anything is compiled, that platform, data, vocabulary and other processes fit the experiment."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from bertjax.checkpoints.warm_start import Start
from bertjax.config import Experiment
from bertjax.data.tokenizer import Tokenizer, fingerprint
from bertjax.errors import InputError
from bertjax.run.processes import assert_equal_on_all, raising_on_all, versions
from bertjax.run.state import load_start
from bertjax.run.workdir import as_begun
from bertjax.serialization.description import to_json


def check_platform(wanted: str) -> None:
    """Raise InputError where JAX runs on another platform than the experiment requires."""
    found = jax.default_backend()
    if wanted not in ("", found):
        raise InputError(
            f"run.platform={wanted}, but JAX runs on {found}: check that the accelerator is free and that JAX is "
            f"installed for it (pip install 'bertjax[tpu]'), or set run.platform={found}"
        )


def check_data(experiment: Experiment) -> tuple[Tokenizer, list[str]]:
    """Load the tokenizer that the rows of all phases share, and compute the digest of the data of each phase.

    Raises InputError where data are missing or damaged, where tokenizers differ, and where the vocabulary exceeds that
    of the objective (any field V).
    """
    rows = [phase.rows for phase in experiment.phases]
    if len({"labels" in each.features for each in rows}) > 1:
        places = ", ".join(each.corpus for each in rows)
        raise InputError(f"one run has labelled and unlabelled rows ({places}): train on them in separate runs")
    tokenizer = rows[0].load_tokenizer()
    for each in rows[1:]:
        if fingerprint(each.load_tokenizer()) != fingerprint(tokenizer):
            raise InputError(
                f"{each.corpus} was built with another tokenizer than {rows[0].corpus}: use one for all phases"
            )
    digests = [each.digest() for each in rows]
    check_vocabulary(experiment, tokenizer)
    return tokenizer, digests


def check_vocabulary(experiment: Experiment, tokenizer: Tokenizer) -> None:
    """Raise InputError where the tokenizer has ids beyond a vocabulary of the objective."""
    for size in _fields_named("V", to_json(experiment.objective)):
        if size < tokenizer.vocabulary.size:
            raise InputError(
                f"the data have {tokenizer.vocabulary.size} ids, but the model's vocabulary only V={size}: leave V to "
                "the experiment, or use data encoded for this model"
            )


def _fields_named(name: str, described: Any) -> Iterator[int]:
    if isinstance(described, dict):
        for key, value in described.items():
            if key == name:
                yield value
            yield from _fields_named(name, value)


class CheckedRun(NamedTuple):
    """An experiment as its work directory has begun it, its mesh, the tokenizer and digests of its data, its start."""

    experiment: Experiment
    mesh: Mesh
    tokenizer: Tokenizer
    data: list[str]
    start: Start


def check_run(experiment: Experiment, workdir: Path) -> CheckedRun:
    """Check that the machine, the data and `init` fit the experiment, and that all processes have the same."""
    with raising_on_all():
        check_platform(experiment.run.platform)
        tokenizer, data = check_data(experiment)
        # One mesh for all phases; built for each, to check that its batches divide over devices.
        mesh, *_ = [experiment.mesh.mesh(phase.batch_size // phase.accumulate) for phase in experiment.phases]
        experiment = as_begun(workdir, experiment)
        start = load_start(experiment, workdir, tokenizer)
    assert_equal_on_all({"the experiment": to_json(experiment), "the data": data} | versions())
    return CheckedRun(experiment, mesh, tokenizer, data, start)
