"""The described families by model type; each file beside this one describes one layout."""

from inlay.architectures import (
    bart,
    bert,
    bloom,
    clip,
    distilbert,
    falcon,
    gemma3n,
    gpt2,
    llama,
    modernbert,
    mpt,
    neox,
    opt,
    t5,
    vit,
    whisper,
)
from inlay.architectures.layout import Family

FILES = (llama, gemma3n, gpt2, opt, neox, falcon, bloom, mpt, bert, distilbert, modernbert, t5,
         bart, vit, clip, whisper)  # fmt: skip

FAMILIES: dict[str, Family] = {
    model_type: family
    for file in FILES
    for family in file.FAMILIES
    for model_type in family.model_types
}
"""Every described family by its `config.model_type`."""
