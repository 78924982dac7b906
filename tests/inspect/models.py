"""Models and batches for the tests of this room."""

import torch
import transformers as hf

from tests import zoo

START = ((5,), (17,), (40,))


def fresh(family):
    if family != "bart-scaled":
        return zoo.fresh(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = hf.BartConfig(**zoo.SEQ2SEQ, scale_embedding=True)
        return hf.BartForConditionalGeneration(config).eval()


def batch(model, *lengths):
    """Rows of random tokens, padded on the right."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(8, 99, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs |= {"decoder_input_ids": ids.flip(0) * mask, "decoder_attention_mask": mask}
    return inputs
