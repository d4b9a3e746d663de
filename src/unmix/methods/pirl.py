"""PIRL: an image and its jigsaw have the same feature (Misra and van der Maaten 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from unmix.backbones import feature_dim, is_vit, linear_head
from unmix.distributed import rank
from unmix.errors import UserError, check_number
from unmix.methods.bank import OneBankMethod
from unmix.methods.base import Pair, Progress, l2_normalize
from unmix.randomness import generator_for, uniform
from unmix.transfer import to_device

__all__ = ["PIRL", "tiles_of"]


class PIRL(OneBankMethod):
    """Pretext-invariant representations: instance discrimination of an image and of its jigsaw.

    Query: f(v_I) of view 0, the image; g(v_It) of view 1, whose tiles are encoded one by one and
    put together in random order. Target: the sample's row m_I of the memory bank, among K random
    rows. Memory: the bank, which moves toward the image's clean features.

    Tiles are cut edge to edge, from the middle of a view that the grid does not divide. The paper
    crops 64 of 85 pixels from each; of the 10 pixels of a view of 32, too little would remain.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        n_data: Number of training samples.
        dim: Length of features and rows.
        temperature: tau.
        negatives: K, the number of random rows; by default 4096, or all of fewer samples.
        bank_momentum: Weight of the old row in each update.
        jigsaw_weight: lambda, the jigsaw's share of the loss; the image has the rest.
        contrast: "softmax", or "nce" as in the paper, with its constant Z.
        grid: Tiles in a row and in a column.
    """

    views = 2

    def __init__(
        self,
        backbone: nn.Module,
        n_data: int,
        *,
        dim: int = 128,
        temperature: float = 0.07,
        negatives: int | None = None,
        bank_momentum: float = 0.5,
        jigsaw_weight: float = 0.5,
        contrast: Literal["softmax", "nce"] = "softmax",
        grid: int = 3,
    ) -> None:
        check_number("jigsaw_weight", jigsaw_weight, at_least=0, at_most=1, owner="PIRL")
        check_number("grid", grid, at_least=1, owner="PIRL")
        if is_vit(backbone):
            raise UserError(
                "the tiles of pirl's jigsaw do not fit a transformer's patches; use a "
                "convolutional network such as resnet18.",
                parameter="backbone",
            )
        super().__init__(backbone, n_data, dim, temperature, negatives, bank_momentum, contrast)
        self.tile_head = linear_head(feature_dim(backbone), dim)
        self.g = linear_head(grid * grid * dim, dim)
        self.grid, self.seed, self.step, self.part = grid, 0, 0, 0
        self.pairs = (Pair(0, 0, 1 - jigsaw_weight), Pair(1, 0, jigsaw_weight))

    def begin_step(self, progress: Progress) -> None:
        """The order of tiles follows from the run's seed and the step's number."""
        self.seed, self.step, self.part = progress.seed, progress.step, 0

    def begin_part(self, part: int) -> None:
        """Of a step in parts each has orders of its own."""
        self.part = part

    def unmixed_pairs(self, count: int) -> Sequence[Pair]:
        """The jigsaw's, whose head the picture's mixture does not train."""
        return self.pairs[1:]

    def query(self, view: Tensor, number: int = 0) -> Tensor:
        """f(v_I) of view 0, g(v_It) of view 1: unit vectors (N, dim)."""
        return self.f(view) if number == 0 else self.jigsaw(view)

    def jigsaw(self, view: Tensor) -> Tensor:
        """g(v_It): the tiles' features, concatenated in an order drawn for each sample."""
        n, count = len(view), self.grid**2
        v = self.tile_head(self.f.backbone(tiles_of(view, self.grid))).reshape(n, count, -1)
        place = (self.step, rank(), self.part) if self.part else (self.step, rank())
        generator = generator_for(self.seed, "tiles", *place)
        order = to_device(uniform((n, count), generator).argsort(dim=1), view.device)
        v = v.gather(1, order[:, :, None].expand_as(v))
        return l2_normalize(self.g(v.flatten(1)))


def tiles_of(view: Tensor, grid: int) -> Tensor:
    """Cut views (N, C, H, W) into tiles (N grid^2, C, H // grid, W // grid), row by row.

    Raises:
        UserError: if a side is shorter than the grid.
    """
    n, c, height, width = view.shape
    h, w = height // grid, width // grid
    if min(h, w) < 1:
        raise UserError(
            f"{grid} tiles do not fit into a view of {min(height, width)} px.", parameter="grid"
        )
    top, left = (height - grid * h) // 2, (width - grid * w) // 2
    middle = view[:, :, top : top + grid * h, left : left + grid * w]
    tiles = middle.reshape(n, c, grid, h, grid, w).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(n * grid * grid, c, h, w)
