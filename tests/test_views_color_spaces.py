"""Lab and YCbCr, compared with scikit-image; their normalization with CMC."""

from __future__ import annotations

import pytest
import torch
from skimage import color

from unmix.views import normalize_lab, normalize_ycbcr, rgb_to_lab, rgb_to_ycbcr

CONVERT = {"lab": rgb_to_lab, "ycbcr": rgb_to_ycbcr}
NORMALISE = {"lab": normalize_lab, "ycbcr": normalize_ycbcr}
REFERENCE = {"lab": color.rgb2lab, "ycbcr": color.rgb2ycbcr}


def channels_first(array: torch.Tensor) -> torch.Tensor:
    return array.permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("space", ["lab", "ycbcr"])
def test_color_spaces_match_the_published_values(space, golden):
    """Raw to 1e-3 in the space's units; normalized, whose unit is about 100 of those, to 1e-5."""
    values = golden("colour_spaces")
    rgb = channels_first(values["rgb"]) / 255
    raw = CONVERT[space](rgb)
    torch.testing.assert_close(raw, channels_first(values[space]), atol=1e-3, rtol=0)
    normalized = channels_first(values[f"{space}_normalised"])
    torch.testing.assert_close(NORMALISE[space](raw), normalized, atol=1e-5, rtol=0)


@pytest.mark.parametrize("space", ["lab", "ycbcr"])
def test_color_spaces_match_scikit_image_on_the_rgb_cube(space):
    """Every 15th level of each channel, black, white and the dark linear part included."""
    levels = torch.cat([torch.arange(0, 12), torch.arange(15, 256, 15)]).float() / 255
    rgb = torch.cartesian_prod(levels, levels, levels)
    expected = torch.from_numpy(REFERENCE[space](rgb.double().numpy()[None])).float()
    ours = CONVERT[space](rgb.T[None, :, None, :])
    torch.testing.assert_close(ours[0, :, 0].T, expected[0], atol=1e-3, rtol=0)


def test_color_spaces_keep_the_shape_and_treat_samples_independently():
    """A sample converted alone is the same as in a batch."""
    images = torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    for convert in CONVERT.values():
        batch = convert(images)
        assert batch.shape == images.shape
        torch.testing.assert_close(batch[1:2], convert(images[1:2]))
