"""Search by embeddings, its evaluation, and the protocol of MTEB."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_folders import PROMPTS, TEXTS, sentence_folder

from bertjax.checkpoints.trained import load
from bertjax.config import Experiment, load_described
from bertjax.errors import InputError
from bertjax.inference.embed import embed
from bertjax.inference.mteb import MtebEncoder
from bertjax.inference.retrieval import (
    PASSAGE,
    QUERY,
    evaluate_retrieval,
    evaluate_similarity,
    rank,
    search,
    similarities,
    vectors,
)
from bertjax.tasks.collection import Collection


def silent(note):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sentence_folder(tmp_path_factory.mktemp("retrieval") / "model", settings=PROMPTS)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


def test_vectors_are_those_of_embed_in_order_with_the_prompt_of_their_role(model):
    for role, prompt in (((), None), (QUERY, "query"), (PASSAGE, "passage"), (("other",), None)):
        expected = list(embed(model, TEXTS, prompt=prompt, say=silent))
        np.testing.assert_allclose(vectors(model, TEXTS, role, batch_size=2, say=silent), expected, atol=1e-6)
    assert vectors(model, TEXTS, width=3, say=silent).shape == (4, 3)
    with pytest.raises(InputError, match="width=9, but the vectors have 8"):
        vectors(model, TEXTS, width=9, say=silent)


def test_training_puts_the_prompts_before_passages_that_searching_does(tmp_path, monkeypatch):
    settings = {"prompts": {"corpus": "c: ", "usual": "u: "}, "default_prompt_name": "usual"}
    folder = sentence_folder(tmp_path / "model", settings=settings)
    (tmp_path / "pairs.csv").write_text("anchor,positive\nway time,person year\nyear,day time\n")
    given = [f"data={tmp_path}/pairs.csv", "length=16", "pooling=cls"]
    built = load_described("embed", [f"init={folder},optimizer", *given], Experiment)
    assert built.phases[0].rows.prompts == ("u: ", "c: ")
    assert built.objective.sentence.default_prompt == "usual"


def test_the_search_is_exact_and_takes_the_first_of_equals(model):
    rng = np.random.default_rng(0)
    queries, passages = rng.normal(size=(300, 8)), rng.normal(size=(50, 8))
    indices, scores = rank(model, queries, passages, 7)
    cosines = (queries / np.linalg.norm(queries, axis=1)[:, None]) @ (
        passages / np.linalg.norm(passages, axis=1)[:, None]
    ).T
    np.testing.assert_array_equal(indices, np.argsort(-cosines, axis=1)[:, :7])
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :7])
    assert rank(model, queries[:1], np.ones((5, 8)), 9)[0].tolist() == [[0, 1, 2, 3, 4]]
    hits = search(model, [TEXTS[1]], vectors(model, TEXTS, say=silent), top=2, say=silent)
    assert len(hits[0]) == 2 and hits[0][0].score >= hits[0][1].score
    with pytest.raises(InputError, match="no passage to search"):
        search(model, ["a"], [])


def test_similarity_is_that_of_the_folder(model):
    def stated(name):
        return SimpleNamespace(config={"huggingface": {"similarity": name}})

    a, b = np.array([[3.0, 4.0]]), np.array([[1.0, 0.0], [0.0, 2.0]])
    assert similarities(stated(""), a, b).tolist() == [[0.6, 0.8]]
    assert similarities(stated("dot"), a, b).tolist() == [[3.0, 8.0]]
    with pytest.raises(InputError, match="'euclidean' is not supported"):
        similarities(stated("euclidean"), a, b)


def test_evaluations_are_those_of_the_vectors(model):
    found = evaluate_retrieval(model, Collection(tuple(TEXTS), tuple(TEXTS), tuple({i: 1.0} for i in range(4)), (), ()),
                               say=silent)  # fmt: skip
    assert found["queries"] == found["passages"] == 4 and found["recall@100"] == 1
    cosines = similarities(model, *(vectors(model, TEXTS, role, say=silent) for role in (QUERY, PASSAGE)))
    places = (cosines > np.diag(cosines)[:, None]).sum(1)
    np.testing.assert_allclose(found["mrr@10"], np.mean(1 / (1 + places)))
    np.testing.assert_allclose(found["ndcg@10"], np.mean(1 / np.log2(2 + places)))
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[1], TEXTS[2]), (TEXTS[2], TEXTS[3])]
    plain = vectors(model, TEXTS, say=silent)
    expected = [similarities(model, plain[i : i + 1], plain[i + 1 : i + 2])[0, 0] for i in range(3)]
    found = evaluate_similarity(model, pairs, [1, 5, 2], say=silent)
    assert found["spearman"] == pytest.approx(spearmanr([1, 5, 2], expected)[0]) and found["pairs"] == 3


def loader(*batches):
    """Return batches as MTEB's data loaders yield them."""
    return [{"text": list(texts), "id": [str(n) for n in range(len(texts))]} for texts in batches]


def test_the_encoder_of_mteb_on_batches_of_its_form(folder, model):
    encoder = MtebEncoder(folder, device="cpu")
    about = {"task_metadata": None, "hf_split": "test", "hf_subset": "default", "show_progress_bar": False}
    for role, prompt in ((None, None), ("query", "query"), (SimpleNamespace(value="document"), "passage")):
        found = encoder.encode(loader(TEXTS[:3], TEXTS[3:]), prompt_type=role, batch_size=2, **about)
        np.testing.assert_allclose(found, list(embed(model, TEXTS, prompt=prompt, say=silent)), atol=1e-6)
    both = encoder.similarity(found, found[:2])
    np.testing.assert_allclose(np.diag(both), encoder.similarity_pairwise(found[:2], found[:2]), atol=1e-6)
    assert both.shape == (4, 2) and encoder.similarity(found[0], found).shape == (1, 4)


def test_mteb_itself_on_a_local_task(folder, monkeypatch, tmp_path):
    mteb = pytest.importorskip("mteb", reason="needs the extra mteb")
    from mteb.mocks.mock_tasks.retrieval import MockRetrievalTask
    from mteb.mocks.mock_tasks.sts import MockSTSTask
    from mteb.models.models_protocols import EncoderProtocol

    encoder = MtebEncoder(folder)
    assert isinstance(encoder, EncoderProtocol) and encoder.mteb_model_meta.name == "bertjax/model"
    for task in (MockRetrievalTask(), MockSTSTask()):
        result = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
        assert 0 <= result.task_results[0].scores["test"][0]["main_score"] <= 1
