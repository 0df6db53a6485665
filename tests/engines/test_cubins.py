"""The Triton kernels compiled for GPUs that are not here: whether they fit, and what a compiler knows of them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._higher_order_ops.triton_kernel_wrap import identify_accessed_tensors

if sys.platform != "linux":
    pytest.skip("Triton is for Linux", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engines.kernels import attention, launch, modulation, write

_EPS = 1e-6
SHARED_MEMORY = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB that one program may have, by compute capability (CUDA C++ Programming Guide, technical specifications)."""
REGISTERS = 65_536
"""Of a multiprocessor, on all of them."""


def _launches(tokens: int, dim: int, heads: int, all_kernels: bool) -> Iterator[tuple[Any, launch.Plan]]:
    """Attention, or every kernel, and its launch for a frame of two rows, with 18 slots, two of them sinks. Nothing is
    computed.
    """

    def half(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    def full(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    q, own, cache = half(2, tokens, heads, dim), half(2, heads, tokens, dim), half(2, heads, 18 * tokens, dim)
    norm = (full(2, tokens), half(heads, dim), full(2, tokens, 2, dim // 2))
    seen = full(2, 18, dtype=torch.int32)
    yield attention._ring_attention, attention.plan_ring_attention(q, *norm, own, own, cache, cache, seen, out_BMHD=q)
    if not all_kernels:
        return
    raw_k, slots = half(2, heads, 2 * tokens, dim), full(2, 1, dtype=torch.int32)
    yield write._write_block, write.plan_write_block(q, q, *norm, slots, cache, cache, raw_k)
    yield write._rotate_sinks, write.plan_rotate_sinks(raw_k, full(2, 2 * tokens, 2, dim // 2), cache)
    x, vectors = half(2, 1, tokens, heads * dim), half(2, 1, 6, heads * dim).unbind(2)
    yield modulation._modulate, modulation.plan_modulate(x, *vectors[:2], _EPS, out_BFNd=x)
    yield modulation._gate, modulation.plan_gate(x, x, vectors[0], out_BFNd=x)
    plan = modulation.plan_gate_modulate(x, x, *vectors[:3], _EPS, sum_BFNd=x, out_BFNd=x)
    yield modulation._gate_modulate, plan


def _compiled(kernel: Any, plan: launch.Plan, capability: int) -> Any:
    """As Triton compiles it when it is launched: sizes and what is a multiple of 16 are known."""
    names = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32"}
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, parameter in enumerate(kernel.params):
        value = plan.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = (
            names[value.dtype] if isinstance(value, Tensor) else "i32" if isinstance(value, int) else "fp32"
        )
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    options = {name: value for name, value in plan.arguments.items() if name in ("num_warps", "num_stages")}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize(
    ("tokens", "dim", "heads", "all_kernels"),
    [
        (64, 32, 8, False),
        (64, 64, 4, False),
        (64, 128, 12, False),
        (1560, 64, 12, False),
        (1560, 128, 12, True),
    ],
)
@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_kernels_compile_and_fit(
    capability: int,
    tokens: int,
    dim: int,
    heads: int,
    all_kernels: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No register spills, and a program's registers and shared memory are there, on every architecture."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    for kernel, plan in _launches(tokens, dim, heads, all_kernels):
        compiled = _compiled(kernel, plan, capability)
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tool = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin]
        usage = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
        found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
        # What is spilled lies on the stack.
        assert found["STACK"] == found["LOCAL"] == "0", f"{kernel.__name__}: {usage}"
        assert int(found["REG"]) * 32 * compiled.metadata.num_warps <= REGISTERS, kernel.__name__
        assert compiled.metadata.shared <= SHARED_MEMORY[capability] * 1024, kernel.__name__
        if kernel is attention._ring_attention:
            # Keys and values are on their way while those before them are attended to.
            assert "async_copy_global_to_local" in compiled.asm["ttgir"]


def test_a_compiler_knows_what_a_kernel_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile copies what it believes a kernel writes, the whole cache if it cannot tell."""

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    written = {}
    for kernel, plan in _launches(64, 64, 4, True):
        arguments = {name: plan.arguments[name] for name in kernel.arg_names}
        writes = identify_accessed_tensors(kernel, arguments, {}).read_writes.writes
        written[kernel.__name__] = {each.name for each in writes}
    assert written == {
        "_ring_attention": {"out"},
        "_write_block": {"cache_k", "cache_v", "raw_k"},
        "_rotate_sinks": {"cache_k"},
        "_modulate": {"out"},
        "_gate": {"out"},
        "_gate_modulate": {"summed", "out"},
    }
