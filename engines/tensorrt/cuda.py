"""The little of CUDA that a runtime of compiled engines needs: memory, streams, and recorded work."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.protocol import EngineError, MissingPackage

Bytes = NDArray[np.uint8]


class Device(Protocol):
    """Memory and streams of a GPU, until the process ends. Addresses are integers; streams are asked, never waited for
    but in `wait` and `zero`.
    """

    name: str
    capability: str

    def allocate(self, size: int) -> int:
        """The address of so many bytes, zero at first."""
        ...

    def host(self, size: int) -> Bytes:
        """So many bytes of the host that a GPU copies from and to without waiting, zero at first."""
        ...

    def stream(self) -> int: ...

    def upload(self, to: int, source: Bytes, stream: int) -> None: ...

    def download(self, to: Bytes, source: int, stream: int) -> None: ...

    def zero(self, at: int, size: int) -> None:
        """Clear memory, after all that was asked for before, and wait for it."""
        ...

    def after(self, stream: int, other: int) -> None:
        """What `stream` is given from now on begins when what `other` was given until now is done."""
        ...

    def record(self, stream: int, work: Callable[[], None]) -> Callable[[], None]:
        """Note what `work` asks of the stream instead of doing it; what is returned does all of it at once."""
        ...

    def wait(self, stream: int) -> None: ...


class CudaDevice:
    """The first GPU. Not yet run on one."""

    def __init__(self) -> None:
        """Raises EngineError where there is no GPU, MissingPackage without cuda-bindings."""
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise MissingPackage(
                "engine tensorrt needs cuda-bindings: install streamgen with the extra `tensorrt`, or use openvino"
            ) from error
        self._cuda = runtime
        try:
            count = self._call(runtime.cudaGetDeviceCount())
        except EngineError as error:
            raise EngineError(
                f"no NVIDIA GPU that can be used: {error}; use engine openvino, or renew the driver"
            ) from error
        if not count:
            raise EngineError("no NVIDIA GPU is to be seen: use engine openvino, or look at nvidia-smi")
        about = self._call(runtime.cudaGetDeviceProperties(0))
        self.name = about.name.decode()
        self.capability = f"sm_{about.major}{about.minor}"
        self._events: dict[tuple[int, int], Any] = {}

    def allocate(self, size: int) -> int:
        address = int(self._call(self._cuda.cudaMalloc(size)))
        self.zero(address, size)
        return address

    def host(self, size: int) -> Bytes:
        address = int(self._call(self._cuda.cudaMallocHost(size)))
        memory: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        memory[:] = 0
        return memory

    def stream(self) -> int:
        # Not the default one, which waits for all others and cannot be recorded.
        made = self._call(self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking))
        return int(made)

    def upload(self, to: int, source: Bytes, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._cuda.cudaMemcpyAsync(to, source.ctypes.data, source.nbytes, kind, stream))

    def download(self, to: Bytes, source: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._cuda.cudaMemcpyAsync(to.ctypes.data, source, to.nbytes, kind, stream))

    def zero(self, at: int, size: int) -> None:
        self._call(self._cuda.cudaDeviceSynchronize())
        self._call(self._cuda.cudaMemset(at, 0, size))
        self._call(self._cuda.cudaDeviceSynchronize())

    def after(self, stream: int, other: int) -> None:
        if (stream, other) not in self._events:
            made = self._call(self._cuda.cudaEventCreateWithFlags(self._cuda.cudaEventDisableTiming))
            self._events[stream, other] = made
        event = self._events[stream, other]
        self._call(self._cuda.cudaEventRecord(event, other))
        self._call(self._cuda.cudaStreamWaitEvent(stream, event, 0))

    def record(self, stream: int, work: Callable[[], None]) -> Callable[[], None]:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(self._cuda.cudaStreamBeginCapture(stream, mode))
        try:
            work()
        finally:
            graph = self._call(self._cuda.cudaStreamEndCapture(stream))
        ready = self._call(self._cuda.cudaGraphInstantiate(graph, 0))
        self._call(self._cuda.cudaGraphDestroy(graph))
        return lambda: self._call(self._cuda.cudaGraphLaunch(ready, stream))

    def wait(self, stream: int) -> None:
        self._call(self._cuda.cudaStreamSynchronize(stream))

    def _call(self, result: tuple[Any, ...]) -> Any:
        error, *value = result
        if int(error):
            _, what = self._cuda.cudaGetErrorString(error)
            raise EngineError(f"CUDA: {what.decode()} ({int(error)})")
        return value[0] if value else None
