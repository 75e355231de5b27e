"""Batch norm over the images of all processes, on every device."""

import torch
import torch.distributed as dist
from torch import nn


class SynchronizedBatchNorm1d(nn.BatchNorm1d):
    """
    `nn.BatchNorm1d` whose training statistics are those of all processes' batches together, for devices that
    `nn.SyncBatchNorm` refuses, such as the CPU.

    Parameters, buffers and their names are those of `nn.BatchNorm1d`, and so is the output in evaluation or with one
    process. Batches may differ in size between processes. The gradient is that of the sum of all processes' losses, as
    with `nn.SyncBatchNorm`; averaged over the processes, it is that of the mean loss.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input (`torch.Tensor` of shape `(batch, features)` or `(batch, features, length)`): In training, every
                process has to call this as often as the others.
        """
        normalizes_by_batch = self.training or not self.track_running_stats
        if not (normalizes_by_batch and has_several_processes()):
            return super().forward(input)
        self._check_input_dim(input)
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)

        # As nn.BatchNorm1d does on the CPU; with fewer bits, a mean far from 0 would cancel the differences from it.
        values = input.double().transpose(0, 1).flatten(1)  # (features, values)
        count = values.new_full((1,), values.shape[1])
        sums, count = sum_over_processes(torch.cat([values.sum(dim=1), count])).split([self.num_features, 1])
        mean = sums / count
        deviation = values - mean[:, None]
        variance = sum_over_processes(deviation.square().sum(dim=1)) / count
        if self.training and self.track_running_stats:
            self._track(mean.detach(), variance.detach() * count / (count - 1))

        normalized = deviation * (variance + self.eps).rsqrt()[:, None]
        if self.affine:
            normalized = normalized * self.weight[:, None] + self.bias[:, None]
        shape = (input.shape[1], input.shape[0], *input.shape[2:])
        return normalized.reshape(shape).transpose(0, 1).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, unbiased_variance: torch.Tensor) -> None:
        """Move the running statistics; without a momentum they are the mean over all batches so far."""
        momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, unbiased_variance)):
            running.copy_((1 - momentum) * running + momentum * now)


class _SumOverProcesses(torch.autograd.Function):
    """Sum of all processes' tensors; the gradient of each is the sum of all processes' gradients of the sum."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return _SumOverProcesses.apply(gradient)


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of the tensors of this shape of all processes, with gradient. Every process must call this."""
    # torch.distributed.nn.functional has this too, but is deprecated since torch 2.15.
    return _SumOverProcesses.apply(tensor)


def has_several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """Make every batch norm of the model take its training statistics from the batches of all processes.

    Call it before the model is wrapped or sharded. Parameters and buffers stay the same tensors, under the same names,
    so an optimizer may hold them already.

    Args:
        model (`nn.Module`): On the device of its training. With one process it stays as it is.

    Returns:
        `nn.Module`: The model, changed in place: `nn.SyncBatchNorm` on accelerators, [`SynchronizedBatchNorm1d`] on the
        CPU, which `nn.SyncBatchNorm` refuses.
    """
    if not has_several_processes():
        return model
    if next(model.parameters()).device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm1d:
                setattr(parent, name, _synchronized(child))
    return model


def _synchronized(module: nn.BatchNorm1d) -> SynchronizedBatchNorm1d:
    settings = {name: getattr(module, name) for name in ("eps", "momentum", "affine", "track_running_stats")}
    synchronized = SynchronizedBatchNorm1d(module.num_features, **settings).train(module.training)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(synchronized, name, getattr(module, name))
    return synchronized
