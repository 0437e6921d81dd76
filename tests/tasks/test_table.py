import json
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from corpora import write_tfds
from task_files import write

from bertjax.errors import InputError
from bertjax.serialization.description import from_json, to_json
from bertjax.tasks import loading
from bertjax.tasks.examples import Answer, Choice, Question, Texts, Words
from bertjax.tasks.loading import available, digest, load_examples
from bertjax.tasks.own import own_task
from bertjax.tasks.table import TASKS, find_task

MNLI = "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label\n0\t7\tA man.\tA person.\tneutral\tentailment\n"
SQUAD = {
    "context": "A cat sat. The cat ate.",
    "qas": [
        {"id": "1", "question": "Who?", "answers": [{"text": "cat", "answer_start": 15}]},
        {"id": "2", "question": "Where?", "answers": [{"text": "cat", "answer_start": 3}]},
    ],
}
RACE = {"id": "h1", "article": "It is.", "questions": ["It _ .", "What?"], "options": [["is", "was"], ["a", "b"]]}
COPA = """<?xml version="1.0"?>
<!DOCTYPE copa-corpus SYSTEM "copa.dtd">
<copa-corpus>
  <item id="1" asks-for="cause" most-plausible-alternative="2">
    <p>I fell &amp; cried.</p><a1>It rained.</a1><a2>I slipped.</a2>
  </item>
</copa-corpus>
"""
COPA_RECORD = {"premise": "I fell.", "question": "cause", "choice1": "Rain.", "choice2": "Ice.", "label": 1}
SWAG = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label\n"
ARC = {"question": {"stem": "Why?", "choices": [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}]}}


def asked(*entries):
    """Write a file of SQuAD with such questions."""
    whole = [{"question": "Who?", "answers": [{"text": "A", "answer_start": 0}]} | entry for entry in entries]
    return json.dumps({"data": [{"paragraphs": [{"context": "A.", "qas": whole}]}]})


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("sst2", {"SST-2/train.tsv": 'sentence\tlabel\n a "fine film \t1\n'}, Texts("2", ('a "fine film',), "1")),
        ("cola", {"CoLA/train.tsv": "gj04\t0\t*\tThey sings.\n"}, Texts("1", ("They sings.",), "0")),
        ("mnli", {"train.tsv": MNLI}, Texts("2", ("A man.", "A person."), "entailment")),
        ("conll2003", {"eng.train": "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nsays VBZ I-VP O\n"},
         Words("3", ("EU", "says"), ("I-ORG", "O"), 1)),
        ("wnut17", {"wnut17train.conll": "\t\nNew\tB-location\n\t\nOne\tO"}, Words("2", ("New",), ("B-location",), 0)),
        ("race", {"train/high/1.txt": json.dumps(RACE | {"answers": ["B", "A"]})},
         Choice(": question 1 of article h1", "It is.", ("It is .", "It was ."), 1)),
        ("copa", {"copa-dev.xml": COPA},
         Choice("4", "I fell & cried. What was the cause of this?", ("It rained.", "I slipped."), 1)),
        ("swag", {"train.csv": SWAG + '0,v,1,s,"He ""runs"", then",he,gold,a,b,"c,\nd",e,2\n'},
         Choice("2", 'He "runs", then', ("he a", "he b", "he c,\nd", "he e"), 2)),
        ("arc_easy", {"ARC-Easy-Train.jsonl": json.dumps(ARC | {"answerKey": "2"})},
         Choice("1", "Why?", ("x", "y"), 1)),
        ("arc_easy", {"easy_train.csv": '"Why, then?",x,y,,B\n'}, Choice("1", "Why, then?", ("x", "y"), 1)),
        ("imdb", {"train/neg/0_3.txt": "So<br /><br />bad.", "train/pos/0_9.txt": "Good."},
         Texts("", ("So  bad.",), "neg")),
    ],
)  # fmt: skip
def test_data_sets_are_read_in_their_own_formats(tmp_path, name, files, expected):
    task = find_task(name)
    example = load_examples(task, write(tmp_path, files), "train").examples[0]
    path = next(iter(files))
    place = expected.origin if expected.origin.startswith(":") else f":{expected.origin}"
    assert example == expected._replace(origin=f"{tmp_path}/{path}{place if expected.origin else ''}")
    assert available(task, str(tmp_path)) == ("train",)


def test_an_answer_that_is_not_in_its_context_is_counted_and_not_learned_but_scored(tmp_path):
    paragraphs = {"version": "1.1", "data": [{"title": "", "paragraphs": [SQUAD]}]}
    loaded = load_examples(find_task("squad"), write(tmp_path, {"train-v1.1.json": json.dumps(paragraphs)}), "train")
    first, second = loaded.examples
    origin = f"{tmp_path}/train-v1.1.json: question"
    assert first == Question(f"{origin} 1", "1", "Who?", SQUAD["context"], (Answer("cat", 15),))
    assert second == Question(f"{origin} 2", "2", "Where?", SQUAD["context"], (Answer("cat", -1),), labelled=False)
    assert loaded.notes == {"answers not at their place in the context, not trained on": 1}


def test_dropped_and_repaired_examples_are_counted(tmp_path):
    content = b'\xef\xbb\xbfsentence\tlabel\r\n"odd quote\t1\r\nsecond \xe2\x80\xa8 line\t0\r\n'
    loaded = load_examples(find_task("sst2"), write(tmp_path, {"train.tsv": content}), "train")
    assert [example.texts for example in loaded.examples] == [('"odd quote',), ("second \u2028 line",)]
    assert loaded.notes == {
        "lines with unbalanced quotes, kept as text": 1,
    }


def test_the_development_set_of_mrpc_is_a_list_of_ids(tmp_path):
    pairs = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tA.\tB.\n0\t8\t7\tC.\tD.\n"
    folder = write(tmp_path, {"msr_paraphrase_train.txt": "\ufeff" + pairs})
    with pytest.raises(InputError, match=r"no dev_ids.tsv beside .*msr_paraphrase_train\.txt"):
        load_examples(find_task("mrpc"), folder, "validation")
    write(tmp_path, {"dev_ids.tsv": "8\t7\n"})
    train, dev = (load_examples(find_task("mrpc"), folder, split) for split in ("train", "validation"))
    assert [example.texts for example in train.examples] == [("A.", "B.")]
    assert [(example.texts, example.label) for example in dev.examples] == [(("C.", "D."), "0")]


def test_rows_of_qqp_that_lack_a_cell_are_left_out_and_counted(tmp_path):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    content = header + "1\t2\t3\tWhy?\tHow?\t0\n1\t2\t3\tWhy?\n1\t2\t3\t\tHow?\t1\n"
    loaded = load_examples(find_task("qqp"), write(tmp_path, {"train.tsv": content}), "train")
    assert [example.texts for example in loaded.examples] == [("Why?", "How?")]
    assert loaded.notes == {"rows dropped for lack of a text": 2}


@pytest.mark.parametrize(
    ("name", "files", "says"),
    [
        ("sst2", {}, "no train.tsv in .* or in SST-2/ of it, the train split of task sst2"),
        ("sst2", {"train.tsv": ""}, "train.tsv is empty"),
        ("sst2", {"train.tsv": "sentence\tlabel\n"}, "the train split of task sst2 .* is empty"),
        ("sst2", {"train.tsv": "good\t1\nbad\t0\n"}, "train.tsv:1: no column 'sentence' .* without its header"),
        ("sst2", {"train.tsv": "sentence\tlabel\ngood\t1\nbad\n"}, "train.tsv:3: not as many cells as the header"),
        ("sst2", {"train.tsv": "sentence\tlabel\nso\tgood\t1\n"}, "train.tsv:2: not as many cells as the header"),
        ("sst2", {"train.tsv": "sentence\tlabel\ngood\t1\n \t0\n"}, "train.tsv:3: no text in column 'sentence'"),
        ("sst2", {"train.tsv": b"sentence\tlabel\nna\xefve\t1\n"}, "train.tsv:2: not UTF-8"),
        ("sst2", {"train.tsv": "sentence\tlabel\na\0b\t1\n"}, "train.tsv:2: a NUL byte"),
        ("rte", {"train.tsv": "sentence\tlabel\ngood\t1\n"}, "train.tsv:1: no column 'sentence1'"),
        ("cola", {"train.tsv": "source\tlabel\tmark\tsentence\na\t1\t\tb\n"}, "train.tsv:1: a header"),
        ("arc_easy", {"easy_train.csv": "question,a,b,answer\n"}, "easy_train.csv:1: a header in a file without one"),
        ("swag", {"train.csv": SWAG + '0,v,1,s,"open,he,gold,a,b,c,d,2\n'}, "train.csv:2: .* quotes must enclose"),
        ("swag", {"train.csv": SWAG + "0,v,1,s,x,he,gold,a,b,c,d,4\n"}, "train.csv:2: the correct option is '4'"),
        ("wnut17", {"wnut17train.conll": "New\tB-location\nYork\n"}, "wnut17train.conll:2: no tag beside 'York'"),
        ("squad", {"train-v1.1.json": '{"data": [\n{]'}, "train-v1.1.json:2: not JSON"),
        ("squad", {"train-v1.1.json": '{"articles": []}'}, "no list 'data': is this a file of another task"),
        ("squad", {"train-v1.1.json": json.dumps({"data": [{"paragraphs": [
            {"context": "A.", "qas": [{"id": "9", "question": "Who?", "answers": []}]}]}]})},
         "question 9 has no answer: .* squad2"),
        ("race", {"train.json": json.dumps({"data": [RACE | {"answers": ["B"]}]})}, "differ in number"),
        ("copa", {"copa-dev.xml": COPA.replace("</p>", "")}, "copa-dev.xml:6: not XML"),
        ("copa", {"copa-dev.xml": COPA.replace('"cause"', '"why"')}, "copa-dev.xml:4 asks for 'why'"),
        ("copa", {"copa-dev.xml": COPA.replace('"1.0"?', '"1.0" encoding="x-y"?')}, "copa-dev.xml:.*encoding"),
        ("squad", {"train-v1.1.json": json.dumps({"data": [{"paragraphs": [{"qas": []}]}]})}, "no text in 'context'"),
        ("imdb", {"train/pos/1.txt": "x"}, "train has no folder neg"),
        ("arc_easy", {"easy_train.csv": "q,a,b,A\nq,a,,c,d,C\n"}, "easy_train.csv:2: option 2 is empty"),
        ("arc_easy", {"easy_train.csv": "q,a,b,\u00b2\n"}, "easy_train.csv:1: .*'\u00b2' is not the letter or number"),
        ("arc_easy", {"ARC-Easy-Train.jsonl": json.dumps({"question": ARC["question"] | {"stem": None}})},
         "Train.jsonl:1: no text in 'stem'"),
        ("arc_easy", {"ARC-Easy-Train.jsonl": json.dumps({"question": {"stem": "Why?", "choices": [
            {"text": 3, "label": "1"}, {"text": "y", "label": "2"}]}})}, "Train.jsonl:1: 'text' is not a list of"),
        ("race", {"train.json": json.dumps({"data": [RACE | {"questions": [None, "What?"]}]})},
         "train.json: 'questions' is not a list of texts"),
        ("race", {"train.json": json.dumps({"data": [RACE | {"answers": [1, 0]}]})},
         "train.json: question 1 of article h1: the answer is 1, not the letter"),
        ("race", {"train.json": json.dumps({"data": [RACE | {"options": None}]})}, "train.json: 'options' must be"),
        ("race", {"train.json": json.dumps({"data": [RACE | {"options": [["is"], ["a", "b"]]}]})},
         "question 1 of article h1: 1 option, or an empty one"),
        ("copa", {"train.jsonl": json.dumps(COPA_RECORD | {"choice2": None})}, "train.jsonl:1: no text in 'choice2'"),
        ("copa", {"train.jsonl": json.dumps(COPA_RECORD | {"premise": None})}, "train.jsonl:1: no text in 'premise'"),
        ("copa", {"train.jsonl": json.dumps(COPA_RECORD | {"label": "1"})}, "train.jsonl:1: the label is '1', not 0"),
        ("swag", {"train.csv": SWAG + "0,v,1,s,x,he,gold,a,b,c,d,\u00b2\n"}, "train.csv:2: the correct option is"),
        ("swag", {"train.csv": SWAG + "0,v,1,s,x,he,gold,a,,c,d,0\n"}, "train.csv:2: 4 options, or an empty one"),
        ("squad", {"train-v1.1.json": '{"data": [{"paragraphs": [{"context": "A\\ud83d"}]}]}'},
         "cannot be read as JSON: .*ud83d is a lone surrogate"),
        ("squad", {"train-v1.1.json": asked({"id": "1"}, {"id": 1})}, "another question has the id '1'"),
        ("squad", {"train-v1.1.json": asked({"id": "1", "answers": [{"text": None, "answer_start": 0}]})},
         "question 1: an answer needs `text` and `answer_start`"),
        ("squad", {"train-v1.1.json": asked({"id": "1", "answers": [{"text": "A", "answer_start": math.inf}]})},
         "question 1: an answer needs `text` and `answer_start`"),
        ("squad", {"train-v1.1.json": '{"data": ' + "[" * 200_000}, "train-v1.1.json:1: cannot be read as JSON"),
    ],
)  # fmt: skip
def test_unreadable_data_are_an_error_with_file_and_line(tmp_path, name, files, says):
    with pytest.raises(InputError, match=says):
        load_examples(find_task(name), write(tmp_path, files), "train")


def test_labels_have_the_names_and_the_numbers_of_the_task():
    assert [find_task("sst2").number("", label) for label in ("0", "1")] == [0, 1]
    for task, label in (("wnli", "entailment"), ("sst2", "positive")):  # the files of RTE have the columns of WNLI's
        with pytest.raises(InputError, match=f"unknown label '{label}', task {task} has 0, 1: a file of another task"):
            find_task(task).number("f:2", label)
    assert find_task("mnli").number("", "entailment") == 1
    with pytest.raises(InputError, match=r"f:3: unknown label '2', task sst2 has 0, 1: a file of another task"):
        find_task("sst2").number("f:3", "2")
    assert find_task("stsb").value("", "3.200") == 3.2
    not_held = "nan is not a finite float32"
    for label, says in (("high", "'high' is not a number"), ("7.5", "outside 0 to 5"), ("nan", not_held)):
        with pytest.raises(InputError, match=says):
            find_task("stsb").value("f:3", label)
    for label in ("inf", "1e300"):
        with pytest.raises(InputError, match=f"f:3: {label} is not a finite float32"):
            replace(find_task("stsb"), scale=None).value("f:3", label)


def test_every_task_of_the_table_is_a_description():
    assert len({task.name for task in TASKS}) == len(TASKS) == 20
    for task in TASKS:
        assert from_json(json.loads(json.dumps(to_json(task)))) == task
        assert {"train", "validation"} <= {part.split for part in task.parts} or task.name == "ax"
    with pytest.raises(InputError, match=r"unknown task 'sst3': did you mean 'sst2'\? the tasks are cola"):
        find_task("sst3")


def test_the_digest_of_data_depends_on_their_contents(tmp_path):
    task, folder = find_task("sst2"), write(tmp_path, {"train.tsv": "sentence\tlabel\ngood\t1\n"})
    before = digest(task, folder)
    assert before == digest(task, folder)
    write(tmp_path, {"test.tsv": "sentence\nnot trained on\n"})
    assert digest(task, folder) == before
    write(tmp_path, {"train.tsv": "sentence\tlabel\nbad\t1\n"})
    assert digest(task, folder) != before


def test_of_many_files_those_that_are_read_count(tmp_path):
    mrpc = write(tmp_path / "mrpc", {"msr_paraphrase_train.txt": "", "dev_ids.tsv": "8\t7\n"})
    before = digest(find_task("mrpc"), mrpc)
    write(mrpc, {"dev_ids.tsv": "7\t8\n"})
    assert digest(find_task("mrpc"), mrpc) != before
    imdb = write(tmp_path / "imdb", {"train/pos/1.txt": "a", "train/neg/2.txt": "b"})
    before = digest(find_task("imdb"), imdb)
    write(imdb, {"train/unsup/1.txt": "c", "train/urls.txt": "d"})
    assert digest(find_task("imdb"), imdb) == before
    (tmp_path / "imdb/train/pos/1.txt").rename(tmp_path / "imdb/train/neg/1.txt")
    write(imdb, {"train/pos/2.txt": "b"})
    (tmp_path / "imdb/train/neg/2.txt").unlink()
    assert digest(find_task("imdb"), imdb) != before


@pytest.mark.parametrize(
    ("kind", "columns", "files", "labels"),
    [
        ("classify", ("text",), {"train.csv": 'text,tone\n"a, b",mild\nc,harsh\n'}, ("harsh", "mild")),
        ("classify", ("a", "b"),
         {"train.jsonl": '{"a": "x", "b": "y", "tone": true}\n{"a": "x", "b": "z", "tone": 0}\n'},
         ("0", "true")),
        ("regress", ("text",), {"train.tsv": "tone\ttext\n-3.5\tx\n"}, ()),
        ("tag", ("w",), {"train.jsonl": '{"w": ["A", "b"], "tone": ["I-PER", "O"]}'}, ("O", "B-PER", "I-PER")),
        ("tag", (), {"train.conll": "A B-X\n"}, ("O", "B-X", "I-X")),
        ("tag", ("w",), {"train.jsonl": '{"w": ["A"], "tone": ["B-Y"]}', "train.conll": "A B-X\n"},
         ("O", "B-Y", "I-Y")),
        ("choice", ("c", "e"), {"train.jsonl": '{"c": "x", "e": ["1", "2", "3"], "tone": 2}'}, ()),
        ("choice", ("c", "e", "f", "g"), {"train.tsv": 'c\te\tf\tg\ttone\n"x\t1\t2\t3\t2\n'}, ()),
        ("choice", ("c", "e", "f", "g"), {"train.csv": 'c,e,f,g,tone\n"x, y",1,2,3,2\n'}, ()),
        ("span", ("q", "c"), {"train.jsonl": '{"q": "Who?", "c": "An owl.", "tone": "owl"}'}, ()),
    ],
)  # fmt: skip
def test_a_task_of_ones_own_names_its_columns(tmp_path, kind, columns, files, labels):
    folder = write(tmp_path, files)
    task = own_task(kind, folder, columns, "tone")
    assert (task.kind, task.labels) == (kind, labels)
    assert load_examples(task, folder, "train").examples
    assert task.options == (3 if kind == "choice" else 0)
    with pytest.raises(InputError, match=f"a task of kind {kind}"):
        own_task(kind, str(tmp_path / "elsewhere"), columns, "tone")


def test_questions_of_ones_own_come_as_json_lines(tmp_path):
    given = ["owl", "", None, "cow", {"text": ["n", "owl"], "answer_start": [1, 3]}, {"text": [], "answer_start": []}]
    lines = [json.dumps({"q": "Who?", "c": "An owl.", "a": answer}) for answer in given]
    folder = write(tmp_path, {"train.jsonl": "\n".join(lines)})
    loaded = load_examples(own_task("span", folder, ("q", "c"), "a"), folder, "train")
    assert [[tuple(x) for x in each.answers] for each in loaded.examples] == [
        [("owl", 3)], [], [], [("cow", -1)], [("n", 1), ("owl", 3)], [],
    ]  # fmt: skip
    assert [each.id for each in loaded.examples] == ["1", "2", "3", "4", "5", "6"]
    assert [each.labelled for each in loaded.examples] == [True, True, True, False, True, True]
    assert loaded.notes == {"answers not at their place in the context, not trained on": 1}
    for bad in (3, {"text": ["owl"], "answer_start": []}, {"text": ["owl"], "answer_start": ["3"]}):
        folder = write(tmp_path, {"train.jsonl": json.dumps({"q": "Who?", "c": "An owl.", "a": bad})})
        with pytest.raises(InputError, match=r"train\.jsonl:1: 'a' is neither a text nor lists"):
            load_examples(own_task("span", folder, ("q", "c"), "a"), folder, "train")


def test_a_task_of_ones_own_needs_labels_and_its_columns(tmp_path):
    folder = write(tmp_path, {"train.tsv": "text\ttone\na\tmild\n", "train.jsonl": '{"text": 3}'})
    with pytest.raises(InputError, match=r"train\.tsv has 1 label "):
        own_task("classify", folder, ("text",), "tone")
    with pytest.raises(InputError, match="no column 'words'"):
        own_task("classify", folder, ("words",), "tone")
    for twice in (("text", "tone"), ("tone",), ("text", "text")):
        with pytest.raises(InputError, match="label tone: each column may be named only once"):
            own_task("classify", folder, twice, "tone")
    with pytest.raises(InputError, match="3 columns of text"):
        own_task("classify", folder, ("a", "b", "c"), "tone")
    with pytest.raises(InputError, match=r"1 column .foo.: name two, the question and its context"):
        own_task("span", folder, ("foo",), "bar")
    with pytest.raises(InputError, match="no columns: name the context"):
        own_task("choice", folder, (), "bar")


def test_a_text_has_any_number_of_labels(tmp_path):
    for name, content, separator in [
        ("train.jsonl", '{"text": "a", "tone": ["mild", "new"]}\n{"text": "b", "tone": []}\n'
         '{"text": "c", "tone": [3]}', ","),
        ("train.csv", 'text,tone\na,"mild, new"\nb,\nc,3\n', ","),
        ("train.tsv", "text\ttone\na\tmild|new\nb\t\nc\t3\n", "|"),
    ]:  # fmt: skip
        folder = write(tmp_path / name, {name: content})
        task = own_task("multilabel", folder, ("text",), "tone", separator=separator)
        assert (task.labels, task.metrics[0]) == (("3", "mild", "new"), "micro_f1")
        examples = load_examples(task, folder, "train").examples
        assert [each.labels for each in examples] == [("mild", "new"), (), ("3",)]
    for bad in ("mild", None, [["mild"]], [None]):
        folder = write(tmp_path / "bad", {"train.jsonl": json.dumps({"text": "a", "tone": bad})})
        with pytest.raises(InputError, match=r"train\.jsonl:1: 'tone' is .*: write a list of texts or numbers"):
            own_task("multilabel", folder, ("text",), "tone")
    with pytest.raises(InputError, match="cannot stand between labels"):
        own_task("multilabel", folder, ("text",), "tone", separator="\t")
    folder = write(tmp_path / "none", {"train.tsv": "text\ttone\na\t\n"})
    with pytest.raises(InputError, match=r"has 0 labels .*: expected 1 to 1000"):
        own_task("multilabel", folder, ("text",), "tone")
    folder = write(tmp_path / "test", {"train.tsv": "text\ttone\na\tx\n", "test.tsv": "text\na\n"})
    unlabelled = load_examples(own_task("multilabel", folder, ("text",), "tone"), folder, "test").examples
    assert unlabelled[0].labels is None


@pytest.mark.parametrize(
    ("lines", "tags", "scheme", "labels", "metric"),
    [
        ("a NN\nb VB\n", "", "words", ("NN", "VB"), "accuracy"),
        ("a NN\nb VB\n", "entities", "TYPE", ("NN", "VB"), "entity_f1"),
        ("a PER\nb O\n", "", "TYPE", ("O", "PER"), "entity_f1"),
        ("a PER\nb O\n", "words", "words", ("O", "PER"), "accuracy"),
        ("a PER-B\nb O\nc PER-I\n", "", "TYPE-B", ("O", "B-PER", "I-PER"), "entity_f1"),
        ("a B_X\nb O\nc I_X\n", "", "B_TYPE", ("O", "B-X", "I-X"), "entity_f1"),
        ("a B-X\nb E-X\nc S-Y\n", "", "B-TYPE", ("O", "B-X", "I-X", "B-Y", "I-Y"), "entity_f1"),
    ],
)
def test_tags_of_ones_own_are_entities_or_words(tmp_path, lines, tags, scheme, labels, metric):
    task = own_task("tag", write(tmp_path, {"train.conll": lines}), (), "label", tags=tags)
    assert (task.scheme.name, task.labels, task.metrics) == (scheme, labels, (metric,))


def test_labels_of_json_lines_are_stripped_as_those_of_tables(tmp_path):
    lines = [json.dumps({"text": "a", "tone": tone}) for tone in ("pos", "pos ", "neg", " ")]
    task = own_task("classify", write(tmp_path, {"train.jsonl": "\n".join(lines)}), ("text",), "tone")
    assert task.labels == ("neg", "pos")


def test_a_repeated_header_in_a_table_is_an_error(tmp_path):
    folder = write(tmp_path, {"train.tsv": "text\ttone\na\tmild\nb\tharsh\ntext\ttone\n"})
    with pytest.raises(InputError, match=r"train\.tsv:4: a second header .text, tone."):
        own_task("classify", folder, ("text",), "tone")


def test_options_that_are_empty_in_race_are_counted(tmp_path):
    folder = write(tmp_path, {"train.json": json.dumps({"data": [RACE | {"options": [["is", ""], ["a", "b"]]}]})})
    loaded = load_examples(find_task("race"), folder, "train")
    assert +loaded.notes == {"options without a text": 1}
    assert loaded.examples[0].endings == ("It is .", "It  .")


def test_tfds_gives_the_same_examples(monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    choice = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["A", "B"])}
    features = tfds.features.FeaturesDict(
        {
            "question": tfds.features.Text(),
            "choices": tfds.features.Sequence(choice),
            "answerKey": tfds.features.ClassLabel(names=["A", "B"]),
        }
    )
    row = {"question": b"Why?", "choices": {"text": np.array([b"x", b"y"], object), "label": np.array([0, 1])}}
    source = [row | {"answerKey": np.int64(key)} for key in (1, -1)]
    monkeypatch.setattr(
        loading, "open_split", lambda name, split, folder: (source, SimpleNamespace(features=features, full_name=name))
    )
    loaded = load_examples(find_task("arc_easy"), "tfds:somewhere", "train")
    expected = [Choice(f"ai2_arc/ARC-Easy[{n}]", "Why?", ("x", "y"), label) for n, label in enumerate((1, -1))]
    assert loaded.examples == expected
    with pytest.raises(InputError, match="TFDS has no train split of task wnut17"):
        load_examples(find_task("wnut17"), "tfds", "train")


@pytest.mark.parametrize(
    ("task", "name", "split", "texts", "names", "row", "expected"),
    [
        ("copa", "super_glue/copa", "train", ("premise", "choice1", "choice2", "question"), ["choice1", "choice2"],
         (b"I fell.", b"It rained.", b"I slipped.", b"cause", 1),
         Choice("", "I fell. What was the cause of this?", ("It rained.", "I slipped."), 1)),
        # TFDS names what the files number.
        ("sst2", "glue/sst2", "train", ("sentence",), ["negative", "positive"], (b"Fine.", 1),
         Texts("", ("Fine.",), "1")),
        # The labels of GLUE's test sets are secret: -1.
        ("ax", "glue/ax", "test", ("premise", "hypothesis"), ["entailment", "neutral", "contradiction"],
         (b"A cat sat.", b"It sat.", -1), Texts("", ("A cat sat.", "It sat."))),
    ],
)  # fmt: skip
def test_data_sets_that_tfds_wrote_are_read(tmp_path, task, name, split, texts, names, row, expected):
    tfds = pytest.importorskip("tensorflow_datasets")
    label = tfds.features.ClassLabel(names=names)
    features = {text: tfds.features.Text() for text in texts} | {"label": label, "idx": np.int32}
    write_tfds(tmp_path, name, split, features, [dict(zip((*texts, "label", "idx"), (*row, 0), strict=True))])
    assert available(find_task(task), f"tfds:{tmp_path}")[0] == split
    (found,) = load_examples(find_task(task), f"tfds:{tmp_path}", split).examples
    assert found == expected._replace(origin=f"{name}[0]")


def test_a_tfds_data_set_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=f"no TFDS data set 'glue/sst2' under {tmp_path}"):
        load_examples(find_task("sst2"), f"tfds:{tmp_path}", "train")


REAL = Path(os.environ.get("BERTJAX_DATA", "."))


@pytest.mark.skipif("BERTJAX_DATA" not in os.environ, reason="BERTJAX_DATA names no folder with real data sets")
@pytest.mark.parametrize(
    ("name", "folder", "counts"),
    [
        ("sst2", "glue", {"train": 67_349, "validation": 872}),
        ("cola", "glue", {"train": 8_551, "validation": 1_043}),
        ("rte", "glue", {"train": 2_490, "validation": 277}),
        ("stsb", "glue", {"train": 5_749, "validation": 1_500}),
        ("wnli", "glue", {"train": 635, "validation": 71}),
        ("qnli", "glue", {"validation": 5_463}),
        ("squad", "squad", {"validation": 10_570}),
        ("squad2", "squad", {"validation": 11_873}),
        ("wnut17", "wnut17", {"train": 3_394, "validation": 1_009, "test": 1_287}),
        ("race", "multiple_choice", {"validation": 561}),
        ("arc_easy", "multiple_choice", {"train": 2_251, "validation": 570}),
        ("copa", "multiple_choice", {"train": 1_000}),
    ],
)
def test_published_data_sets_have_their_published_sizes(name, folder, counts):
    task = find_task(name)
    for split, count in counts.items():
        loaded = load_examples(task, str(REAL / folder), split)
        left_out = loaded.notes["questions dropped for lack of the correct option"]
        assert len(loaded.examples) + left_out == count
        for example in loaded.examples:
            if isinstance(example, Texts):
                (task.value if task.kind == "regress" else task.number)(example.origin, example.label)
        if name == "squad2":
            assert sum(not example.answers for example in loaded.examples) == 5_945
