"""The page on writing a method is right: its file is imported and its method passes the laws."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import inlay
from inlay.testing import check_method

PAGE = Path(__file__).parents[1] / "docs" / "writing_a_method.md"


def test_the_method_of_the_page_passes_the_laws(tmp_path, monkeypatch):
    file, test = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (tmp_path / "page_method.py").write_text(file, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        method = importlib.import_module("page_method").Diagonal
        assert inlay.parse("Diagonal()") == method()
        check_method(method, families=["llama", "gpt2", "t5"])
        assert "from inlay.testing import FAMILIES, check_method" in test
    finally:
        inlay.METHODS.pop("Diagonal", None)
        sys.modules.pop("page_method", None)
