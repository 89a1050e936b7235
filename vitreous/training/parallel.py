"""A model on several processes: whole in each of them (DDP), or divided over them, block by block (FSDP2)."""

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from vitreous.training.world import World


def divide(model: nn.Module, world: World, device: torch.device) -> None:
    """Divides the parameters over the processes, in place: each holds a part of every one, and has a block whole only
    while it computes it. Gradients, and what optimizers keep, are divided alike.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world.size,))
    for part in (*model.get_submodule("blocks").children(), model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


def average_gradients(model: nn.Module) -> nn.Module:
    """The model, whose backward passes then give the mean of the gradients of all processes."""
    from torch.nn.parallel import DistributedDataParallel

    # Of convolutions of one channel, whose gradients may be laid out otherwise than their weights: it is no error.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def unless_last(model: nn.Module, last: bool) -> AbstractContextManager:
    """Around all passes of an update but the last: gradients are averaged once."""
    return nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync()  # pyright: ignore


def without_gradients(model: nn.Module) -> AbstractContextManager:
    """Around passes that answer; parts of a divided model may not be gathered in inference mode, whose tensors stay."""
    divided = any(is_divided(parameter) for parameter in model.parameters())
    return torch.no_grad() if divided else torch.inference_mode()


def is_divided(tensor: Tensor) -> bool:
    """Whether a tensor is a part of one that is divided over the processes."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The tensor, put together of all processes' parts where it is divided."""
    return tensor.full_tensor() if is_divided(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def gathered(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors, one after the other, in the processes that keep them; none in the others."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor).cpu() if is_divided(tensor) else tensor
        if keep:
            found[name] = full
    return found


def divided_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, where `like` is divided; otherwise the tensor."""
    if not is_divided(like) or is_divided(tensor) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
