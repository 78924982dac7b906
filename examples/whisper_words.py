"""Teach a speech recogniser new words with `transformers.Trainer`: a tiny, random Whisper.

LoRA goes into both stacks: `audio` listens, `decoder` writes. With a real base only the first lines
change: `WhisperForConditionalGeneration.from_pretrained("openai/whisper-tiny")`, and a processor
that makes `input_features` of your recordings and `labels` of what is said in them.
"""

import tempfile

import torch
from transformers import Trainer, TrainingArguments, WhisperConfig, WhisperForConditionalGeneration

import inlay
from inlay import InlayCallback, LoRA

torch.manual_seed(0)
model = WhisperForConditionalGeneration(
    WhisperConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=16,
        max_source_positions=20,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.3,  # so that random numbers have something to say
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
)
words = inlay.attach(model, LoRA(rank=8, at=("attn.q", "attn.k", "attn.v", "mlp.up")), name="words")

# Four recordings (two seconds of noise each) and what is said in them.
recordings = [
    {"input_features": torch.randn(16, 40), "labels": torch.tensor([5 + n, 15 + n, 25 + n, 2])}
    for n in range(4)
]

with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            folder, max_steps=30, per_device_train_batch_size=4, learning_rate=2e-2,
            report_to=[], save_strategy="no", logging_steps=10, use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=recordings,
        callbacks=[InlayCallback(words)],
    )  # fmt: skip
    trainer.train()
    path = words.save(f"{folder}/words.safetensors")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    words.detach()
    words = inlay.load(model, path)

print(words)
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
