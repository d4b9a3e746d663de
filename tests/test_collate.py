"""A batch gets the same mixture from any worker, and the draw reaches the loop unchanged."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from unmix import (
    DrawnBatch,
    GlobalMixture,
    ImageMixture,
    MixedBatch,
    ScaleMix,
    UnMix,
    UserError,
    shared_loss,
)

N, SHAPE = 8, (3, 6, 6)


class Pairs(torch.utils.data.Dataset):
    """Two views, a label and a name per item."""

    def __init__(self, n: int = 32) -> None:
        self.images = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        return {"views": (self.images[i], self.images[i].flip(2)), "label": i, "name": f"image {i}"}


def loaded(workers: int, mixture=UnMix(per="sample"), **options) -> list[DrawnBatch]:  # noqa: B008
    order = torch.Generator().manual_seed(1)
    return list(
        DataLoader(
            Pairs(), N, shuffle=True, generator=order, num_workers=workers,
            collate_fn=MixedBatch(mixture, seed=3), **options,
        )
    )  # fmt: skip


def same(a: DrawnBatch, b: DrawnBatch) -> bool:
    fields = ("owners", "shares", "box", "ratio")
    return all(torch.equal(getattr(a.draw, name), getattr(b.draw, name)) for name in fields)


def test_the_number_of_workers_changes_nothing():
    alone, two = loaded(0), loaded(2)
    assert len(alone) == len(two) == 4
    for a, b in zip(alone, two, strict=True):
        assert torch.equal(a.batch["views"][0], b.batch["views"][0])
        assert same(a, b)


def test_batches_and_seeds_differ():
    first, *others = loaded(0)
    assert not any(same(first, other) for other in others)
    images = first.batch["views"]
    assert same(MixedBatch(UnMix(per="sample"), 3)(*images), first)
    assert not same(MixedBatch(UnMix(per="sample"), 4)(*images), first)


def test_draws_over_many_batches_have_the_operators_distribution():
    """lambda ~ U(0, 1) and P = 0.5, though the seeds are pixels: mean, variance, coin flips."""
    images = torch.rand(2000, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    draws = [MixedBatch(UnMix())(batch).draw for batch in images]
    coin = torch.tensor([float(draw.box[0].tolist() == [0, 0, 4, 4] and draw.ratio[0] > 0)
                         for draw in draws])  # fmt: skip
    lam = torch.stack([draw.ratio[0] for draw in draws])[coin.bool()]
    assert abs(coin.mean() - 0.5) < 4 * 0.5 / 2000**0.5
    assert abs(lam.mean() - 0.5) < 4 * (1 / 12 / 1000) ** 0.5
    assert abs(lam.var() - 1 / 12) < 0.01


@pytest.mark.parametrize(
    "samples",
    [
        [torch.rand(SHAPE) for _ in range(N)],
        [(torch.rand(SHAPE), 3) for _ in range(N)],
        [(7, torch.rand(SHAPE), torch.rand(SHAPE)) for _ in range(N)],
        [{"label": torch.tensor(1), "image": torch.rand(SHAPE)} for _ in range(N)],
    ],
    ids=["images", "image and label", "label and views", "dict"],
)
def test_samples_of_any_structure(samples):
    batch, draw = MixedBatch()(samples)
    assert draw.owners.shape == (N, 2)
    (images, *_) = [
        part
        for part in (batch.values() if isinstance(batch, dict) else
                     [batch] if isinstance(batch, torch.Tensor) else batch)
        if part.ndim == 4
    ]  # fmt: skip
    assert draw.apply(images).shape == (N, *SHAPE)


def test_a_batch_is_not_collated_again():
    """Called as torchvision's CutMix is, also at the end of its Compose."""
    images, labels = torch.rand(N, *SHAPE), torch.arange(N)
    batch, draw = v2.Compose([v2.RandomHorizontalFlip(p=1), MixedBatch()])(images, labels)
    assert torch.equal(batch[0], images.flip(3))
    assert batch[1] is labels
    torch.testing.assert_close(MixedBatch()(batch[0]).draw.shares, draw.shares)


def test_a_list_that_is_collated_already_is_a_batch():
    images, labels = torch.rand(N, *SHAPE), torch.arange(N)
    for given in ([images, labels], [images]):
        drawn = MixedBatch()(given)
        assert drawn.batch is given
        assert drawn.draw.owners.shape == (N, 2)


def test_a_draw_of_several_views_does_not_leave_the_first_one_as_it_is():
    images = torch.rand(2, N, *SHAPE)
    for mixture in (ScaleMix(), UnMix(pairing="second_view")):
        draw = MixedBatch(mixture)(images[0]).draw
        with pytest.raises(UserError, match="others: this mixture is of several views"):
            draw.apply(images[0])
        assert draw.apply(images[0], [images[1]]).shape == images[0].shape


def test_torchvision_images_and_uint8_images():
    images = tv_tensors.Image(torch.randint(256, (N, *SHAPE), dtype=torch.uint8))
    assert same(MixedBatch()(list(images)), MixedBatch()(images.as_subclass(torch.Tensor)))
    half = [torch.rand(SHAPE, dtype=torch.bfloat16) for _ in range(N)]
    assert MixedBatch()(half).draw.owners.shape == (N, 2)


def test_shared_loss_takes_the_draw_of_two_workers():
    """Against the sum written out: w l(q, t) + (1 - w) l(q, t[p])."""
    for batch, draw in loaded(2):
        x1, x2 = batch["views"]
        query, target = draw.apply(x1).flatten(1), x2.flatten(1)
        loss = lambda q, t: (q - t).square().sum(dim=1)  # noqa: E731
        w, p = draw.weight, draw.partner
        wanted = (w * loss(query, target) + (1 - w) * loss(query, target[p])).mean()
        torch.testing.assert_close(shared_loss(loss, query, target, draw), wanted)


def test_an_image_space_draw_passes_through_workers():
    (first, *_) = loaded(2, ImageMixture(g_prob=1.0))
    assert first.draw.is_mixed.all()
    assert first.draw.apply(first.batch["views"][1]).shape == (N, *SHAPE)


def test_moving_and_pinning_keep_the_draw_and_other_values(monkeypatch):
    """Pinning needs an accelerator: here it only marks the tensor."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 0)
    drawn = loaded(0)[0]
    for other in (drawn.to("cpu"), drawn.pin_memory()):
        assert isinstance(other, DrawnBatch)
        assert other.draw is drawn.draw
        assert other.batch["name"] == drawn.batch["name"]
        assert torch.equal(other.batch["views"][0], drawn.batch["views"][0])
    assert drawn.to("meta").batch["views"][1].device.type == "meta"
    assert drawn.to("meta").draw.owners.device.type == "cpu"


def test_lightning_moves_the_batch():
    """A frozen draw in a plain tuple is refused by Lightning's transfer."""
    from lightning.fabric.utilities import move_data_to_device

    drawn = loaded(0)[0]
    moved = move_data_to_device(drawn, torch.device("meta"))
    assert moved.batch["label"].device.type == "meta"
    assert moved.draw is drawn.draw
    with pytest.raises(ValueError, match="frozen"):
        move_data_to_device(tuple(drawn), torch.device("meta"))


def test_it_can_be_pickled_for_a_spawned_worker():
    mixed = MixedBatch(GlobalMixture(0.5), seed=2)
    assert pickle.loads(pickle.dumps(mixed)) == mixed


class ByFeatures:
    needs_features = True

    def draw(self, shape, generator=None, features=None): ...


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MixedBatch(UnMix), r"MixedBatch: .* give one such as unmix\.UnMix\(\)"),
        (lambda: MixedBatch("region"), "'region' cannot draw"),
        (lambda: MixedBatch(ByFeatures()), "draw in the training loop"),
        (lambda: MixedBatch()([("a.png", 1)]), "no image tensor"),
        (lambda: MixedBatch()([torch.rand(SHAPE)]), "at least 2 images in a batch, not 1"),
        (
            lambda: MixedBatch()([torch.rand(2, *SHAPE)] * 6),
            r"each of 6 samples has a tensor \(2, 3, 6, 6\); give its views as a tuple",
        ),
        (lambda: MixedBatch()([(torch.rand(2, *SHAPE), 1)] * 6), "each of 6 samples has a tensor"),
    ],
    ids=["class", "word", "features", "no image", "one image", "stacked views", "and a label"],
)
def test_invalid_arguments_are_one_line_errors(make, says):
    with pytest.raises(UserError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)
