"""Batch norm over parts of the batch: the statistics of several devices, on one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unmix.errors import check_number

__all__ = ["SplitBatchNorm2d", "convert_split_batch_norm"]


class SplitBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that normalises sub-batches of the batch apart, as that many devices would.

    In training, sample n belongs to sub-batch n mod `splits`, and the running statistics take the
    mean of the sub-batches' (MoCo's CIFAR-10 demo, arXiv 1911.05722). In evaluation it is plain
    batch norm, and its state dict is always that of `nn.BatchNorm2d`. Sub-batches of a batch that
    `splits` does not divide differ by one sample; a batch of fewer than 2 `splits` samples has
    fewer sub-batches, of at least two each. The memory format of the input is kept.

    Args:
        num_features: Channels C of the input `(N, C, H, W)`.
        splits: Number of sub-batches, at least 1.
        eps, momentum, affine, track_running_stats: As in `nn.BatchNorm2d`.

    Raises:
        UserError: if `splits` is less than 1.
    """

    def __init__(
        self,
        num_features: int,
        splits: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        check_number("--bn_splits", splits, at_least=1)
        self.splits = splits

    def extra_repr(self) -> str:
        """Add the number of sub-batches to the layer's printed form."""
        return f"{super().extra_repr()}, splits={self.splits}"

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(N, C, H, W)`; shape, type and memory format stay."""
        splits = min(self.splits, len(input) // 2)
        if not self.training or splits <= 1:
            return super().forward(input)
        factor = self._step()
        means, variances = self._start(splits)
        if len(input) % splits == 0:
            output = self._even(input, splits, means, variances, factor)
        else:
            output = self._uneven(input, splits, means, variances, factor)
        if self.running_mean is not None and means is not None:
            self.running_mean.copy_(means.mean(dim=0))
        if self.running_var is not None and variances is not None:
            self.running_var.copy_(variances.mean(dim=0))
        return output

    def _step(self) -> float:
        """Count the batch and return its share in the running statistics."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return self.momentum or 0.0

    def _start(self, splits: int) -> tuple[Tensor | None, Tensor | None]:
        """Return a copy of the running statistics for each sub-batch, `(splits, C)`."""
        if self.running_mean is None or self.running_var is None:
            return None, None
        return self.running_mean.repeat(splits, 1), self.running_var.repeat(splits, 1)

    def _even(
        self,
        x: Tensor,
        splits: int,
        means: Tensor | None,
        variances: Tensor | None,
        factor: float,
    ) -> Tensor:
        n, c = x.shape[:2]
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        parts = x.unflatten(0, (n // splits, splits))
        # Sub-batches become channel groups, so that one call normalises all. Side by side in
        # memory they lie so already, unless channels come last.
        if last:
            folded = parts.permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)
        else:
            folded = parts.flatten(1, 2)
        output = nn.functional.batch_norm(
            folded,
            None if means is None else means.view(-1),
            None if variances is None else variances.view(-1),
            None if self.weight is None else self.weight.repeat(splits),
            None if self.bias is None else self.bias.repeat(splits),
            True,
            factor,
            self.eps,
        )
        if last:
            output = output.permute(0, 2, 3, 1).unflatten(3, (splits, c)).permute(0, 3, 1, 2, 4)
            return output.flatten(0, 1).permute(0, 3, 1, 2)
        return output.unflatten(1, (splits, c)).flatten(0, 1)

    def _uneven(
        self,
        x: Tensor,
        splits: int,
        means: Tensor | None,
        variances: Tensor | None,
        factor: float,
    ) -> Tensor:
        output = torch.empty_like(x)
        for part in range(splits):
            # Clones: autograd keeps the statistics, and takes a change of one row for one of all.
            mean = None if means is None else means[part].clone()
            variance = None if variances is None else variances[part].clone()
            output[part::splits] = nn.functional.batch_norm(
                x[part::splits],
                mean,
                variance,
                self.weight,
                self.bias,
                True,
                factor,
                self.eps,
            )
            if means is not None and mean is not None:
                means[part] = mean
            if variances is not None and variance is not None:
                variances[part] = variance
        return output


def convert_split_batch_norm(module: nn.Module, splits: int) -> nn.Module:
    """Replace every `nn.BatchNorm2d` by a `SplitBatchNorm2d` with the same parameters and buffers.

    Args:
        module: Changed in place, unless it is itself a batch norm.
        splits: Number of sub-batches.

    Returns:
        `module`, or its replacement if it is itself a batch norm.

    Raises:
        UserError: if `splits` is less than 1.
    """
    check_number("--bn_splits", splits, at_least=1)
    if type(module) is nn.BatchNorm2d:
        split = SplitBatchNorm2d(
            module.num_features,
            splits,
            module.eps,
            module.momentum,
            module.affine,
            module.track_running_stats,
        )
        split.weight, split.bias = module.weight, module.bias
        split.running_mean, split.running_var = module.running_mean, module.running_var
        split.num_batches_tracked = module.num_batches_tracked
        return split.train(module.training)
    for name, child in module.named_children():
        module.add_module(name, convert_split_batch_norm(child, splits))
    return module
