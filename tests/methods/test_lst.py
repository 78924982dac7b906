"""LST: the recursion by hand, no gradient in the base, memory, narrow copies, two stacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import inlay
from bench.live import live
from inlay.blocks.pruning import Pruner, fisher, squared_weights
from inlay.blocks.side_block import (
    AttentionShape,
    BlockShape,
    SideBlock,
    Sight,
)
from inlay.core.context import PassContext
from inlay.core.method import Spec
from inlay.errors import PortError, RowsError, SiteError, SpecError
from inlay.laws.case import perturb
from inlay.laws.compare import model_output, relative_error, weighted_sum
from inlay.methods.lst import Ladder
from inlay.runtime.trained_heads import head_inputs
from inlay.training import fit, prepare
from tests import zoo
from tests.methods.exact import batch, run
from tests.training import tiny

RANDOM = inlay.LST(reduction=2, start="random")
TEXT = ("llama", "gpt2", "bert", "t5", "bart")


def attached(family: str, spec: inlay.LST = RANDOM, seed: int = 0) -> tuple[Any, Any]:
    """A new tiny model with LST, its parameters away from where they start."""
    model = zoo.fresh(family)
    torch.manual_seed(seed)
    handle = inlay.attach(model, spec)
    perturb(handle)
    return model, handle


def ladder(spec: inlay.LST = RANDOM, causal: bool = True) -> Ladder:
    """The side blocks of a base 32 wide, of which blocks 1 and 2 have one."""
    attention = AttentionShape(heads=4, kv_heads=2, head_dim=4, source=16)
    shape = BlockShape(16, attention, None, inner=24, gated=True)
    torch.manual_seed(0)
    return Ladder(spec, 32, {1: shape, 2: shape}, causal)


class AsItIs(nn.Module):
    """Stands for a block that changes nothing."""

    def forward(self, x: Tensor, *arguments: Any) -> Tensor:
        return x


# --- the recursion ---------------------------------------------------------------------------


def test_states_are_mixed_by_gates() -> None:
    """g₀ = W₀ h₀, gᵢ = μᵢ gᵢ₋₁ + (1 - μᵢ) Wᵢ hᵢ with μ = σ(α / 0.1), and the norm of the last."""
    network = ladder()
    network.blocks = nn.ModuleList([AsItIs(), AsItIs()])
    network.gates.data = torch.tensor([0.05, -0.2])
    states = tuple(torch.randn(2, 5, 32) for _ in range(4))
    first, *downs = [p.weight.detach() for p in (network.first, *network.downs)]
    g = states[0] @ first.T
    for gate, down, h in zip((0.5, -2.0), downs, states[2:], strict=True):
        share = torch.tensor(gate).sigmoid()
        g = share * g + (1 - share) * h @ down.T
    expected = g / (g.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(network(states, None, PassContext(), network), expected)


def test_gates_start_half_open() -> None:
    assert not any(
        p.ladder.gates.any() for _, _, p in zoo.pieces(inlay.attach(zoo.fresh("t5"), RANDOM))
    )


def test_a_shut_gate_lets_only_the_base_through() -> None:
    """α → -∞: what comes out depends on the states after the last side block alone."""
    network = ladder()
    network.gates.data.fill_(-1e3)
    states = [torch.randn(2, 5, 32) for _ in range(4)]
    others = [torch.randn(2, 5, 32) for _ in range(3)] + states[3:]
    results = [network(tuple(s), None, PassContext(), network) for s in (states, others)]
    assert torch.equal(*results)
    network.gates.data.fill_(1e3)  # the side network alone, from the embeddings
    others = [states[0]] + [torch.randn(2, 5, 32) for _ in range(3)]
    results = [network(tuple(s), None, PassContext(), network) for s in (states, others)]
    assert torch.equal(*results)


def test_the_last_gate_mixes_with_the_base() -> None:
    """merge_last: μ (W_out g) + (1 - μ) h; shut, the model is the base."""
    inputs = batch("llama")
    base = run(zoo.model("llama"), inputs)
    model, handle = attached("llama", inlay.LST(reduction=2, start="random", merge_last=True))
    (piece,) = (piece for _, _, piece in zoo.pieces(handle))
    assert relative_error(run(model, inputs), base) > 0.1
    piece.last_gate.data.fill_(-1e3)
    assert torch.equal(run(model, inputs), base)


# --- the side block --------------------------------------------------------------------------


def side_block(**changes: Any) -> SideBlock:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "width": 16,
        "attention": AttentionShape(heads=4, kv_heads=2, head_dim=5, source=16),
        "cross": None,
        "inner": 24,
        "gated": True,
    }
    return SideBlock(BlockShape(**(shape | changes)), "gelu")


def test_a_position_sees_those_before_it() -> None:
    block, x = side_block(), torch.randn(1, 6, 16)
    for causal in (True, False):
        sight = Sight(PassContext(), causal, 6)
        changed = x.clone()
        changed[:, 4] += 1
        same = block(x, None, sight, block, 0) == block(changed, None, sight, block, 0)
        assert bool(same[:, :4].all()) == causal


@pytest.mark.parametrize("causal", [True, False])
def test_padding_is_not_seen_and_moves_nothing(causal: bool) -> None:
    """A row is the same alone, after padding, and before it: positions count from the text."""
    block, x, other = side_block(), torch.randn(1, 4, 16), torch.randn(1, 3, 16)
    alone = block(x, None, Sight(PassContext(), causal, 4), block, 0)
    for padded, text in (((other, x), slice(3, 7)), ((x, other), slice(0, 4))):
        mask = torch.zeros(1, 7)
        mask[:, text] = 1
        sight = Sight(PassContext(mask=mask), causal, 7)
        torch.testing.assert_close(
            block(torch.cat(padded, 1), None, sight, block, 0)[:, text], alone
        )


def test_attention_knows_how_far_positions_are_apart() -> None:
    """Without positions, the last position would see equal vectors before it in any order."""
    block = side_block()
    x = torch.randn(1, 5, 16)
    swapped = x[:, [1, 0, 2, 3, 4]]
    a, b = (block(v, None, Sight(PassContext(), True, 5), block, 0)[:, -1] for v in (x, swapped))
    assert relative_error(a, b) > 1e-4


def test_cross_attention_leaves_padding_out() -> None:
    cross = AttentionShape(heads=2, kv_heads=2, head_dim=3, source=7)
    block, x = side_block(cross=cross), torch.randn(1, 3, 16)
    source, mask = torch.randn(1, 5, 7), torch.tensor([[1, 1, 1, 0, 0]])
    sight = Sight(PassContext(source_mask=mask), True, 3)
    alone = block(x, source[:, :3], Sight(PassContext(), True, 3), block, 0)
    torch.testing.assert_close(block(x, source, sight, block, 0), alone)


# --- the base --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TEXT)
def test_no_graph_and_no_gradient_in_the_base(family: str) -> None:
    """States are the base's, bit for bit; none has a graph; of the base no gradient exists."""
    bare = zoo.fresh(family)
    inputs = batch(family)
    bare_states: list[Tensor] = []
    record(bare, bare_states)
    run(bare, inputs)
    model, handle = attached(family)
    states: list[Tensor] = []
    record(model, states)
    weighted_sum(model_output(model, inputs)).backward()
    assert len(states) == len(bare_states) > 0
    for state, expected in zip(states, bare_states, strict=True):
        assert not state.requires_grad
        assert torch.equal(state, expected)
    trained = {id(p) for p in handle.parameters()}
    assert all(p.grad is not None for p in handle.parameters())
    others = [p for p in model.parameters() if id(p) not in trained]
    assert not any(p.requires_grad or p.grad is not None for p in others)


def record(model: Any, states: list[Tensor]) -> None:
    """Keep what all blocks compute."""
    for site in inlay.attach(model, RANDOM, name="sites").chart.sites:
        if site.role == "block":
            site.host.register_forward_hook(
                lambda module, args, output: states.append(first(output))
            )
    inlay.attached(model)["sites"].detach()


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def test_live_tensors_of_a_step_beside_those_of_lora() -> None:
    """At most 0.45 of what a LoRA step keeps alive, logits included in both."""
    sizes = zoo.GQA | {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 8,
        "max_position_embeddings": 256,
    }
    ids = torch.randint(8, 99, (4, 128))
    peaks = {}
    for spec in (inlay.LoRA(rank=8), inlay.LST(start="random")):
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes))
        handle = inlay.attach(model, spec)
        model.train()
        optimizer = torch.optim.AdamW(handle.parameters())

        def step(model: Any = model, optimizer: Any = optimizer) -> float:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return float(loss.detach())

        step()
        peaks[type(spec).__name__] = live(step)
    assert peaks["LST"] <= 0.45 * peaks["LoRA"], peaks


# --- two stacks ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_decoder_attends_to_the_side_encoder(family: str) -> None:
    """Its states travel behind the base's; the base's own decoder never sees them."""
    model, handle = attached(family)
    inputs = batch(family)
    encoder = model.get_encoder()
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    states = encoder(**text).last_hidden_state
    assert states.shape == (2, 7, 32 + 16)
    torch.testing.assert_close(states[..., :32], zoo.model(family).get_encoder()(**text)[0])
    rest = {name: t for name, t in inputs.items() if name != "input_ids"}
    logits = model(**rest, encoder_outputs=(states,)).logits
    torch.testing.assert_close(logits, model(**inputs).logits)
    changed = states.detach().clone()
    changed[..., 32:] += 1
    assert relative_error(model(**rest, encoder_outputs=(changed,)).logits, logits) > 1e-3
    with inlay.rows(model, [None]):
        torch.testing.assert_close(
            model(**rest, encoder_outputs=(changed,)).logits, zoo.model(family)(**inputs).logits
        )
    with pytest.raises(RowsError, match="without the side network of these rows"):
        model(**rest, encoder_outputs=(states[..., :32],))
    handle.detach()


def test_side_encoders_of_several_widths_in_one_batch() -> None:
    """Rows with wide, narrow and no side network, and with LoRA: each as alone, gradients too."""
    model = zoo.fresh("t5")
    specs = {"wide": RANDOM, "narrow": inlay.LST(reduction=4, start="random"), "lora": inlay.LoRA()}
    handles = []
    for name, spec in specs.items():
        handles.append(inlay.attach(model, spec, name=name))
        perturb(handles[-1])
    names = ["narrow", "lora", None, "wide"]
    inputs = batch("t5", count=4)

    def gradients() -> list[Tensor]:
        values = [p.grad.clone() for handle in handles for p in handle.parameters()]
        model.zero_grad()
        return values

    with inlay.rows(model, names):
        together = model_output(model, inputs)
        together.square().sum().backward()
    gradients_together = gradients()
    alone = []
    for number, name in enumerate(names):
        row = {key: tensor[number : number + 1] for key, tensor in inputs.items()}
        with inlay.rows(model, [name]):
            alone.append(model_output(model, row))
    assert relative_error(together, torch.cat(alone)) < 1e-5
    torch.cat(alone).square().sum().backward()
    expected_gradients = gradients()
    for gradient, expected in zip(gradients_together, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


def test_a_head_on_an_encoder_that_a_decoder_reads_is_refused() -> None:
    model = zoo.fresh("t5")
    handle = inlay.attach(model, RANDOM + inlay.Head(labels=("a", "b")))
    inputs = batch("t5")
    del inputs["decoder_input_ids"]
    with pytest.raises(PortError, match="a trained head reads the encoder"):
        head_inputs(model, handle.chart, **inputs)


def test_heads_learn_above_a_side_network() -> None:
    model = zoo.fresh("bert")
    spec = RANDOM + inlay.BaseHead() + inlay.Head(labels=("a", "b"))
    handle = inlay.attach(model, spec)
    perturb(handle)
    weighted_sum(model_output(model, batch("bert"))).backward()
    for placed in handle.placed:
        learns = all(p.grad is not None for p in placed.piece.parameters())
        assert learns == (placed.index < 2), placed.name  # no task reads the trained head here


def test_a_head_on_an_encoder_alone_reads_the_side_network() -> None:
    config = hf.T5Config(**zoo.T5)
    model = hf.T5EncoderModel(config).eval()
    handle = inlay.attach(model, RANDOM)
    ids = torch.randint(8, 99, (2, 5))
    assert model(input_ids=ids).last_hidden_state.shape == (2, 5, 32)
    assert [site.role for _, site, _ in zoo.pieces(handle)] == ["final"]


# --- starting values -------------------------------------------------------------------------


def test_side_blocks_start_as_the_largest_rows_and_columns() -> None:
    """Of every head the dimensions with the largest weights; the same columns of all readers."""
    model = zoo.fresh("llama")
    block = model.model.layers[1]
    attention, mlp = block.self_attn, block.mlp
    with torch.no_grad():
        attention.k_proj.weight[[1, 10]] *= 50  # two heads for keys, four for queries, 8 wide
        attention.o_proj.weight[:, [4, 12, 19, 27]] *= 50  # of each, as v's 4 and 11
        mlp.down_proj.weight[:, 40] *= 50
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[:, 5] *= 50
    handle = inlay.attach(model, inlay.LST(reduction=8, layers=(1,), start="magnitude"))
    (piece,) = (piece for _, _, piece in zoo.pieces(handle))
    side = piece.ladder.blocks[0]
    queries, values = [1, 9, 18, 26], [4, 12, 19, 27]
    stream = columns_of(side.attention.q.weight, attention.q_proj.weight[queries])
    assert len(stream) == 4 and 5 in stream and stream == sorted(stream)
    inner = columns_of(side.down.weight, mlp.down_proj.weight[stream])
    assert len(inner) == 6 and 40 in inner and inner == sorted(inner)
    for ours, theirs, rows, columns in (
        (side.attention.k, attention.k_proj, [1, 10], stream),
        (side.attention.v, attention.v_proj, [4, 11], stream),
        (side.attention.o, attention.o_proj, stream, values),
        (side.gate, mlp.gate_proj, inner, stream),
        (side.up, mlp.up_proj, inner, stream),
    ):
        assert torch.equal(ours.weight, theirs.weight[rows][:, columns])
    for ours, theirs in (
        (side.norm_attention, block.input_layernorm),
        (side.norm_mlp, block.post_attention_layernorm),
    ):
        torch.testing.assert_close(ours.gain.data, theirs.weight[stream])


def test_cross_attention_starts_with_the_dimensions_of_its_own_encoder() -> None:
    model = zoo.fresh("t5")
    with torch.no_grad():
        for block in model.decoder.block:
            block.layer[1].EncDecAttention.k.weight[:, [3, 7, 11, 15]] *= 50  # reads the encoder
            block.layer[2].DenseReluDense.wi.weight[:, [0, 1, 2, 30]] *= 50
    handle = inlay.attach(model, inlay.LST(reduction=8, start="magnitude"))
    side = {site.role: piece.ladder.blocks[0] for _, site, piece in zoo.pieces(handle)}
    encoder, decoder = model.encoder.block[1], model.decoder.block[1]
    wide = decoder.layer[1].EncDecAttention
    for projection, matrix, expected in (
        (side["final"].attention.q, encoder.layer[0].SelfAttention.q, [3, 7, 11, 15]),
        (side["final.target"].attention.q, decoder.layer[0].SelfAttention.q, [0, 1, 2, 30]),
        (side["final.target"].cross.q, wide.q, [0, 1, 2, 30]),
        (side["final.target"].cross.k, wide.k, [3, 7, 11, 15]),
    ):
        assert rows_inside(projection.weight, matrix.weight[:, expected])


def rows_inside(narrow: Tensor, wide: Tensor) -> bool:
    """Whether all rows of one matrix are rows of another."""
    return bool((narrow[:, None] == wide[None]).all(-1).any(1).all())


def test_fisher_scores_are_sums_of_squared_gradients() -> None:
    """Of each batch's loss; of a fused matrix those of its own part; no more than `batches`."""
    model = zoo.fresh("gpt2")
    handle = inlay.attach(model, RANDOM)
    sites = [s for s in handle.chart.sites if s.layer is not None]
    handle.detach()
    calls = [
        lambda n=n: weighted_sum(model_output(model, batch("gpt2", count=n))) for n in (1, 2, 3)
    ]
    model.requires_grad_(False)
    scores = fisher(sites, calls, 2)
    weight = model.transformer.h[1].attn.c_attn.weight  # [d_in, 3 d_out]
    expected = torch.zeros_like(weight)
    for call in calls[:2]:
        weight.grad = None
        call().backward()
        expected += weight.grad.square()
    keys = expected[:, 32:64].T
    torch.testing.assert_close(scores["decoder.1.attn.k/rows"], keys.sum(1))
    torch.testing.assert_close(scores["decoder.1.attn.k/columns"], keys.sum(0))
    assert len(scores) == 2 * 3 * 6  # three blocks: q, k, v, o, up, down


def test_every_matrix_has_the_same_say() -> None:
    """Scores a thousand times as large in one matrix do not outvote the others."""
    model = zoo.fresh("llama")
    handle = inlay.attach(model, RANDOM)
    sites = [site for site in handle.chart.sites if site.layer is not None]
    scores = squared_weights(sites)
    stream = Pruner(scores, sites).stream("decoder", 32, 8)
    scores["decoder.0.mlp.up/columns"] *= 1000
    assert torch.equal(Pruner(scores, sites).stream("decoder", 32, 8), stream)


def test_a_quantised_base_has_no_fisher_information() -> None:
    model = zoo.fresh("gpt2")
    handle = inlay.attach(model, RANDOM)
    sites = [site for site in handle.chart.sites if site.layer is not None]
    mlp = model.transformer.h[0].mlp.c_fc
    mlp.weight = nn.Parameter(mlp.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(SpecError, match="a quantised base has no gradients"):
        fisher(sites, [], 1)


# --- what cannot be --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "spec", "error", "message"),
    [
        ("llama", inlay.LST(start="random", layers=(3,)), SpecError, "no block 3 in the decoder"),
        ("mamba2", RANDOM, PortError, "keeps keys and values of earlier positions"),
        ("gemma3n", RANDOM, SiteError, "this model has no 'block'"),
        ("llama", inlay.LST(), SpecError, "prepare"),
        ("bert", RANDOM + inlay.LoRA(), PortError, "LoRA at encoder.0.attn.q would never learn"),
        ("t5", inlay.Prompt(length=2) + RANDOM, PortError, "Prompt at embed would never learn"),
    ],
)
def test_refusals(family: str, spec: Spec, error: type[Exception], message: str) -> None:
    model = zoo.fresh(family)
    with pytest.raises(error, match=message):
        inlay.attach(model, spec)
    assert not inlay.attached(model)


@pytest.mark.parametrize("fields", [{"start": "best"}, {"reduction": 0}, {"layers": ()}])
def test_values_that_can_never_work(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="LST: "):
        inlay.LST(**fields)


def columns_of(narrow: Tensor, wide: Tensor) -> list[int]:
    """Which columns of a wide matrix those of a narrow one are."""
    close = (narrow[:, :, None] - wide[:, None]).abs().amax(0) < 1e-6
    assert bool((close.sum(1) == 1).all())
    return close.int().argmax(1).tolist()


# --- in use ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_generation_with_other_caches(family: str) -> None:
    """A static cache, and one that is cut where guessed tokens were wrong, write the same."""
    model, _ = attached(family)
    ids = torch.randint(8, 99, (1, 5), generator=torch.Generator().manual_seed(1))
    options: Any = {"input_ids": ids, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = model.generate(**options)
    static = model.generate(**options, cache_implementation="static")
    assert torch.equal(static, expected)
    guessed = model.generate(**options, prompt_lookup_num_tokens=2)
    assert torch.equal(guessed, expected)


def test_it_is_prepared_trained_and_read_back(tmp_path: Path) -> None:
    """Fisher information first; then the loss falls, and the file computes the same."""
    model, data = tiny.base(), tiny.examples(24)
    spec = inlay.LST(reduction=2, layers=(0, 1))
    prepared = prepare(model, spec, tiny.task(model), data, console=tiny.quiet())
    handle = inlay.attach(model, spec, prepared=prepared)
    (piece,) = (piece for _, _, piece in zoo.pieces(handle))
    for layer, block in enumerate(piece.ladder.blocks):
        wide = model.model.layers[layer].self_attn.q_proj.weight
        rows = {tuple(row[:1].tolist()) for row in block.attention.q.weight}
        assert all(bool((wide == row[0]).any()) for row in rows)
    task = tiny.task(model)
    before = loss_of(model, task, data)
    fit(model, handle, task, data, epochs=25, prepared=prepared, console=tiny.quiet())
    after = loss_of(model, task, data)
    assert after < before - 0.4
    handle.save(tmp_path / "a.safetensors")
    other = tiny.base()
    inlay.load(other, tmp_path / "a.safetensors")
    assert loss_of(other, tiny.task(other), data) == after


def loss_of(model: Any, task: Any, data: Any) -> float:
    rows = task.collate(task.encode_all(data))
    with torch.no_grad():
        total, count = task.loss(task.outputs(model, rows), rows)
    return float(total / count)
