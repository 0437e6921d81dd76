import json

import numpy as np
import pytest

from bertjax.data.templates import BERT, XLNET
from bertjax.tasks.answers import (
    Answered,
    Guess,
    WindowScores,
    answer_questions,
    decided,
    widest_context,
    window_scores,
    write_answers,
)
from bertjax.tasks.examples import Answer, Question
from bertjax.tasks.rows import TaskRows, encode_examples
from bertjax.tasks.scoring import constant_answer
from bertjax.tasks.squad import read_answers
from bertjax.tasks.table import find_task

CONTEXT = "Time, person's year way (day) thing man world: life hand part child eye woman place work."


def test_a_piece_counts_where_its_context_is_widest():
    assert widest_context([(0, 6), (3, 6), (6, 4)], 10).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert widest_context([(0, 6), (3, 10)], 13).tolist()[3:6] == [0, 1, 1]  # piece 4: the longer window counts


def test_a_span_lies_inside_the_context_and_begins_before_it_ends(tokenizer):
    rows = TaskRows(find_task("squad2"), "", "", XLNET, 16, question=2)
    encoded = encode_examples(rows, [Question("", "1", "good bad", "time year")], tokenizer)
    start, end = np.zeros(16), np.zeros(16)
    start[-1], end[-1] = 3.0, 4.0
    # In a batch of length 16 the row's eight tokens stand at its end: time, year, [SEP], good, bad, [SEP], [CLS].
    start[[9, 10, 12]], end[[9, 10, 12]] = (1.0, 5.0, 9.0), (7.0, 2.0, 9.0)
    scores = window_scores(encoded, 0, start, end, n_best=5)
    spans = sorted(
        zip(scores.starts.tolist(), scores.ends.tolist(), scores.start_scores + scores.end_scores, strict=True)
    )
    assert spans == [(0, 0, 8.0), (0, 1, 3.0), (1, 1, 7.0)]
    assert (scores.null_start, scores.null_end) == (3.0, 4.0)


def test_a_classifier_says_whether_there_is_an_answer_and_scores_of_spans_which():
    """Scores of spans are log-probabilities, its logit is not: 4 of no answer is not more than -1 of a span."""
    spans = [Guess("1800", 0, 4, -0.5, -0.5, 0.1), Guess("18", 0, 2, -1.0, -1.0, 0.03)]
    none = Guess("", 0, 0, 4.0, 0.0, 0.87)
    answered = Answered("1", none, (none, *spans), 5.0)
    found = decided(answered, -2.0, 0.0)
    absent = 1 / (1 + np.exp(2.0))
    shares = np.exp([-1.0, -2.0]) / np.exp([-1.0, -2.0]).sum()
    assert [guess.text for guess in found.best] == ["1800", "18", ""]
    expected = [*(shares * (1 - absent)), absent]
    np.testing.assert_allclose([guess.probability for guess in found.best], expected)
    assert found.answer == found.best[0] and found.null_odds == -2.0
    assert decided(answered, 2.0, 0.0).answer.text == "" and decided(answered, 2.0, 3.0).answer.text == "1800"
    assert decided(answered._replace(best=(none,)), -2.0, 0.0).answer == none._replace(probability=1.0)


def test_constant_answer_scores_the_prediction_of_no_answer(tokenizer):
    """Of two questions one has no answer: half of the points are for nothing."""
    rows = TaskRows(find_task("squad2"), "", "", BERT, 16, question=2)
    questions = [Question("", "1", "good", "time", (Answer("time", 0),)), Question("", "2", "bad", "year")]
    assert constant_answer(encode_examples(rows, questions, tokenizer)) == 50.0


def by_loops(encoded, rows, logits, longest):
    """List (score, text) of all spans of a question, best first, one piece at a time."""
    number = encoded.example_of_row[rows[0]]
    offsets, context = encoded.contexts[number].offsets, encoded.examples[number].context
    found = []
    for row in rows:
        inside = np.flatnonzero(encoded.rows(np.array([row]))["context"][0])
        begin = encoded.windows[row].start
        for i, at in enumerate(inside):
            widths = {
                other: min(begin + i - w.start, w.start + w.size - 1 - begin - i) + 0.01 * w.size
                for other, w in ((other, encoded.windows[other]) for other in rows)
                if w.start <= begin + i < w.start + w.size
            }
            if max(widths, key=widths.get) != row:
                continue
            for j in range(i, min(i + longest, len(inside))):
                text = context[offsets[begin + i, 0] : offsets[begin + j, 1]].strip()
                found.append((logits[row][0][at] + logits[row][1][inside[j]], text))
    return sorted(found, key=lambda pair: -pair[0])


@pytest.mark.parametrize("templates", [BERT, XLNET])
def test_answers_are_those_that_a_loop_over_all_spans_finds(tokenizer, templates, tmp_path):
    rows = TaskRows(find_task("squad2"), "", "", templates, 16, stride=4, question=2)
    questions = [Question("", str(n), "good bad new", CONTEXT[5 * n :]) for n in range(4)]
    encoded = encode_examples(rows, questions, tokenizer)
    rng = np.random.default_rng(0)
    lengths = [int(encoded.buckets[row]) for row in range(len(encoded))]
    logits = [tuple(rng.normal(size=(2, length)) * 3) for length in lengths]
    scores = {row: window_scores(encoded, row, *logits[row], n_best=20) for row in range(len(encoded))}
    # The second lowest odds: those at the threshold still get an answer.
    threshold = sorted(each.null_odds for each in answer_questions(encoded, scores, n_best=6, longest=4))[1]
    answered = answer_questions(encoded, scores, n_best=6, longest=4, threshold=threshold)
    none = -1 if templates is XLNET else 0
    for number, each in enumerate(answered):
        mine = [row for row in range(len(encoded)) if encoded.example_of_row[row] == number]
        assert len(mine) > 2
        spans = by_loops(encoded, mine, logits, 4)
        null = min(logits[row][0][none] + logits[row][1][none] for row in mine)
        best = dict.fromkeys(text for _, text in sorted([*spans, (null, "")], key=lambda pair: -pair[0]))
        expected = [*best][:6] if "" in [*best][:6] else [*[*best][:6], ""]
        assert [guess.text for guess in each.best] == expected
        assert each.null_odds == pytest.approx(null - spans[0][0])
        assert each.answer.text == ("" if null - spans[0][0] > threshold else spans[0][1])
        assert sum(guess.probability for guess in each.best) == pytest.approx(1)
        for guess in each.best:
            assert questions[number].context[guess.start : guess.end] == guess.text
    assert {bool(each.answer.text) for each in answered} == {True, False}
    write_answers(tmp_path, answered, unanswerable=True)
    read = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("predictions", "nbest_predictions")}
    assert read["predictions"] == {each.id: each.answer.text for each in answered}
    assert set(read["nbest_predictions"]["0"][0]) == {"text", "probability", "start_logit", "end_logit"}
    assert read_answers(tmp_path / "null_odds.json", float)["0"] == answered[0].null_odds
    with pytest.raises(ValueError, match=r"row 1 of .* has no scores"):
        answer_questions(encoded, {0: scores[0]})


def test_a_question_of_version_one_always_has_an_answer(tokenizer):
    rows = TaskRows(find_task("squad"), "", "", BERT, 16, question=2)
    encoded = encode_examples(rows, [Question("", "1", "good", "time year")], tokenizer)
    scores = WindowScores(np.array([1]), np.array([1]), np.array([-9.0]), np.array([-9.0]), 5.0, 5.0)
    (answered,) = answer_questions(encoded, {0: scores})
    assert answered.answer.text == "year" and len(answered.best) == 1
    nothing = WindowScores(*(np.zeros(0, int) for _ in range(4)), 1.0, 2.0)
    assert answer_questions(encoded, {0: nothing})[0].answer.text == ""
