"""Column files: a word on each line."""

import pytest

from inlay.data import load
from tests.data.rows import refused, write

TEXT = "-DOCSTART- -X- O\n\nAda NNP B-PER\nlives VBZ O\n\n\n-DOCSTART- -X- O\n\nBo NNP B-PER\nEk NNP I-PER\n"
TOKENS = [["Ada", "lives"], ["Bo", "Ek"]]
TAGS = [["B-PER", "O"], ["B-PER", "I-PER"]]


@pytest.mark.parametrize("ending", [".conll", ".iob", ".iob2", ".bio", ".conll.gz"])
@pytest.mark.parametrize("between", [" ", "\t", "  \t "])
def test_the_last_column_is_the_tags(tmp_path, ending, between):
    import gzip

    text = TEXT.replace(" ", between).encode()
    path = write(tmp_path / f"a{ending}", gzip.compress(text) if ending.endswith(".gz") else text)
    data = load(path, need=("tokens", "tags"))
    assert [example.fields["tokens"] for example in data] == TOKENS
    assert [example.fields["tags"] for example in data] == TAGS
    assert [example.where for example in data] == [f"{path}:3", f"{path}:9"]


def test_another_column_can_be_named(tmp_path):
    path = write(tmp_path / "a.conll", TEXT)
    data = load(path, columns={"tags": "2"}, need=("tokens", "tags"))
    assert data[0].fields["tags"] == ["NNP", "VBZ"]
    refused(path, "there is no column '4'", columns={"tags": "4"})
    data = load(path, columns={"tokens": "3", "tags": "1"})
    assert data[0].fields["tokens"] == ["B-PER", "O"]


def test_another_ending_with_a_named_format(tmp_path):
    path = write(tmp_path / "train.txt", TEXT)
    refused(path, "no ending of a known data format", "name its format")
    assert load(path, format="conll")[1].fields["tags"] == TAGS[1]
    refused(path, "there is no format 'conl'; did you mean 'conll'?", format="conl")


def test_words_without_tags_and_words_with_spaces(tmp_path):
    path = write(tmp_path / "a.conll", "Ada\nlives\n")
    (example,) = load(path)
    assert example.fields == {"tokens": ["Ada", "lives"]}
    refused(path, "there is no column 'tags'", need=("tags",))
    tabs = write(tmp_path / "b.conll", "New York\tB-LOC\r\n,\tO\r\n")
    (example,) = load(tabs)
    assert example.fields == {"tokens": ["New York", ","], "tags": ["B-LOC", "O"]}
    (example,) = load(write(tmp_path / "c.conll", "a;B-x\n;O\n"), delimiter=";")
    assert example.fields == {"tokens": ["a", ""], "tags": ["B-x", "O"]}


def test_a_line_with_other_columns_is_a_bad_row(tmp_path):
    path = write(tmp_path / "a.conll", "a O\nb\n\nc O\n")
    refused(path, f"{path}:1: its word 2 has 1 columns and its first one 2")
    data = load(path, skip_bad=True)
    assert [example.fields["tokens"] for example in data] == [["c"]]


def test_comments_before_sentences(tmp_path):
    text = "# id 12 domain=en\nAda _ _ B-PER\nlives _ _ O\n\n# O\nBo B-PER\n"
    data = load(write(tmp_path / "a.conll", text))
    assert [example.fields["tokens"] for example in data] == [["Ada", "lives"], ["#", "Bo"]]
    assert data[0].fields["tags"] == ["B-PER", "O"]


def test_universal_dependencies(tmp_path):
    text = (
        "# text = Im Zug\n1-2\tIm\t_\t_\n1\tIn\tin\tADP\n2\tdem\tder\tDET\n2.1\tx\tx\tX\n"
        "3\tZug\tZug\tNOUN\n\n1\t#\t#\tSYM\n"
    )
    data = load(write(tmp_path / "a.conllu", text))
    assert [example.fields["tokens"] for example in data] == [["In", "dem", "Zug"], ["#"]]
    assert data[0].fields["tags"] == ["ADP", "DET", "NOUN"]
    (mapped, _) = load(tmp_path / "a.conllu", columns={"tags": "3"})
    assert mapped.fields["tags"] == ["in", "der", "Zug"]
