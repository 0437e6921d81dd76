"""Contrastive training and the evaluation of embeddings against sentence-transformers (`pip install '.[parity]'`)."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from sentence_folders import PROMPTS, sentence_folder

from bertjax.checkpoints.export import convert
from bertjax.checkpoints.trained import load
from bertjax.config import load_experiment
from bertjax.inference.embed import embed
from bertjax.inference.retrieval import evaluate_retrieval
from bertjax.tasks.collection import Collection
from bertjax.train import fit

theirs = pytest.importorskip("sentence_transformers")
torch = pytest.importorskip("torch")
WORDS = ["time", "person", "year", "way", "day", "man", "world", "life", "hand", "part", "child", "eye"]


@pytest.fixture
def experiment(tmp_path):
    """Describe training on triples, with widths."""
    folder = sentence_folder(tmp_path / "model")
    rows = [{"a": f"{a} {b}", "p": f"new {a}", "n": f"last {b}"} for a, b in zip(WORDS, reversed(WORDS), strict=True)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = [f"init={folder}", f"data={tmp_path / 'x.jsonl'}", "columns=a,p,n", "batch_size=8", "steps=2", "length=16"]
    return load_experiment("embed", [*given, "widths=4", "temperature=0.1"])


def test_the_loss_is_theirs(experiment):
    from sentence_transformers.sentence_transformer import losses

    model = load(experiment.init)
    batch = experiment.phases[0].rows.open("train").rows(np.arange(8))
    params = {**model.params, "head": {"sentence": {}}}
    ours, _ = jax.jit(partial(experiment.objective.loss, train=False))(params, batch, jax.random.key(0))
    names = {"tokens": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
    texts = [{name: batch[name] for name in names}]
    texts += [{name: batch[f"passage_{name}"][:, k] for name in names} for k in range(2)]
    features = [{names[name]: torch.from_numpy(array).long() for name, array in each.items()} for each in texts]
    reference = theirs.SentenceTransformer(experiment.init, device="cpu")
    plain = losses.MultipleNegativesRankingLoss(reference, scale=10)
    with torch.no_grad():
        expected = losses.MatryoshkaLoss(reference, plain, [8, 4])(features, torch.zeros(0))
    np.testing.assert_allclose(ours, float(expected), rtol=1e-5)


def test_a_trained_model_is_written_so_that_they_compute_its_vectors(experiment, tmp_path):
    fit(experiment, tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "theirs", to="sentence-transformers")
    texts = ["new man", "the year of the child", "a"]
    expected = theirs.SentenceTransformer(str(tmp_path / "theirs"), device="cpu").encode(texts)
    found = list(embed(load(tmp_path / "run"), texts, say=lambda note: None))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    before = list(embed(load(experiment.init), texts, say=lambda note: None))
    assert np.abs(np.array(found) - before).max() > 1e-5


def test_retrieval_is_scored_as_theirs(tmp_path):
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    folder = sentence_folder(tmp_path / "model", settings=PROMPTS)
    queries = [f"{a} good" for a in WORDS]
    # Few, so that no two are so near to a query that rounding decides.
    passages = [f"{a} {b} {c}" for a, b, c in zip(WORDS, WORDS[5:] + WORDS[:5], reversed(WORDS), strict=True)]
    relevant = [{i: 1.0 for i, text in enumerate(passages) if word in text.split()} for word in WORDS]
    ours = evaluate_retrieval(
        load(folder), Collection(tuple(queries), tuple(passages), tuple(relevant), (), ()), say=lambda note: None
    )
    evaluator = InformationRetrievalEvaluator(
        dict(zip(map(str, range(len(queries))), queries, strict=True)),
        dict(zip(map(str, range(len(passages))), passages, strict=True)),
        {str(q): set(map(str, each)) for q, each in enumerate(relevant)},
        precision_recall_at_k=[1, 10, 100], write_csv=False, query_prompt_name="query", corpus_prompt_name="passage",
    )  # fmt: skip
    scores = evaluator(theirs.SentenceTransformer(str(folder), device="cpu"))
    for name, key in (("ndcg@10", "ndcg@10"), ("mrr@10", "mrr@10"), *((f"recall@{k}",) * 2 for k in (1, 10, 100))):
        np.testing.assert_allclose(ours[name], scores[f"cosine_{key}"], rtol=1e-9, err_msg=name)
