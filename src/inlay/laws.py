"""The laws: what must hold for every method on every base. Tests and `inlay check` run these.

Each law is a function of a `Case`. It attaches what it needs under names of its own, leaves the
model as it found it, and returns how far off the worst number was. `Broken` means the law does
not hold; `Beside` that it says nothing about this case, and why.
"""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inlay.attach import Inlay, attach, attached, rows
from inlay.chart import Chart, resolve
from inlay.errors import LawError, MergeError
from inlay.merge import plan
from inlay.piece import Foldable, Head
from inlay.spec import Spec
from inlay.state import load

TOO_LARGE = 300_000_000
"""Bases with more parameters are not copied."""


class Broken(LawError):
    """The law does not hold here."""


class Beside(LawError):
    """The law says nothing about this case."""


@dataclass
class Case:
    """A base and a spec to set into it.

    state: numbers for the pieces (`Inlay.training_state`); None moves every piece away from where
    it starts, so that nothing hides behind a zero. length: tokens of the longest row.
    """

    model: PreTrainedModel
    spec: Spec
    state: dict[str, Tensor] | None = None
    length: int = 9
    seed: int = 0

    def __post_init__(self) -> None:
        self.chart: Chart = resolve(self.model)
        kinds = [type(piece) for _, _, piece in self._pieces()]
        self.acts = any(not issubclass(kind, Head) for kind in kinds)
        self.learns = self.acts

    def _pieces(self) -> list[Any]:
        handle = attach(self.model, self.spec, name="law-look")
        try:
            return list(handle.pieces())
        finally:
            handle.detach()

    @property
    def tolerance(self) -> float:
        """How far two ways of computing the same thing may differ, relative to its size."""
        exact = self.model.dtype in (torch.float32, torch.float64)
        return 3e-5 if exact else 6e-2

    @contextmanager
    def inlay(self, name: str = "law", seed: int = 0) -> Iterator[Inlay]:
        """The spec attached, with numbers of its own; alone at work, and gone afterwards."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + seed)
            handle = attach(self.model, self.spec, name=name)
            if self.state is not None and seed == 0:
                handle.load_training_state(self.state)
            else:
                move(handle)
        try:
            with rows(self.model, [name]):
                yield handle
        finally:
            if handle.attached:
                handle.detach()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Evaluation mode, and no other inlay at work."""
        modes = {part: part.training for part in self.model.modules()}
        others = attached(self.model)
        enabled = {name: one.enabled for name, one in others.items()}
        self.model.eval()
        try:
            for one in others.values():
                one.enabled = False
            yield
        finally:
            for name, acts in enabled.items():
                others[name].enabled = acts
            for part, mode in modes.items():
                part.training = mode

    def inputs(self, count: int, seed: int = 1) -> list[dict[str, Tensor]]:
        """`count` single rows of different lengths."""
        generator = torch.Generator().manual_seed(self.seed + seed)
        config = self.model.config
        device = self.model.device
        made: list[dict[str, Tensor]] = []
        for number in range(count):
            if self.chart.kind == "vision":
                shape = (1, config.num_channels, config.image_size, config.image_size)
                made.append({"pixel_values": torch.randn(shape, generator=generator).to(device)})
                continue
            length = max(3, self.length - 2 * number)
            low = min(8, config.vocab_size // 2)
            ids = torch.randint(low, config.vocab_size, (1, length), generator=generator)
            row = {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
            if self.chart.kind == "encoder-decoder":
                target = torch.randint(low, config.vocab_size, (1, 4), generator=generator)
                row["decoder_input_ids"] = target.to(device)
            made.append(row)
        return made


def move(handle: Inlay) -> None:
    """Shift every number of the pieces at random, so that each one matters."""
    for parameter in handle.parameters():
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape).to(parameter) * 0.2)


def join(singles: list[dict[str, Tensor]], side: str = "right") -> dict[str, Tensor]:
    """Single rows as one padded batch."""
    made: dict[str, Tensor] = {}
    for key in singles[0]:
        tensors = [row[key] for row in singles]
        if key in ("input_ids", "attention_mask"):
            longest = max(t.shape[1] for t in tensors)
            pads = [longest - t.shape[1] for t in tensors]
            sides = [(0, p) if side == "right" else (p, 0) for p in pads]
            pairs = zip(tensors, sides, strict=True)
            tensors = [torch.nn.functional.pad(t, pad) for t, pad in pairs]
        made[key] = torch.cat(tensors)
    return made


def answer(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """What the model computes, in fp32: logits where it has a head, else hidden states."""
    out = model(**inputs)
    logits = out.get("logits")
    return (out.last_hidden_state if logits is None else logits).float()


def aligned(case: Case, whole: Tensor, number: int, single: dict[str, Tensor], side: str) -> Tensor:
    """One row of a batch's answer, without its padding."""
    row = whole[number : number + 1]
    if case.chart.kind in ("vision", "encoder-decoder") or row.dim() < 3:
        return row
    length = single["input_ids"].shape[1]
    return row[:, :length] if side == "right" else row[:, -length:]


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    if a.shape != b.shape:
        return float("inf")
    size = max(1e-6, b.abs().max().item())
    return (a - b).abs().max().item() / size


def near(case: Case, a: Tensor, b: Tensor, what: str, slack: float = 1.0) -> float:
    """How far apart; Broken where that is too far."""
    error = far(a, b)
    if not error <= case.tolerance * slack:
        raise Broken(f"{what}: off by {error:.2e}, allowed {case.tolerance * slack:.1e}")
    return error


# --- the laws --------------------------------------------------------------------------------


def identity(case: Case) -> float:
    """A model with the method just attached computes exactly what the base does."""
    if not all(method.identity for method in case.spec.methods):
        raise Beside("the method does not promise it")
    inputs = join(case.inputs(2))
    with case.quiet(), torch.no_grad():
        base = answer(case.model, inputs)
        handle = attach(case.model, case.spec, name="law")
        try:
            with rows(case.model, ["law"]):
                return near(case, answer(case.model, inputs), base, "attached against base")
        finally:
            handle.detach()


def no_trace(case: Case) -> float:
    """After detach, everything about the base is what it was, bit for bit."""
    inputs = join(case.inputs(2))
    with case.quiet():
        before = snapshot(case.model)
        with torch.no_grad():
            base = answer(case.model, inputs)
        with case.inlay():
            answer(case.model, inputs).square().mean().backward() if case.learns else None
            if case.acts and torch.equal(answer(case.model, inputs), base):
                raise Broken("the inlay changes nothing while it is attached")
        after = snapshot(case.model)
        for key in before.keys() | after.keys():
            if before.get(key) != after.get(key):
                raise Broken(f"{key} is not what it was before")
        with torch.no_grad():
            if not torch.equal(answer(case.model, inputs), base):
                raise Broken("the outputs are not what they were before")
    return 0.0


def snapshot(model: PreTrainedModel) -> dict[str, Any]:
    """Everything about a model that must be the same again."""
    seen: dict[str, Any] = {"config": str(model.config._attn_implementation)}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        numbers = tensor.detach()
        digest = (numbers.double().sum().item(), numbers._version, numbers.data_ptr())
        seen[f"tensor {name}"] = (digest, tensor.requires_grad, tensor.grad is None)
    for name, part in model.named_modules():
        hooks = {key: len(value) for key, value in vars(part).items() if key.endswith("_hooks")}
        plain = sorted(vars(part).keys())
        config = getattr(part, "config", None)
        attention = None if config is None else config._attn_implementation
        children = list(part._modules)
        seen[f"module {name}"] = (type(part), hooks, plain, children, part.training, attention)
    return seen


def only_pieces_learn(case: Case) -> float:
    """Every number of the pieces gets a gradient, and nothing of the base does."""
    inputs = join(case.inputs(3))
    if not case.learns:
        raise Beside("a head learns through the task's loss")
    with case.quiet(), case.inlay() as handle:
        weigh(answer(case.model, inputs)).backward()
        pieces = {id(p) for p in handle.parameters()}
        for name, parameter in case.model.named_parameters():
            if id(parameter) in pieces:
                if not parameter.requires_grad or parameter.grad is None:
                    raise Broken(f"{name} gets no gradient")
                if not parameter.grad.any():
                    raise Broken(f"{name} gets a gradient that is zero everywhere")
            elif parameter.grad is not None or parameter.requires_grad:
                raise Broken(f"{name} of the base learns")
    return 0.0


def weigh(out: Tensor) -> Tensor:
    """A scalar in which every output counts differently."""
    flat = out.flatten(1)
    weights = torch.linspace(-1, 1, flat.shape[1], device=out.device).cos() + 0.5
    return (flat * weights).sum() / flat.shape[1] ** 0.5


def save_load(case: Case) -> float:
    """What is loaded from a file computes bit for bit what was saved."""
    inputs = join(case.inputs(2))
    with case.quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "law.safetensors")
        with case.inlay() as handle:
            handle.save(path)
            saved = {name: tensor.clone() for name, tensor in handle.named_tensors().items()}
        one = load(case.model, path, name="law-one")
        try:
            for name, tensor in one.named_tensors().items():
                if not torch.equal(tensor, saved[name]):
                    raise Broken(f"{name} is not what was saved")
            with torch.no_grad(), rows(case.model, ["law-one"]):
                first = answer(case.model, inputs)
            one.save(path)
        finally:
            one.detach()
        two = load(case.model, path)
        try:
            with torch.no_grad(), rows(case.model, [two.name]):
                if not torch.equal(answer(case.model, inputs), first):
                    raise Broken("the outputs after loading are not those before saving")
        finally:
            two.detach()
    return 0.0


def dropped(case: Case) -> float:
    """Dropping what only training needs changes nothing."""
    if case.spec.served() == case.spec:
        raise Beside("the method drops nothing")
    inputs = join(case.inputs(2))
    with case.quiet(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, "law.safetensors")
        with case.inlay() as handle:
            whole = answer(case.model, inputs)
            handle.save(path)
        left = load(case.model, path)
        try:
            with rows(case.model, [left.name]):
                return near(case, answer(case.model, inputs), whole, "without what was dropped")
        finally:
            left.detach()


def rows_apart(case: Case) -> float:
    """A mixed batch computes what each row computes alone with its own inlay."""
    singles = case.inputs(4)
    names: list[str | None] = ["law", None, "law-b", "law"]
    worst = 0.0
    with case.quiet():
        ways = paddings(case, singles)
    with case.quiet(), case.inlay() as a, case.inlay("law-b", seed=5) as b:
        for side, pad in ways:
            with torch.no_grad():
                alone = []
                for name, single in zip(names, singles, strict=True):
                    with rows(case.model, [name]):
                        alone.append(answer(case.model, single))
                with rows(case.model, names):
                    mixed = answer(case.model, pad(singles))
            for number, single in enumerate(singles):
                got = aligned(case, mixed, number, single, side)
                what = f"row {number} ({names[number]}, padded {side})"
                worst = max(worst, near(case, got, alone[number], what, 3))
        if case.learns:
            worst = max(worst, _gradients_apart(case, [a, b], names, singles))
    return worst


def _gradients_apart(
    case: Case, handles: list[Inlay], names: list[str | None], singles: list[dict[str, Tensor]]
) -> float:
    def total(name: str | None, single: dict[str, Tensor]) -> None:
        with rows(case.model, [name]):
            out = answer(case.model, single)
        if out.requires_grad:
            weigh(out).backward()

    parameters = [p for handle in handles for p in handle.parameters()]
    for name, single in zip(names, singles, strict=True):
        total(name, single)
    alone = [p.grad.clone() for p in parameters if p.grad is not None]
    for p in parameters:
        p.grad = None
    with rows(case.model, names):
        out = answer(case.model, join(singles))
    pairs = enumerate(singles)
    sum(weigh(aligned(case, out, number, single, "right")) for number, single in pairs).backward()  # type: ignore[union-attr]
    mixed = [p.grad for p in parameters if p.grad is not None]
    for p in parameters:
        p.grad = None
    if len(mixed) != len(alone):
        raise Broken("a mixed batch gives gradients to other numbers than its rows alone")
    size = max(float(g.abs().max()) for g in alone)
    errors = [float((x - y).abs().max()) for x, y in zip(mixed, alone, strict=True)]
    worst = max(errors) / max(size, 1e-6)
    if not worst <= case.tolerance * 10:
        raise Broken(f"gradients of a mixed batch are off by {worst:.2e}")
    return worst


Pad = Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]


def paddings(case: Case, singles: list[dict[str, Tensor]]) -> list[tuple[str, Pad]]:
    """The ways of padding under which the bare base computes for a row what the row alone does.

    To be asked before anything is attached.
    """
    ways: list[tuple[str, Pad]] = [("right", join), ("left", lambda rows: join(rows, "left"))]
    if case.chart.kind == "decoder" and case.chart.stacks[0].takes("position_ids"):
        ways.append(("left", lambda rows: counted(case, join(rows, "left"))))
    if case.chart.kind == "vision":
        ways = ways[:1]
    found = []
    for side, pad in ways:
        with torch.no_grad(), bare(case):
            whole = answer(case.model, pad(singles))
            errors = [
                far(aligned(case, whole, i, single, side), answer(case.model, single))
                for i, single in enumerate(singles)
            ]
        if max(errors) <= case.tolerance * 3:
            found.append((side, pad))
    return found


@contextmanager
def bare(case: Case) -> Iterator[None]:
    """The base alone, whatever is attached."""
    if attached(case.model):
        with rows(case.model, [None]):
            yield
    else:
        yield


def counted(case: Case, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A left-padded batch with the position ids that a base with absolute positions needs."""
    start = case.chart.stacks[0].position_start
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0) + start
    return {**batch, "position_ids": positions}


def padding_inert(case: Case) -> float:
    """A padded row computes what the row alone does, on every side where the base does so."""
    singles = case.inputs(3)
    if case.chart.kind == "vision":
        raise Beside("images are not padded")
    worst = 0.0
    with case.quiet():
        ways = paddings(case, singles)
    with case.quiet(), case.inlay(), torch.no_grad():
        alone = [answer(case.model, single) for single in singles]
        for side, pad in ways:
            whole = answer(case.model, pad(singles))
            for i, single in enumerate(singles):
                got = aligned(case, whole, i, single, side)
                worst = max(worst, near(case, got, alone[i], f"row {i}, padded {side}", 3))
    return worst


def merging(case: Case) -> float:
    """Merged is the same function; what cannot be merged is refused before the first write."""
    inputs = join(case.inputs(2))
    with case.quiet(), torch.no_grad():
        before = {name: p.clone() for name, p in case.model.named_parameters()}
        with case.inlay() as handle:
            foldable = all(isinstance(piece, Foldable) for _, _, piece in handle.pieces())
            unmerged = answer(case.model, inputs)
            try:
                writes = plan(handle)
            except MergeError as refusal:
                if foldable and "bias" not in str(refusal) and "shares" not in str(refusal):
                    raise Broken(f"refused: {refusal}") from None
                for name, p in case.model.named_parameters():
                    if name in before and not torch.equal(p, before[name]):
                        raise Broken(f"refused, but {name} was written") from None
                raise Beside(f"refused as it should be: {refusal}") from None
            if not foldable:
                raise Broken("a piece without fold was merged")
            old = [(parameter, parameter.detach().clone()) for parameter, _ in writes]
            try:
                if attached(case.model).keys() == {handle.name}:
                    handle.merge()
                else:
                    for parameter, value in writes:
                        parameter.copy_(value)
                    handle.enabled = False
                return near(case, answer(case.model, inputs), unmerged, "merged", 3)
            finally:
                for parameter, value in old:
                    parameter.data.copy_(value)


def checkpointing(case: Case) -> float:
    """Gradient checkpointing gives the same gradients, for the rows of each pass."""
    model = case.model
    if not model.supports_gradient_checkpointing:
        raise Beside("this base has no gradient checkpointing")
    if not case.learns:
        raise Beside("a head learns outside the blocks")
    singles = case.inputs(2)
    batch = {**join(singles)}
    if case.chart.stacks[-1].takes("use_cache"):
        batch["use_cache"] = False  # type: ignore[assignment]

    def gradients(handles: list[Inlay]) -> list[Tensor]:
        # two passes with different rows before one backward: each must be recomputed as it was
        with rows(model, ["law", "law-b"]):
            first = weigh(answer(model, batch))
        with rows(model, ["law-b", None]):
            second = weigh(answer(model, batch))
        with rows(model, [None]):
            (first + 2 * second).backward()
        made = [p.grad.clone() for h in handles for p in h.parameters() if p.grad is not None]
        for handle in handles:
            for parameter in handle.parameters():
                parameter.grad = None
        return made

    with case.quiet(), case.inlay() as a, case.inlay("law-b", seed=5) as b, no_dropout(model):
        model.train()
        plain = gradients([a, b])
        model.activation_checkpointing_enable({"use_reentrant": False})
        try:
            again = gradients([a, b])
        finally:
            model.activation_checkpointing_disable()
            _forget_checkpointing(model)
    if len(plain) != len(again):
        raise Broken("checkpointing loses gradients")
    size = max(float(g.abs().max()) for g in plain)
    worst = max(float((x - y).abs().max()) for x, y in zip(plain, again, strict=True)) / size
    if not worst <= case.tolerance:
        raise Broken(f"gradients with checkpointing are off by {worst:.2e}")
    return worst


@contextmanager
def no_dropout(model: PreTrainedModel) -> Iterator[None]:
    """Training mode without chance."""
    kept: list[tuple[Any, str, float]] = []
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            kept.append((part, "p", part.p))
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            value = vars(part).get(name)
            if isinstance(value, float):
                kept.append((part, name, value))
    try:
        for part, name, _ in kept:
            setattr(part, name, 0.0)
        yield
    finally:
        for part, name, value in kept:
            setattr(part, name, value)


def _forget_checkpointing(model: PreTrainedModel) -> None:
    """Take away what transformers leaves behind when checkpointing was on."""
    for hook in vars(model).get("_require_grads_hooks", ()):
        hook.remove()
    for name in ("_require_grads_hooks", "_require_grads_hook"):
        vars(model).pop(name, None)
    for part in model.modules():
        vars(part).pop("_gradient_checkpointing_func", None)
        if "gradient_checkpointing" in vars(part) and "gradient_checkpointing" in vars(type(part)):
            del part.gradient_checkpointing


def copies_apart(case: Case) -> float:
    """A deep copy and a pickled copy compute the same, and nothing done to one reaches the other."""
    if case.model.num_parameters() > TOO_LARGE:
        raise Beside("the base is too large to copy")
    inputs = join(case.inputs(2))
    with case.quiet(), case.inlay() as handle, torch.no_grad():
        whole = answer(case.model, inputs)
        buffer = io.BytesIO()
        pickle.dump(case.model, buffer)
        buffer.seek(0)
        for other in (copy.deepcopy(case.model), pickle.load(buffer)):
            if not torch.equal(answer(other, inputs), whole):
                raise Broken("a copy computes something else")
            twin = attached(other)["law"]
            move(twin)
            if case.acts and torch.equal(answer(other, inputs), whole):
                raise Broken("a copy does not act through its own pieces")
            twin.detach()
            for rest in attached(other).values():
                rest.detach()
            if not torch.equal(answer(case.model, inputs), whole):
                raise Broken("what happens to a copy reaches the original")
        if not handle.attached:
            raise Broken("detaching a copy detached the original")
    return 0.0


def generation(case: Case) -> float:
    """Generating with a cache, without, and reading the same tokens at once all agree."""
    model, chart = case.model, case.chart
    if not model.can_generate() or chart.kind not in ("decoder", "encoder-decoder"):
        raise Beside("this base does not generate")
    singles = [{k: v for k, v in s.items() if k != "decoder_input_ids"} for s in case.inputs(3)]
    names = ["law", None, "law-b"]
    new = 4
    options: dict[str, Any] = {
        "max_new_tokens": new,
        "min_new_tokens": new,
        "do_sample": False,
        "pad_token_id": 0,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    worst = 0.0
    with case.quiet():
        ways = dict(paddings(case, singles_for(case, singles)))
    side = "left" if "left" in ways else "right"
    with case.quiet(), case.inlay(), case.inlay("law-b", seed=5), torch.no_grad():
        if chart.kind == "decoder" and side == "right":
            singles, names = [singles[0]] * 3, names
        batch = join(singles, side)
        with rows(model, names):
            made = model.generate(**batch, **options)
            tokens, logits = made.sequences, torch.stack(made.logits, 1).float()
            without = model.generate(**batch, **options, use_cache=False)
            plain = torch.stack(without.logits, 1).float()
            if torch.equal(without.sequences, tokens):
                worst = near(case, plain, logits, "without a cache", 3)
            else:
                raise Broken("other tokens without a cache")
            forced = _forced(case, batch, tokens, side, new)
            worst = max(worst, near(case, forced, logits, "read at once", 3))
            beams = model.generate(**batch, **{**options, "num_beams": 3})
        for i, (name, single) in enumerate(zip(names, singles, strict=True)):
            with rows(model, [name]):
                alone = model.generate(**single, **options)
                searched = model.generate(**single, **{**options, "num_beams": 3})
            if not torch.equal(alone.sequences[0, -new:], tokens[i, -new:]):
                raise Broken(f"row {i} ({name}) writes other tokens alone than in the batch")
            if not torch.equal(searched.sequences[0, -new:], beams.sequences[i, -new:]):
                raise Broken(f"row {i} ({name}) finds other beams alone than in the batch")
    return worst


def singles_for(case: Case, singles: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Rows for a plain forward of a base that generates."""
    if case.chart.kind != "encoder-decoder":
        return singles
    targets = case.inputs(len(singles))
    pairs = zip(singles, targets, strict=True)
    return [{**s, "decoder_input_ids": t["decoder_input_ids"]} for s, t in pairs]


def _forced(case: Case, batch: dict[str, Tensor], tokens: Tensor, side: str, new: int) -> Tensor:
    if case.chart.kind == "encoder-decoder":
        out = answer(case.model, {**batch, "decoder_input_ids": tokens[:, :-1]})
        return out[:, -new:]
    grown = torch.nn.functional.pad(batch["attention_mask"], (0, new - 1), value=1)
    whole = {"input_ids": tokens[:, :-1], "attention_mask": grown}
    if side == "left" and case.chart.stacks[0].takes("position_ids"):
        whole = counted(case, whole)
    return answer(case.model, whole)[:, -new:]


LAWS: dict[str, Callable[[Case], float]] = {
    "identity": identity,
    "no trace": no_trace,
    "only pieces learn": only_pieces_learn,
    "save → load": save_load,
    "rows do not meet": rows_apart,
    "padding is inert": padding_inert,
    "merge": merging,
    "gradient checkpointing": checkpointing,
    "copies are independent": copies_apart,
    "generation": generation,
    "dropped at inference": dropped,
}
"""The laws by name, in the order of the design. Parameter counts are each method's own test."""
