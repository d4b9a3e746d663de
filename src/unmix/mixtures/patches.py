"""Patch mixtures: whole patches of a vision transformer come from several images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unmix.errors import UserError
from unmix.mixtures.boxes import nearest_indices, upsample_nearest
from unmix.mixtures.draws import PixelDraw, formatted, source_of
from unmix.mixtures.fields import parameter
from unmix.mixtures.operators import PER, MixtureOperator, Per
from unmix.mixtures.pixels import pixelwise
from unmix.mixtures.positions import mask_coverage
from unmix.mixtures.sampling import checked_shape, cyclic_owners
from unmix.randomness import uniform
from unmix.transfer import to_device

__all__ = ["PatchDraw", "PatchMixture"]

_DEFAULT_SIDE = 16


@dataclass(frozen=True)
class PatchDraw(PixelDraw):
    """Mixtures of k images in patches.

    Attributes:
        owners: Whose images are in each mixture, int64 (N, k); column 0 is the sample itself.
        patches: Which of its owners each patch is from, int64 (N, rows, columns) or, for the whole
            batch, (1, rows, columns); in [0, k).
        patch_size: Side of a patch in pixels.
    """

    owners: Tensor
    patches: Tensor
    patch_size: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that this was drawn for."""
        rows, columns = self.patches.shape[1:]
        return rows * self.patch_size, columns * self.patch_size

    @property
    def per_sample(self) -> bool:
        """False: where the patches are may differ, but every mixture has the same shares."""
        return False

    @property
    def shares(self) -> Tensor:
        """Each owner's share of the patches, counted, (N, k)."""
        k = self.owners.shape[1]
        counts = torch.nn.functional.one_hot(self.patches.flatten(1), k).float().mean(dim=1)
        return counts.expand(len(self.owners), k)

    def shares_at(self, rows: int, columns: int) -> Tensor:
        """Each owner's share of each cell of a grid, (N, k, rows, columns)."""
        k = self.owners.shape[1]
        of_owner = torch.nn.functional.one_hot(self.patches, k).permute(0, 3, 1, 2)
        found = mask_coverage(of_owner.flatten(0, 1), rows, columns).unflatten(0, (-1, k))
        return found.expand(len(self.owners), -1, -1, -1)

    @property
    def batch(self) -> int:
        """Number of images that this was drawn for."""
        return len(self.owners)

    @property
    def partner(self) -> Tensor:
        """Index of the second owner, int64 (N,)."""
        return self.owners[:, 1]

    @property
    def weight(self) -> Tensor:
        """The sample's own share, (N,)."""
        return self.shares[:, 0]

    @property
    def is_mixed(self) -> Tensor:
        """True where the mixture differs from the image, bool (N,)."""
        return (self.patches > 0).flatten(1).any(dim=1).expand(len(self.owners))

    def resized(self, height: int, width: int) -> PatchDraw:
        """The same owners, with as many patches as images of another size have.

        Each patch is from the owner of the nearest one.

        Raises:
            UserError: if the patches do not fit.
        """
        grid = _grid(height, width, self.patch_size)
        rows, columns = map(nearest_indices, self.patches.shape[1:], grid)
        return replace(self, patches=upsample_nearest(self.patches, rows, columns))

    @pixelwise
    def apply(self, images: Tensor, others: Sequence[Tensor] = ()) -> Tensor:
        """Mix a batch (N, C, H, W) with itself, or with another view of itself."""
        source = source_of(images, others, len(self.owners), self.size)
        patches = to_device(self.patches, images.device)[:, None]
        where = patches.repeat_interleave(self.patch_size, 2).repeat_interleave(self.patch_size, 3)
        owners = to_device(self.owners, images.device)
        mixed = images
        for column in range(1, owners.shape[1]):
            mixed = torch.where(where == column, source[owners[:, column]], mixed)
        return formatted(mixed, images)


@dataclass(frozen=True)
class PatchMixture(MixtureOperator):
    """PatchMix: the patches of a vision transformer come in equal parts from several images.

    The patches are dealt out in a random order, L // k to each of k images; the few that are left
    stay the image's own. Image i of the shuffled batch takes from images i + 1, ..., i + k - 1, so
    that every image is in k mixtures. Source: Shen et al. 2023 (arXiv 2306.12243), Sec. 3.2; the
    defaults are the released configuration's.

    Args:
        patch_size: Side of a patch in pixels; by default that of the transformer, or 16.
        images: k, the images of a mixture; at least 2.
        per: One order of the patches for a `batch`, as released, or for each `sample`.

    Raises:
        UserError: if a number is out of its range, or a string is none of its choices.
    """

    one_draw = "one order of the patches"
    patch_size: int | None = parameter(None, setting="unmix_patch", at_least=1)
    images: int = parameter(2, setting="unmix_images", at_least=2)
    per: Per = parameter("batch", setting="unmix_per", choices=PER)

    @property
    def cell(self) -> int:
        """Side of a patch."""
        return self._side

    def describe(self) -> str:
        """The patches, and from how many images they come."""
        return f"patches of {self._side} px from {self.images} images"

    @property
    def shares_vary(self) -> bool:
        """False: the owners have the same number of patches in every mixture."""
        return False

    @property
    def _side(self) -> int:
        return self.patch_size or _DEFAULT_SIDE

    def for_encoder(self, encoder: nn.Module, name: str, patch: int | None) -> PatchMixture:
        """The same operator, with the patches of a vision transformer.

        Raises:
            UserError: if the encoder is none, or these would cut its patches.
        """
        if patch is None:
            raise UserError(
                f"patchmix mixes the patches that a ViT sees, and {name} is not one; use "
                '`backbone="timm:vit_tiny_patch16_224"` or another ViT, or gridmix.',
                parameter="mixture",
            )
        if self.patch_size is None:
            return replace(self, patch_size=patch)
        if self.patch_size % patch:
            raise UserError(
                f"{self.patch_size} pixels would cut the patches that {name} sees, of {patch}; "
                "use that or a multiple.",
                parameter="patch_size",
            )
        return self

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> PatchDraw:
        """Draw for a batch of shape (N, C, H, W).

        Raises:
            UserError: if the patches do not fit, or are fewer than the images of a mixture.
        """
        n, height, width = checked_shape(shape)
        rows, columns = _grid(height, width, self._side)
        count, k = rows * columns, self.images
        if count < k:
            raise UserError(
                f"{k} images cannot share the {count} patches of images of {height} x {width} "
                f"pixels; use a smaller `patch_size` than {self._side}.",
                parameter="images",
                owner="PatchMixture",
            )
        m = n if self.per == "sample" else 1
        rank = uniform((m, count), generator).cpu().argsort(dim=1).argsort(dim=1)
        owner = rank // (count // k)
        patches = torch.where(owner < k, owner, 0).unflatten(1, (rows, columns))
        return PatchDraw(cyclic_owners(n, k, generator), patches, self._side)


def _grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches.

    Raises:
        UserError: if they do not cover the image.
    """
    if height % patch_size or width % patch_size or not height or not width:
        smaller = range(2, min(patch_size, height, width))
        right = [p for p in smaller if height % p == 0 and width % p == 0]
        advice = f"use that of the transformer, such as {right[-1]}" if right else "use another"
        raise UserError(
            f"patches of {patch_size} pixels do not divide images of {height} x {width}; {advice}.",
            parameter="patch_size",
            owner="PatchMixture",
        )
    return height // patch_size, width // patch_size
