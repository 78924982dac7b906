"""Fetching pinned packages with pip: here out of a folder, never out of the network."""

import hashlib
import importlib.util
import json
import os
import zipfile

import pytest

from inlay.errors import FetchError
from inlay.hub import packages
from inlay.hub.packages import Package, cache_folder, fetch_and_build

NAME = "tiny_words-1.0-py3-none-any.whl"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A wheel of one file, in the only place that pip may look."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    info = "tiny_words-1.0.dist-info"
    members = {
        "words.txt": "good bad\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny-words\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(shelf / NAME, "w") as wheel:
        for member, text in members.items():
            wheel.writestr(member, text)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256((shelf / NAME).read_bytes()).hexdigest()
    return Package("tiny-words", "1.0", NAME, digest, 1)


def build(wheel, out):
    with zipfile.ZipFile(wheel) as archive:
        (out / "inner").mkdir()
        (out / "inner" / "words.txt").write_bytes(archive.read("words.txt"))


def never(*_):
    raise AssertionError("a whole folder was built again")


def left_over(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_folder_is_built_once(package, tmp_path):
    reports = []
    folder = fetch_and_build("data/words", package, build, {}, reports.append)
    assert folder == tmp_path / "cache" / "data" / "words"
    assert (folder / "inner" / "words.txt").read_text() == "good bad\n"
    assert left_over(folder.parent) == ["words"]
    steps = dict.fromkeys(line.split()[0] for line in reports)  # a slow download reports again
    assert list(steps) == ["downloading", "building", "data/words"]
    assert fetch_and_build("data/words", package, never, {"no_such_module": ""}, never) == folder


def test_a_folder_that_is_not_whole_is_built_again(package):
    folder = fetch_and_build("words", package, build, {}, str)
    (folder / "inner" / "words.txt").write_text("go")
    fetch_and_build("words", package, build, {}, str)
    assert (folder / "inner" / "words.txt").read_text() == "good bad\n"
    record = json.loads((folder / "source.json").read_text())
    assert record["package"] == "tiny-words==1.0"


def test_a_build_that_fails_leaves_nothing(package, tmp_path):
    def fail(wheel, out):
        (out / "half").write_text("x")
        raise FetchError("the archive holds nothing")

    with pytest.raises(FetchError, match="holds nothing"):
        fetch_and_build("words", package, fail, {}, str)
    assert left_over(tmp_path / "cache") == []


def test_a_wrong_hash_is_found_before_anything_is_opened(package, tmp_path):
    other = Package("tiny-words", "1.0", NAME, "0" * 64, 1)
    with pytest.raises(FetchError, match="sha256"):
        fetch_and_build("words", other, never, {}, str)
    assert left_over(tmp_path / "cache") == []


def test_a_package_that_is_not_to_be_had(package):
    missing = Package("tiny-words", "2.0", NAME, package.sha256, 1)
    with pytest.raises(FetchError, match=r"tiny-words==2\.0: "):
        fetch_and_build("words", missing, never, {}, str)


def test_a_file_of_another_name(package):
    renamed = Package("tiny-words", "1.0", "words-1.0.whl", package.sha256, 1)
    with pytest.raises(FetchError, match=r"words-1\.0\.whl"):
        fetch_and_build("words", renamed, never, {}, str)


def test_a_missing_module_is_named_before_the_download(package):
    with pytest.raises(FetchError, match="no_such_module.*: pip install x"):
        fetch_and_build("words", package, never, {"no_such_module": "pip install x"}, never)


def test_pip_itself_missing(package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        packages.importlib.util, "find_spec", lambda name: None if name == "pip" else find(name)
    )
    with pytest.raises(FetchError, match="-m ensurepip"):
        fetch_and_build("words", package, never, {}, str)


def test_a_cache_that_cannot_be_written(package, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="INLAY_CACHE"):
        fetch_and_build("words", package, build, {}, str)


def test_the_cache_lies_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("INLAY_CACHE", raising=False)
    monkeypatch.setattr(packages.Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "inlay"


def test_long_waits_are_reported(package, monkeypatch):
    monkeypatch.setattr(packages, "REPORT_INTERVAL", 0.01)
    reports = []
    fetch_and_build("words", package, build, {}, reports.append)
    assert any(line.startswith("downloading tiny-words==1.0 (1 MB), ") for line in reports)
