"""Quantised modules: in which type a base's matrices are kept, and the numbers that they stand for.

A frozen base may keep its matrices in 8 or 4 bits (bitsandbytes, torchao). Whatever acts on a
module's input and output works on it as on any other; what reads a matrix gets its numbers here.
Neither library is imported: a module can only be one of its own where a program has done so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from inlay.errors import SpecError


def _library(name: str) -> Any:
    """A library, if the program has imported it; else None."""
    return sys.modules.get(name)


def quantisation(host: nn.Module) -> str | None:
    """How the matrix of a module is quantised, such as "nf4" or "int8"; None where it is not."""
    bitsandbytes, torchao = _library("bitsandbytes"), _library("torchao.utils")
    weight = host._parameters.get("weight")
    if bitsandbytes is not None and isinstance(host, bitsandbytes.nn.Linear4bit):
        return str(host.weight.quant_type)
    if bitsandbytes is not None and isinstance(host, bitsandbytes.nn.Linear8bitLt):
        return "int8"
    if torchao is not None and isinstance(weight, torchao.TorchAOBaseTensor):
        return f"torchao-{type(weight).__name__}"
    return None


def dequantised(host: nn.Module) -> Tensor:
    """The matrix of a quantised module as numbers, `[d_out, d_in]` in fp32, without a gradient."""
    bitsandbytes, weight = _library("bitsandbytes"), host._parameters["weight"]
    assert weight is not None
    with torch.no_grad():
        if bitsandbytes is not None and isinstance(host, bitsandbytes.nn.Linear4bit):
            matrix = bitsandbytes.functional.dequantize_4bit(weight.data, host.weight.quant_state)
        elif bitsandbytes is not None and isinstance(host, bitsandbytes.nn.Linear8bitLt):
            scales = host.weight.SCB if host.state.SCB is None else host.state.SCB
            rows = weight.data if host.state.CB is None else host.state.CB
            matrix = bitsandbytes.functional.int8_vectorwise_dequant(rows, scales)
        else:
            matrix = weight.dequantize()
        return matrix.float()


def matrix_sizes(host: nn.Module) -> tuple[int, int]:
    """Rows and columns of a module's matrix as it is used, however it is packed."""
    if isinstance(host, nn.Linear) and quantisation(host) is not None:
        return host.out_features, host.in_features
    assert isinstance(host.weight, Tensor)
    rows, columns = host.weight.shape
    return rows, columns


def quantised_modules(model: nn.Module) -> dict[str, nn.Linear]:
    """Every quantised module of a model, by its path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and quantisation(module) is not None
    }


def memory_of(model: nn.Module) -> int:
    """How many bytes the parameters and buffers of a model take, of packed ones their parts."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(_bytes(tensor) for tensor in tensors.values())


def _bytes(tensor: Any) -> int:
    if not is_traceable_wrapper_subclass(tensor):
        return int(tensor.nbytes)
    names, _ = tensor.__tensor_flatten__()
    return sum(_bytes(getattr(tensor, name)) for name in names)


def as_linear(host: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    """An ordinary module that computes with the numbers of a quantised one."""
    matrix = dequantised(host).to(dtype)
    module = nn.Linear(
        host.in_features, host.out_features, host.bias is not None, device="meta", dtype=dtype
    )
    module.weight = nn.Parameter(matrix, requires_grad=False)
    if host.bias is not None:
        module.bias = nn.Parameter(host.bias.detach().to(dtype), requires_grad=False)
    return module.train(host.training)


def passes_gradients(host: nn.Linear, dtype: torch.dtype) -> bool:
    """Whether a quantised module gives its input the gradient that its matrix says.

    Those that round their input too (dynamic activation quantisation) do not, and say nothing.

    dtype: of the input.
    """
    matrix = dequantised(host)
    shape = 1, host.in_features
    x = torch.ones(shape, device=matrix.device, dtype=dtype, requires_grad=True)
    with torch.enable_grad():
        y = host.forward(x)
        if not y.requires_grad:
            return False
        gradients: Sequence[Tensor | None] = torch.autograd.grad(
            y.float().sum(), x, allow_unused=True
        )
    gradient = gradients[0]
    if gradient is None:
        return False
    expected = matrix.sum(0)
    return bool((gradient[0].float() - expected).norm() <= 0.05 * expected.norm() + 1e-6)


def require_gradients(hosts: Mapping[str, nn.Module], dtype: torch.dtype) -> None:
    """Raise SpecError for a quantised base through which pieces could not learn.

    One module of each kind is tried.

    hosts: modules of the base, by the name of a place. dtype: what the base computes in.
    """
    kept = keep_layout(hosts.values())
    tried: set[str | None] = {None}
    try:
        for path, module in hosts.items():
            kind = quantisation(module)
            if kind in tried:
                continue
            assert isinstance(module, nn.Linear)
            if not passes_gradients(module, dtype):
                raise SpecError(
                    f"the base is quantised so that gradients get lost in it ({kind} at {path} "
                    "rounds its inputs too), and pieces would not learn; quantise the weights "
                    "only, such as by load_base(..., quantize='int8')"
                )
            tried.add(kind)
    finally:
        allow_layout(kept)


def keep_layout(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Keep bitsandbytes from packing 4-bit matrices anew on a CPU; returns whom it kept from it.

    On some processors the first pass without gradients packs them in place for a kernel through
    which no gradient goes, and every later pass uses that. It also rounds their scales to bfloat16
    for good, so `load_base` keeps its models from it from the start. `allow_layout` takes this
    back.
    """
    kept: list[nn.Module] = []
    bitsandbytes = _library("bitsandbytes")
    for module in modules if bitsandbytes is not None else ():
        if isinstance(module, bitsandbytes.nn.Linear4bit) and module.support_avx512bf16_for_cpu:
            module.support_avx512bf16_for_cpu = False
            module.state_dict()  # unpacks a matrix that is packed already
            kept.append(module)
    return kept


def allow_layout(modules: list[nn.Module]) -> None:
    """Let bitsandbytes do again what `keep_layout` kept it from."""
    for module in modules:
        module.support_avx512bf16_for_cpu = True  # type: ignore[assignment]
