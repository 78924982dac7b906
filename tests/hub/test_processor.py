"""Whether the processor computes products in 16 bits itself."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from inlay.hub import processor


@pytest.mark.parametrize("times", [2, 50])
def test_emulated_products_are_recognised(times, monkeypatch):
    seconds = {torch.float32: 1e-4, torch.bfloat16: times * 1e-4}
    monkeypatch.setattr(processor, "_product_seconds", seconds.__getitem__)
    processor.is_emulated.cache_clear()
    assert processor.is_emulated(torch.bfloat16) == (times == 50)
    processor.is_emulated.cache_clear()
    assert not any(map(processor.is_emulated, (torch.float32, torch.float64, torch.float8_e4m3fn)))


@pytest.mark.processor
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="hides x86 instructions")
def test_a_processor_without_bf16_is_recognised():
    code = "import torch; from inlay.hub.processor import is_emulated; print(is_emulated(torch.bfloat16))"
    hidden = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **hidden}, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
