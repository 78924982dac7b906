"""The claim of `pet`, on six kinds of questions (TREC)."""

from __future__ import annotations

from dataclasses import replace

from bench.claims.papers import pet

CLAIM = replace(
    pet.CLAIM,
    name="pet_trec",
    sentence="With few labels, patterns and unlabelled text do better than a classifier on labels "
    "(TREC).",
    settings={
        **pet.SETTINGS,
        "set": "trec",
        "patterns": (
            "{text} This question asks for a {mask}",
            "Question: {text}\nThe answer is a {mask}",
            "{text} To answer it, name a {mask}",
        ),
        "verbalizer": {
            "ABBR": (" short", " full"),
            "DESC": (" description", " reason"),
            "ENTY": " thing",
            "HUM": " person",
            "LOC": " place",
            "NUM": " number",
        },
    },
    data=("trec",),
    tried=(
        "nothing else: rates and steps are those of `pet`, in which a pattern reads 80 rows, so "
        "more labels than that cannot help it",
    ),
)
