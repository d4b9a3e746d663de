"""Batch norm over parts of the batch: the statistics of several devices on one device."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from unmix.display import counted
from unmix.errors import UserError, check_number

__all__ = [
    "SplitBatchNorm1d",
    "SplitBatchNorm2d",
    "convert_split_batch_norm",
    "encode_in_splits",
    "has_batch_norm",
]


class _Split(_BatchNorm):
    """What `SplitBatchNorm1d` and `SplitBatchNorm2d` share: all but the shape of the input."""

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
        check_number("splits", splits, at_least=1, owner=type(self).__name__)
        self.splits = splits

    def extra_repr(self) -> str:
        """Add the number of sub-batches to the layer's printed form."""
        return f"{super().extra_repr()}, splits={self.splits}"

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `(N, C)` or `(N, C, ...)`; shape, type and memory format stay."""
        splits = _sub_batches(len(input), self.splits)
        if not self.training or splits <= 1:
            return super().forward(input)
        return self._normalize(input, splits)

    def _normalize(self, x: Tensor, splits: int) -> Tensor:
        """Normalize each block, and update the running statistics by the mean of the blocks'."""
        factor = self._step()
        means, variances = self._start(splits)
        # On a GPU many small kernels would cost more than a copy; the compiler fuses the copies.
        fold = len(x) % splits == 0 and (x.device.type == "cuda" or torch.compiler.is_compiling())
        normalize = self._folded if fold else self._looped
        output = normalize(x, splits, means, variances, factor)
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

    def _looped(
        self,
        x: Tensor,
        splits: int,
        means: Tensor | None,
        variances: Tensor | None,
        factor: float,
    ) -> Tensor:
        """One block after the other, so that each stays in the cache."""
        sizes = _sizes(len(x), splits)
        return _Blocks.apply(x, self.weight, self.bias, means, variances, sizes, factor, self.eps)

    def _folded(
        self,
        x: Tensor,
        splits: int,
        means: Tensor | None,
        variances: Tensor | None,
        factor: float,
    ) -> Tensor:
        """All blocks, of one size, in one call: side by side as groups of channels."""
        n, c = len(x) // splits, x.shape[1]
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        blocks = x.unflatten(0, (splits, n))
        if last:
            folded = blocks.permute(1, 3, 4, 0, 2).flatten(3).permute(0, 3, 1, 2)
        else:
            folded = blocks.transpose(0, 1).flatten(1, 2)
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
            output = output.permute(0, 2, 3, 1).unflatten(3, (splits, c))
            return output.permute(3, 0, 1, 2, 4).flatten(0, 1).permute(0, 3, 1, 2)
        return output.unflatten(1, (splits, c)).transpose(0, 1).flatten(0, 1)


class SplitBatchNorm2d(_Split, nn.BatchNorm2d):
    """Batch norm that normalizes sub-batches separately, as that many devices would.

    In training, the running statistics take the mean of the sub-batches' (MoCo's CIFAR-10 demo,
    arXiv 1911.05722). In evaluation it is plain batch norm, and its state dict is always that of
    `nn.BatchNorm2d`. Sub-batches of a batch that `splits` does not divide differ by one sample; a
    batch of fewer than 2 `splits` samples has fewer sub-batches, of at least two each. The memory
    format of the input is kept.

    The samples of a sub-batch are contiguous. `encode_in_splits` orders a batch so, once for all
    layers of an encoder.

    Args:
        num_features: Channels C of the input `(N, C, H, W)`.
        splits: Number of sub-batches, at least 1.
        eps, momentum, affine, track_running_stats: As in `nn.BatchNorm2d`.

    Raises:
        UserError: if `splits` is less than 1.
    """


class SplitBatchNorm1d(_Split, nn.BatchNorm1d):
    """`SplitBatchNorm2d` for features `(N, C)` or `(N, C, L)`.

    Where the rows are tokens, those of an image are contiguous; a sub-batch has whole images if
    `splits` divides their number.
    """


_SPLITS: dict[type, type[_Split]] = {
    nn.BatchNorm1d: SplitBatchNorm1d,
    nn.BatchNorm2d: SplitBatchNorm2d,
}


class _Blocks(torch.autograd.Function):
    """PyTorch's batch norm of each block, its results written side by side at once.

    As a plain composition (split, normalize, concatenate) the maps would be copied twice more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        means: Tensor | None,
        variances: Tensor | None,
        sizes: list[int],
        factor: float,
        eps: float,
    ) -> Tensor:
        """Normalize; `means` and `variances`, a row per block, are updated in place."""
        output = torch.empty_like(x)
        like = next((known for known in (weight, means) if known is not None), x)
        kept: list[Tensor] = []
        for k, (block, out) in enumerate(zip(x.split(sizes), output.split(sizes), strict=True)):
            mean, scale = like.new_empty(x.shape[1]), like.new_empty(x.shape[1])
            torch.ops.aten.native_batch_norm.out(
                block,
                weight,
                bias,
                None if means is None else means[k],
                None if variances is None else variances[k],
                True,
                factor,
                eps,
                out=out,
                save_mean=mean,
                save_invstd=scale,
            )
            kept += [mean, scale]
        ctx.save_for_backward(x, weight, *kept)
        ctx.sizes, ctx.eps = sizes, eps
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of each block; those of weight and bias are summed."""
        x, weight, *kept = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        result = torch.empty_like(x)
        sums: list[Tensor | None] = [None, None]
        blocks = zip(x.split(ctx.sizes), gradient.split(ctx.sizes), strict=True)
        for k, ((block, slope), out) in enumerate(
            zip(blocks, result.split(ctx.sizes), strict=True)
        ):
            found = torch.ops.aten.native_batch_norm_backward(
                slope,
                block,
                weight,
                None,
                None,
                kept[2 * k],
                kept[2 * k + 1],
                True,
                ctx.eps,
                needed,
            )
            if needed[0]:
                out.copy_(found[0])
            for which, part in enumerate(found[1:]):
                if needed[1 + which]:
                    total = sums[which]
                    sums[which] = part if total is None else total + part
        return (result if needed[0] else None, *sums, None, None, None, None, None)


def encode_in_splits(encoder: nn.Module, images: Tensor, splits: int) -> Any:
    """Encode a batch so that sample n is in sub-batch n mod `splits` of every batch norm.

    During the forward, the attribute `batch_order` of the encoder and its children is the index of
    the image at each position, int64 (N,); otherwise it is None. A layer that mixes images needs
    it.

    Args:
        encoder: Maps `(N, C, H, W)` to `(N, ...)`, or to a tuple of such; its batch norms are
            split (see `convert_split_batch_norm`).
        images: `(N, C, H, W)`.
        splits: Of its batch norms.

    Returns:
        The encoder's output in the order of the images; if that has fewer rows, because images were
        mixed within, those of the first images; of several features of each image, part by part.
    """
    splits = _sub_batches(len(images), splits)
    if not encoder.training or splits <= 1:
        return encoder(images)
    order, back = _order(len(images), splits, images.device)
    parts = (encoder, *encoder.children())
    for part in parts:
        part.batch_order = order  # type: ignore[assignment]
    try:
        output = encoder(images[order])
    finally:
        for part in parts:
            part.batch_order = None  # type: ignore[assignment]
    rows = len(tree_leaves(output)[0])
    if rows < len(back):
        back = back[:rows].argsort().argsort()
    if rows > len(back):  # several features of each image, part by part
        back = torch.cat([back + start for start in range(0, rows, len(back))])
    return tree_map(lambda part: part[back], output)


def _sub_batches(n: int, splits: int) -> int:
    """Number of sub-batches of a batch of n: one sample of a 1x1 map would have no variance."""
    return min(splits, n // 2)


def _sizes(n: int, splits: int) -> list[int]:
    """Number of samples in each sub-batch."""
    return [(n - k + splits - 1) // splits for k in range(splits)]


def _order(n: int, splits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices that make each sub-batch contiguous, and those that undo it."""
    order = (torch.arange(n, device=device) % splits).argsort(stable=True)
    return order, order.argsort()


def convert_split_batch_norm(module: nn.Module, splits: int) -> nn.Module:
    """Replace every batch norm by a split one with the same parameters and buffers.

    Args:
        module: Changed in place, unless it is itself a batch norm.
        splits: Number of sub-batches.

    Returns:
        `module`, or its replacement if it is itself a batch norm.

    Raises:
        UserError: if `splits` is less than 1, or a batch norm is neither `nn.BatchNorm1d` nor
            `nn.BatchNorm2d` itself, such as those of timm that contain an activation.
    """
    check_number("splits", splits, at_least=1)
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    others = Counter(
        type(norm).__name__ for norm in norms if type(norm) not in (*_SPLITS, *_SPLITS.values())
    )
    for kind, count in others.most_common(1):
        raise UserError(
            f"the network has {counted(count, 'layer')} of {kind}, whose batch cannot be split; "
            "use `splits=1`.",
            parameter="splits",
        )
    return _converted(module, splits)


def _converted(module: nn.Module, splits: int) -> nn.Module:
    if isinstance(module, _Split):
        module.splits = splits
    elif isinstance(module, _BatchNorm):
        split = _SPLITS[type(module)](
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
        module.add_module(name, _converted(child, splits))
    return module


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a module has batch norm of any kind, whose statistics are those of the batch."""
    return any(isinstance(m, _BatchNorm) for m in module.modules())
