"""Gemma 3n: blocks that hand on several streams, and embeddings of their own for every token."""

from dataclasses import replace

from inlay.architectures.layout import Family
from inlay.architectures.llama import GEMMA2, capped_logits

GEMMA3N = replace(GEMMA2, streams=True)

FAMILIES = (Family(("gemma3n_text",), (GEMMA3N,), logits=capped_logits),)
