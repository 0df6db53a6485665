"""A GPU made up of host memory, whose graphs ONNX Runtime runs: what a runtime asks of its streams happens as late, or
as early, as its own `after` and `wait` allow, so that what is not waited for is not there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

_KINDS = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def at(address: int, size: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class HostDevice:
    """launches: how often recorded work was started; asked: how often work was asked for piece by piece. eager: streams
    that do at once what they may, in the order of their making; all others wait.
    """

    name, capability = "host memory", "sm_89"

    def __init__(self, eager: tuple[int, ...] = ()) -> None:
        self._eager = eager
        self._memory: list[NDArray[np.uint8]] = []
        self._queues: list[list[Callable[[], None]]] = []
        self._done: list[int] = []
        self._recording: list[Callable[[], None]] | None = None
        self.launches = self.asked = 0

    def allocate(self, size: int) -> int:
        return int(self.host(size).ctypes.data)

    def host(self, size: int) -> NDArray[np.uint8]:
        self._memory.append(np.zeros(size, np.uint8))
        return self._memory[-1]

    def stream(self) -> int:
        self._queues.append([])
        self._done.append(0)
        return len(self._queues) - 1

    def upload(self, to: int, source: NDArray[np.uint8], stream: int) -> None:
        self.ask(stream, lambda: ctypes.memmove(to, source.ctypes.data, source.nbytes) and None)

    def download(self, to: NDArray[np.uint8], source: int, stream: int) -> None:
        self.ask(stream, lambda: ctypes.memmove(to.ctypes.data, source, to.nbytes) and None)

    def zero(self, address: int, size: int) -> None:
        for stream in range(len(self._queues)):
            self.wait(stream)
        at(address, size)[:] = 0

    def after(self, stream: int, other: int) -> None:
        def wait_for() -> None:
            length = len(self._queues[other])
            self._queues[stream].append(lambda: self._until(other, length))

        self._now_or_recorded(wait_for, stream)

    def ask(self, stream: int, work: Callable[[], None]) -> None:
        self.asked += 1
        self._now_or_recorded(lambda: self._queues[stream].append(work), stream)

    def record(self, stream: int, work: Callable[[], None]) -> Callable[[], None]:
        self._recording = recorded = []
        work()
        self._recording = None

        def launch() -> None:
            self.launches += 1
            for each in recorded:
                each()

        return launch

    def wait(self, stream: int) -> None:
        self._until(stream, len(self._queues[stream]))

    def _now_or_recorded(self, enqueue: Callable[[], None], stream: int) -> None:
        def now() -> None:
            enqueue()
            if stream in self._eager:
                self.wait(stream)

        if self._recording is None:
            now()
        else:
            self._recording.append(now)

    def _until(self, stream: int, length: int) -> None:
        while self._done[stream] < length:
            self._done[stream] += 1
            self._queues[stream][self._done[stream] - 1]()


class HostExecutable:
    """A graph that ONNX Runtime runs over memory at addresses. The cache's inputs and outputs must be one memory."""

    recordable = True

    def __init__(self, session: ort.InferenceSession, device: HostDevice) -> None:
        self._session, self._device = session, device
        self.inputs = tuple(each.name for each in session.get_inputs())
        self.outputs = tuple(each.name for each in session.get_outputs())

    def run(self, addresses: dict[str, int], stream: int) -> None:
        given = {addresses[name] for name in self.inputs}
        for name in self.outputs:
            if name.startswith("new_"):
                assert addresses[name] == addresses[name.removeprefix("new_")]
            else:
                assert addresses[name] not in given, f"{name} is written while it is read"
        now = dict(addresses)
        self._device.ask(stream, lambda: self._run(now))

    def _run(self, addresses: dict[str, int]) -> None:
        given = {each.name: self._array(each, addresses).copy() for each in self._session.get_inputs()}
        made = self._session.run(None, given)
        for each, array in zip(self._session.get_outputs(), made, strict=True):
            self._array(each, addresses)[...] = array

    def _array(self, tensor: Any, addresses: dict[str, int]) -> NDArray[Any]:
        kind = np.dtype(_KINDS[tensor.type])
        return at(addresses[tensor.name], prod(tensor.shape) * kind.itemsize).view(kind).reshape(tensor.shape)


class HostTensorRT:
    """What `engines.tensorrt.engine.load` asks of TensorRT for RTX, for engines whose graphs ONNX Runtime runs on a
    device. kept: what its runtime caches were filled with.
    """

    TensorIOMode = SimpleNamespace(INPUT="input")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="ours")
    compiled = b"what was compiled on the card"

    def __init__(self, sessions: dict[bytes, ort.InferenceSession], device: HostDevice) -> None:
        self._sessions, self._device = sessions, device
        self.kept: list[bytes] = []

    def Runtime(self, _: object) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self._engine(self._sessions[plan]))

    def _engine(self, session: ort.InferenceSession) -> Any:
        executable = HostExecutable(session, self._device)
        names = *executable.inputs, *executable.outputs
        settings = SimpleNamespace(
            set_execution_context_allocation_strategy=lambda how: None,
            create_runtime_cache=lambda: SimpleNamespace(serialize=lambda: self.compiled, deserialize=self.kept.append),
            set_runtime_cache=lambda cache: None,
        )
        return SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=lambda index: names[index],
            get_tensor_mode=lambda name: "input" if name in executable.inputs else "output",
            device_memory_size_v2=512,
            create_runtime_config=lambda: settings,
            create_execution_context=lambda settings: _Context(executable),
        )


class _Context:
    def __init__(self, executable: HostExecutable) -> None:
        self._executable = executable
        self._memory = 0
        self._addresses: dict[str, int] = {}
        self._ran = False

    def set_device_memory(self, address: int, size: int) -> None:
        assert len(at(address, size)) == size
        self._memory = size

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self._memory and self._addresses.keys() == {*self._executable.inputs, *self._executable.outputs}
        self._executable.run(self._addresses, stream)
        self._ran = True
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self._ran
