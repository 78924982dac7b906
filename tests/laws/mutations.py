"""Known ways to break the library, each with the law that must notice."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import inlay
from inlay import handle as handle_module
from inlay import merge as merge_file
from inlay.blocks import kv_prefix
from inlay.core.context import PassContext
from inlay.core.method import Shared
from inlay.core.piece import Piece
from inlay.core.site import Part, Site
from inlay.files import format as state_file
from inlay.methods import ia3
from inlay.runtime import (
    attention,
    container,
    extra_kv,
    module_hooks,
    positions,
    prompts,
    reminder,
    shared_prefix,
    stack,
)
from inlay.runtime.routing import Groups, Routing
from tests.core import interfaces


@dataclass(frozen=True)
class Mutation:
    """breaks: does the damage. Then `law` must be broken for `spec` on `family`."""

    name: str
    breaks: Callable[[pytest.MonkeyPatch], None]
    family: str
    spec: Any
    law: str


def mask_lost_beside_extra_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(extra_kv, "_widen", lambda mask, visible, extra, length: None)


def causal_mask_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(extra_kv, "_causal", lambda module, more: False)


def queries_before_the_text_not_removed(patch: pytest.MonkeyPatch) -> None:
    def attend(inner: Any, module: Any, q: Any, k: Any, v: Any, mask: Any, **more: Any) -> Any:
        queries = q.shape[2]
        port = vars(module).get(attention.EXTRA_KV)
        if port is not None:
            q, k, v, mask, more = port.extend(module, q, k, v, mask, more, True)
        output, weights = sdpa_attention_forward(module, q, k, v, mask, **more)
        return output[:, :queries], weights

    patch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "inlay_sdpa", partial(attend, None))


def prefix_columns_hidden_from_the_mask(patch: pytest.MonkeyPatch) -> None:
    real = extra_kv._widen

    def wrong(mask: Any, visible: Any, extra: int, length: int) -> Any:
        return real(mask, None, extra, length)  # shorter prefixes get phantom keys

    patch.setattr(extra_kv, "_widen", wrong)


def fused_part_ignored_in_merge(patch: pytest.MonkeyPatch) -> None:
    def put(self: Any, site: Site, w: Any, b: Any) -> None:
        self.w = self.w + torch.nn.functional.pad(w - site.part.take(self.w, 0), (0, 0, 0, 64))

    patch.setattr(merge_file.ModuleWeights, "put", put)


def transposed_storage_ignored_in_merge(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        merge_file.ModuleWeights,
        "writes",
        lambda self: [(self.weight, self.w.reshape(self.weight.shape))],
    )


def bias_not_scaled_in_merge(patch: pytest.MonkeyPatch) -> None:
    def fold(self: Any, w: Any, b: Any) -> Any:
        return w * self.factor.detach()[:, None], b

    patch.setattr(ia3.ScaleOut, "fold", fold)


def merged_before_refusing(patch: pytest.MonkeyPatch) -> None:
    real = merge_file.plan

    def plan(model: Any, spec: Any, placed: Any) -> Any:
        host = next(p.site.host for p in placed if p.site.is_projection)
        host.weight.data.add_(1)
        return real(model, spec, placed)

    patch.setattr("inlay.laws.function.plan", plan)


def hook_left_behind(patch: pytest.MonkeyPatch) -> None:
    def remove(self: Any, name: str) -> None:
        self.input.pop(name, None)
        self.output.pop(name, None)

    patch.setattr(module_hooks.SiteHooks, "remove", remove)


def attention_left_behind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attention, "restore", lambda core: None)


def base_left_frozen(patch: pytest.MonkeyPatch) -> None:
    real = container.Container.__init__

    def init(self: Any, chart: Any) -> None:
        real(self, chart)
        self.trained = []

    patch.setattr(container.Container, "__init__", init)


def base_not_frozen(patch: pytest.MonkeyPatch) -> None:
    real = handle_module.create_container

    def create(model: Any, chart: Any) -> Any:
        created = real(model, chart)
        chart.sites[5].host.requires_grad_(True)
        return created

    patch.setattr(handle_module, "create_container", create)


def half_of_the_prefix_dead(patch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: Any, context: Any) -> Any:
        return self.k, self.k.detach() * 0.5

    patch.setattr(kv_prefix.Vectors, "forward", forward)


def rows_permuted(patch: pytest.MonkeyPatch) -> None:
    real = Routing._spread

    def spread(self: Any, batch: int, among: Any) -> Groups:
        groups = real(self, batch, among)
        return Groups(groups.names, None if groups.group is None else groups.group[::-1])

    patch.setattr(Routing, "_spread", spread)


def rows_put_back_in_the_wrong_order(patch: pytest.MonkeyPatch) -> None:
    real = Groups.back
    patch.setattr(Groups, "back", lambda self, device: real(self, device).flip(0))


def beams_tiled(patch: pytest.MonkeyPatch) -> None:
    real = Routing._spread

    def spread(self: Any, batch: int, among: Any) -> Groups:
        groups = real(self, batch, among)
        times = batch // len(self.bound)
        group = groups.group and groups.group[::times] * times
        return Groups(groups.names, group)

    patch.setattr(Routing, "_spread", spread)


def rows_of_the_last_pass_recomputed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stack.StackHooks, "_put_back", lambda self: lambda grad: None)


def positions_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(positions, "with_positions", lambda stack, inputs: inputs)


def text_not_moved_after_the_prefix(patch: pytest.MonkeyPatch) -> None:
    real = shared_prefix.SharedPrefix.view
    patch.setattr(
        shared_prefix.SharedPrefix,
        "view",
        lambda self, *more: dataclasses.replace(real(self, *more), shift=0),
    )


def prefix_of_another_row(patch: pytest.MonkeyPatch) -> None:
    real = shared_prefix.PrefixView._spread
    patch.setattr(
        shared_prefix.PrefixView, "_spread", lambda self, one, batch: real(self, one.flip(0), batch)
    )


def opening_without_gradient(patch: pytest.MonkeyPatch) -> None:
    real = shared_prefix.PrefixView.states
    patch.setattr(
        shared_prefix.PrefixView, "states", lambda self, batch: real(self, batch).detach()
    )


def opening_put_back_elsewhere(patch: pytest.MonkeyPatch) -> None:
    real = shared_prefix.PrefixView.states
    patch.setattr(shared_prefix.PrefixView, "states", lambda self, batch: real(self, batch).flip(1))


def shorter_prefix_seen_beyond_its_end(patch: pytest.MonkeyPatch) -> None:
    real = shared_prefix.SharedPrefix.view
    patch.setattr(
        shared_prefix.SharedPrefix,
        "view",
        lambda self, *more: dataclasses.replace(real(self, *more), visible=None),
    )


def prefix_of_the_last_pass_recomputed(patch: pytest.MonkeyPatch) -> None:
    real = stack.StackHooks._put_back

    def rebind(self: Any) -> Any:
        put_back = real(self)

        def wrong(grad: Any) -> None:
            put_back(grad)
            self.extra_kv.attention_pass.prefix = None

        return wrong

    patch.setattr(stack.StackHooks, "_put_back", rebind)


def prompt_not_cut_off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(prompts.PromptPort, "trim", lambda self, output: output)


def decoder_does_not_see_the_prompt(patch: pytest.MonkeyPatch) -> None:
    real = prompts.PromptPort.widened

    def widened(self: Any, mask: Any, states: Any) -> Any:
        wide = real(self, mask, states)
        extra = states.shape[1] - (states.shape[1] if mask is None else mask.shape[1])
        return wide if mask is None else torch.nn.functional.pad(mask, (extra, 0), value=1)

    patch.setattr(prompts.PromptPort, "widened", widened)


def later_positions_not_moved(patch: pytest.MonkeyPatch) -> None:
    real = prompts.PromptPort._continue

    def go_on(self: Any, inputs: Any, *more: Any) -> Any:
        return {**real(self, inputs, *more), "position_ids": inputs.get("position_ids")}

    patch.setattr(prompts.PromptPort, "_continue", go_on)


def copies_share_an_inlay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module_hooks.SiteHooks, "__deepcopy__", lambda self, memo: self, raising=False)


def file_rounded(patch: pytest.MonkeyPatch) -> None:
    real = state_file.to_bytes
    patch.setattr(state_file, "digest", lambda header, tensors: "")
    patch.setattr(
        state_file,
        "to_bytes",
        lambda tensors, metadata: real(
            {k: t.half().float().contiguous() for k, t in tensors.items()}, metadata=metadata
        ),
    )


def something_else_exported(patch: pytest.MonkeyPatch) -> None:
    real = kv_prefix.Sliced.export
    patch.setattr(
        kv_prefix.Sliced,
        "export",
        lambda self: {k: t.flip(0).clone() for k, t in real(self).items()},
    )


def starts_off_the_base(patch: pytest.MonkeyPatch) -> None:
    real = ia3.ScaleOut.__init__

    def init(self: Any, width: int) -> None:
        real(self, width)
        self.factor.data.mul_(1.01)

    patch.setattr(ia3.ScaleOut, "__init__", init)


def interleaved_heads_read_as_blocks(patch: pytest.MonkeyPatch) -> None:
    real = Part.take

    def take(self: Any, y: Any, dim: int = -1) -> Any:
        if self.count == 1 or dim != 0:
            return real(self, y, dim)
        return y.narrow(dim, 0, self.width)

    patch.setattr(Part, "take", take)


def values_kept_when_loading(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Piece, "load", lambda self, tensors: None)


def index_altered_in_the_file(patch: pytest.MonkeyPatch) -> None:
    real = state_file.to_bytes
    patch.setattr(state_file, "digest", lambda header, tensors: "")
    patch.setattr(
        state_file,
        "to_bytes",
        lambda tensors, metadata: real(
            {k: t if t.is_floating_point() else t.roll(1, 0) for k, t in tensors.items()},
            metadata=metadata,
        ),
    )


def index_altered_when_resuming(patch: pytest.MonkeyPatch) -> None:
    real = handle_module.Inlay.load_training_state

    def load(self: Any, state: Any) -> None:
        real(self, {k: t if t.is_floating_point() else t.roll(1, 0) for k, t in state.items()})

    patch.setattr(handle_module.Inlay, "load_training_state", load)


def shared_module_stored_twice(patch: pytest.MonkeyPatch) -> None:
    real = Piece.export, Piece.load

    def export(self: Any) -> Any:
        return {**real[0](self), "up": self._bases.module.up.detach().clone()}

    def load(self: Any, tensors: Any) -> None:
        real[1](self, {name: t for name, t in tensors.items() if name != "up"})

    patch.setattr(interfaces.Scaled, "export", export)
    patch.setattr(interfaces.Scaled, "load", load)


def shared_module_made_for_every_piece(patch: pytest.MonkeyPatch) -> None:
    def module(self: Any, key: str, make: Any) -> Any:
        self.modules[key] = make()
        return self.modules[key]

    patch.setattr(Shared, "module", module)


def frozen_part_trained(patch: pytest.MonkeyPatch) -> None:
    real = handle_module.install

    def install(container: Any, name: str, pieces: Any) -> None:
        real(container, name, pieces)
        pieces.requires_grad_(True)

    patch.setattr(handle_module, "install", install)


def parameter_in_no_group(patch: pytest.MonkeyPatch) -> None:
    real = interfaces.Scheduled.parameter_groups
    patch.setattr(
        interfaces.Scheduled, "parameter_groups", lambda self, *more: real(self, *more)[1:]
    )


def draws_not_repeated_in_recomputation(patch: pytest.MonkeyPatch) -> None:
    real = stack.StackHooks._put_back

    def put_back(self: Any) -> Any:
        right = real(self)

        def wrong(grad: Any) -> None:
            context = self.state.context  # that of the last pass
            right(grad)
            self.state.context = context

        return wrong

    patch.setattr(stack.StackHooks, "_put_back", put_back)


def groups_draw_differently(patch: pytest.MonkeyPatch) -> None:
    real, count = PassContext.generator, itertools.count()
    patch.setattr(PassContext, "generator", lambda self, *key: real(self, *key, next(count)))


def mask_not_cut_to_the_rows(patch: pytest.MonkeyPatch) -> None:
    def select(self: Any, index: Any) -> Any:
        return dataclasses.replace(self, mask=self.mask[: len(index)], row_numbers=index)

    patch.setattr(PassContext, "select", select)


def piece_kept_in_the_cache_of_other_rows(patch: pytest.MonkeyPatch) -> None:
    def spread(self: Any, rows: Any) -> Any:
        return rows.new_zeros(self.batch, *rows.shape[1:]).index_copy(
            0, torch.arange(len(rows)), rows
        )

    patch.setattr(PassContext, "_spread", spread)


def opening_run_without_the_rest(patch: pytest.MonkeyPatch) -> None:
    real = shared_prefix.PrefixRunner.takes

    def takes(self: Any, inputs: Any) -> Any:
        relating = set(self.state.relating)
        self.state.relating.clear()
        try:
            return real(self, inputs)
        finally:
            self.state.relating.update(relating)

    patch.setattr(shared_prefix.PrefixRunner, "takes", takes)


def steps_not_watched(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reminder.Reminder, "training_pass", lambda self: None)


def schedule_not_in_the_checkpoint(patch: pytest.MonkeyPatch) -> None:
    real = handle_module.Inlay.load_training_state

    def load(self: Any, state: Any) -> None:
        real(self, {k: t * 0 if k.endswith("score") else t for k, t in state.items()})

    patch.setattr(handle_module.Inlay, "load_training_state", load)


def positions_counted_for_rows_that_nothing_serves(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        positions.Positions,
        "counted",
        lambda self, inputs, groups: positions.with_positions(self.stack, inputs),
    )


def disabled_inlays_serve(patch: pytest.MonkeyPatch) -> None:
    real = Routing.enable
    patch.setattr(Routing, "enable", lambda self, name, acts: real(self, name, True))


def keys_added_to_rows_of_the_base(patch: pytest.MonkeyPatch) -> None:
    real = extra_kv._joined

    def joined(additions: Any) -> Any:
        keys, values, _ = real(additions)
        return keys, values, None

    patch.setattr(extra_kv, "_joined", joined)


def packed_texts_taken_for_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(prompts, "is_packed", lambda stack, inputs: False)


def opening_of_the_first_packed_text_shared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shared_prefix, "is_packed", lambda stack, inputs: False)


def prompt_counted_by_callers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stack, "count_text", lambda cache, extra: None)


def prompt_not_counted_by_the_base(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stack, "count_positions", lambda cache: None)


def pass_not_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stack.StackHooks, "_forget", lambda self: None)


def backward_not_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stack, "after_backward", lambda run: None)


def values_shared_by_reentrant_blocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stack, "is_reentrant", lambda stack: False)


LORA = inlay.LoRA(rank=2)
PREFIX = inlay.Prefix(length=3, mlp=None)
PROMPT = inlay.Prompt(length=3)
MLP = inlay.Prefix(length=2, mlp=5)

MUTATIONS = [
    Mutation(f.__name__, f, family, spec, law)
    for f, family, spec, law in [
        (mask_lost_beside_extra_keys, "llama", PREFIX, "padding is inert"),
        (mask_lost_beside_extra_keys, "bert", PREFIX, "rows do not meet"),
        (queries_before_the_text_not_removed, "llama", PREFIX, "generation"),
        (causal_mask_forgotten, "llama", PREFIX, "generation"),
        (causal_mask_forgotten, "gpt2", PREFIX, "padding is inert"),
        (prefix_columns_hidden_from_the_mask, "qwen3", PREFIX, "rows do not meet"),
        (fused_part_ignored_in_merge, "gpt2", LORA, "merge"),
        (transposed_storage_ignored_in_merge, "gpt2", LORA, "merge"),
        (interleaved_heads_read_as_blocks, "gpt_neox", LORA, "merge"),
        (bias_not_scaled_in_merge, "bert", inlay.IA3(), "merge"),
        (merged_before_refusing, "llama", LORA + inlay.Houlsby(bottleneck=3), "merge"),
        (hook_left_behind, "llama", LORA, "no trace"),
        (attention_left_behind, "llama", PREFIX, "no trace"),
        (base_left_frozen, "llama", LORA, "no trace"),
        (base_not_frozen, "llama", LORA, "only pieces learn"),
        (half_of_the_prefix_dead, "t5", PREFIX, "only pieces learn"),
        (rows_permuted, "llama", LORA, "rows do not meet"),
        (rows_permuted, "llama", PREFIX, "rows do not meet"),
        (rows_permuted, "llama", PROMPT, "rows do not meet"),
        (rows_put_back_in_the_wrong_order, "llama", LORA, "rows do not meet"),
        (beams_tiled, "llama", LORA, "generation"),
        (beams_tiled, "t5", PREFIX, "generation"),
        (rows_of_the_last_pass_recomputed, "llama", LORA, "gradient checkpointing"),
        (rows_of_the_last_pass_recomputed, "gpt2", PREFIX, "gradient checkpointing"),
        (positions_not_counted, "llama", PREFIX, "padding is inert"),
        (prompt_not_cut_off, "mistral", PROMPT, "rows do not meet"),
        (text_not_moved_after_the_prefix, "llama", PROMPT, "shared prefix"),
        (text_not_moved_after_the_prefix, "gpt2", PROMPT, "shared prefix"),
        (prefix_of_another_row, "llama", PROMPT, "shared prefix"),
        (prefix_of_another_row, "llama", LORA, "shared prefix"),
        (opening_without_gradient, "llama", LORA, "shared prefix"),
        (opening_put_back_elsewhere, "llama", LORA, "shared prefix"),
        (shorter_prefix_seen_beyond_its_end, "llama", PROMPT, "rows do not meet"),
        (prefix_of_the_last_pass_recomputed, "llama", PROMPT, "gradient checkpointing"),
        (decoder_does_not_see_the_prompt, "t5", PROMPT, "rows do not meet"),
        (later_positions_not_moved, "mistral", PROMPT, "generation"),
        (copies_share_an_inlay, "llama", LORA, "copies are independent"),
        (file_rounded, "llama", LORA, "save → load"),
        (values_kept_when_loading, "llama", LORA, "save → load"),
        (something_else_exported, "llama", inlay.Prefix(length=2, mlp=5), "dropped at inference"),
        (starts_off_the_base, "llama", inlay.IA3(), "identity"),
        (index_altered_in_the_file, "llama", interfaces.Scheduled(), "indices and masks"),
        (index_altered_when_resuming, "gpt2", interfaces.Scheduled(), "indices and masks"),
        (shared_module_stored_twice, "llama", interfaces.SharedBases(), "shared modules"),
        (shared_module_made_for_every_piece, "t5", interfaces.SharedBases(), "shared modules"),
        (frozen_part_trained, "llama", interfaces.SharedBases(), "only pieces learn"),
        (parameter_in_no_group, "bert", interfaces.Scheduled(), "only pieces learn"),
        (draws_not_repeated_in_recomputation, "llama", interfaces.Experts(), "draws"),
        (draws_not_repeated_in_recomputation, "t5", interfaces.Experts(), "gradient checkpointing"),
        (groups_draw_differently, "llama", interfaces.Experts(), "draws"),
        (mask_not_cut_to_the_rows, "bert", interfaces.TextMean(), "rows do not meet"),
        (piece_kept_in_the_cache_of_other_rows, "llama", interfaces.SideAttention(), "generation"),
        (piece_kept_in_the_cache_of_other_rows, "bart", interfaces.FirstTokenKV(), "generation"),
        (opening_run_without_the_rest, "llama", interfaces.TextMean(), "shared prefix"),
        (steps_not_watched, "llama", interfaces.Scheduled(), "penalty and schedule"),
        (positions_counted_for_rows_that_nothing_serves, "gpt2", PREFIX, "unserved rows"),
        (disabled_inlays_serve, "bert", LORA, "unserved rows"),
        (keys_added_to_rows_of_the_base, "t5", PREFIX, "unserved rows"),
        (packed_texts_taken_for_one, "gemma3", PROMPT, "packed rows"),
        (opening_of_the_first_packed_text_shared, "llama", LORA, "packed rows"),
        (prompt_counted_by_callers, "gemma3", PROMPT, "continued cache"),
        (prompt_not_counted_by_the_base, "gemma3", PROMPT, "continued cache"),
        (later_positions_not_moved, "mistral", PROMPT, "continued cache"),
        (pass_not_forgotten, "llama", PROMPT, "nothing outlives the pass"),
        (pass_not_forgotten, "gpt2", LORA, "nothing outlives the pass"),
        (backward_not_forgotten, "llama", PROMPT, "nothing outlives the pass"),
        (values_shared_by_reentrant_blocks, "llama", PROMPT, "gradient checkpointing"),
        (values_shared_by_reentrant_blocks, "bert", MLP, "gradient checkpointing"),
        (schedule_not_in_the_checkpoint, "llama", interfaces.Scheduled(), "penalty and schedule"),
    ]
]
