"""Forms of others: ShareGPT, Alpaca, prompt and completion; columns of flags; lists in cells."""

import pytest

from inlay.data import load
from inlay.data.fields import RowParser
from tests.data.rows import refused, write

TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def only(row, *need, **options):
    (example,) = load([row], need=need, **options)
    return {name: example.fields[name] for name in need}


CHATS = {
    "sharegpt": ({"conversations": TURNS}, TURNS),
    "with system": (
        {"conversations": TURNS, "system": "be kind"},
        [{"role": "system", "content": "be kind"}, *TURNS],
    ),
    "openai": ({"messages": CHAT}, CHAT),
    "named once": ({"conversation": CHAT}, CHAT),
    "prompt and completion": ({"prompt": CHAT[:1], "completion": CHAT[1:]}, CHAT),
    "texts": ({"prompt": "hi", "completion": "hello"}, CHAT),
    "alpaca": ({"instruction": "hi", "input": "", "output": "hello"}, CHAT),
    "alpaca with a history": (
        {"instruction": "more", "output": "yes", "history": [["hi", "hello"]], "system": "s"},
        [
            {"role": "system", "content": "s"},
            *CHAT,
            {"role": "user", "content": "more"},
            {"role": "assistant", "content": "yes"},
        ],
    ),
}


@pytest.mark.parametrize(("row", "messages"), CHATS.values(), ids=CHATS)
def test_chats(row, messages):
    assert only(row, "messages") == {"messages": messages}


def test_any_column_is_mapped_as_messages():
    assert only({"talk": TURNS}, "messages", columns={"messages": "talk"}) == {"messages": TURNS}


TEXTS = {
    "alpaca": ({"instruction": "Add.", "input": "1 1", "output": "2"}, "Add.\n1 1", "2"),
    "no input": ({"instruction": "Hi", "output": "2"}, "Hi", "2"),
    "empty input": ({"instruction": "Hi", "input": "", "output": "2"}, "Hi", "2"),
    "null input": ({"instruction": "Hi", "input": None, "output": "2"}, "Hi", "2"),
    "dolly": ({"instruction": "Add.", "context": "1 1", "response": "2"}, "Add.\n1 1", "2"),
    "openai": ({"prompt": "Hi", "completion": "2"}, "Hi", "2"),
    "own columns win": ({"source": "a", "target": "b", "instruction": "c"}, "a", "b"),
}


@pytest.mark.parametrize(("row", "source", "target"), TEXTS.values(), ids=TEXTS)
def test_texts(row, source, target):
    assert only(row, "source", "target") == {"source": source, "target": target}


def test_a_target_alone_may_be_mapped():
    row = {"instruction": "Hi", "output": "2", "better": "3"}
    assert only(row, "source", "target", columns={"target": "better"})["target"] == "3"


REFUSED = {
    "an object": (
        {"instruction": "a", "output": {"pulse": 50}},
        "column 'output' is an object, not text or a number",
    ),
    "history": (
        {"instruction": "a", "output": "b", "history": [["c", "d"]]},
        "its history would be lost; chat='messages'",
    ),
    "system": (
        {"prompt": "a", "completion": "b", "system": "c"},
        "its system would be lost",
    ),
    "messages": ({"messages": CHAT}, "give chat='messages' (--task.chat messages)"),
    "conversations": ({"conversations": TURNS}, "give chat='messages' (--task.chat messages)"),
    "prompts": (
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        "give chat='messages' (--task.chat messages); there is no column 'target'",
    ),
    "nothing": ({"text": "a"}, "there is no column 'source'"),
}


@pytest.mark.parametrize(("row", "needle"), REFUSED.values(), ids=REFUSED)
def test_what_a_task_of_texts_cannot_read(row, needle):
    refused([row], "rows#1: ", needle, need=("source", "target"))


def test_everything_that_is_missing_is_named_at_once():
    message = refused([{"txt": "a", "labl": "b"}], need=("text", "label"))
    assert "there is no column 'text'; did you mean 'txt'?" in message
    assert "there is no column 'label'; did you mean 'labl'?" in message
    refused([{"source": "a"}], "leave chat='messages' out", need=("messages",))


FLAGS = {"text": "a", "sports": 1, "news": 0, "art": 1}


@pytest.mark.parametrize("kind", [int, str, bool, float, lambda flag: str(bool(flag))])
def test_columns_of_flags_are_labels(kind):
    row = {n: kind(v) if isinstance(v, int) else v for n, v in FLAGS.items()}
    mapped = {"labels": ["sports", "news", "art"]}
    assert only(row, "labels", columns=mapped) == {"labels": ["sports", "art"]}


def test_flags_that_are_none():
    mapped = {"labels": ["sports", "news"]}
    refused([{**FLAGS, "news": 2}], "column 'news' is 2, not 0 or 1", columns=mapped)
    refused([{**FLAGS, "news": ""}], "column 'news' is '', not 0 or 1", columns=mapped)
    refused([{"sports": 1}], "there is no column 'news'", columns=mapped)
    refused([FLAGS], "columns={'labels': ['sports', 'news', 'art']}", need=("labels",))
    refused([FLAGS], "'text' takes one column", columns={"text": ["a", "b"]})


def test_other_lists_are_gathered_from_columns():
    row = {"a": "one", "b": "two"}
    assert only(row, "choices", columns={"choices": ["a", "b"]}) == {"choices": ["one", "two"]}
    assert only(row, "targets", columns={"targets": ["b", "a"]}) == {"targets": ["two", "one"]}


CELLS = {
    "separated": ("sports|art", ["sports", "art"]),
    "with spaces": (" sports | art ", ["sports", "art"]),
    "one": ("sports", ["sports"]),
    "none": ("", []),
    "JSON": ('["sports", "a|b"]', ["sports", "a|b"]),
    "Python": ("['sports', 'a|b']", ["sports", "a|b"]),
}


@pytest.mark.parametrize(("cell", "items"), CELLS.values(), ids=CELLS)
def test_lists_in_cells(tmp_path, cell, items):
    assert only({"labels": cell}, "labels", separator="|") == {"labels": items}
    assert only({"topics": cell}, "labels", separator="|", columns={"labels": "topics"}) == {
        "labels": items
    }


def test_a_text_that_only_looks_like_a_list_stays_one():
    for text in ("[1", "['a' 'b']", "[sic] yes", "{x}"):
        assert only({"labels": text}, "labels") == {"labels": text}
    assert only({"text": "[1, 2]"}, "text") == {"text": "[1, 2]"}
    assert only({"answers": "[1]"}, "target", columns={"target": "answers"}) == {"target": "[1]"}
    refused([{"labels": "a"}], "separator='' separates nothing", separator="")


def test_a_field_may_be_derived_and_not_needed():

    parse = RowParser(None, None, (), derive=("source", "target"))
    assert parse({"prompt": "a"})["source"] == "a"
    assert "target" not in parse({"prompt": "a"}) and "source" not in parse({"text": "a"})


def test_bad_rows_are_counted(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,x\nb\nc,y\nd\ne\n")
    refused(path, f"{path}:3: 1 cells", "; 2 more rows are bad, the next at", f"{path}:5", "--skip-bad-rows")  # fmt: skip
    two = write(tmp_path / "b.csv", "text,label\na,x\nb\nc\n")
    refused(two, f"{two}:3: 1 cells", "; 1 more row is bad, the next at")


def test_a_check_finds_bad_rows_too():
    from inlay.errors import DataError

    def check(example):
        if example.fields["n"] > 2:
            raise DataError(f"{example.where}: too much")

    rows = [{"n": 1}, {"n": 3}, {"n": 4}, {"n": 2}]
    refused(rows, "rows#2: too much; 1 more row is bad", check=check)
    data = load(rows, check=check, skip_bad=True)
    assert [example.fields["n"] for example in data] == [1, 2]
    assert [str(row) for row in data.skipped] == ["rows#2: too much", "rows#3: too much"]
    refused([{"n": 5}], "all 1 rows are bad", check=check, skip_bad=True)
