"""Several processes that train one model, as `torchrun` starts them: each computes its part of every batch.

Sums that a loss or a batch norm takes over the batch are taken over all parts, so that N processes compute what one
would with the whole batch. Alone, nothing here does anything.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """Which of `count` processes this one is."""

    number: int
    count: int

    @property
    def is_first(self) -> bool:
        """The first one alone writes files and shows progress."""
        return self.number == 0

    def share_of(self, batch_size: int) -> int:
        """Windows of a batch that fall to each process. Raises ValueError for a batch that cannot be dealt out."""
        if batch_size % self.count:
            raise ValueError(f"A batch of {batch_size} windows cannot be dealt out to {self.count} processes.")
        return batch_size // self.count


ALONE = Part(0, 1)


@contextmanager
def joined_processes() -> Iterator[Part]:
    """Joins the processes that `torchrun` started, for as long as the block runs; `ALONE` without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Part(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def own_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of every process's value, differentiable; the value itself when alone."""
    return _Sum.apply(value) if dist.is_initialized() else value  # type: ignore[no-untyped-call]


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """The mean of every process's gradients, in place.

    Each process's loss is that of the whole batch, and `sum_over_processes` hands each part's gradient back once for
    every process: their mean is the gradient of the whole batch.
    """
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    means = torch.split(together, [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def share_batch_norms(module: nn.Module) -> None:
    """Makes every batch norm of a module take its statistics over the whole batch."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            shared = SharedBatchNorm3d(child.num_features, child.eps, child.momentum)
            shared.load_state_dict(child.state_dict())
            setattr(module, name, shared.to(child.weight.device))
        else:
            share_batch_norms(child)


class SharedBatchNorm3d(nn.BatchNorm3d):
    """Batch norm over the parts of all processes; on a CPU too, which torch's `SyncBatchNorm` is not for."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalised by the whole batch in training, by the running statistics else."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        values = input.float()
        over = (0, 2, 3, 4)
        count = sum_over_processes(values.new_tensor(values.numel() / values.shape[1]))
        mean = sum_over_processes(values.sum(over)) / count
        centered = values - mean.view(1, -1, 1, 1, 1)
        variance = sum_over_processes(centered.square().sum(over)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = 0.0 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
        scale = (self.weight / torch.sqrt(variance + self.eps)).view(1, -1, 1, 1, 1)
        return (centered * scale + self.bias.view(1, -1, 1, 1, 1)).to(input.dtype)


class _Sum(torch.autograd.Function):
    """All-reduce both ways: the gradient of a sum goes to every summand, from every process that used the sum."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:  # noqa: ANN401 - torch's own type
        total = value.clone().contiguous()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401 - torch's own type
        total = gradient.clone().contiguous()
        dist.all_reduce(total)
        return total
