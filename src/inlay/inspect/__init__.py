"""Looking inside: the tokens near a prompt, the attention on a prefix, what gates decide.

    handle = inlay.load(model, "legal.safetensors")
    for prompt in neighbours(handle, k=5):          # tokens near every position of a prompt
        ...
    batches = text_batches(handle, tokenizer, ["The court finds for the defendant."])
    for share in attention_shares(handle, batches): # attention on prompt and prefix, by head
        ...
    for reading in readings(handle, batches):       # gates and fusions, by place and text
        ...

Nothing here changes the model or prints.
"""

from inlay.inspect.attention import attention_shares
from inlay.inspect.compare import (
    MatchedPrompts,
    PrefixSimilarity,
    compare_prefixes,
    compare_prompts,
    match_positions,
    share_correlation,
)
from inlay.inspect.nearest import (
    Cluster,
    NearestTokens,
    Neighbours,
    Score,
    neighbours,
    word_forms,
)
from inlay.inspect.readings import (
    PlaceReading,
    readable_parts,
    readings,
    recording,
    require_inspectable,
)
from inlay.inspect.recorder import AttentionShare
from inlay.inspect.texts import TEXTS, max_tokens, text_batches, token_batches
from inlay.inspect.vectors import has_vectors, prefix_keys, prompt_vectors

__all__ = [
    "TEXTS",
    "AttentionShare",
    "Cluster",
    "MatchedPrompts",
    "NearestTokens",
    "Neighbours",
    "PlaceReading",
    "PrefixSimilarity",
    "Score",
    "attention_shares",
    "compare_prefixes",
    "compare_prompts",
    "has_vectors",
    "match_positions",
    "max_tokens",
    "neighbours",
    "prefix_keys",
    "prompt_vectors",
    "readable_parts",
    "readings",
    "recording",
    "require_inspectable",
    "share_correlation",
    "text_batches",
    "token_batches",
    "word_forms",
]
