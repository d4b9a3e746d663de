"""The preview of a mixture shows real images, what happened to them, and how often it happens."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from unmix.commands import preview
from unmix.commands.preview import mixed_fraction
from unmix.commands.preview_parts import parts_of
from unmix.config import MixtureSettings
from unmix.data import load
from unmix.errors import UserError
from unmix.figures import mixtures
from unmix.randomness import generator_for
from unmix.training.console import silent


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the figure is made of."""
    seen: dict[str, Any] = {}

    def record(
        own: Any, partners: Any, mixed: Any, weights: Any, boxes: Any, **words: Any
    ) -> Figure:
        seen.update(
            own=own, partners=partners, mixed=mixed, weights=weights, all_boxes=boxes, **words
        )
        if all(len(each) == 1 for each in partners):
            seen["partner"] = [each[0] for each in partners]
        if all(len(each) == 1 for each in boxes):
            seen["boxes"] = [each[0] for each in boxes]
        return mixtures(own, partners, mixed, weights, boxes, **words)

    # By name: the package's attribute `preview` is the function.
    module = importlib.import_module("unmix.commands.preview")
    monkeypatch.setattr(module, "mixtures", record)
    return seen


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn into their files, which takes a second each."""
    module = importlib.import_module("unmix.commands.preview")
    own = b"\x89PNG tEXtSoftware\0unmix"
    monkeypatch.setattr(module, "render", lambda figure, kind: own)


@pytest.mark.usefixtures("unrendered")
def test_a_label_space_mixture_agrees_with_its_weight_and_box(drawn: dict, tmp_path: Path):
    """Each mixture is computed again here, from what is shown beside it."""
    mixture = MixtureSettings(unmix=True)
    preview(mixture=mixture, out=tmp_path / "a.png", n=12, data="digits", say=silent)
    kinds = set()
    for own, partner, mixed, weight, box in zip(
        drawn["own"], drawn["partner"], drawn["mixed"], drawn["weights"], drawn["boxes"],
        strict=True,
    ):  # fmt: skip
        top, left, bottom, right = box
        if bottom > top:
            expected = own.clone()
            expected[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
            assert weight == pytest.approx(1 - (bottom - top) * (right - left) / 64)
        else:
            expected = weight * own + (1 - weight) * partner
        kinds.add(bottom > top)
        assert (mixed.float() - expected.float()).abs().max() <= 1
    assert kinds == {True, False}
    assert len({round(weight, 6) for weight in drawn["weights"]}) > 6


@pytest.mark.usefixtures("unrendered")
def test_images_are_from_the_data_set_and_all_shown_ones_are_mixed(drawn: dict, tmp_path: Path):
    mixture = MixtureSettings(IM=True, g_num=1, r_num=1)
    preview(mixture=mixture, out=tmp_path / "a.png", data="digits", seed=1, say=silent)
    known = {image.numpy().tobytes() for image in load("digits", "train").images}  # type: ignore[attr-defined]
    assert len(drawn["own"]) == 8
    for own, partners, captions in zip(
        drawn["own"], drawn["partners"], drawn["captions"], strict=True
    ):
        # What was pasted is no image of the data where something came into it before.
        plain = partners[:-1] if "to be pasted" in captions else partners
        assert all(image.numpy().tobytes() in known for image in (own, *plain))
    assert (drawn["own"] != drawn["mixed"]).flatten(1).any(dim=1).all()
    assert all(0 <= weight <= 1 for weight in drawn["weights"])
    assert "19% of images are mixed" in drawn["title"]


def test_cutout_fills_with_the_mean_color_and_shows_no_partner(drawn: dict, tmp_path: Path):
    mixture = MixtureSettings(IM=True, IM_type="Cutout", mask_size=16)
    preview(mixture=mixture, out=tmp_path / "a.png", n=3, say=silent)
    mean = (torch.tensor(load("photos", "train").mean) * 255).round()
    for mixed, (top, left, bottom, right), weight in zip(
        drawn["mixed"], drawn["boxes"], drawn["weights"], strict=True
    ):
        inside = mixed[:, top:bottom, left:right].float()
        assert (inside - mean[:, None, None]).abs().max() <= 1
        assert weight == pytest.approx(1 - (bottom - top) * (right - left) / 48**2)
    assert drawn["partners"] == [[], [], []]
    assert drawn["result"] == "erased"


@pytest.mark.usefixtures("unrendered")
def test_cutout_defaults_to_the_published_fraction_and_prints_it(drawn: dict, tmp_path: Path):
    lines: list[str] = []
    mixture = MixtureSettings(IM=True, IM_type="Cutout", cutout_inside=True)
    preview(mixture=mixture, out=tmp_path / "a.png", n=3, say=lines.append)
    assert all(bottom - top == 11 for top, _, bottom, _ in drawn["boxes"])
    assert "Cutout of 11 px with probability 0.1" in drawn["title"]
    assert any(line.startswith("Cutout: squares of 11 px, 50/224 of the side") for line in lines)


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_all_applied_rounds_are_shown_and_reproduce_the_mixture(
    drawn: dict, tmp_path: Path, rounds: int
):
    """Mixed again from what is shown, in order: shares from the draw, boxes as outlined."""
    mixture = MixtureSettings(
        IM=True, g_num=rounds, r_num=rounds, g_prob=0.7, r_prob=0.7, r_pixel_decay=0.8
    )
    images = torch.rand(16, 3, 12, 12, generator=generator_for(1))
    operator = mixture.image_space()
    assert operator is not None
    draw: Any = operator.draw((16, 3, 12, 12), generator_for(0, rounds))
    expected = draw.apply(images)
    counts = []
    for row in range(16):
        made, decayed, inner = images[row], False, None
        parts = parts_of(draw, row, images)
        for part in parts:
            if part.inner:
                inner = part.image if inner is None else torch.lerp(inner, part.image, part.share)
            elif part.share is not None:
                made = torch.lerp(made, part.image, part.share)
            else:
                if not decayed:
                    made, decayed = made * draw.decay[row], True
                top, left, bottom, right = part.box if any(part.box) else (0, 0, 12, 12)
                made = made.clone()
                made[:, top:bottom, left:right] = part.image[:, top:bottom, left:right]
                if inner is not None:
                    torch.testing.assert_close(part.image, inner)
                inner = None
        counts.append(len(parts))
        if decayed or not bool(draw.decay[row] != 1):
            torch.testing.assert_close(made, expected[row], atol=1e-5, rtol=0)
    assert max(counts) > 2 * rounds
    preview(mixture=mixture, out=tmp_path / "a.png", n=3, data="digits", say=silent)
    assert max(len(each) for each in drawn["partners"]) > rounds
    assert [len(each) for each in drawn["captions"]] == [len(each) for each in drawn["partners"]]


@pytest.mark.parametrize(
    "flags",
    [
        {"unmix_mixture": "dirichlet", "unmix_images": 4},
        {"unmix_mixture": "patchmix", "unmix_images": 3, "unmix_patch": 2},
        {"unmix_mixture": "cropmix", "unmix_images": 3},
    ],
    ids=str,
)
@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_all_partners_are_shown(drawn: dict, tmp_path: Path, flags: dict[str, Any], per: str):
    mixture = MixtureSettings(unmix=True, unmix_per=per, **flags)
    preview(mixture=mixture, out=tmp_path / "a.png", n=3, data="digits", say=silent)
    crops = flags["unmix_mixture"] == "cropmix"
    assert {len(each) for each in drawn["partners"]} == {flags["unmix_images"] - (not crops)}


@settings(max_examples=50)
@given(
    im_type=st.sampled_from(["IM", "global", "region", "Cutout", "RandomErasing"]),
    p=st.floats(0, 1),
    rounds=st.integers(0, 3),
)
def test_the_mixed_fraction_is_that_of_draws(im_type: str, p: float, rounds: int):
    mixture = MixtureSettings(
        IM=True, IM_type=im_type, g_prob=p, g_num=rounds, r_prob=p, cutout_p=p,
        random_erasing_prob=p, mask_size=4, cutout_inside=True, max_attempt=50,
    )  # fmt: skip
    operator = mixture.image_space()
    assert operator is not None
    draw = operator.draw((4000, 3, 16, 16), generator_for(0, "share"))
    found = draw.is_mixed.double().mean().item()  # type: ignore[attr-defined]
    assert mixed_fraction(mixture) == pytest.approx(found, abs=0.05)


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("a", b"")]
)
def test_the_extension_sets_the_format(tmp_path: Path, name: str, start: bytes):
    mixture = MixtureSettings(unmix=True)
    words = {"mixture": mixture, "data": "digits", "n": 2, "say": silent}
    path = preview(out=tmp_path / "new" / name, **words)
    assert path.suffix == (Path(name).suffix or ".png")
    assert path.read_bytes().startswith(start)
    again = preview(out=tmp_path / "again" / name, **words)
    assert again.read_bytes() == path.read_bytes()


def test_a_picture_of_the_users_is_not_replaced_by_a_preview(tmp_path: Path):
    words = {"mixture": MixtureSettings(unmix=True), "data": "digits", "n": 2, "say": silent}
    own = tmp_path / "own.png"
    Image.new("RGB", (4, 4)).save(own)
    before = own.read_bytes()
    for name in ("own.png", "own"):
        with pytest.raises(UserError, match=r"out: .+own\.png exists, and is no figure of unmix"):
            preview(out=tmp_path / name, **words)
    assert own.read_bytes() == before
    for seed in (0, 1):  # its own is drawn again
        preview(out=tmp_path / "a.png", seed=seed, **words)


@pytest.mark.usefixtures("unrendered")
def test_another_seed_shows_other_images(drawn: dict, tmp_path: Path):
    shown = []
    for seed in (0, 1):
        preview(mixture=MixtureSettings(unmix=True), out=tmp_path / "a.png", seed=seed, say=silent)
        shown.append(drawn["own"])
    assert not torch.equal(*shown)


def test_a_folder_is_shown_at_the_given_size(drawn: dict, tmp_path: Path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"")
    lines: list[str] = []
    preview(
        mixture=MixtureSettings(IM=True, IM_type="region"), data=str(tmp_path / "images"),
        size=24, out=tmp_path / "a.png", say=lines.append,
    )  # fmt: skip
    assert drawn["own"].shape == (3, 3, 24, 24)
    assert any("Skipped 1 image file" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"mixture": MixtureSettings()}, "--IM: no mixture is selected; give --IM"),
        ({"mixture": MixtureSettings(IM_type="region")}, "--IM: no mixture is selected; give --IM"),
        (
            {"mixture": MixtureSettings(IM=True, IM_type="region", r_prob=0)},
            "--IM_type: region changes no image; give --r_prob and --r_num above 0.",
        ),
        ({"out": "a.gif"}, "--out: a.gif must end in .png, .svg or .pdf."),
        ({"out": "."}, "--out: . is a folder; give a file, such as mixture.png."),
        ({"n": 0}, "--n: 0 is out of range"),
        ({"size": 0}, "--size: 0 is out of range"),
        ({"seed": -1}, "--seed: -1 is out of range"),
        ({"data": "photo"}, "--data: 'photo' is unknown. Did you mean 'photos'?"),
    ],
)
def test_invalid_arguments_are_errors(words: dict[str, Any], message: str):
    given_words = {"mixture": MixtureSettings(unmix=True), "out": "a.png", **words}
    with pytest.raises(UserError) as caught:
        preview(say=silent, **given_words)
    assert caught.value.on_command_line().startswith(message)


def test_equal_images_are_an_error(tmp_path: Path):
    for i in range(2):
        Image.new("RGB", (16, 16), "red").save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match="they are all equal"):
        preview(
            mixture=MixtureSettings(unmix=True), data=str(tmp_path), size=8,
            out=tmp_path / "figure.png", say=silent,
        )  # fmt: skip


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(
    "flags",
    [
        {"unmix_mixture": "fmix"},
        {"unmix_mixture": "gridmix", "unmix_per": "sample"},
        {"unmix_mixture": "patchmix", "unmix_patch": 2},
        {"unmix_mixture": "region", "unmix_pairing": "halves"},
        {"unmix_mixture": "region", "unmix_pairing": "neighbor", "unmix_per": "sample"},
    ],
    ids=str,
)
def test_the_weight_is_the_fraction_of_pixels(drawn: dict, tmp_path: Path, flags: dict[str, Any]):
    """Each pixel is the image's or its partner's, and the weight is the share of its own."""
    mixture = MixtureSettings(unmix=True, **flags)
    preview(mixture=mixture, out=tmp_path / "a.png", n=5, data="digits", say=silent)
    for own, partner, mixed, weight in zip(
        drawn["own"], drawn["partner"], drawn["mixed"], drawn["weights"], strict=True
    ):
        is_own = (mixed == own).all(dim=0)
        is_other = (mixed == partner).all(dim=0)
        assert (is_own | is_other).all()
        least, most = float((~is_other).float().mean()), float(is_own.float().mean())
        assert least - 1e-6 <= weight <= most + 1e-6


@pytest.mark.parametrize("mixture", ["resizemix", "scalemix", "cropmix", "dirichlet"])
def test_all_other_mixtures_are_drawn(drawn: dict, tmp_path: Path, mixture: str):
    flags = MixtureSettings(unmix=True, unmix_mixture=mixture)
    lines: list[str] = []
    preview(mixture=flags, out=tmp_path / "a.png", n=3, say=lines.append)
    assert len(drawn["own"]) == 3
    assert lines[0].startswith(f"Un-Mix ({mixture}): ")
    if mixture in ("scalemix", "cropmix"):
        assert list(drawn["weights"]) == [1, 1, 1]
        first = torch.stack([each[0] for each in drawn["partners"]])
        assert not torch.equal(drawn["own"], first)


@pytest.mark.usefixtures("unrendered")
def test_a_rule_is_shown_with_its_published_mixture(drawn: dict, tmp_path: Path):
    """SDMP's is ResizeMix, whose pasted partner is smaller than the image."""
    lines: list[str] = []
    flags = MixtureSettings(unmix=True, unmix_rule="sdmp")
    preview(mixture=flags, out=tmp_path / "a.png", n=3, say=lines.append)
    assert "resized" in lines[0]
    assert lines[0].startswith("SDMP: ")
    assert len(drawn["own"]) == 3


def test_a_mixture_of_features_has_no_pixels_to_show(tmp_path: Path):
    mixture = MixtureSettings(unmix=True, unmix_mixture="manifold", unmix_layer="layer2")
    with pytest.raises(UserError, match="unmix_mixture: manifold mixes features"):
        preview(mixture=mixture, out=tmp_path / "a.png", say=silent)
