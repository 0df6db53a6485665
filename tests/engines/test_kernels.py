"""The Triton kernels: in Triton's interpreter against float64, and as operators.

Dimensions: B rows, F frames of a block, N tokens a frame, M tokens of a block (F N), H heads, D head dim, P rotary
pairs, S slots, T tokens of all slots, d model dim.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamgen.cache import block_rotation, slot_of, visible_slots
from streamgen.models.attention import CacheAttention, space_rotation
from streamgen.models.transformer import RMSNorm
from tests.engines.interpreted import Run, exit_code_with_locked, interpreter
from tests.toy import toy_transformer_config

if sys.platform != "linux":
    pytest.skip("Triton is for Linux", allow_module_level=True)


import engines.kernels as kernels
from engines.kernels import attention, modulation, write

EPS = 1e-6
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with interpreter() as run:
        yield run


class Block:
    """A block of random rows at random angles, and a cache in which what a row does not see is NaN."""

    def __init__(self, seed: int, dim: int, dtype: torch.dtype, **sizes: int) -> None:
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        drawn = {"B": rng.integers(1, 4), "F": rng.integers(1, 3), "N": rng.integers(3, 36), "H": rng.integers(1, 4)}
        size = {name: int(value) for name, value in drawn.items()} | {"S": int(rng.integers(1, 6))} | sizes
        self.rows, self.frames, self.tokens = size["B"], size["F"], size["N"]
        self.heads, self.slots, self.dim = size["H"], size["S"], dim
        block, width = self.frames * self.tokens, self.heads * dim
        # As one product of all three gives them: the tokens' numbers are not beside each other.
        qkv = torch.randn(self.rows, block, 3 * width).to(dtype) * 3
        self.q, self.k, self.v = (x.unflatten(-1, (self.heads, dim)) for x in qkv.split(width, -1))
        self.rstd_q, self.rstd_k = (kernels.reciprocal_rms(x.flatten(-2), EPS) for x in (self.q, self.k))
        self.weight = torch.rand(self.heads, dim) + 0.5
        self.angles = torch.rand(self.rows, block, dim // 2) * 2 * math.pi
        self.rotation = torch.stack([self.angles.cos(), self.angles.sin()], 2)
        self.own_k, self.own_v = (torch.randn(self.rows, self.heads, block, dim).to(dtype) for _ in range(2))
        self.visible = torch.from_numpy(rng.random((self.rows, self.slots)) < 0.6)
        self.visible[0] = torch.from_numpy(rng.random(self.slots) < 0.2)  # often a row that sees nothing
        hidden = ~self.visible.repeat_interleave(self.tokens, 1)[:, None, :, None]
        cache = torch.randn(2, self.rows, self.heads, self.slots * self.tokens, dim).to(dtype)
        self.cache_k, self.cache_v = cache.masked_fill(hidden, math.nan)

    def arguments(self, visible: Tensor | None = None) -> tuple[Tensor, ...]:
        """Of `ring_attention`."""
        seen = kernels.seen_slots(self.visible if visible is None else visible)
        own, cache = (self.own_k, self.own_v), (self.cache_k, self.cache_v)
        return self.q, self.rstd_q, self.weight, self.rotation, *own, *cache, seen

    def exact(self) -> Tensor:
        """`ring_attention` row by row in float64, rotation as a complex product: [B, M, H, D]."""
        q = self.turned(self.normal(self.q))
        out = torch.empty_like(q)
        for row in range(self.rows):
            seen = self.visible[row].repeat_interleave(self.tokens)
            k, v = (
                torch.cat([cache[row][:, seen], own[row]], 1).double()
                for cache, own in ((self.cache_k, self.own_k), (self.cache_v, self.own_v))
            )
            scores = torch.einsum("mhd,htd->hmt", q[row], k) / math.sqrt(self.dim)
            out[row] = torch.einsum("hmt,htd->mhd", scores.softmax(-1), v)
        return out

    def normal(self, x_BMHD: Tensor) -> Tensor:
        x = x_BMHD.double()
        return x / (x.square().mean((-2, -1), keepdim=True) + EPS).sqrt() * self.weight

    def turned(self, x_BMHD: Tensor) -> Tensor:
        return turned(x_BMHD, self.angles[:, :, None])


def turned(x: Tensor, angles: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones(()).double(), angles.double())).flatten(-2)


def close(got: Tensor, exact: Tensor, roundings: float) -> bool:
    """Whether nothing is farther off than so many roundings of the largest number; NaN never is near."""
    unit = torch.finfo(got.dtype).eps / 2
    return bool((got.double() - exact).abs().max() <= roundings * unit * exact.abs().max())


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("seed", "dim"), list(enumerate([24, 32, 32, 32, 64, 64, 96, 128])))
def test_attention_is_exact_and_sees_nothing_of_hidden_slots(run: Run, seed: int, dim: int, dtype: torch.dtype) -> None:
    block = Block(seed, dim, dtype)
    out, _ = run(attention.launch_ring_attention, *block.arguments())
    assert out.dtype == dtype and close(out, block.exact(), 4)


def test_many_tokens_take_several_tiles(run: Run) -> None:
    """Of queries, of the block's keys and of a slot's, with a rest; heads of 128 have the smallest tiles."""
    for seed, dim in ((10, 128), (11, 64)):
        block = Block(seed, dim, torch.float16, B=2, F=2, N=75, H=1, S=3)
        out, _ = run(attention.launch_ring_attention, *block.arguments())
        assert close(out, block.exact(), 4)
    block = Block(12, 32, torch.float16, B=1, F=1, N=520, H=1, S=1)
    assert attention.plan_ring_attention(*block.arguments(), out_BMHD=block.q).grid == (5, 1, 1)
    assert close(run(attention.launch_ring_attention, *block.arguments())[0], block.exact(), 4)


@pytest.mark.parametrize("seed", range(4))
def test_skipping_slots_equals_a_cache_without_them(run: Run, seed: int) -> None:
    """Bit for bit: block-sparse attention is dense attention to what is left."""
    block = Block(seed + 20, 32, torch.bfloat16, B=2, S=6)
    block.visible = torch.ones(2, 6)
    block.cache_k, block.cache_v = (torch.randn_like(x) for x in (block.cache_k, block.cache_v))
    kept = torch.stack([torch.randperm(6)[:3].sort().values for _ in range(2)])
    mask = torch.zeros(2, 6).scatter(1, kept, 1)
    sparse, _ = run(attention.launch_ring_attention, *block.arguments(block.visible * mask))
    dense, _ = run(attention.launch_ring_attention, *block.arguments())
    assert not torch.equal(sparse, dense)
    block.cache_k, block.cache_v = (
        torch.stack([x[row].unflatten(1, (6, -1))[:, kept[row]].flatten(1, 2) for row in range(2)])
        for x in (block.cache_k, block.cache_v)
    )
    assert torch.equal(sparse, run(attention.launch_ring_attention, *block.arguments(torch.ones(2, 3)))[0])


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_skipped_slot_leaves_no_trace(run: Run, poison: float) -> None:
    block = Block(30, 32, torch.float16, S=4)
    results = []
    for value in (poison, 0.0):
        hidden = ~block.visible.repeat_interleave(block.tokens, 1)[:, None, :, None]
        block.cache_k, block.cache_v = (x.masked_fill(hidden, value) for x in (block.cache_k, block.cache_v))
        results.append(run(attention.launch_ring_attention, *block.arguments())[0])
    assert hidden.any() and torch.equal(*results)


def test_a_skipped_slot_is_not_loaded(run: Run) -> None:
    assert run(exit_code_with_locked, [1, 2, 4, 5], [0, 3])[0] == 0
    assert run(exit_code_with_locked, [2], [0, 2, 3])[0] == -signal.SIGSEGV


def test_rows_do_not_touch_each_other(run: Run) -> None:
    block = Block(40, 32, torch.float16, B=3)
    together, _ = run(attention.launch_ring_attention, *block.arguments())
    for row in range(3):
        alone = [x if x is block.weight else x[row : row + 1] for x in block.arguments()]
        assert torch.equal(run(attention.launch_ring_attention, *alone)[0], together[row : row + 1])


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("seed", "dim"), list(enumerate([24, 32, 64, 96, 128])))
def test_a_block_is_written_into_its_slots_and_nowhere_else(run: Run, seed: int, dim: int, dtype: torch.dtype) -> None:
    sinks, slots = 2, 5
    block = Block(seed + 50, dim, dtype, F=2, S=slots, B=3)
    block.cache_k.fill_(1)
    block.cache_v.fill_(2)
    raw_k = torch.full_like(block.cache_k[:, :, : sinks * block.tokens], 3)
    # Sinks; the ring; a frame that has no slot, and one slot too far.
    places = torch.tensor([[0, 1], [4, 2], [-1, slots]], dtype=torch.int32)
    tensors = (block.k, block.v, block.rstd_k, block.weight, block.rotation, places)
    cache_k, cache_v, raw_k = run(write.launch_write_block, *tensors, block.cache_k, block.cache_v, raw_k)[1][-3:]
    keys = block.normal(block.k)
    wanted = block.turned(keys), block.v.double(), keys
    for held, plain, blank, count in zip(
        (cache_k, cache_v, raw_k), wanted, (1, 2, 3), (slots, slots, sinks), strict=True
    ):
        held_BHSND = held.unflatten(2, (count, -1))
        plain_BFHND = plain.unflatten(1, (2, -1)).transpose(2, 3)
        free = torch.ones(3, count, dtype=torch.bool)
        for row, frame in ((row, frame) for row in range(3) for frame in range(2)):
            if 0 <= (slot := int(places[row, frame])) < count:
                free[row, slot] = False
                # One rounding at the end; the fp32 before it may turn it.
                assert close(held_BHSND[row, :, slot], plain_BFHND[row, frame], 1.01)
        assert (held_BHSND.transpose(1, 2)[free] == blank).all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_sinks_are_rotated_from_their_raw_keys(run: Run, dtype: torch.dtype) -> None:
    block = Block(60, 96, dtype, F=2, S=5, B=2)
    raw_k, angles = torch.randn_like(block.own_k), block.angles
    cache = block.cache_k.clone()
    (_, _, cache_k) = run(write.launch_rotate_sinks, raw_k, block.rotation, cache)[1]
    count = raw_k.shape[2]
    assert close(cache_k[:, :, :count], turned(raw_k, angles[:, None]), 1.01)
    assert torch.equal(cache_k[:, :, count:].nan_to_num(7), block.cache_k[:, :, count:].nan_to_num(7))


def _layer(seed: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """x and update [B, F, N, d], far from zero; gate, scale, shift [B, F, d] as a block has them."""
    torch.manual_seed(seed)
    x, update = (torch.randn(2, 2, 7, dim).add(3).to(dtype) for _ in range(2))
    e = torch.randn(2, 2, 6, dim).to(dtype)
    return x, update, e.unbind(2)[1:4]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("seed", "dim"), list(enumerate([48, 256, 1536])))
def test_modulation_and_gate_are_exact(run: Run, seed: int, dim: int, dtype: torch.dtype) -> None:
    x, update, vectors = _layer(seed, dim, dtype)
    gate, scale, shift = (each.double()[:, :, None] for each in vectors)

    def exact(x: Tensor) -> Tensor:
        normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + EPS).sqrt()
        return normal * (1 + scale) + shift

    summed = x.double() + gate * update.double()
    assert close(run(modulation.launch_modulate, x, *vectors[1:], EPS)[0], exact(x.double()), 1.01)
    assert close(run(modulation.launch_gate, x, update, vectors[0])[0], summed, 1.01)
    (got_sum, got), _ = run(modulation.launch_gate_modulate, x, update, *vectors, EPS)
    assert close(got_sum, summed, 1.01) and close(got, exact(summed), 1.01)


@pytest.mark.parametrize("sink", [0, 2])
def test_the_operators_are_the_models_attention(sink: int) -> None:
    """On a CPU in fp32, rows at different frames: the same as `CacheAttention`, blocks written one after another."""
    config = toy_transformer_config(sink=sink, block_size=2, window=6)
    frames = [0, 2, 4, 14, 10_000_000]
    rows, heads, dim, tokens, size = len(frames), config.num_heads, config.head_dim, config.tokens, config.block_size
    torch.manual_seed(0)
    space = space_rotation(config)
    norm_q, norm_k = (RMSNorm(config.dim, config.eps) for _ in range(2))
    for norm in (norm_q, norm_k):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    weight_q, weight_k = (norm.weight.detach().view(heads, dim) for norm in (norm_q, norm_k))
    shape = rows, heads, config.slots * tokens, dim
    raw_k = torch.full((rows, heads, sink * tokens, dim), math.nan)
    model, ours = torch.randn(2, *shape), torch.full((2, *shape), math.nan)
    for step in range(4):
        at = [frame + step * size for frame in frames]
        rotation = torch.from_numpy(np.stack([block_rotation(frame, config) for frame in at]))
        # What was there before the first step is not this test's; but rows may be as young as their first frame.
        seen = [visible_slots(frame, config, max(frame - step * size, 0)) for frame in at]
        visible = torch.from_numpy(np.stack(seen))
        visible[:, :sink] = torch.tensor(np.stack(seen))[:, :sink] * (torch.tensor(frames) == 0)[:, None]
        slots = torch.tensor([[slot_of(frame + i, config) for i in range(size)] for frame in at], dtype=torch.int32)
        q, k, v = torch.randn(3, rows, size, tokens, config.dim).unbind(0)

        attend = CacheAttention(config, space, rotation, visible, model[:1], model[1:])
        heads_of = [x.unflatten(-1, (heads, dim)) for x in (norm_q(q), norm_k(k), v)]
        wanted = attend(0, *(x.detach() for x in heads_of))
        new_k, new_raw, new_v = (x[0] for x in attend.block())
        for row, frame in ((row, i) for row in range(rows) for i in range(size)):
            slot = int(slots[row, frame])
            to, source = slice(slot * tokens, (slot + 1) * tokens), slice(frame * tokens, (frame + 1) * tokens)
            model[0][row, :, to] = (new_raw if slot < sink else new_k)[row, :, source]
            model[1][row, :, to] = new_v[row, :, source]

        q, k, v = (x.flatten(1, 2).unflatten(-1, (heads, dim)) for x in (q, k, v))
        rstd_q, rstd_k = (kernels.reciprocal_rms(x.flatten(-2), config.eps) for x in (q, k))
        table = kernels.rotation_table(rotation[:, sink:], space)
        if sink:
            kernels.rotate_sinks(raw_k, kernels.rotation_table(rotation[:, :sink], space), ours[0])
        own_k, own_v = torch.empty(2, rows, heads, size * tokens, dim)
        order = torch.arange(size, dtype=torch.int32).expand(rows, -1).contiguous()
        kernels.write_block(k, v, rstd_k, weight_k, table, order, own_k, own_v, raw_k[:, :, :0])
        out = kernels.ring_attention(
            q, rstd_q, weight_q, table, own_k, own_v, ours[0], ours[1], kernels.seen_slots(visible)
        )
        kernels.write_block(k, v, rstd_k, weight_k, table, slots, ours[0], ours[1], raw_k)
        torch.testing.assert_close(out.unflatten(1, (size, -1)), wanted, rtol=1e-5, atol=1e-5)


def test_a_block_of_the_model_by_its_operators() -> None:
    """The norms and gates of `_Block.forward`, fp32."""
    torch.manual_seed(0)
    x, update = torch.randn(2, 2, 2, 7, 48).unbind(0)
    norm, modulation = nn.LayerNorm(48, EPS, elementwise_affine=False), torch.randn(1, 6, 48)
    vectors = (modulation + torch.randn(2, 2, 6, 48)).unbind(2)
    e = [t[:, :, None] for t in vectors]
    first = norm(x) * (1 + e[1]) + e[0]
    torch.testing.assert_close(kernels.modulate(x, vectors[1], vectors[0], EPS), first, rtol=1e-5, atol=1e-5)
    y = x + e[2] * update
    second = norm(y) * (1 + e[4]) + e[3]
    got = kernels.gate_modulate(x, update, vectors[2], vectors[4], vectors[3], EPS)
    torch.testing.assert_close(got, (y, second), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kernels.gate(y, update, vectors[5]), y + e[5] * update, rtol=1e-5, atol=1e-5)


def _calls() -> dict[str, tuple[Any, ...]]:
    """Arguments of every operator by its name; no operator gives or changes NaN."""
    block = Block(70, 32, torch.float32, B=2, F=1, N=4, H=2, S=3)
    cache = block.cache_k.nan_to_num(), block.cache_v.nan_to_num()
    raw_k = torch.randn_like(cache[0][:, :, : 2 * block.tokens])
    slots = torch.tensor([[1], [-1]], dtype=torch.int32)
    x, update, (gate, scale, shift) = _layer(71, 48, torch.float32)
    return {
        "ring_attention": block.arguments(),
        "write_block": (
            *(block.k, block.v, block.rstd_k, block.weight, block.rotation, slots),
            *(x.clone() for x in (*cache, raw_k)),
        ),
        "rotate_sinks": (raw_k, block.rotation.repeat(1, 2, 1, 1), cache[0].clone()),
        "modulate": (x, scale, shift, EPS),
        "gate": (x, update, gate),
        "gate_modulate": (x, update, gate, scale, shift, EPS),
    }


@pytest.mark.parametrize("name", _calls())
def test_operators_keep_torchs_rules(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.streamgen, name).default, _calls()[name])


class _One(nn.Module):
    """Calls one operator."""

    def __init__(self, name: str, rest: tuple[Any, ...]) -> None:
        super().__init__()
        self._call: Callable[..., Any] = getattr(kernels, name)
        self._rest = rest

    def forward(self, *tensors: Tensor) -> Any:
        return self._call(*tensors, *self._rest)


@pytest.mark.parametrize("name", _calls())
def test_operators_stay_whole_in_an_exported_graph_and_are_taken_apart_in_a_compiled_one(name: str) -> None:
    arguments = _calls()[name]
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    module = _One(name, arguments[len(tensors) :])
    exported = torch.export.export(module, tuple(x.clone() for x in tensors))
    assert [node.target for node in exported.graph.nodes if "streamgen" in str(node.target)] == [
        getattr(torch.ops.streamgen, name).default
    ]
    wanted, got, compiled = ([x.clone() for x in tensors] for _ in range(3))
    result = module(*wanted)
    torch.testing.assert_close(exported.module()(*got), result)
    torch.testing.assert_close(torch.compile(module, backend="aot_eager", fullgraph=True)(*compiled), result)
    torch.testing.assert_close(got, wanted, equal_nan=True)
    torch.testing.assert_close(compiled, wanted, equal_nan=True)


def test_without_triton_the_message_says_what_to_install() -> None:
    code = """
import sys
import engines.torch
assert "engines.kernels" not in sys.modules
sys.modules["triton"] = None
from engines.protocol import MissingPackage
try:
    import engines.kernels
except MissingPackage as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'streamgen[triton]'" in result.stdout


def test_what_does_not_fit_is_refused() -> None:
    block = Block(80, 32, torch.float16, B=2, S=2)
    arguments = list(block.arguments())
    with pytest.raises(TypeError, match=r"'q': torch\.float32"):
        attention.launch_ring_attention(block.q.float(), *arguments[1:])
    with pytest.raises(ValueError, match=r"seen has shape .* expected"):
        attention.launch_ring_attention(*arguments[:-1], arguments[-1][:1])
    with pytest.raises(ValueError, match=r"cache_k of strides .* is not contiguous"):
        attention.launch_ring_attention(*arguments[:6], block.cache_k.transpose(2, 3).contiguous().mT, *arguments[7:])
    wide = Block(81, 160, torch.float16, B=1)
    with pytest.raises(ValueError, match="heads of 160 numbers"):
        attention.launch_ring_attention(*wide.arguments())
    x, update, (gate, scale, shift) = _layer(82, 48, torch.float16)
    with pytest.raises(ValueError, match="scale has shape"):
        modulation.launch_modulate(x, scale[..., 1:], shift, EPS)
    with pytest.raises(ValueError, match="equally far apart"):
        modulation.launch_gate(x, update, gate.mT.contiguous().mT)
