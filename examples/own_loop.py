"""A training loop in plain PyTorch: `handle.parameters()` is all there is to train.

A method with a penalty or a schedule also needs `handle.penalty()` added to the loss, and
`handle.after_step(progress)` after each step of the optimiser; `LoRA` has neither.
"""

import torch

import inlay
from inlay import LoRA
from inlay.hub import load_base

model, tokenizer = load_base("smollm2")
handle = inlay.attach(model, LoRA(rank=4), name="poet")
optimizer = torch.optim.AdamW(handle.parameters(), lr=1e-3)

lines = ["Roses are red, violets are bronze.", "The moon is a coin that the river has spent."]
batch = tokenizer(lines, return_tensors="pt", padding=True)
labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)

for step in range(5):
    loss = model(**batch, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.3f}")

print(handle)
handle.detach()
