"""Writing files and folders so that they are there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
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
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                for part in (data,) if isinstance(data, bytes) else data:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, 0o666 & ~_umask())
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
        _sync_names(path.parent)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}") from None
    return path


def write_folder(path: Path, fill: Callable[[Path], object]) -> Path:
    """Write a folder so that it is there whole or not at all, in place of one of that name.

    fill: writes everything into the folder that it is given, beside the final one.

    Raises FileError where that cannot be written.
    """
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        new = partial / "new"
        new.mkdir()
        fill(new)
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


def _umask() -> int:
    """The process's mask for new files, which `mkstemp` does not go by."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
