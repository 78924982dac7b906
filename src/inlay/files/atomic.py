"""Writing files and folders so that they are there whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from inlay.errors import FileError


def write_whole(path: str | Path, data: bytes | Iterable[bytes | memoryview]) -> Path:
    """Write a file so that it is there whole or not at all, even if the machine stops.

    data: all of it, or part after part.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _beside(path)
        try:
            with partial.open("xb") as file:
                for part in (data,) if isinstance(data, bytes) else data:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_names(path.parent)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}") from None
    return path


def write_folder(path: Path, fill: Callable[[Path], object]) -> Path:
    """Write a folder so that it is there whole or not at all, in place of one of that name.

    fill: writes everything into the folder that it is given, beside the final one. Whoever writes
        there may give files modes of their own (safetensors gives 600); in the end all have those
        that the process's mask gives new files.

    Raises FileError where that cannot be written.
    """
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _beside(path)
        new = partial / "new"
        new.mkdir(parents=True)
        fill(new)
        equalise_modes(new)
        if path.exists():
            os.rename(path, partial / "old")
        os.rename(new, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _sync_names(folder: Path) -> None:
    """Flush the names in a folder, and so a rename, to the disk, where the system can do that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks sync no folders
            raise
    finally:
        os.close(handle)


def equalise_modes(folder: Path) -> None:
    """Give all files of a folder the mode of a file that the process creates there itself."""
    if os.name != "posix":
        return
    probe = _beside(folder / "mode")
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _beside(path: Path) -> Path:
    """A hidden name beside a path that nothing has yet."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")
