"""Triton kernels for what a block does between its matrix products: attention, modulation, writing the ring.

Each is an operator of torch in the namespace `streamgen`: torch.export keeps it whole, torch.compile sees the kernel in
it, and on CPU tensors it is the plain torch of `engines.kernels.reference`. The kernels take fp16 and bf16, calculate
in fp32 and have no backward pass. They are checked in Triton's interpreter and compiled for every architecture that the
tests name; not yet run on a GPU.

They differ from `streamgen.models.attention` in where the sinks' raw keys are: beside the cache. The sinks' slots hold
keys that `rotate_sinks` turns afresh once a frame, so that attention reads every slot in the same way.
"""

from engines.protocol import MissingPackage

try:
    import triton  # noqa: F401 - before what needs it, so that a missing one is named
except ModuleNotFoundError as error:
    raise MissingPackage(
        "the GPU kernels need the package triton, which there is for Linux: pip install 'streamgen[triton]'"
    ) from error

from engines.kernels.attention import ring_attention, seen_slots
from engines.kernels.modulation import gate, gate_modulate, modulate
from engines.kernels.reference import reciprocal_rms
from engines.kernels.rotation import rotation_table
from engines.kernels.write import rotate_sinks, write_block

__all__ = [
    "gate",
    "gate_modulate",
    "modulate",
    "reciprocal_rms",
    "ring_attention",
    "rotate_sinks",
    "rotation_table",
    "seen_slots",
    "write_block",
]
