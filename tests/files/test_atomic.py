"""Files and folders that are there whole or not at all, with the modes that the process asks for."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inlay.errors import FileError
from inlay.files.atomic import write_folder, write_whole
from inlay.hub import convert

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes are those of Unix")


@pytest.fixture(params=[0o022, 0o002, 0o077])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


def test_a_file_has_the_mode_of_any_other(tmp_path: Path, mask: int) -> None:
    write_whole(tmp_path / "one", b"whole")
    (tmp_path / "plain").write_text("plain")
    assert modes(tmp_path) == {0o666 & ~mask}


def test_all_files_of_a_folder_have_one_mode(tmp_path: Path, mask: int) -> None:
    """safetensors gives its files the mode 600."""

    def fill(folder: Path) -> None:
        save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
        (folder / "inner").mkdir()
        (folder / "inner" / "config.json").write_text("{}")
        (folder / "inner" / "config.json").chmod(0o600)

    write_folder(tmp_path / "out", fill)
    assert modes(tmp_path / "out") == {0o666 & ~mask}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["inner", "model.safetensors"]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~mask


def test_the_weights_of_a_bundled_model_have_the_mode_of_their_neighbours(
    tmp_path: Path, mask: int
) -> None:
    convert._save_weights({"a": torch.zeros(2)}, tmp_path)
    assert modes(tmp_path) == {0o666 & ~mask}


def test_the_mask_of_the_process_is_left_alone(tmp_path: Path, monkeypatch: object) -> None:
    """It belongs to all threads: a moment without it is a moment of public files elsewhere."""
    before = os.umask(0o027)
    seen: set[int] = set()
    done = threading.Event()

    def other() -> None:
        number = 0
        while not done.is_set():
            path = tmp_path / f"other-{number % 8}"
            path.unlink(missing_ok=True)
            path.touch()
            seen.add(stat.S_IMODE(path.stat().st_mode))
            number += 1

    thread = threading.Thread(target=other)
    thread.start()
    try:
        for _ in range(200):
            write_whole(tmp_path / "one", b"whole")
            write_folder(tmp_path / "out", lambda folder: (folder / "a").touch())
    finally:
        done.set()
        thread.join()
        os.umask(before)
    assert seen == {0o640}


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "one", b"before")

    def parts() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "one", parts())
    assert (tmp_path / "one").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    with pytest.raises(FileError, match="cannot write"):
        write_whole("/dev/null/one", b"")
