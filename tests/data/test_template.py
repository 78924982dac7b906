"""Templates hold plain column names and virtual tokens, and nothing that is executed."""

import pytest

from inlay.data.template import Template
from inlay.errors import DataError
from tests.data.rows import refused


@pytest.mark.parametrize(
    "text", ["{}", "{text!r}", "{text:>9}", "{text", "text}", "{text:{width}}"]
)
def test_a_template_holds_plain_names_only(text):
    with pytest.raises(DataError, match="template"):
        Template(text)


def test_a_template_reaches_into_nothing():
    assert Template("{text.__class__}").names == ("text.__class__",)
    refused([{"text": "a"}], "no column 'text.__class__'", template="{text.__class__}")
    refused([{"text": "a"}], "no column 'text[0]'", template="{text[0]}")
