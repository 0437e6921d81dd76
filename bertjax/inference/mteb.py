"""The encoder protocol of MTEB, version 2 (`pip install 'bertjax[mteb]'`), for models of ours.

    import mteb
    from bertjax.inference.mteb import MtebEncoder

    mteb.evaluate(MtebEncoder("runs/embed"), mteb.get_tasks(tasks=["NFCorpus"]))

Muennighoff et al. 2023; mteb/models/models_protocols.py. Needs nothing of MTEB until it asks for the model's metadata.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.checkpoints.trained import load
from bertjax.inference.compatible import check_tokenizer
from bertjax.inference.retrieval import PASSAGE, QUERY, similarities, vectors
from bertjax.storage.paths import path_of
from bertjax.terminal import escaped

_ROLES = {"query": QUERY, "document": PASSAGE, "passage": PASSAGE}


class MtebEncoder:
    """A trained model as MTEB calls it: its name is the folder, and prompts are chosen by their role alone."""

    def __init__(self, model_name: str | Path, revision: str | None = None, *, device: str | None = None) -> None:
        """Load the model of a folder, as `load`. revision: kept for the results. device: ignored, JAX chooses it."""
        self.name, self.revision, self.model = str(model_name), revision, load(model_name)
        check_tokenizer(self.model, self.name)

    def encode(
        self, inputs: Iterable[Mapping[str, Sequence[str]]], *, prompt_type: Any = None, batch_size: int = 32,
        **about: Any,
    ) -> np.ndarray:  # fmt: skip
        """Return the vectors of all texts, f32 [N, D]. about: the task, its split and settings that change nothing.

        inputs: batches with a list `text`. prompt_type: the role of the texts, query or document, or None.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        role = _ROLES[str(getattr(prompt_type, "value", prompt_type))] if prompt_type is not None else ()
        return vectors(self.model, texts, role, batch_size=batch_size, say=lambda note: None)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Return the similarity of each vector to each other one, f32 [N, M]."""
        return similarities(self.model, *map(_matrix, (embeddings1, embeddings2)))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Return the similarity of each vector to the one at its place, f32 [N]."""
        pairs = zip(*map(_matrix, (embeddings1, embeddings2)), strict=True)
        return np.array([similarities(self.model, a[None], b[None])[0, 0] for a, b in pairs], np.float32)

    @property
    def mteb_model_meta(self) -> Any:
        """What MTEB files results under."""
        from mteb.models.model_meta import ModelMeta

        name = escaped(path_of(self.name).name) or "model"
        return ModelMeta.create_empty({"name": f"bertjax/{name}", "revision": self.revision or "local"})


def _matrix(vectors: Any) -> np.ndarray:
    return np.atleast_2d(np.asarray(vectors, np.float32))
