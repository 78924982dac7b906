"""The sentiment data inside the vaderSentiment package, turned into data files."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import IO, Any

from inlay.errors import FetchError

ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"

DOMAINS = {  # our name -> (the file's name, how many rows it has)
    "movie": ("movieReviewSnippets", 10_605),
    "amazon": ("amazonReviewSnippets", 3_708),
    "tweets": ("tweets", 4_200),
    "nyt": ("nytEditorialSnippets", 5_190),
}

NEUTRAL = 0.5
"""Sentences whose mean rating is nearer to zero than this are left out."""


def build_sentiment(sdist: Path, out: Path) -> None:
    """Sentences with a mean human rating from -4 to 4 -> labelled train, dev and test files.

    From 0.5 up a sentence is positive, from -0.5 down negative, and left out between. The hash
    of a text decides its split (80/10/10) and its place in the file, so that equal texts are in
    the same split and the first rows of a file are a fair sample (the source lists one class
    after the other).

    sdist: the source package. out: an empty folder, which is filled.

    Raises FetchError where the package does not hold the expected rows.
    """
    with tarfile.open(sdist) as outer:
        archive = _member(outer, ARCHIVE).read()
    with tarfile.open(fileobj=io.BytesIO(archive)) as inner:
        for domain, (name, count) in DOMAINS.items():
            text = _member(inner, f"hutto_ICWSM_2014/{name}_GroundTruth.txt").read()
            # Only "\n" ends a row: some texts hold other line breaks of Unicode.
            lines = [line for line in text.decode("latin-1").split("\n") if line.strip()]
            if len(lines) != count:
                raise FetchError(
                    f"{name} in {sdist.name} holds {len(lines)} rows, expected {count}; "
                    "try another package index"
                )
            _write_domain(lines, out / domain)


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise FetchError(f"the package does not hold {name}; try another package index")
    return file


def _write_domain(lines: list[str], folder: Path) -> None:
    """Write the files of one domain from lines of `id, mean rating, text`, separated by tabs."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for line in lines:
        _, rating, text = line.rstrip("\r").split("\t", 2)
        text, mean = text.strip(), float(rating)
        if abs(mean) >= NEUTRAL:
            label = "positive" if mean > 0 else "negative"
            row = {"text": text, "rating": round(mean, 4), "label": label}
            rows.append((hashlib.sha256(text.encode()).hexdigest(), row))
    rows.sort(key=lambda pair: (pair[0], pair[1]["rating"]))
    splits: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for digest, row in rows:
        tenth = int(digest[:8], 16) % 10
        split = "train" if tenth < 8 else "dev" if tenth == 8 else "test"
        splits[split].append(json.dumps(row) + "\n")
    folder.mkdir()
    for split, split_lines in splits.items():
        path = folder / f"{split}.jsonl"
        path.write_text("".join(split_lines), encoding="utf-8", newline="\n")
