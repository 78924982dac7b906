"""Intrinsic prompt tuning: P = W₃ tanh(W₂ z), only z is trained (Qin et al., 2021, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.init import embeddings
from inlay.blocks.vectors import PromptTable
from inlay.core.method import Method, Shared, positive_int, require_site
from inlay.core.piece import PromptVectors
from inlay.core.site import Site, Where
from inlay.errors import FileError, SpecError


@dataclass(frozen=True, repr=False)
class IPT(Method):
    """A prompt before the text in a subspace of few dimensions, found from other tasks' prompts.

    length:  P, virtual tokens.
    code:    d_I, the trained dimensions. None trains the prompt directly, which is what a file
             holds.
    inner:   width of the decoder's hidden layer.
    decoder: the file that `inlay.training.fit_decoder` wrote, which holds W₂ and W₃. None draws
             them at random: the paper's baseline, a random subspace.
    at:      'embed', or 'embed.target' for the decoder of an encoder–decoder.
    """

    length: int = 20
    code: int | None = 250
    inner: int = 768
    decoder: str | None = None
    at: Where = Where(("embed",))

    lr: ClassVar[float] = 1e-2
    size: ClassVar[str] = "code"
    paper: ClassVar[str] = "Qin et al., 2021 (IPT)"
    sources: ClassVar[Mapping[str, str]] = {
        "length": "as for `Prompt`; the paper has 100",
        "code": "the paper: 250 dimensions keep 97 % of a full prompt on tasks that it has seen",
        "inner": "the authors' code",
        "lr": "as for `Prompt`",
    }

    @override
    def check(self) -> None:
        positive_int(self, "length", "inner")
        if self.code is not None:
            positive_int(self, "code")
        elif self.decoder is not None:
            raise SpecError(
                "IPT: a decoder needs the size of its input; give code=250 as in training it"
            )

    @override
    def build(self, site: Site, shared: Shared) -> PromptVectors:
        require_site(
            self, site, site.role in ("embed", "embed.target"), "input embeddings ('embed')"
        )
        tokens = torch.randint(0, site.d_in, (self.length,), device="cpu")
        words = embeddings(self, site, [(token,) for token in tokens.tolist()])
        if self.code is None:
            return PromptTable(words)
        width = self.length * site.d_out
        net = Decoder(self.code, self.inner, width)
        if self.decoder is None:
            with torch.no_grad():
                net.outer.bias.copy_(words.flatten())
        else:
            net.read(Path(self.decoder))
        return Coded(net, self.code, self.length)

    @override
    def exported(self) -> IPT:
        """The prompt alone."""
        return replace(self, code=None, decoder=None)


IPT.examples = (IPT(length=3, code=None), IPT(length=2, code=4, inner=5))


class Decoder(nn.Module):
    """`z -> W₃ tanh(W₂ z + b₂) + b₃`."""

    def __init__(self, code: int, inner: int, width: int):
        super().__init__()
        self.inner = nn.Linear(code, inner)
        self.outer = nn.Linear(inner, width)

    def forward(self, code: Tensor) -> Tensor:
        """code `[..., d_I]` -> `[..., P·D]`."""
        return self.outer(torch.tanh(self.inner(code)))

    def read(self, path: Path) -> None:
        """Load the weights of a decoder file. Raises FileError for another file."""
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise FileError(f"cannot read the decoder {path}: {error}") from None
        expected = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if expected != shapes:
            raise FileError(f"{path} is the decoder of another length, code or width: {shapes}")
        self.load_state_dict(tensors)


class Coded(PromptVectors):
    """What a frozen decoder makes of the code."""

    inner_weight: Tensor
    inner_bias: Tensor
    outer_weight: Tensor
    outer_bias: Tensor

    def __init__(self, net: Decoder, code: int, length: int):
        super().__init__()
        self.length = length
        self.code = nn.Parameter(torch.randn(code) * 0.02)  # [d_I]
        for name, tensor in net.state_dict().items():
            self.register_buffer(name.replace(".", "_"), tensor.clone())

    @override
    def forward(self) -> Tensor:
        hidden = torch.tanh(self.inner_weight @ self.code + self.inner_bias)
        return (self.outer_weight @ hidden + self.outer_bias).unflatten(0, (self.length, -1))

    def export(self) -> dict[str, Tensor]:
        """The prompt alone, as `PromptTable` reads it."""
        with torch.no_grad():
            return {"values": self.forward().contiguous()}
