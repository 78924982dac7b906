"""inlay inspect: tables, maps, a page and a file."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

import inlay as library
from inlay import LoRA, Prefix, Prompt, PTuning
from inlay.hub import load_base
from tests import zoo
from tests.tasks import tiny


@pytest.fixture
def saved(base, tmp_path):
    """`saved("a", spec)` is the file of a spec attached to the tiny decoder."""
    return lambda name, spec, folder=base: save(folder, tmp_path / f"{name}.safetensors", spec)


def save(folder, path, spec):
    model, tokenizer = load_base(folder)
    with torch.random.fork_rng():
        torch.manual_seed(len(path.stem))
        handle = library.attach(model, spec)
        for _, _, piece in zoo.pieces(handle):
            for name, tensor in piece.named_parameters():
                if name in ("k", "v"):
                    torch.nn.init.normal_(tensor)
    return handle.save(path, tokenizer=tokenizer)


def number(base, word):
    return load_base(base)[1].encode(word, add_special_tokens=False)[0]


@pytest.fixture
def prompt(base, saved):
    good, bad = number(base, "good"), number(base, "bad")
    return saved("prompt", Prompt(length=3, start=((good,), (1,), (bad,))))


def test_a_prompt_is_shown_among_the_words(inlay, base, prompt):
    run = inlay("inspect", base, prompt, "--words", "good, bad, cat, nonsense")
    assert run.code == 0, run.err
    lines = {line.split()[0]: line for line in run.out.splitlines() if line.strip()}
    rows = [line for line in run.out.splitlines() if re.match(r" +[012] +\d\.\d", line)]
    assert [row.split()[2:4] for row in rows] == [
        ["good", "1.00"],
        ["<s>", "1.00"],
        ["bad", "1.00"],
    ]
    assert lines["good"].split()[1:] == ["1", "0", "1.000", "0"]
    assert lines["bad"].split()[1:] == ["1", "2", "1.000", "2"]
    assert lines["cat"].split()[1] != "1"
    assert "left out: 'nonsense' is not a single token" in run.err
    assert "Cosine of a position to its nearest token: 1.000 on average" in run.out
    run = inlay("inspect", base, prompt, "--words", "good", "--neighbours", "1")
    assert re.search(r"^ good +1 +0 +1\.000 +0 *$", run.out, re.M)
    assert "two of its" not in run.out


def test_virtual_tokens_that_an_inlay_does_not_have_are_refused(inlay, base, prompt):
    run = inlay("inspect", base, prompt, "--template", "{p*3} {text}")
    assert "has virtual tokens and the inlay has none; leave {p} out" in run.error


def test_a_map_has_a_line_for_every_layer_and_a_block_for_every_head(inlay, base, saved):
    run = inlay("inspect", base, saved("prefix", Prefix(length=4, mlp=None)), "--text", "good cat")
    assert run.code == 0, run.err
    assert "Attention on the prefix, in the decoder's self-attention (1 text)" in run.out
    assert "embed" not in run.out
    rows = re.findall(r"^ +(\d) +(\S+)% +(\S+)% +(\S+)% +(\S+)% +([·▁-█]{4}) *$", run.out, re.M)
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert any("█" in row[5] for row in rows)
    for _, mean, lowest, highest, even, _ in rows:
        assert 0 < float(lowest) <= float(mean) <= float(highest) < 100
        assert float(even) == pytest.approx(100 * (4 / 5 + 4 / 6) / 2, abs=0.06)


def test_a_pipe_gets_no_colours(inlay, base, prompt):
    run = inlay("inspect", base, prompt)
    assert "\x1b" not in run.out + run.err


def test_the_numbers_go_into_a_file(inlay, base, prompt, tmp_path):
    run = inlay(
        "inspect", base, prompt, "--json", "out.json", "--neighbours", "2", "--words", "bad"
    )
    assert run.code == 0, run.err
    report = json.loads((tmp_path / "out.json").read_text())
    (prompt,) = report["prompts"]
    assert [p["by_cosine"][0]["token"] for p in prompt["positions"]] == ["good", "<s>", "bad"]
    assert [len(p["by_distance"]) for p in prompt["positions"]] == [2, 2, 2]
    assert prompt["words"]["bad"]["ranks"][2] == 1
    assert prompt["cluster"]["nearest"]["value"] == pytest.approx(1, abs=1e-5)
    (share,) = report["attention"]
    assert torch.tensor(share["shares"]).shape == (3, 4)
    assert [text.partition(" ")[0] for text in report["texts"]] == ["The", "Water", "She", "The"]


class Page(HTMLParser):
    """The tags and texts of a page; every tag that is opened must be closed."""

    VOID = ("meta", "br")

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_loads_nothing_from_elsewhere(inlay, base, prompt, saved, tmp_path):
    spec = Prompt(length=2, start=((1,), (1,))) + Prefix(length=2, mlp=None)
    first = saved("<b>&", spec)
    run = inlay("inspect", base, first, prompt, "--html", "out.html", "--words", "good,bad")
    assert run.code == 0, run.err
    html = (tmp_path / "out.html").read_text()
    assert "http" not in html
    assert "url(" not in html
    page = Page(html)
    kinds = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe", "s", "b"} & {*kinds}
    assert not any({"src", "href"} & attrs.keys() for _, attrs in page.tags)
    assert "<s>" in page.text  # escaped, so it is text and no tag
    assert sum("<b>&" in text for text in page.text) == 2  # title and heading
    maps = [a for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    assert len(maps) == 3  # prompt and prefix, and the prompt of the other
    squares = [a for tag, a in page.tags if tag == "rect" and a["class"] == "square"]
    assert len(squares) == 3 * 3 * 4
    assert all(0 <= float(square["fill-opacity"]) <= 1 for square in squares)


def test_the_page_names_its_axes_and_shows_the_texts(inlay, base, prompt, tmp_path):
    texts = ["the cat <i>sat</i>", "on a mat"]
    run = inlay(
        "inspect", base, prompt, *("--text", texts[0], "--text", texts[1]), "--html", "o.html"
    )
    assert run.code == 0, run.err
    page = Page((tmp_path / "o.html").read_text())
    axes = [attrs for tag, attrs in page.tags if tag == "text" and attrs.get("class") == "axis"]
    assert len(axes) == 2
    turned = ["transform" in attrs for attrs in axes]
    assert turned == [False, True]
    assert page.text.index("head") < page.text.index("layer")
    start = page.text.index("layer")
    assert page.text[start + 1 : start + 6] == ["mean", "0", "1", "2", "3"]  # four heads
    steps = [a for tag, a in page.tags if tag == "rect" and a["class"] == "square step"]
    assert [float(step["fill-opacity"]) for step in steps] == [0, 0.25, 0.5, 0.75, 1]
    assert "Texts that this was measured on" in page.text
    assert [text for text in page.text if text in texts] == texts


def test_the_page_shows_where_virtual_tokens_stand(inlay, base, saved, tmp_path):
    file = saved("p", PTuning(length=3))
    words = ("--template", "{p} {text} {p*2} red", "--text", "the cat", "--html", "o.html")
    run = inlay("inspect", base, file, *words)
    assert run.code == 0, run.err
    page = Page((tmp_path / "o.html").read_text())
    assert "◆ the cat◆◆ red" in page.text
    assert "◆ is a virtual token of the inlay." in page.text


def test_two_files_are_compared(inlay, base, prompt, saved, tmp_path):
    spec = Prompt(length=2, start="uniform") + Prefix(length=2, mlp=None)
    first = saved("one", spec)
    run = inlay("inspect", base, first, first, "--json", "same.json")
    assert run.code == 0, run.err
    assert "paired positions have cosine 1.000" in run.out
    assert "keys have cosine 1.000 and values 1.000" in run.out
    assert run.out.count("the two maps have correlation 1.000") == 2
    other = json.loads((tmp_path / "same.json").read_text())["other"]
    assert other["prompts"][0]["pairs"] == [[0, 0], [1, 1]]
    assert other["correlations"] == pytest.approx([1, 1])

    run = inlay("inspect", base, first, saved("three", spec), "--json", "two.json")
    other = json.loads((tmp_path / "two.json").read_text())["other"]
    assert max(map(abs, other["prompts"][0]["cosines"])) < 0.9
    assert abs(torch.tensor(other["prefixes"][0]["keys"])).max() < 0.9


def test_two_files_without_a_common_place(inlay, base, prompt, saved):
    run = inlay("inspect", base, prompt, saved("k", Prefix(length=2, mlp=None)))
    assert run.code == 0, run.err
    assert "no prompt or prefix at the same place" in run.out


def test_label_words_come_from_the_recipe(inlay, encoder, saved, tmp_path):
    file = saved("p", Prompt(length=2), encoder)
    (tmp_path / "recipe.yaml").write_text(
        f"base: {encoder}\nmethod: Prompt(length=2)\nout: run\n"
        "task: {kind: classify, template: '{text} is {mask}', by: {words: {up: fine, down: dull}}}\n"
        "data: {train: {source: none.jsonl}}\n"
    )
    run = inlay("inspect", encoder, file)
    assert run.code == 0, run.err
    words = run.out.split("Rank of words among all tokens")[1]
    assert re.search(r"^ fine +\d", words, re.M) and re.search(r"^ dull +\d", words, re.M)
    assert "(4 texts, written '{text} is {mask}')" in run.out
    assert "Rank of words" not in inlay("inspect", encoder, file, "--words", "").out


def test_rows_of_data_are_read(inlay, base, prompt, reviews, rows, tmp_path):
    for data, more, texts in ((reviews, (), 12), (rows, ("--limit", "5"), 5)):
        run = inlay("inspect", base, prompt, "--data", data, *more)
        assert f"({texts} texts)" in run.out, run.err
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"label": "a"}\n')
    assert (
        "no column 'text' or 'source' in common"
        in inlay("inspect", base, prompt, "--data", bare).error
    )


def test_virtual_tokens_stand_where_the_template_says(inlay, base, saved, tmp_path):
    good, bad = number(base, "good"), number(base, "bad")
    start = ((good,), (bad,), (good,))
    file = saved("virtual", PTuning(length=3, encoder=None, start=start))
    run = inlay("inspect", base, file, "--text", "cat dog")
    assert run.code == 0, run.err
    assert "(1 text, written '{p} {text} {p*2}')" in run.out
    assert "good is near positions 0, 2" in run.out
    even = 100 * (1 / 2 + 1 / 3) / 2  # of the words cat and dog, after one virtual token
    assert f"{even:.1f}%" in run.out
    run = inlay("inspect", base, file, "--text", "cat dog", "--template", "{p*3} {text} sat")
    assert f"{100 * (3 / 4 + 3 / 5 + 3 / 6) / 3:.1f}%" in run.out
    run = inlay("inspect", base, file, "--template", "{p*4} {text}")
    assert "a text names 4 virtual tokens" in run.error


def test_an_encoder_decoder_has_three_kinds_of_attention(inlay, tmp_path):
    from tests import zoo

    folder = tmp_path / "t5"
    zoo.fresh("t5").save_pretrained(folder)
    tiny.tokenizer("encoder-decoder").save_pretrained(folder)
    file = save(folder, tmp_path / "x.safetensors", Prefix(length=2, mlp=None))
    run = inlay("inspect", folder, file)
    assert run.code == 0, run.err
    for kind in ("the encoder's self-attention", "the decoder's self-attention", "cross-attention"):
        assert f"Attention on the prefix, in {kind} (4 texts)" in run.out


def test_refusals_are_one_line(inlay, base, encoder, prompt, saved):
    lora = saved("lora", LoRA(rank=1))
    message = inlay("inspect", base, lora).error
    assert f"{lora}: LoRA(rank=1) has no prompt or prefix to inspect" in message
    assert f"{lora}: LoRA" in inlay("inspect", base, prompt, lora).error
    assert "made for another base" in inlay("inspect", encoder, prompt).error
    assert (
        "give either --text or --data"
        in inlay("inspect", base, prompt, "--text", "a", "--data", "b").error
    )
    assert "its text is empty" in inlay("inspect", base, prompt, "--text", "").error
    assert "cannot read" in inlay("inspect", base, "none.safetensors").error
    assert "cannot write" in inlay("inspect", base, prompt, "--html", "/dev/null/x.html").error
    shorter = saved("k2", Prefix(length=2, mlp=None)), saved("k3", Prefix(length=3, mlp=None))
    assert "of 2 and of 3 positions" in inlay("inspect", base, *shorter).error
