"""Several processes under torchrun: either each has a model of its own and their gradients are averaged, or models are
cut in pieces (FSDP2), which their gradients and optimisers share.

What is saved is whole in both cases, so a run may go on with another number of processes, and cut or not.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from streamgen.models.transformer import CausalVideoTransformer


def rank_and_size() -> tuple[int, int]:
    """This process's place under torchrun; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def start() -> None:
    """Meet the other processes, if there are any."""
    if rank_and_size()[1] > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo")


def agreed(value: Any) -> Any:
    """The first process's value, for all."""
    if rank_and_size()[1] == 1:
        return value
    choice = [value]
    distributed.broadcast_object_list(choice)
    return choice[0]


def greatest(values: Tensor) -> None:
    """Replace values by the greatest that any process has."""
    if rank_and_size()[1] > 1:
        distributed.all_reduce(values, distributed.ReduceOp.MAX)


def average(model: nn.Module, figures: dict[str, float]) -> None:
    """Replace the gradients, and the figures beside them, by their mean over the processes. Those of a model in pieces
    are means already.
    """
    size = rank_and_size()[1]
    if size == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None and not isinstance(p.grad, DTensor)]
    flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor(list(figures.values()))])
    distributed.all_reduce(flat)
    *means, told = flat.div_(size).split([*(g.numel() for g in gradients), len(figures)])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    figures.update(zip(figures, told.tolist(), strict=True))


def cut(module: nn.Module) -> None:
    """Cut a transformer, or each part of a critic, in as many pieces as there are processes; what does not learn stays
    whole in each of them.
    """
    mesh = init_device_mesh("cpu", (rank_and_size()[1],))
    for part in module.values() if isinstance(module, nn.ModuleDict) else (module,):
        fixed = {parameter for parameter in part.parameters() if not parameter.requires_grad}
        if isinstance(part, CausalVideoTransformer):
            for block in part.blocks:
                fully_shard(block, mesh=mesh)
        # After each pass, the root too: what was put together while it did not learn would go on not learning.
        fully_shard(part, mesh=mesh, ignored_params=fixed, reshard_after_forward=True)


def forget_activations(model: CausalVideoTransformer) -> None:
    """Keep only what goes into each block, and calculate the rest again on the way back."""
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def whole(state: Any) -> Any:
    """A state dict with whole tensors in the place of pieces. All processes must ask."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [whole(value) for value in state]
    return state


def load(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole weights into a model, be it in pieces. All processes must do so."""
    own = model.state_dict()
    model.load_state_dict({name: like(own[name], value) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The same with an optimiser's state."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    per_parameter = {
        index: {name: like(parameters[index], value) for name, value in kept.items()}
        for index, kept in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": per_parameter})


def like(own: Tensor, value: Any) -> Any:
    """A whole tensor in pieces as another one's, where it is one of a value for each of its numbers."""
    if not isinstance(own, DTensor) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value, own.device_mesh, own.placements)
