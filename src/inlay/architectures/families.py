"""The described families by model type; each file beside this one describes one layout."""

from inlay.architectures import (
    bart,
    bert,
    clip,
    distilbert,
    gpt2,
    llama,
    modernbert,
    neox,
    opt,
    t5,
    vit,
    whisper,
)
from inlay.architectures.layout import Family

FAMILIES: dict[str, Family] = {
    model_type: family
    for module in (
        llama,
        gpt2,
        opt,
        neox,
        bert,
        distilbert,
        modernbert,
        t5,
        bart,
        vit,
        clip,
        whisper,
    )
    for family in module.FAMILIES
    for model_type in family.model_types
}
"""Every described family by its `config.model_type`."""
