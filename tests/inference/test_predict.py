import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import small_bert, small_xlnet

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.trained import Model
from bertjax.commands.main import main
from bertjax.errors import InputError
from bertjax.inference.checked import answer, choose, classify, score, tag
from bertjax.inference.compatible import check_tokenizer
from bertjax.models.heads import PairHead, TokenHead
from bertjax.models.layers import Normal
from bertjax.models.published import Published
from bertjax.models.span_heads import xlnet_span_head
from bertjax.serialization.description import to_json
from bertjax.tasks.own import own_task
from bertjax.tasks.table import find_task

INIT = Normal(0.5)
SILENT = {"say": lambda sentence: None}


def trained(tokenizer, name, head, labels=(), encoder=small_bert, cls_last=False):
    """A model with a head, of random numbers wide enough to differ."""
    encoder = encoder(V=tokenizer.vocabulary.size, N=1, D=16, F=32, initializer=INIT)
    model = Published(encoder, ((name, head),), cls_last, labels)
    tokens = jnp.ones((1, 4), jnp.int32)
    batch = {"tokens": tokens, "mask": tokens, "types": tokens}
    params = jax.jit(model.init)(jax.random.key(0), batch)
    return Model(model, params, tokenizer, {"objective": to_json(model)})


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return trained(tokenizer, "classify", PairHead(16, 3, INIT, "float32"), ("no", "maybe", "yes"))


def test_texts_are_classified_in_order_as_alone_and_by_the_names_of_labels(pairs, tokenizer):
    texts = ["time person", ("year way", "day thing"), "man " * 20, "world"]
    found = list(classify(pairs, texts, batch_size=2, **SILENT))
    assert [each.texts for each in found] == [("time person",), ("year way", "day thing"), ("man " * 20,), ("world",)]
    v = tokenizer.vocabulary
    a, b = tokenizer.ids(["year way", "day thing"])
    ids = [v.cls, *a, v.sep, *b, v.sep]
    types = [0] * (len(a) + 2) + [1] * (len(b) + 1)
    batch = {"tokens": jnp.array([ids]), "mask": jnp.ones((1, len(ids)), jnp.int32), "types": jnp.array([types])}
    chances = np.asarray(jax.nn.softmax(pairs.logits(batch)))[0]
    assert found[1].label == ("no", "maybe", "yes")[chances.argmax()]
    np.testing.assert_allclose(list(found[1].scores.values()), chances, rtol=1e-4)
    number = trained(tokenizer, "classify", PairHead(16, 1, INIT, "float32"))
    (one,) = classify(number, [("year way", "day thing")], **SILENT)
    np.testing.assert_allclose(one.score, number.logits(batch)[0, 0], rtol=1e-4)
    assert one.label == ""


def test_texts_are_cut_where_positions_end_or_one_says(tokenizer, pairs):
    reported = []
    relative = trained(tokenizer, "classify", PairHead(16, 3, INIT, "float32"), encoder=small_xlnet, cls_last=True)
    long = "man " * 700
    whole, cut = (next(classify(relative, [long], max_length=n, say=reported.append)) for n in (1024, 0))
    assert reported == ["1 text truncated to 512 tokens"] and whole.scores != cut.scores
    with pytest.raises(InputError, match="max_length=1024, but the model has 64 positions: reduce it"):
        next(classify(pairs, [long], max_length=1024, **SILENT))
    with pytest.raises(InputError, match="max_length=4: rows of length 4 have no room"):
        next(classify(pairs, [long], max_length=4, **SILENT))


def test_words_are_tagged_with_their_places_and_names(tokenizer):
    labels = ("O", "B-PER", "I-PER")
    model = trained(tokenizer, "tags", TokenHead(16, 3, INIT, "float32"), labels)
    text = "Time-person's year,  way. Day"
    (found,) = tag(model, [text], **SILENT)
    assert [word.word for word in found.words] == ["Time-person's", "year", ",", "way", ".", "Day"]
    assert all(text[word.start : word.end] == word.word and word.tag in labels for word in found.words)
    assert all(text[name.start : name.end] == name.text for name in found.names)
    assert sum(word.tag.startswith("B") for word in found.words) <= len(found.names)
    marked = "हिन्दी Zoe\u0308's n\u0303-a, way"  # combining marks belong to their words
    (found,) = tag(model, [marked], **SILENT)
    assert [word.word for word in found.words] == ["हिन्दी", "Zoe\u0308's", "n\u0303-a", ",", "way"]
    assert all(marked[word.start : word.end] == word.word for word in found.words)
    hidden = "A\u00adda می\u200cخواهم"  # what is not seen, too
    (found,) = tag(model, [hidden], **SILENT)
    assert [word.word for word in found.words] == ["A\u00adda", "می\u200cخواهم"]
    assert list(tag(model, [], **SILENT)) == []


@pytest.mark.parametrize("conditional", [False, True])
def test_answers_are_pieces_of_their_contexts_also_in_many_windows(tokenizer, conditional):
    context = "  time person year way day thing man world life hand " * 6
    if conditional:
        model = trained(
            tokenizer, "beams", xlnet_span_head(small_xlnet(D=16, initializer=INIT), -1), (), small_xlnet, True
        )
    else:
        model = trained(tokenizer, "span", TokenHead(16, 2, INIT, "float32"))
    found = list(answer(model, [("what man", context), ("what", "good case")], **SILENT))
    assert found[0].text and found[0].text == context[found[0].start : found[0].end]
    assert found[1].text in "good case" and 0 < found[1].score <= 1
    none = list(answer(model, [("what man", context)], may_have_none=True, threshold=-1e9, **SILENT))
    assert none[0].text == "" and np.isfinite(none[0].null_odds)
    assert list(answer(model, [], **SILENT)) == []
    with pytest.raises(InputError, match="question 1, its context: the text is empty"):
        next(answer(model, [("what man", " ")], **SILENT))
    some = list(answer(model, [("what man", context)], may_have_none=True, threshold=1e9, **SILENT))
    assert some[0].text == found[0].text
    short = list(answer(model, [("what man", context)], longest=1, **SILENT))
    assert len(short[0].text.split()) == (0 if conditional else 1)  # of its few beams none is so short


def test_the_likeliest_ending_is_chosen_of_any_number(tokenizer):
    model = trained(tokenizer, "choice", PairHead(16, 1, INIT, "float32"))
    found = list(choose(model, [("man", ["year", "way", "day"]), ("man", ["way", "year"])], **SILENT))
    assert [len(each.scores) for each in found] == [3, 2]
    for each in found:
        np.testing.assert_allclose(sum(each.scores), 1, rtol=1e-5)
        assert each.scores[each.best] == max(each.scores)
    assert list(choose(model, [], **SILENT)) == []
    # The same options in another order, among fewer.
    np.testing.assert_allclose(
        found[0].scores[0] / found[0].scores[1], found[1].scores[1] / found[1].scores[0], rtol=1e-3
    )


def test_another_head_empty_texts_and_foreign_tokenizers_are_refused(pairs, tokenizer):
    with pytest.raises(InputError, match="has a head for classify, not for tag"):
        next(tag(pairs, ["man"], **SILENT))
    with pytest.raises(InputError, match="text 2: the text is empty"):
        next(classify(pairs, ["man", " "], **SILENT))
    with pytest.raises(InputError, match="text 2 has 3 parts: give one text or a pair"):
        next(classify(pairs, ["man", ("time", "way", "day")], **SILENT))
    assert list(classify(pairs, [], **SILENT)) == []
    check_tokenizer(pairs, "model")
    wide = dataclasses.replace(pairs, objective=Published(pairs.encoder.clone(V=2000), pairs.objective.named_heads))
    with pytest.raises(InputError, match=r"ids for a word table of 2,000 rows: they do not belong"):
        check_tokenizer(wide, "model")
    config = {"huggingface": {"config": {"cls_token_id": 7}}}
    with pytest.raises(InputError, match=r"cls_token_id=7, its tokenizer has '\[CLS\]' at 2"):
        check_tokenizer(dataclasses.replace(pairs, config=config), "model")
    # Padding is masked, whatever its id; where it moves positions, the encoder knows.
    padded = dataclasses.replace(pairs, config={"huggingface": {"config": {"pad_token_id": 7}}})
    check_tokenizer(padded, "model")


def test_the_command_reads_a_file_and_warns_of_foreign_words(pairs, tmp_path, capsys, monkeypatch):
    checkpoint.export(tmp_path / "model", pairs.params, experiment=pairs.config, tokenizer=pairs.tokenizer)
    (tmp_path / "texts.txt").write_bytes("time\tperson\r\nМагия реальна\n".encode())
    command = ["predict", "classify", "--model", str(tmp_path / "model"), "--json"]
    assert main([*command, "--input", str(tmp_path / "texts.txt")]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["texts"] for line in lines] == [["time", "person"], ["Магия реальна"]]
    assert "warning: 2 of 4 words (50.0%) are unknown to this vocabulary: Магия, реальна" in err
    assert "CRLF" not in err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", ["time\n", "a\tb\tc\n"])
        assert main(command) == 2
    assert "standard input:2: 3 texts, separated by tabs: give one text or two" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", ["\ufefftime\n"])
        assert main(command) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["texts"] == ["time"]
    assert not err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", ["time\n", "caf\udce9\n"])  # what Python makes of a byte that is not UTF-8
        assert main(command) == 2
    assert "standard input:2 is not UTF-8" in capsys.readouterr().err
    assert main([*command, "caf\udce9"]) == 2
    assert "argument 1 is not UTF-8" in capsys.readouterr().err
    (tmp_path / "questions.txt").write_text(" \nwhat\n")
    asking = ["predict", "answer", "--model", str(tmp_path / "model"), "--input", str(tmp_path / "questions.txt")]
    assert main([*asking, "--context", "man"]) == 2  # it has another head, and a blank line is no error
    assert "not for span" in capsys.readouterr().err
    assert main([*asking, "--context", " "]) == 2
    assert "--context: the text is empty" in capsys.readouterr().err
    assert main(["tokenizer", "inspect", "--model", str(tmp_path / "model"), "time Магия"]) == 0
    assert "warning: 1 of 2 words" in capsys.readouterr().out


def test_a_model_is_scored_on_tasks_with_its_labels_in_whatever_order(tokenizer, tmp_path, capsys):
    model = trained(tokenizer, "classify", PairHead(16, 2, INIT, "float32"), ("positive", "negative"))
    texts = ["time person", "year way", "man world", "life", "good day"]
    labels = ["1", "0", "0", "1", "1"]
    lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in zip(texts, labels, strict=True))]
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2/dev.tsv").write_text("\n".join(lines))
    predicted = [{"positive": "1", "negative": "0"}[each.label] for each in classify(model, texts, **SILENT)]
    expected = np.mean([a == b for a, b in zip(predicted, labels, strict=True)])
    assert score(model, find_task("sst2"), str(tmp_path), **SILENT).metrics == {"accuracy": pytest.approx(expected)}
    checkpoint.export(tmp_path / "model", model.params, experiment=model.config, tokenizer=tokenizer)
    command = ["evaluate", "task", "sst2", "--model", str(tmp_path / "model"), "--data", str(tmp_path), "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == pytest.approx(expected) and found["classes"].keys() == {"positive", "negative"}
    with pytest.raises(InputError, match="labels are positive, negative, those of task rte entailment, not_entailment"):
        score(model, find_task("rte"), str(tmp_path))
    with pytest.raises(InputError, match="the model has 2 classes, but task stsb predicts a number"):
        score(model, find_task("stsb"), str(tmp_path))
    (tmp_path / "SST-2/test.tsv").write_text("index\tsentence\n0\tgood day\n")
    with pytest.raises(InputError, match="no label"):
        score(model, find_task("sst2"), str(tmp_path), "test", **SILENT)


def test_ax_is_scored_with_a_model_of_mnli(tokenizer, tmp_path):
    labels = ("contradiction", "entailment", "neutral")
    model = trained(tokenizer, "classify", PairHead(16, 3, INIT, "float32"), labels)
    rows = ["Premise\tHypothesis\tLabel"]
    rows += [f"{a}\t{b}\t{label}" for a, b in [("time", "way"), ("man day", "life")] for label in labels]
    (tmp_path / "diagnostic-full.tsv").write_text("\n".join(rows))
    found = score(model, find_task("ax"), str(tmp_path), **SILENT)
    assert found.metrics.keys() == {"matthews", "accuracy"} and found.metrics["accuracy"] == pytest.approx(1 / 3)


def test_tags_are_scored_as_conlleval_and_strictly(tokenizer, tmp_path):
    model = trained(tokenizer, "tags", TokenHead(16, 3, INIT, "float32"), ("O", "B-X", "I-X"))
    (tmp_path / "dev.conll").write_text("time B-X\nway I-X\n\nday O\n")
    (tmp_path / "train.conll").write_text("time B-X\n")
    found = score(model, own_task("tag", str(tmp_path), (), "label"), str(tmp_path), **SILENT)
    assert found.metrics.keys() == {"entity_f1", "entity_f1_strict"}
    assert found.metrics["entity_f1"] >= found.metrics["entity_f1_strict"] >= 0
