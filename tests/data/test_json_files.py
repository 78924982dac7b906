"""JSON files as programs write them, whatever their ending says."""

import json

import pytest

from inlay.data import load
from tests.data.rows import refused, write

ROWS = [{"text": "a b", "label": "x"}, {"text": "c", "label": "y"}]

LINES = "".join(json.dumps(row) + "\n" for row in ROWS)

TEXTS = {
    "lines": LINES,
    "list": json.dumps(ROWS),
    "indented list": json.dumps(ROWS, indent=1),
    "list with a row a line": "[" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "indented objects": "\n".join(json.dumps(row, indent=2) for row in ROWS),
}


def fields(path, **options):
    return [dict(example.fields) for example in load(path, **options)]


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".ndjson"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_layout_under_every_ending(tmp_path, ending, text):
    assert fields(write(tmp_path / f"rows{ending}", text)) == ROWS
    assert fields(write(tmp_path / f"blank{ending}", "\n\n" + text)) == ROWS


def test_rows_are_named_by_their_line_or_their_number(tmp_path):
    path = write(tmp_path / "a.json", "\n" + LINES)
    assert [example.where for example in load(path)] == [f"{path}:2", f"{path}:3"]
    indented = write(tmp_path / "b.jsonl", TEXTS["indented objects"])
    assert [example.where for example in load(indented)] == [f"{indented}:1", f"{indented}:5"]
    listed = write(tmp_path / "c.jsonl", TEXTS["indented list"])
    assert [example.where for example in load(listed)] == [f"{listed}#1", f"{listed}#2"]


WRAPPED = {
    "data": {"data": ROWS},
    "with more": {"version": "1", "data": ROWS, "splits": [{"a": 1}]},
    "any list": {"rows": ROWS, "count": 2},
    "columns": {"text": ["a b", "c"], "label": ["x", "y"]},
    "columns by row": {"text": {"0": "a b", "1": "c"}, "label": {"0": "x", "1": "y"}},
}


@pytest.mark.parametrize("value", WRAPPED.values(), ids=WRAPPED)
def test_rows_within_an_object(tmp_path, value):
    assert fields(write(tmp_path / "a.json", json.dumps(value))) == ROWS


def test_objects_that_hold_no_list_of_rows(tmp_path):
    for value in ({"text": "a"}, {"train": ROWS, "test": ROWS}, {"a": ["x"], "b": ["x", "y"]}, 3):
        path = write(tmp_path / "a.json", json.dumps(value))
        refused(path, "a.json: expected a list of objects, found")
    path = write(tmp_path / "a.json", json.dumps({"train": ROWS, "test": ROWS}))
    refused(path, "that holds the lists 'train', 'test'; write the list of rows alone")


def test_a_comma_too_many_is_named(tmp_path):
    path = write(tmp_path / "a.json", '[\n{"text": "a"},\n]\n')
    refused(path, f"{path}:", "not valid JSON", "remove the comma after the last one")
    refused(write(tmp_path / "a.jsonl", '[\n{"text": "a"},\n]\n'), "remove the comma")


def test_a_bad_line_among_objects(tmp_path):
    path = write(tmp_path / "a.json", LINES + "{\n" + LINES)
    refused(path, f"{path}:3: not valid JSON")
    assert len(load(path, skip_bad=True)) == 4
    mixed = write(tmp_path / "b.json", json.dumps([*ROWS, [ROWS[0]], 3]))
    refused(mixed, f"{mixed}#3: expected an object of columns, found a list", "1 more row is bad")


def test_a_line_that_is_a_list_is_a_bad_row(tmp_path):
    path = write(tmp_path / "a.jsonl", '["a"]\n' + LINES)
    refused(path, f"{path}:1: expected an object of columns, found a list")


ARTICLES = [
    {
        "title": "x",
        "paragraphs": [
            {
                "context": " Ada left Oslo.",
                "qas": [
                    {
                        "id": "1",
                        "question": "Who?",
                        "answers": [{"text": "Ada", "answer_start": 1}],
                    },
                    {"id": "2", "question": "When?", "answers": [], "is_impossible": True},
                ],
            },
            {"context": "Bo.", "qas": [{"id": "3", "question": "Who?", "answers": []}]},
        ],
    }
]


@pytest.mark.parametrize("value", [{"version": "2.0", "data": ARTICLES}, ARTICLES])
def test_articles_of_squad_are_a_row_for_each_question(tmp_path, value):
    data = load(write(tmp_path / "squad.json", json.dumps(value)), need=("context", "answers"))
    assert [example.fields["answers"] for example in data] == [
        [{"text": "Ada", "start": 1}],
        [],
        [],
    ]
    assert [example.fields["context"] for example in data] == [" Ada left Oslo."] * 2 + ["Bo."]
    assert data[2].where.endswith("squad.json#3")


def test_articles_on_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", 2 * (json.dumps(ARTICLES[0]) + "\n"))
    data = load(path, need=("context", "question", "answers"))
    assert [example.where for example in data] == 3 * [f"{path}:1"] + 3 * [f"{path}:2"]


def test_articles_that_are_damaged(tmp_path):
    path = write(tmp_path / "a.json", json.dumps([*ARTICLES, {"title": "y"}]))
    refused(path, "a.json#4: expected an article with paragraphs, found an object")
    broken = [{"paragraphs": [{"context": "a", "qas": 3}]}]
    refused(write(tmp_path / "b.json", json.dumps(broken)), "a list of questions, qas")


ANSWERS = {
    "lists": {"text": ["Ada", "Ada"], "answer_start": [1, 5]},
    "answer_start": [{"text": "Ada", "answer_start": 1}, {"text": "Ada", "answer_start": 5}],
    "ours": [{"text": "Ada", "start": 1}, {"text": "Ada", "start": 5}],
    "JSON in a cell": '{"text": ["Ada", "Ada"], "answer_start": [1, 5]}',
    "Python in a cell": "{'text': ['Ada', 'Ada'], 'answer_start': [1, 5]}",
}


@pytest.mark.parametrize("answers", ANSWERS.values(), ids=ANSWERS)
def test_answers_in_every_form(answers):
    (example,) = load([{"answers": answers}], need=("answers",))
    assert example.fields["answers"] == ANSWERS["ours"]
    (mapped,) = load([{"gold": answers}], columns={"answers": "gold"})
    assert mapped.fields["answers"] == ANSWERS["ours"]


def test_answers_that_do_not_fit():
    refused([{"answers": {"text": ["a"], "answer_start": []}}], "as many texts as starts", need=["answers"])  # fmt: skip
