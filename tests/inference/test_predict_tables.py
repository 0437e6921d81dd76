"""`predict` reads tables and lines, refuses what it would read wrongly, and writes results beside their columns."""

import csv
import gzip
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from task_files import write
from test_predict import trained

from bertjax.checkpoints import checkpoint
from bertjax.commands.inputs import Expected, open_input
from bertjax.commands.main import main
from bertjax.commands.outputs import results_file
from bertjax.errors import InputError
from bertjax.inference.checked import classify, load
from bertjax.inference.embed import embed
from bertjax.models.heads import PairHead
from bertjax.models.layers import Normal
from bertjax.tasks.reading import Notes

ONE = Expected(1, 1, "a text", ("text",), ("text",))
PAIR = Expected(1, 2, "one text or two", ("text",), ("text", "text2"))
MANY = Expected(3, 1000, "a context and at least two endings", (), ("context", "endings"), lists=True)


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    """A classifier of random parameters, in a folder."""
    made = trained(tokenizer, "classify", PairHead(16, 2, Normal(0.5), "float32"), ("no", "yes"))
    folder = tmp_path_factory.mktemp("model") / "best"
    checkpoint.export(folder, made.params, experiment=made.config, tokenizer=tokenizer)
    return str(folder)


def read(folder, name, expected=ONE, columns=()):
    found = open_input([], f"{folder}/{name}", columns, expected, Notes())
    return found, [row.texts for row in found.rows]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", '\ufefftext,stars\r\n"time, person",1\r\n,2\r\n"year ""way""\nday",3\r\n'),
        ("a.csv", 'text;stars\n"time, person";1\n;2\n"year ""way""\nday";3\n'),
        ("a.jsonl", '{"text": "time, person"}\n{"text": null}\n{"text": "year \\"way\\"\\nday", "stars": 3}\n'),
        ("a.csv", 'text\n"time, person"\n\n"year ""way""\nday"\n\n\n'),
        ("a.csv.gz", gzip.compress(b'text\n"time, person"\n""\n"year ""way""\nday"\n')),
    ],
)
def test_tables_are_read_by_their_columns_and_blank_texts_are_kept(tmp_path, name, content):
    found, texts = read(write(tmp_path, {name: content}), name)
    assert texts == [("time, person",), (), ('year "way"\nday',)] and found.total == 3
    assert found.columns in (("text",), ("text", "stars"))


def test_pairs_and_endings_come_from_columns_or_lists(tmp_path):
    folder = write(tmp_path, {"a.tsv": 'b\ta\n2\t"1\n', "c.csv": "c,x,y,z\nq,1,2,\nq,1,2,3\nq,,2,3\n",
                              "l.jsonl": '{"c": "q", "e": ["1", "2"]}\n'})  # fmt: skip
    assert read(folder, "a.tsv", PAIR, ("a", "b"))[1] == [('"1', "2")]
    assert read(folder, "c.csv", MANY, ("c", "x", "y", "z"))[1] == [("q", "1", "2"), ("q", "1", "2", "3"), ()]
    assert read(folder, "l.jsonl", MANY, ("c", "e"))[1] == [("q", "1", "2")]


@pytest.mark.parametrize(
    ("name", "content", "columns", "says"),
    [
        (
            "a.csv",
            "good film,1\nbad film,0\n",
            (),
            r"a\.csv:1: no column 'text' among good film, 1.*without its header",
        ),
        ("a.csv", "text,n\na,1\nb\n", (), r"a\.csv:3: not as many cells as the header"),
        ("a.csv", "text,text\na,b\n", (), r"two columns are named 'text'"),
        ("a.csv", "text\na\n", ("text", "x", "y"), "--columns text,x,y names 3 columns: give one text or two"),
        ("a.csv", "text\na\n", ("text", "text"), "a column is named twice"),
        ("a.jsonl", '{"text": "a"}\n{"satz": "b"}\n', (), r"a\.jsonl:2: no column 'text'"),
        ("a.jsonl", '{"text": 5}\n', (), r"a\.jsonl:1: 'text' is 5, not a text: write it as a text"),
        ("a.jsonl", '{"text": ["a", "b"]}\n', (), "join its words with spaces"),
        ("a.csv", "", (), "is empty"),
        ("a.xlsx", "PK", (), r"a\.xlsx: is it a table, or lines\? Tables are named \.csv, \.tsv, \.jsonl"),
        ("lines", "a\n", (), "files with one text on each line .txt"),
        ("a.txt", "text,label\ngood,1\n", (), r"a\.txt:1: 'text,label' is the header of a table"),
        ("a.txt", "id;text\n1;good\n", (), "is the header of a table: give the table with --input"),
        ("a.txt", '{"text": "good"}\n', (), r"is JSON: give it with --input, as \.jsonl"),
        ("a.txt", "good\n", ("text",), "--columns is for tables"),
        ("a.tsv", "text,label\ngood,1\n", (), r"separated by ',', not by tabs: name it \.csv"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path, name, content, columns, says):
    with pytest.raises(InputError, match=says):
        read(write(tmp_path, {name: content}), name, PAIR, columns)


def test_lines_that_only_resemble_a_header_are_texts(tmp_path):
    for line in ("Text, however, is hard.", "label", "I like the context; and you?", "{not json}"):
        assert read(write(tmp_path, {"a.txt": line + "\n"}), "a.txt")[1] == [(line,)]
    found, texts = read(write(tmp_path, {"a.txt": "\ufeffa\tb\r\n\r\nc\r\n"}), "a.txt", PAIR)
    assert texts == [("a", "b"), (), ("c",)] and found.columns == ("text", "text2")
    assert read(write(tmp_path, {"a.txt": "a\nb\n"}), "a.txt", PAIR)[0].columns == ("text",)


def test_results_stand_beside_the_columns_of_their_rows(model, tmp_path, capsys):
    rows = [["id", "text", "note"], ["7", "", "=1+1"], ["8", "time, person", "-3"], ["9", 'year "way"', "x\ny"]]
    with open(tmp_path / "in.csv", "w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    command = ["predict", "classify", "--model", model, "--input", f"{tmp_path}/in.csv"]
    assert main([*command, "--out", f"{tmp_path}/out.csv"]) == 0
    out, err = capsys.readouterr()
    assert "rows  3" in out and "1 blank text, left without a prediction" in err and "a formula" in err
    with open(tmp_path / "out.csv", newline="") as file:
        header, *found = csv.reader(file, delimiter=";")
    assert header == [*rows[0], "predicted", "probability", "probabilities.no", "probabilities.yes"]
    assert [row[:3] for row in found] == rows[1:] and found[0][3:] == [""] * 4
    expected = list(classify(load(model), ["time, person", 'year "way"'], say=lambda text: None))
    for row, each in zip(found[1:], expected, strict=True):
        assert row[3] == each.label
        np.testing.assert_allclose([float(x) for x in row[4:]], [each.score, *each.scores.values()], rtol=1e-5)
    assert main([*command, "--out", f"{tmp_path}/out.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 3
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[0] == {"id": "7", "text": "", "note": "=1+1"} | dict.fromkeys(lines[1].keys() - {"id", "text", "note"})
    assert lines[1]["predicted"] == expected[0].label and lines[1]["probabilities"].keys() == {"no", "yes"}
    # Printed, blank texts are left out and counted; what was written is read again, but not with results of that name.
    assert main([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and "1 blank text, skipped" in err
    assert main([*command[:-1], f"{tmp_path}/out.csv", "--out", f"{tmp_path}/again.csv"]) == 2
    assert "the input has a column 'predicted' already" in capsys.readouterr().err
    assert not (tmp_path / "again.csv").exists()


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("in.csv", "in.csv is the input: choose another file"),
        ("out.npy", "results are written as .csv, .jsonl: choose"),
        ("out.xlsx", "results are written as .csv, .jsonl: choose"),
        ("no/out.csv", "there is no folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_named_before_the_model_is_loaded(tmp_path, capsys, out, says):
    write(tmp_path, {"in.csv": "text\na\n"})
    command = ["predict", "classify", "--model", "none", "--input", f"{tmp_path}/in.csv", "--out", f"{tmp_path}/{out}"]
    assert main(command) == 2
    assert says in capsys.readouterr().err


def test_vectors_are_written_as_an_array_of_a_row_for_each_text(model, tmp_path, capsys):
    write(tmp_path, {"in.txt": "time person\n\nyear\n"})
    command = ["predict", "embed", "--model", model, "--input", f"{tmp_path}/in.txt", "--batch-size", "1", "--out"]
    assert main([*command, f"{tmp_path}/v.npy"]) == 0 and main([*command, f"{tmp_path}/v.csv"]) == 0
    found = np.load(tmp_path / "v.npy")
    expected = np.stack(list(embed(load(model), ["time person", "", "year"], say=lambda text: None)))
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)
    header, *rows = csv.reader((tmp_path / "v.csv").read_text().splitlines())
    assert header == ["text", *(f"embedding.{n}" for n in range(16))] and rows[1][0] == ""
    np.testing.assert_allclose([[float(x) for x in row[1:]] for row in rows], expected, atol=1e-5)
    capsys.readouterr()


def test_texts_that_are_refused_are_counted_and_the_others_predicted(model, tmp_path, capsys):
    write(tmp_path, {"in.csv": f'text\ntime\n"{"way " * 600}"\nyear\n', "long.txt": f"{'way ' * 600}\n"})
    command = ["predict", "embed", "--model", model, "--input"]
    assert main([*command, f"{tmp_path}/in.csv", "--out", f"{tmp_path}/out.jsonl"]) == 0
    err = capsys.readouterr().err
    assert "1 text refused, left without a prediction, such as" in err and "in.csv:3: 602 tokens exceed" in err
    found = [json.loads(line)["embedding"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found[1] is None and len(found[0]) == len(found[2]) == 16
    # Where it is the only one, or each row has a vector, it is an error.
    assert main([*command, f"{tmp_path}/long.txt"]) == 2 and "long.txt:1: 602 tokens" in capsys.readouterr().err
    assert main([*command, f"{tmp_path}/in.csv", "--out", f"{tmp_path}/out.npy"]) == 2
    assert "602 tokens exceed" in capsys.readouterr().err and not (tmp_path / "out.npy").exists()


def test_an_error_raised_while_a_program_is_traced_is_one_line(model, capsys):
    assert main(["predict", "fill-mask", "--model", model, "time [MASK]"]) == 2
    err = capsys.readouterr().err
    assert "no language-model head" in err and len(err.splitlines()) == 1


def test_an_empty_input_gives_an_empty_file_and_an_error_none(tmp_path):
    for name, content in (("a.csv", "text,predicted\n"), ("a.jsonl", "")):
        with results_file(tmp_path / name, ("text",), ",", Notes()):
            pass
        assert (tmp_path / name).read_text() == content
    with results_file(tmp_path / "a.npy", ("text",), ",", Notes()):
        pass
    assert np.load(tmp_path / "a.npy").shape == (0, 0)
    with pytest.raises(KeyError), results_file(tmp_path / "b.csv", ("text",), ",", Notes()) as put:
        put({"text": "a"}, {"x": jnp.float32(1).item()})
        raise KeyError
    assert not list(tmp_path.glob("b.csv*"))


def test_standard_input_is_lines(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("text,label\ngood,1\n"))
    with pytest.raises(InputError, match="standard input:1: 'text,label' is the header of a table"):
        list(open_input([], None, (), ONE, Notes()).rows)
