"""MoCo v3: momentum contrast within the batch (Chen, Xie & He 2021, arXiv 2104.02057)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from unmix.backbones import feature_dim, is_vit, mlp
from unmix.backbones.tokens import fix_positions, uniform_weights
from unmix.distributed import gather
from unmix.errors import UserError, check_number
from unmix.losses import in_batch_contrast
from unmix.methods.base import Method, Pair, full_precision, l2_normalize
from unmix.methods.projected import InBatchNegatives, MomentumTargets, check_sizes

__all__ = ["MoCoV3"]


class MoCoV3(MomentumTargets, InBatchNegatives):
    """Momentum contrast without a queue, for ResNets and vision transformers.

    Query: q = h(g(f(x))), with h the predictor. Target: k = g_k(f_k(x)) of the other view, from
    momentum copies of f and g. Compared by InfoNCE among the batch's keys, times 2 T (Eq. 1, Alg.
    1), in both directions, summed. Memory: none.

    A projector has two layers on a ResNet and three on a transformer; a transformer's predictor
    ends in batch norm, a ResNet's in a linear layer without bias, as in the released code.

    Args:
        backbone: Images to pooled features (N, D), any module; has a transformer `patch_embed`.
        dim: Length of q and k.
        hidden: Width of the hidden layers of projector and predictor.
        temperature: T.
        encoder_momentum: m at the start; it rises to 1 by a cosine.
        freeze_patch_embedding: Leave a transformer's patch projection as it starts (Sec. 4.3).
        predictor_bias: ResNets: a bias in the predictor's last layer, as here before version 0.2.
    """

    mixes_every_view = True
    pairs: Sequence[Pair] = (Pair(0, 1), Pair(1, 0))

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 256,
        hidden: int = 4096,
        temperature: float = 0.2,
        encoder_momentum: float = 0.99,
        freeze_patch_embedding: bool = False,
        predictor_bias: bool = False,
    ) -> None:
        check_sizes("MoCoV3", dim=dim, hidden=hidden)
        check_number("temperature", temperature, above=0, owner="MoCoV3")
        patches = getattr(backbone, "patch_embed", None)
        if freeze_patch_embedding:
            freeze(patches)
        layers = 2 if patches is None else 3
        sizes = (feature_dim(backbone), *[hidden] * (layers - 1), dim)
        super().__init__(backbone, mlp(sizes, last="norm"), encoder_momentum)
        last: Literal["linear", "bare", "norm"] = "linear" if predictor_bias else "bare"
        self.h = mlp((dim, hidden, dim), last=last if patches is None else "norm")
        self.T = temperature

    @staticmethod
    def build_backbone(name: str, **options: Any) -> nn.Module:
        """The encoder; of a transformer as released: fixed positions, Xavier's uniform weights."""
        backbone = Method.build_backbone(name, **options)
        if is_vit(backbone):
            fix_positions(backbone)
            uniform_weights(backbone, apart=True)
        return backbone

    def query(self, view: Tensor, number: int = 0) -> Tensor:
        """q = h(g(f(x))): unit vectors (N, dim)."""
        return l2_normalize(self.h(self.projections(view)))

    def compare(self, query: Tensor, target: Tensor) -> Tensor:
        """InfoNCE of q with the keys k of the batch, times 2 T: losses (N,)."""
        with full_precision(query):
            return 2 * self.T * in_batch_contrast(query, gather(l2_normalize(target)), self.T)

    def similarities(self, query: Tensor, target: Tensor) -> tuple[Tensor]:
        """Cosines of q with every sample's key."""
        with full_precision(query):
            return (query @ gather(l2_normalize(target)).T,)

    def softmax_loss(
        self,
        query: Tensor,
        target: Tensor,
        loss: Callable[[Tensor], Tensor],
        temperature: float | None = None,
    ) -> Tensor:
        """As of every such method, times 2 T."""
        return 2 * self.T * super().softmax_loss(query, target, loss, temperature)

    @property
    def chance_loss(self) -> float | None:
        """2 T ln N for each direction."""
        return None if self.candidates is None else 4 * self.T * math.log(self.candidates)


def freeze(patches: nn.Module | None) -> None:
    """Take the gradient off a patch projection.

    Raises:
        UserError: if there is none.
    """
    if patches is None:
        raise UserError(
            "the backbone has no patch embedding; use a transformer, such as "
            '`backbone="timm:vit_small_patch16_224"`, or leave it out.',
            parameter="freeze_patch_embedding",
        )
    patches.requires_grad_(False)
