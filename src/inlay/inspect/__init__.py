"""Looking inside prompts and prefixes: what the vectors are near, and who listens to them.

    handle = inlay.load(model, "legal.safetensors")
    for one in neighbours(handle, k=5):             # tokens near every position of a prompt
        ...
    texts = written(handle, tokenizer, ["The court finds for the defendant."])
    for share in attention(handle, texts):          # attention on prompt and prefix, by head
        ...

Nothing here changes the model or prints.
"""

from inlay.inspect.attention import TEXTS, Share, attention, batches, room, written
from inlay.inspect.compare import (
    Alike,
    Matched,
    compare_prefixes,
    compare_prompts,
    correlation,
    matching,
)
from inlay.inspect.vectors import (
    Cluster,
    Near,
    Neighbours,
    Score,
    check_soft,
    forms,
    keys_of,
    neighbours,
    vectors_of,
)

__all__ = [
    "TEXTS",
    "Alike",
    "Cluster",
    "Matched",
    "Near",
    "Neighbours",
    "Score",
    "Share",
    "attention",
    "batches",
    "check_soft",
    "compare_prefixes",
    "compare_prompts",
    "correlation",
    "forms",
    "keys_of",
    "matching",
    "neighbours",
    "room",
    "vectors_of",
    "written",
]
