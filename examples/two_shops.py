"""One batch whose rows are served by a LoRA, by a prompt, and by the bare base."""

import torch

import inlay
from inlay import LoRA, Prompt
from inlay.hub import load_base

model, tokenizer = load_base("smollm2")
for name, method in {"north": LoRA(rank=4), "south": Prompt(length=8)}.items():
    handle = inlay.attach(model, method, name=name)
    with torch.no_grad():  # as if trained: every parameter a little off its starting value
        for parameter in handle.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)

texts = tokenizer(["A good morning begins with"] * 3, return_tensors="pt")
with inlay.rows(model, ["north", "south", None]):
    tokens = model.generate(**texts, max_new_tokens=8, do_sample=False)
for name, text in zip(("north", "south", "base"), tokenizer.batch_decode(tokens), strict=True):
    print(f"{name}: {text}")
