"""Parameter counts are the papers' formulas, on real sizes (built on the meta device: no memory)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

import inlay
from inlay.architectures.resolve import resolve
from inlay.core.method import Shared


def count(model: Any, spec: inlay.Method) -> int:
    """How many numbers a method adds, without running or copying anything."""
    chart = resolve(model)
    with torch.device("meta"):
        sites = chart.find(spec.at)
        shared = Shared(sites, lambda ids: {})
        pieces = [spec.build(site, shared) for site in sites]
    modules = [piece for piece in pieces if piece is not None]
    modules += list(shared.modules.values())
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


def meta(kind: str) -> Any:
    makers = {
        "bert-base": lambda: hf.BertModel(hf.BertConfig()),
        "bert-large": lambda: hf.BertModel(
            hf.BertConfig(
                hidden_size=1024,
                num_hidden_layers=24,
                num_attention_heads=16,
                intermediate_size=4096,
            )
        ),
        "roberta-mlm": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(vocab_size=50265)),
        "roberta-base": lambda: hf.RobertaModel(hf.RobertaConfig(vocab_size=50265)),
        "gpt2-medium": lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(n_embd=1024, n_layer=24, n_head=16)
        ),
        "t5-base": lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
        ),
        "t0-3b": lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(
                d_model=2048,
                d_kv=64,
                d_ff=5120,
                num_layers=24,
                num_heads=32,
                feed_forward_proj="gated-gelu",
            )
        ),
        "llama": lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(
                hidden_size=576,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                intermediate_size=1536,
                vocab_size=49152,
            )
        ),
    }
    with torch.device("meta"):
        return makers[kind]()


D, L, FF = 768, 12, 3072
SPARSE = L * (4 * 2_952 + 11_811 + 11_800 + 2 * 7) + 7
"""⌊0.005 n⌋ of n = d² + d, 4d² + 4d, 4d² + d and 2d weights in a place of BERT-base."""

LST_T5_BASE = (
    9 * (4 * 96**2 + 96)  # cross-attention and its norm
    + 2 * 10 * (D * 96 + 96)  # from the embeddings and from nine blocks, in both stacks
    + 96 * D
    + D  # to the head
    + 2 * 9
    + 2 * 96  # gates, last norms
)


@pytest.mark.parametrize(
    ("base", "spec", "expected"),
    [
        # card 26: r (d_in + d_out) a matrix
        ("roberta-base", inlay.LoRA(rank=8), 294_912),
        ("gpt2-medium", inlay.LoRA(rank=4), 393_216),
        ("llama", inlay.LoRA(rank=8), 30 * 8 * ((576 + 576) + (576 + 192))),
        # LoHa: 2r (d_in + d_out) a matrix, twice what LoRA has
        ("roberta-base", inlay.LoHa(rank=4), 294_912),
        ("llama", inlay.LoHa(rank=4), 30 * 8 * ((576 + 576) + (576 + 192))),
        # LoKr, 768 = 24 · 32: W₁ is 24 × 24, W₂ 32 × 32 or, where 2r < 32, r (32 + 32)
        ("roberta-base", inlay.LoKr(rank=8), 2 * L * (24 * 24 + 8 * (32 + 32))),
        ("roberta-base", inlay.LoKr(rank=16), 2 * L * (24 * 24 + 32 * 32)),
        # card 28: a1·a2 + b1·b2 a matrix, one more with s_res; T5-base has 36 attentions
        ("t5-base", inlay.KronA(), 72 * (24 * 24 + 32 * 32)),
        ("t5-base", inlay.KronA(factor=16, at="mlp"), 24 * (16 * 16 + 48 * 48)),
        ("bert-base", inlay.KronA(residual=True, at="mlp"), L * (24 * 24 + 32 * 32 + 1)),
        # card 9: 1/r² of the kept blocks, and (K + 2)(d²/r) for what leads in and out: T5-base,
        # without its blocks 0, 4 and 8, has the published 1.74 % of 222.9M
        ("t5-base", inlay.LST(), 9 * 2 * (4 * 96**2 + 2 * 96 * 384 + 2 * 96) + LST_T5_BASE),
        # card 10: the paper's 1.4 % of 109.5M: a share of L matrices, and a cell of width H
        (
            "bert-base",
            inlay.LeTS(),
            L * int(0.035 * D * FF) + 4 * 128 * (D + 128 + 1) + D * 128,
        ),
        # DoRA: LoRA's, and one length an output
        ("roberta-base", inlay.DoRA(rank=8), 294_912 + 2 * L * D),
        # card 19: 2d a LayerNorm, of which BERT-base has 2L + 1; Llama's have no bias
        ("bert-base", inlay.LayerNorm(), 38_400),
        ("llama", inlay.LayerNorm(), (2 * 30 + 1) * 576),
        # card 21: all of k blocks, 12d² + 13d each, and the last norm
        ("gpt2-medium", inlay.TopLayers(layers=2), 2 * (12 * 1024**2 + 13 * 1024) + 2 * 1024),
        ("bert-base", inlay.TopLayers(layers=1), 12 * D**2 + 13 * D),
        # card 20: 4d² an attention and its norm, 28.3M of T5-base's 222.9M = 12.7 %
        ("t5-base", inlay.CrossAttention(), L * (4 * D**2 + D)),
        # Intrinsic: d, of which one for each matrix and bias are scales
        ("bert-base", inlay.Intrinsic(dimensions=1000, at=("attn.q",)), 1_000),
        # VeRA: L (d + r) for L matrices (the paper's formula): 43K for RoBERTa-base on GLUE
        ("roberta-base", inlay.VeRA(rank=1024), 43_008),
        ("roberta-base", inlay.VeRA(rank=256), 24_576),
        ("roberta-base", inlay.VeRA(rank=16), 18_816),
        # the inner method's, and one gate a place
        ("roberta-base", inlay.Gate(inner=inlay.LoRA(rank=8)), 294_912 + 2 * L),
        # card 7: 4L(k + d') + n³, biases 2L(k + d'), norms; ++ halves both: 0.073 % and 0.047 %
        ("t5-base", inlay.Compacter(), 4 * 24 * 792 + 64 + 2 * 24 * 792 + 62 * 768),
        (
            "t5-base",
            inlay.Compacter(at=("mlp", "norm.attn", "norm.cross", "norm.mlp", "norm.final")),
            2 * 24 * 792 + 64 + 24 * 792 + 62 * 768,
        ),
        (
            "t5-base",
            inlay.Compacter(rank=None, share_slow=False, terms=12, at=("attn", "mlp")),
            4 * 24 * (768 * 24 // 12 + 12**3) + 2 * 24 * 792,
        ),
        # card 4: unshared L·M(2dm + d + m), up-shared L[M(dm + m) + dm + d]
        ("bert-base", inlay.AdaMix(share=None), L * 4 * (2 * D * 16 + D + 16)),
        ("bert-base", inlay.AdaMix(), L * (4 * (D * 16 + 16) + D * 16 + D)),
        # card 6: those of the adapter; (L - k) / L of them where only upper layers have one
        ("bert-base", inlay.AdapterDrop(), 894_528),
        (
            "bert-base",
            inlay.Pfeiffer(at=inlay.Where("block", tuple(range(5, 12)))),
            894_528 * 7 // 12,
        ),
        # card 5: L(3d² + 2d), 21.3M of BERT-base; the adapters are frozen
        ("bert-base", inlay.Fusion(), L * (3 * D**2 + 2 * D)),
        # card 27: r(d_in + d_out + 1) a matrix
        ("bert-base", inlay.AdaLoRA(rank=12, at="attn.q"), L * 12 * (2 * D + 1)),
        # card 23: κ of all weights; without scores of each place: 4 d × d, d × 4d, 4d × d, norms
        ("bert-base", inlay.FISH(), SPARSE),
        ("bert-base", inlay.Sparse(), SPARSE),
        ("bert-base", inlay.Sparse(keep=1.0), L * (12 * D**2 + 13 * D) + 2 * D),
        # card 24: w and α for each of 12d² + 13d weights a layer and the norm of the embeddings,
        # and with `structured` one α a tensor
        ("bert-base", inlay.DiffPruning(structured=False), 2 * (L * (12 * D**2 + 13 * D) + 2 * D)),
        ("bert-base", inlay.DiffPruning(), 2 * (L * (12 * D**2 + 13 * D) + 2 * D) + 16 * L + 2),
        # card 22: ρ of the rows of W and of b, of both feed-forward matrices
        ("bert-base", inlay.FAR(learners=0.25), L * (FF // 4 * (D + 1) + D // 4 * (FF + 1))),
        ("llama", inlay.FAR(learners=0.25), 30 * (2 * 384 * 576 + 144 * 1536)),
        # a row of d for each token
        ("bert-base", inlay.Rows(tokens=(1, 2, 3)), 3 * D),
        # card 1: 2L(2md + d + m) + 2d a LayerNorm (BERT-base: 2L + 1 of them)
        (
            "bert-base",
            inlay.Houlsby(bottleneck=64),
            2 * L * (2 * 64 * D + D + 64) + (2 * L + 1) * 2 * D,
        ),
        ("bert-large", inlay.Houlsby(at=("attn", "mlp")), 2 * 24 * (2 * 64 * 1024 + 1024 + 64)),
        # card 2: L(2md + d + m), m = d/16
        ("bert-base", inlay.Pfeiffer(), 894_528),
        # card 3: L(2dr + r + d)
        ("bert-base", inlay.Parallel(bottleneck=16), L * (2 * 16 * D + 16 + D)),
        # card 8: d_k + d_v + d_ff an encoder layer, 2(d_k + d_v) + d_ff a decoder layer
        ("t0-3b", inlay.IA3(), 540_672),
        # card 18: 11dL and the embedding norm (the paper's 11dL + 2d adds the pooler, a head)
        ("bert-base", inlay.BitFit(), 11 * D * L + D),
        ("bert-base", inlay.BitFit(at=("attn.q", "mlp.up")), 5 * D * L),
        ("bert-large", inlay.BitFit(), 272_384 - 1024),
        # card 12: 2·l·L·d stored; d·l + d·k + k + k·2Ld + 2Ld while the MLP is there
        ("gpt2-medium", inlay.Prefix(length=5, mlp=None), 245_760),
        ("gpt2-medium", inlay.Prefix(length=10, mlp=None), 491_520),
        (
            "gpt2-medium",
            inlay.Prefix(length=10, mlp=512),
            10 * 1024 + 1024 * 512 + 512 + 512 * 2 * 24 * 1024 + 2 * 24 * 1024,
        ),
        ("t5-base", inlay.Prefix(length=7, mlp=None), 3 * 2 * 7 * 12 * D),
        ("llama", inlay.Prefix(length=20, mlp=None), 2 * 20 * 30 * 192),
        # card 13: l·d
        ("t5-base", inlay.Prompt(length=100, start="uniform"), 100 * D),
        ("llama", inlay.Prompt(length=20, start="uniform"), 11_520),
        # card 15: stored m·d; LAMA's encoder (two layers in both directions, then an MLP) on top
        ("bert-base", inlay.PTuning(length=9, encoder=None), 9 * D),
        (
            "bert-base",
            inlay.PTuning(length=9, encoder="lstm"),
            9 * D + 2 * 2 * 4 * (D // 2 * D + (D // 2) ** 2 + D) + 2 * (D * D + D),
        ),
        ("bert-base", inlay.PTuning(length=9, encoder="mlp"), 9 * D + 2 * (D * D + D)),
        # card 14: (K + C)·d + C, the "25K" of RoBERTa-large at K = 20, C = 3
        ("roberta-mlm", inlay.WARP(length=20, labels=("a", "b", "c")), 23 * D + 3),
        # card 17: a new task learns d_I numbers
        ("bert-base", inlay.IPT(length=100, code=250), 250),
        # its vectors, and as many numbers as a prefix has
        ("gpt2-medium", inlay.Infix(length=10, mlp=None), 10 * 1024 * (1 + 2 * 24)),
        # card 16: 2·l·L·d, the published 6.29M of RoBERTa-large at l = 128
        ("bert-large", inlay.PTuningV2(length=128), 6_291_456),
        ("bert-base", inlay.Head(labels=("a", "b", "c")), 3 * D + 3),
        # a dense layer and a norm before the output embeddings
        ("roberta-mlm", inlay.BaseHead(), D * D + D + 2 * D),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value),
)
def test_count(base: str, spec: inlay.Method, expected: int) -> None:
    assert count(meta(base), spec) == expected


def test_every_method_is_counted() -> None:
    names = {type(mark[1]).__name__ for mark in test_count.pytestmark[0].args[1]}
    ours = {n: k for n, k in inlay.METHODS.items() if k.__module__.startswith("inlay.")}
    presets = {n for n, kind in ours.items() if issubclass(kind, inlay.Preset)}
    assert names == ours.keys() - presets  # presets are counted in test_presets.py
