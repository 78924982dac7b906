"""Teach a model that sees to name colours with `transformers.Trainer`: a tiny, random LLaVA.

Its places are those of two stacks: `vision` looks at the picture, `decoder` reads and writes. The
adapters go into both; the prefix goes where there is text. With a real base only the first lines
change: `LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")`, and a processor
that makes `pixel_values` and `input_ids` of your pictures and questions.
"""

import tempfile

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

import inlay
from inlay import Houlsby, InlayCallback, Prefix

IMAGE = 59  # the token that a picture's patches are put at

torch.manual_seed(0)
vision = CLIPVisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    image_size=16, patch_size=8, initializer_range=0.3,
)  # fmt: skip
text = LlamaConfig(
    vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
    initializer_range=0.3,  # so that random numbers have something to say
)  # fmt: skip
model = LlavaForConditionalGeneration(
    LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=4)
)
colours = inlay.attach(model, Houlsby(bottleneck=8) + Prefix(length=4, mlp=None), name="colours")

# A picture in one colour each, and its name behind the four patches: "<image> what colour? blue".
pictures = []
for colour in range(3):
    pixels = torch.zeros(3, 16, 16)
    pixels[colour] = 1
    ids = torch.tensor([1, *[IMAGE] * 4, 7, 8, 20 + colour])
    labels = torch.where(torch.arange(len(ids)) == len(ids) - 1, ids, -100)
    pictures.append({"pixel_values": pixels, "input_ids": ids, "labels": labels})

with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            folder, max_steps=40, per_device_train_batch_size=3, learning_rate=2e-2,
            report_to=[], save_strategy="no", logging_steps=10, use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=pictures,
        callbacks=[InlayCallback(colours)],
    )  # fmt: skip
    trainer.train()
    path = colours.save(f"{folder}/colours.safetensors")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    colours.detach()
    colours = inlay.load(model, path)

print(colours)
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
