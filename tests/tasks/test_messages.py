"""Messages in the forms of others, and turns that call tools: what of them is learned."""

import itertools
import json

import pytest

from inlay.errors import DataError
from inlay.tasks import Generate
from inlay.tasks.chat import Chat
from inlay.tasks.messages import messages_of, tools_of
from tests.tasks.tiny import examples, refused, tokenizer
from tests.zoo import model

ARGUMENTS = {"city": "oslo"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
WRITTEN = 'call {"name": "weather", "arguments": {"city": "oslo"}} '

BODY = (
    "{{ m.content or '' }} {% for c in m.tool_calls or [] %}"
    "call {{ c.function | tojson }} {% endfor %}</s>\n"
)
PLAIN = (
    "{% for m in messages %}{{ m.role[0] }} : " + BODY + "{% endfor %}"
    "{% if add_generation_prompt %}a : {% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ m.role[0] }} : {% if m.role == 'assistant' %}{% generation %}"
    + BODY
    + "{% endgeneration %}{% else %}"
    + BODY
    + "{% endif %}{% endfor %}{% if add_generation_prompt %}a : {% endif %}"
)
CONTENTS = {"null": {"content": None}, "absent": {}, "empty": {"content": ""}}


def turns_of(messages, template=PLAIN, tools=None, **fields):
    """What is learned of a chat, turn by turn."""
    (example,) = examples({"messages": messages} | ({"tools": tools} if tools else {}) | fields)
    chat = Chat(tokenizer("decoder", chat=template), (), ("</s>",)).read(example)
    turns = [chat.prompt[begin:end] for begin, end in chat.turns]
    return turns if chat.reply is None else [*turns, chat.reply]


def chat_with(call):
    return [
        {"role": "user", "content": "weather in oslo?"},
        {"role": "assistant", **call},
        {"role": "tool", "content": "4 C"},
        {"role": "assistant", "content": "it is 4"},
    ]


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["plain", "marked"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_call_and_the_end_of_its_turn_are_learned(template, content):
    turns = turns_of(chat_with({**content, "tool_calls": [CALL]}), template)
    assert [turn.strip() for turn in turns] == [f"{WRITTEN}</s>", "it is 4 </s>"]
    last = chat_with({**content, "tool_calls": [CALL]})[:2]
    assert [turn.strip() for turn in turns_of(last, template)] == [f"{WRITTEN}</s>"]


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["plain", "marked"])
def test_a_text_beside_a_call_and_two_calls(template):
    turns = turns_of(chat_with({"content": "I look", "tool_calls": [CALL, CALL]}), template)
    assert turns[0].strip() == f"I look {WRITTEN}{WRITTEN}</s>"


SAME_CALL = {
    "arguments as a text": {
        "tool_calls": [{"function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}]
    },
    "without the frame": {"tool_calls": [{"name": "weather", "arguments": ARGUMENTS}]},
    "the older field": {"function_call": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}},
    "null fields": {"tool_calls": [CALL], "function_call": None, "refusal": None},
}


@pytest.mark.parametrize("call", SAME_CALL.values(), ids=SAME_CALL)
def test_calls_in_other_forms(call):
    assert turns_of(chat_with({"content": None, **call}))[0].strip() == f"{WRITTEN}</s>"


def test_a_turn_of_sharegpt_that_is_a_call():
    text = json.dumps({"name": "weather", "arguments": ARGUMENTS})
    messages = [
        {"from": "human", "value": "weather?"},
        {"from": "function_call", "value": text},
        {"from": "observation", "value": "4 C"},
        {"from": "gpt", "value": "it is 4"},
    ]
    (example,) = examples({"messages": messages})
    assert [m["role"] for m in messages_of(example)] == ["user", "assistant", "tool", "assistant"]
    assert turns_of(messages)[0].strip() == f"{WRITTEN}</s>"
    messages[1]["value"] = "{"
    refused(lambda: turns_of(messages), "message 2: its call is not valid JSON", error=DataError)


TEMPLATES = {
    "prints null": (BODY.replace(" or ''", ""), WRITTEN),
    "adds the content to a text": (BODY.replace("m.content or ''", "'' + m.content"), WRITTEN),
    "asks whether it is there": (
        "{% if m.content is defined %}{{ m.content }} {% else %}"
        "call {{ m.tool_calls[0].function.name }} {% endif %}</s>\n",
        "call weather ",
    ),
    "adds the arguments to a text": (
        "{{ m.content or '' }} {% for c in m.tool_calls or [] %}"
        "{{ 'call ' + c.function.name + ' ' + c.function.arguments }} {% endfor %}</s>\n",
        'call weather {"city": "oslo"} ',
    ),
    "prints the arguments": (
        "{{ m.content or '' }} {% for c in m.tool_calls or [] %}"
        "call {{ c.function.name }} {{ c.function.arguments }} {% endfor %}</s>\n",
        'call weather {"city": "oslo"} ',
    ),
}


@pytest.mark.parametrize(("body", "written"), TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_templates_differ_in_what_they_take(body, written, content):
    turns = turns_of(chat_with({**content, "tool_calls": [CALL]}), PLAIN.replace(BODY, body))
    assert turns[0].strip() == f"{written}</s>"


def test_a_template_without_calls_is_refused():
    template = PLAIN.replace("call {{ c.function | tojson }} ", "")
    refused(
        lambda: turns_of(chat_with({"tool_calls": [CALL]}), template),
        "rows#1: the chat template does not write the assistant's call of 'weather'",
        error=DataError,
    )


PARTS = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]


@pytest.mark.parametrize("parts", [PARTS, ["one ", "two"], [{"text": "one two"}]])
@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["plain", "marked"])
def test_texts_in_parts(parts, template):
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": parts}]
    assert [turn.strip() for turn in turns_of(messages, template)] == ["one two </s>"]
    (example,) = examples({"messages": messages})
    assert [message["content"] for message in messages_of(example)] == ["one two"] * 2


def test_turns_that_are_not_to_be_learned():
    def chat(**second):
        return [
            {"from": "human", "value": "go"},
            {"from": "gpt", "value": "ok", "loss": False},
            {"from": "human", "value": "on"},
            {"from": "gpt", "value": "two", **second},
        ]

    assert [turn.strip() for turn in turns_of(chat(loss=True))] == ["two </s>"]
    for flag in ({"loss": False}, {"weight": 0}, {"train": False}):
        refused(lambda flag=flag: turns_of(chat(**flag)), "no turn of the assistant is to be learned", error=DataError)  # fmt: skip
    kept = chat(loss=None)
    kept[1]["loss"] = None
    assert [turn.strip() for turn in turns_of(kept)] == ["ok </s>", "two </s>"]
    kept[3]["weight"] = 0
    assert [turn.strip() for turn in turns_of(kept)] == ["ok </s>"], "the chat ends there"


def test_tools_are_written_by_the_template():
    tools = [{"type": "function", "function": {"name": "weather"}}]
    template = "{% for t in tools or [] %}tool {{ t.function.name }} {% endfor %}" + PLAIN
    (example,) = examples({"messages": chat_with({"content": "a"}), "tools": tools})
    chat = Chat(tokenizer("decoder", chat=template), (), ("</s>",)).read(example)
    assert chat.prompt.startswith("tool weather u : weather in oslo?")
    for empty in ("", []):
        (example,) = examples({"messages": [], "tools": empty})
        assert tools_of(example) is None
    (example,) = examples({"messages": [], "tools": "x"})
    refused(lambda: tools_of(example), "rows#1: tools is a list of objects", error=DataError)


BAD = {
    "neither": ({"role": "assistant"}, "message 1 has no text as its content and calls no tool"),
    "image": (
        {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
        "message 1 has a part 'image_url', and only texts are read",
    ),
    "call": (
        {"role": "assistant", "tool_calls": [{"function": {}}]},
        'message 1: a call is {"function": {"name"',
    ),
    "calls": ({"role": "assistant", "tool_calls": "x"}, "tool_calls is a list of calls"),
    "role": ({"from": 3, "value": "x"}, "message 1 has no text as its role"),
}


@pytest.mark.parametrize(("message", "needle"), BAD.values(), ids=BAD)
def test_messages_that_cannot_be_used(message, needle):
    (example,) = examples({"messages": [message]})
    refused(lambda: messages_of(example), "rows#1: ", needle, error=DataError)


def test_what_a_call_is_scored_against():
    task = Generate(chat="messages")
    task.bind(model("llama"), tokenizer("decoder", bos=True, chat=PLAIN))
    rows = examples({"messages": chat_with({"content": None, "tool_calls": [CALL]})[:2]})
    gold = task.bound.tokenizer.decode(
        task.encode(rows[0], 0).labels, skip_special_tokens=True
    ).strip()
    assert "weather" in gold.replace(" ", "")
    assert task.score([gold], rows)["exact_match"] == 1


EMPTY = {
    "target": ({"source": "a", "target": ""}, False, "its target is empty"),
    "white space": ({"source": "a", "target": " \n"}, False, "its target is empty"),
    "first of several": ({"source": "a", "targets": ["", "b"]}, False, "its targets is empty"),
    "turn": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]},
        "messages",
        "message 2, of the assistant, is empty",
    ),
    "earlier turn": (
        {
            "messages": [
                {"role": role, "content": text}
                for role, text in zip(
                    itertools.cycle(["user", "assistant"]), ["a", "", "b", "c"], strict=False
                )
            ]
        },
        "messages",
        "message 2, of the assistant, is empty",
    ),
}


@pytest.mark.parametrize(("row", "chat", "needle"), EMPTY.values(), ids=EMPTY)
def test_an_empty_answer_is_a_bad_row_unless_it_is_wanted(row, chat, needle):
    target = "targets" if "targets" in row else "target"
    fields = {"chat": chat} if chat else {"target": target}
    (example,) = examples(row)
    read = tokenizer("decoder", bos=True, chat=PLAIN)
    for check in (False, True):
        task = Generate(**fields)
        task.bind(model("llama"), read)
        use = task.check if check else lambda example, task=task: task.encode(example, 0)
        refused(lambda use=use: use(example), "rows#1: ", needle, "empty_targets", error=DataError)
    task = Generate(**fields, empty_targets=True)
    task.bind(model("llama"), read)
    task.check(example)
    assert task.encode(example, 0).labels[-1] == read.eos_token_id
