"""The charted families: what is where, as data, one file a layout."""

from inlay.architectures import bart, bert, distilbert, gpt2, llama, modernbert, neox, opt, t5, vit
from inlay.architectures.layout import Family

FAMILIES: dict[str, Family] = {
    name: family
    for module in (llama, gpt2, opt, neox, bert, distilbert, modernbert, t5, bart, vit)
    for family in module.CHARTS
    for name in family.types
}
"""Every charted family by its `config.model_type`."""
