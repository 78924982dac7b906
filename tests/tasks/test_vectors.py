"""Labels as vectors of 0 and 1, as numbers, and named by `label_names`."""

import pytest

from inlay.data import load
from inlay.errors import DataError
from inlay.tasks import BinaryCrossEntropy, Classify, Tag, TrainedHead, from_spec
from tests.tasks.tiny import bind, examples, refused

NAMES = ["sports", "politics", "culture"]
VECTORS = [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]]
MEANT = [["sports"], ["politics"], ["sports", "politics"], ["culture"], []]


def task(labels=None, vectors=None, **fields):
    return Classify(by=TrainedHead(labels), objective=BinaryCrossEntropy(vectors=vectors), **fields)


def rows(labels):
    return examples(*({"text": "a dog", "labels": each} for each in labels))


KINDS = {
    "numbers": int,
    "truth values": bool,
    "fractions": float,
    "texts": str,
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_vector_is_read_by_place_where_the_labels_are_given(kind):
    data = rows([list(map(kind, vector)) for vector in VECTORS])
    reader = bind(task(NAMES), "bert")
    reader.prepare(data)
    encoded = reader.encode_all(data)
    assert [[NAMES[n] for n in row.labels] for row in encoded] == MEANT
    assert reader.score(MEANT, data)["accuracy"] == 1
    assert reader.head().labels == tuple(NAMES)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_vector_without_given_labels_is_refused(kind):
    (row,) = rows([list(map(kind, VECTORS[0]))])
    for use in (task().check, lambda row: task().prepare([row])):
        refused(
            lambda use=use: use(row),
            "rows#1: labels [",
            "are a vector with a place for each label",
            "--task.by.labels",
            error=DataError,
        )


def test_vectors_that_could_be_sets_are_refused_together():
    data = rows([[0, 1], [1, 0], [0, 1]])
    refused(lambda: task().prepare(data), "every row has 2 labels of 0, 1", "--task.by.labels")
    numbered = rows([[0], [1], [0, 1]])
    reader = task()
    reader.prepare(numbered)
    assert reader.labels == ("0", "1"), "numbers of labels, for their lists differ in length"


def test_a_vector_of_another_length_is_refused():
    (row,) = rows([[1, 0, 1, 0]])
    reader = bind(task(NAMES), "bert")
    refused(lambda: reader.encode(row, 0), "they are 4, not 3", "label_names", error=DataError)


def test_labels_that_were_learned_give_a_vector_no_order():
    """Sorted by name they are in another order than the places of a vector."""
    reader = task()
    reader.prepare(rows(MEANT[:4]))
    assert reader.labels == ("culture", "politics", "sports")
    (row,) = rows([[1, 0, 0]])
    for stored in (reader, from_spec(reader.describe())):
        bind(stored, "bert")
        refused(lambda stored=stored: stored.encode(row, 0), "are a vector", error=DataError)
    meant = bind(task(["culture", "politics", "sports"], vectors=True), "bert")
    assert meant.encode(row, 0).labels == [0]


@pytest.mark.parametrize("names", [NAMES, {"0": "sports", 1: "politics", "2": "culture"}])
def test_numbered_labels_are_named(names):
    data = rows([[0], [1], [0, 1], [2], []])
    reader = bind(task(label_names=names), "bert")
    assert [[NAMES[n] for n in row.labels] for row in reader.encode_all(data)] == MEANT
    assert from_spec(reader.describe()) == reader
    unnamed = bind(task(NAMES), "bert")
    refused(
        lambda: unnamed.encode(data[0], 0),
        "there is no label '0'; if labels are numbered from 0, give label_names=['sports'",
        error=DataError,
    )


def test_a_name_may_be_a_flag():
    reader = task(["0", "1"])
    bind(reader, "bert")
    assert [row.labels for row in reader.encode_all(rows([["0", "1"], ["1"]]))] == [[0, 1], [1]]


def test_columns_and_cells_of_tables(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,sports,politics,culture\na dog,1,0,0\na cat,1,1,0\n")
    reader = task(NAMES)
    data = load(path, columns={"labels": NAMES}, need=reader.required_fields)
    assert [row.labels for row in bind(reader, "bert").encode_all(data)] == [[0], [0, 1]]
    path.write_text("text,labels\na dog,sports\na cat,sports|politics\n")
    data = load(path, separator="|", need=reader.required_fields)
    assert [row.labels for row in reader.encode_all(data)] == [[0], [0, 1]]
    data = load(path, need=reader.required_fields)
    refused(lambda: reader.encode_all(data), "a.csv:2", "separator='|'", error=DataError)


OTHERWISE = {
    "1": {"1": "1.0", "0": "0.0"},
    "1.0": {"1.0": "1", "0.0": "0"},
    "True": {"True": "true", "False": "false"},
    "YES": {"YES": "yes", "NO": "no"},
    "yes": {"yes": "Yes", "no": "No"},
    " yes": {" yes": "yes", "no": "no"},
}


@pytest.mark.parametrize(("label", "names"), OTHERWISE.items())
def test_a_label_that_is_written_otherwise_names_the_cure(label, names):
    known = tuple(names.values())
    reader = bind(Classify(by=TrainedHead(known)), "bert")
    (row,) = examples({"text": "a dog", "label": label})
    cure = f"did you mean {known[0]!r}? then give label_names={names}"
    refused(lambda: reader.encode(row, 0), cure, error=DataError)
    for by in (TrainedHead(known), TrainedHead()):  # the cure works, without more
        cured = bind(Classify(by=by, label_names=names), "bert")
        assert cured.encode(row, 0).labels == [0]


TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
SENTENCES = [
    ({"tokens": ["Ada", "in", "Oslo"], "tags": [1, 0, 3]}, ["B-PER", "O", "B-LOC"]),
    ({"tokens": ["Bo", "Ek"], "tags": [1, 2]}, ["B-PER", "I-PER"]),
]


@pytest.mark.parametrize("names", [TAGS, dict(enumerate(TAGS)), {str(n): t for n, t in enumerate(TAGS)}])  # fmt: skip
def test_numbered_tags_are_named(names):
    reader = Tag(label_names=names)
    assert reader.labels == tuple(TAGS)
    data = examples(*(row for row, _ in SENTENCES))
    bind(reader, "bert")
    encoded = reader.encode_all(data)
    assert [[TAGS[n] for n in row.labels] for row in encoded] == [tags for _, tags in SENTENCES]
    assert reader.score([tags for _, tags in SENTENCES], data)["f1"] == 1
    assert from_spec(reader.describe()) == reader
    named = examples({"tokens": ["Ada"], "tags": ["B-PER"]})
    assert reader.encode(named[0], 0).labels == [1], "a name stays a name"


def test_numbered_tags_without_names():
    (row,) = examples(SENTENCES[0][0])
    cure = "item 1 is a number; name numbered tags by label_names (--task.label_names)"
    refused(lambda: Tag().prepare([row]), "rows#1: ", cure, error=DataError)
    reader = bind(Tag(label_names=TAGS[:3]), "bert")
    refused(lambda: reader.encode(row, 0), "tag 3 is 3, which has no name", error=DataError)
    (row,) = examples({"tokens": ["a"], "tags": [[1]]})
    refused(lambda: reader.encode(row, 0), "tag 1 is a list", error=DataError)
