"""A process in which Triton interprets: kernels run on the CPU there, as numpy.

Whether it interprets is decided when triton is imported, so it is a process of its own and this module imports no
triton at its top.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch

TIMEOUT_S = 60.0

Run = Callable[..., Any]
"""Calls a function with arguments in that process: `run(function, *arguments)` gives its result and the arguments as
they are afterwards.
"""


@contextlib.contextmanager
def interpreter() -> Iterator[Run]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _interpret) as pool:
        yield lambda function, *arguments: pool.submit(_call, function, *arguments).result(TIMEOUT_S)


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    from triton.runtime import interpreter

    _teach_bf16(interpreter)
    # Tensors of the CPU are worked on where they are. Copying them back onto themselves touches what must not be.
    interpreter.GridExecutor._restore_args_dev = lambda *arguments: None


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments), arguments


def _teach_bf16(interpreter: Any) -> None:
    """Triton 3.7's interpreter keeps bf16 as uint16, multiplies matrices of it as integers, and cuts off where a GPU
    rounds to nearest even.
    """
    import triton.language as tl

    builder = interpreter.InterpreterBuilder
    plain_cast, plain_dot = builder.cast_impl, builder.create_dot

    def cast(self: Any, source: Any, to: Any) -> Any:
        kinds = source.dtype.scalar, to.scalar
        if kinds == (tl.bfloat16, tl.float32):
            wide = np.ascontiguousarray(source.data).astype(np.uint32) << 16
            return interpreter.TensorHandle(wide.view(np.float32), tl.float32)
        if kinds == (tl.float32, tl.bfloat16):
            half = torch.from_numpy(np.array(source.data, np.float32, ndmin=1)).bfloat16().view(torch.int16).numpy()
            return interpreter.TensorHandle(half.view(np.uint16).reshape(source.data.shape), tl.bfloat16)
        return plain_cast(self, source, to)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        wide = [self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)]
        return plain_dot(self, *wide, *rest)

    builder.cast_impl, builder.create_dot = cast, dot


def exit_code_with_locked(forbidden: list[int], seen: list[int]) -> int:
    """Of a process that attends to the slots `seen` while it may not touch the memory of those forbidden.

    0, or minus the number of the signal that ended it. Each slot's keys and its values fill a page. Runs in the
    interpreter.
    """
    from engines.kernels.attention import launch_ring_attention

    slots, dim = 6, 32
    tokens = mmap.PAGESIZE // (2 * dim)
    memory = [mmap.mmap(-1, slots * mmap.PAGESIZE) for _ in range(2)]
    cache = [torch.frombuffer(each, dtype=torch.float16).view(1, 1, slots * tokens, dim) for each in memory]
    q, own = torch.randn(1, 4, 1, dim).half(), torch.randn(1, 1, 4, dim).half()
    rotation = torch.stack([torch.ones(1, 4, dim // 2), torch.zeros(1, 4, dim // 2)], 2)
    seen_BS = torch.tensor([seen + [-1] * (slots - len(seen))], dtype=torch.int32)
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        protect = ctypes.CDLL(None).mprotect
        for tensor in cache:
            for slot in forbidden:
                page = ctypes.c_void_p(tensor.data_ptr() + slot * mmap.PAGESIZE)
                assert protect(page, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        launch_ring_attention(q, torch.ones(1, 4), torch.ones(1, dim), rotation, own, own, *cache, seen_BS)
        os._exit(0)
    finally:
        os._exit(1)
