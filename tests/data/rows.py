"""Rows and files for the tests of this room."""

import json

import pytest

from inlay.data import load
from inlay.errors import DataError

ROWS = [{"text": "good", "label": 1}, {"text": 'bad, "very"\nbad', "label": 0}]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_jsonl(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def refused(source, *needles, **options):
    with pytest.raises(DataError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for needle in needles:
        assert needle in message
    return message
