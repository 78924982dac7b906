"""Finding the stacks of blocks in a model that nobody described, whatever it is made of.

A stack is a module that owns one list of equal blocks; most often a `PreTrainedModel` of its own
inside the base: the language model, the vision tower, an encoder, a decoder. Nothing is looked up
by the name of an attribute:

    LlavaModel ── vision_tower: CLIPVisionModel ── encoder.layers   → a stack
               ├─ multi_modal_projector                             (no list of blocks)
               └─ language_model: LlamaModel ── layers              → a stack

A backbone made of stages (Swin) is one stack, whose blocks are those of all stages in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

SMALLEST_SHARE = 0.05
"""How much of its owner's largest list a further list must hold, to be a stack of its own."""

Attends = Callable[[nn.Module], bool]
"""Whether a block holds the projections of an attention."""


@dataclass(frozen=True)
class Found:
    """A stack: the path of its module from the backbone, those of its lists from that module."""

    path: str
    layers: tuple[str, ...]


def find_stacks(backbone: nn.Module, attends: Attends) -> list[Found]:
    """Every stack of blocks of a backbone, in the order of its modules."""
    modules = dict(backbone.named_modules())
    lists = {name: part for name, part in modules.items() if _is_block_list(part)}
    groups = _outermost(lists, attends)
    by_owner: dict[str, list[tuple[str, ...]]] = {}
    for group in groups:
        by_owner.setdefault(_owner(group[0], modules), []).append(group)
    found = [stack for owner, own in by_owner.items() for stack in _split(owner, own, modules)]
    order = {name: number for number, name in enumerate(modules)}
    return sorted(found, key=lambda stack: order[_joined(stack.path, stack.layers[0])])


def config_of(backbone: nn.Module, path: str) -> PreTrainedConfig:
    """The config of the module at a path: its own, or that of the model around it."""
    config = None
    parts = path.split(".") if path else []
    for count in range(len(parts) + 1):
        own = vars(backbone.get_submodule(".".join(parts[:count]))).get("config")
        config = own if isinstance(own, PreTrainedConfig) else config
    assert config is not None
    return config


def _is_block_list(part: nn.Module) -> bool:
    """Whether a module is a list of blocks: of one class, or of those that may be checkpointed."""
    if not isinstance(part, (nn.ModuleList, nn.Sequential)) or len(part) == 0:
        return False
    if isinstance(part, nn.Sequential) and len(part) == 1:
        return False
    equal = len({type(block) for block in part}) == 1
    equal = equal or all(isinstance(block, GradientCheckpointingLayer) for block in part)
    return equal and all(_holds_matrices(block) for block in part)


def _holds_matrices(block: nn.Module) -> bool:
    """Whether a module holds projections, and is none itself."""
    return not _is_matrix(block) and any(_is_matrix(part) for part in block.modules())


def _is_matrix(part: nn.Module) -> bool:
    return isinstance(part, (nn.Linear, Conv1D))


def _outermost(lists: Mapping[str, nn.Module], attends: Attends) -> list[tuple[str, ...]]:
    """The lists that lie in no other, each alone; the lists of one backbone's stages together."""
    groups: list[tuple[str, ...]] = []
    for name in lists:
        if any(name.startswith(f"{other}.") for group in groups for other in group):
            continue
        if any(name.startswith(f"{outer}.") for outer in _stage_parents(groups)):
            continue
        groups.append(_stages(name, lists, attends) or (name,))
    return groups


def _stage_parents(groups: list[tuple[str, ...]]) -> set[str]:
    """What the stages of a group lie in: `encoder.layers` of `encoder.layers.0.blocks`, …"""
    parents = set()
    for group in groups:
        if len(group) > 1:
            parts = [name.split(".") for name in group]
            same = 0
            while len({tuple(p[: same + 1]) for p in parts}) == 1:
                same += 1
            parents.add(".".join(parts[0][:same]))
    return parents


def _stages(name: str, lists: Mapping[str, nn.Module], attends: Attends) -> tuple[str, ...] | None:
    """The lists of the stages in a list of stages; None where it is a list of blocks."""
    inner: list[str] = []
    for number, stage in lists[name].named_children():
        path = f"{name}.{number}"
        own = [n for n in lists if n == path or n.startswith(f"{path}.")]
        own = [n for n in own if not any(n.startswith(f"{other}.") for other in own)]
        own = [n for n in own if attends(next(lists[n].children()))]
        if len(own) != 1 or not _attends_only_within(stage, lists[own[0]], attends):
            return None
        inner += own
    return tuple(inner)


def _attends_only_within(stage: nn.Module, blocks: nn.Module, attends: Attends) -> bool:
    """Whether a stage has no attention of its own beside that of its blocks."""
    inside = set(blocks.modules())
    beside = [part for part in stage.children() if part not in inside]
    return not any(attends(part) for part in beside if blocks not in part.modules())


def _owner(name: str, modules: Mapping[str, nn.Module]) -> str:
    """The path of the nearest model of transformers around a list; the backbone where none is."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:count])
        if isinstance(modules[path], PreTrainedModel):
            return path
    return ""


def _split(
    owner: str, groups: list[tuple[str, ...]], modules: Mapping[str, nn.Module]
) -> list[Found]:
    """The stacks of one owner: itself, or its parts where it has several lists of blocks."""
    sizes = {group: sum(_size(modules[name]) for name in group) for group in groups}
    largest = max(groups, key=lambda group: sizes[group])
    groups = [group for group in groups if sizes[group] >= SMALLEST_SHARE * sizes[largest]]
    if len(groups) == 1:
        return [_found(owner, groups[0])]
    paths = {group: _own_module(owner, group, groups) for group in groups}
    if paths[largest] is None:
        paths[largest] = owner
    return [_found(path, group) for group, path in paths.items() if path is not None]


def _own_module(owner: str, group: tuple[str, ...], groups: list[tuple[str, ...]]) -> str | None:
    """The outermost module under the owner that holds these blocks and no others, if there is one.

    It must hold more than the list itself, or nothing of it would take inputs.
    """
    parts = group[0].split(".")
    start = len(owner.split(".")) if owner else 0
    for count in range(start + 1, len(parts)):
        path = ".".join(parts[:count])
        own = all(name.startswith(f"{path}.") for name in group)
        others = (other for other in groups if other is not group)
        if own and not any(name.startswith(f"{path}.") for other in others for name in other):
            return path
    return None


def _found(path: str, group: tuple[str, ...]) -> Found:
    prefix = f"{path}." if path else ""
    return Found(path, tuple(name.removeprefix(prefix) for name in group))


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
