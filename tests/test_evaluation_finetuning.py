"""Fine-tuning: which images are labeled, published numbers, and training against plain PyTorch."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import lightning
import pytest
import torch
from torch import nn

from unmix.backbones import build
from unmix.data import FileImages, TensorImages
from unmix.errors import UserError
from unmix.evaluation.finetuning import (
    FINE_TUNING,
    Classifier,
    FineTuneSettings,
    FineTuning,
    usual_fine_tuning,
)
from unmix.evaluation.labeled import Amount, choose_labeled, image_name, read_list
from unmix.mixtures import FMix, UnMix
from unmix.randomness import generator_for

MEAN = STD = (0.5, 0.5, 0.5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- labels -----------------------------------------------------------------------------------


def classes(count: int) -> list[str]:
    return [f"class{i}" for i in range(count)]


@pytest.mark.parametrize(
    ("text", "each"),
    [("1%", {1}), ("10%", {10}), ("13%", {13}), ("1.4%", {1, 2}), ("7", {7}), ("100%", {100})],
)
def test_equally_many_labels_of_each_class(text: str, each: set[int]):
    labels = torch.arange(1000) % 10
    chosen = choose_labeled(labels, classes(10), Amount(text), generator())
    counts = labels[chosen].bincount(minlength=10)
    assert set(counts.tolist()) == each
    if text.endswith("%"):
        assert len(chosen) == round(float(text[:-1]) * 10)
    assert torch.equal(chosen, chosen.unique())  # ascending, none twice


def test_the_choice_depends_on_the_seed_alone():
    labels = torch.arange(1000) % 10
    first, again, other = (
        choose_labeled(labels, classes(10), Amount("1%"), generator(s)) for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("labels", "text", "message"),
    [
        (torch.arange(50) % 10, "1%", "1% of 50 images is 0, less than one for each of the 10 class"
                                      "es; use 20% or more"),
        (torch.tensor([0] * 90 + [1] * 10), "50%", "class 'class1' has 10 training images, and 50%,"
                                                   " balanced over the classes, is 25 of each"),
        (torch.tensor([0] * 90 + [1] * 10), "11", "class 'class1' has 10 training images, and 11 pe"
                                                  "r class; use less"),
        (torch.tensor([0] * 5 + [1] * 5 + [2] * 20), "56%", "56% of 30 images cannot be balanced"),
    ],
)  # fmt: skip
def test_labels_that_are_not_there_are_told(labels, text: str, message: str):
    names = classes(int(labels.max()) + 1)
    with pytest.raises(UserError) as caught:
        choose_labeled(labels, names, Amount(text), generator())
    assert caught.value.on_command_line().startswith(f"--labels: {message}")


@pytest.mark.parametrize("text", ["0%", "101%", "-3", "0", "0.1", "ten", "%", "nan%"])
def test_amounts_that_cannot_be(text: str):
    with pytest.raises(UserError, match="is neither a share such as 1%"):
        Amount(text)


def files(*names: str) -> FileImages:
    labels = torch.zeros(len(names), dtype=torch.int64)
    return FileImages(
        name="d", split="train", labels=labels, classes=("a",), mean=MEAN, std=STD,
        paths=[Path("/data/train") / name for name in names],
    )  # fmt: skip


def test_a_list_names_files_with_as_many_folders_as_it_likes(tmp_path: Path):
    images = files("n1/n1_7.JPEG", "n2/n2_8.JPEG", "n2/same.png", "n1/same.png")
    path = tmp_path / "list.txt"
    path.write_text("# SimCLR's lists are bare names\n\nn2_8.JPEG\nn1/same.png\n")
    assert read_list(path, images).tolist() == [1, 3]
    names = [image_name(images, i) for i in range(4)]
    assert names[1] == "n2/n2_8.JPEG"
    path.write_text("\n".join(names))
    assert read_list(path, images).tolist() == [0, 1, 2, 3]


def test_images_in_memory_are_named_by_index(tmp_path: Path):
    images = TensorImages(
        name="d", split="train", labels=torch.zeros(5, dtype=torch.int64), classes=("a",),
        mean=MEAN, std=STD, images=torch.zeros(5, 3, 2, 2, dtype=torch.uint8),
    )  # fmt: skip
    path = tmp_path / "list.txt"
    path.write_text("4\n0\n")
    assert read_list(path, images).tolist() == [0, 4]
    path.write_text("5\n")
    with pytest.raises(UserError, match="an image that is not among the 5 training images: 5"):
        read_list(path, images)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c.png\nd.png", "names 2 images that are not among the 3 training images, first c.png"),
        ("b.png", "names b.png, which 2 training images are called; put its folder before it"),
        ("n1/a.png\na.png", "names a.png twice"),
        ("# nothing\n", "names no images."),
        ("# all labels: 60 images\n", "names no images; it stands for all labels, which are tak"),
        (None, r"list.txt cannot be read \(No such file"),
    ],
)
def test_a_list_that_does_not_fit_is_told(tmp_path: Path, text: str | None, message: str):
    path = tmp_path / "list.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_list(path, files("n1/a.png", "n1/b.png", "n2/b.png"))


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "share", "expected"),
    [
        ("swav", 0.01, (20, 256, 0.02, 5.0, 0.0, (12, 16), 0.2)),
        ("swav", 0.1, (20, 256, 0.01, 0.2, 0.0, (12, 16), 0.2)),
        ("swav", 1.0, (20, 256, 0.01, 0.2, 0.0, (12, 16), 0.2)),
        ("vicreg", 0.01, (20, 256, 0.03, 0.08, 0.0, (), 0.1)),
        ("vicreg", 0.1, (20, 256, 0.01, 0.1, 0.0, (), 0.1)),
        ("simclr", 0.01, (60, 4096, 0.8, 0.8, 0.0, (), 0.1)),
        ("simclr", 0.1, (30, 4096, 0.8, 0.8, 0.0, (), 0.1)),
        ("mae", 1.0, (100, 1024, 2e-3, 2e-3, 0.05, (), 0.1)),
    ],
)
def test_published_numbers(name: str, share: float, expected: tuple):
    s = FINE_TUNING[name](share)
    found = (s.epochs, s.batch_size, s.lr, s.head_lr, s.weight_decay, s.milestones, s.gamma)
    assert found == expected


def test_schedules_are_those_of_pytorch():
    """MultiStepLR and CosineAnnealingLR, stepped after each epoch of 3 steps."""
    for name, kind in (
        ("swav", lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [12, 16], 0.2)),
        ("vicreg", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20)),
    ):
        settings = FINE_TUNING[name](0.1)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = kind(optimizer)
        for step in range(60):
            expected = optimizer.param_groups[0]["lr"]
            assert settings.factor(step, 3) == pytest.approx(expected, abs=1e-9)
            if step % 3 == 2:
                optimizer.step()
                schedule.step()


def test_mae_warms_up_and_ends_at_its_final_rate():
    settings = FINE_TUNING["mae"](1.0)
    assert settings.factor(0, 10) == 0
    assert settings.factor(25, 10) == pytest.approx(0.5)
    assert settings.factor(50, 10) == 1.0
    middle = 1e-6 + (2e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * 0.5))
    assert settings.lr * settings.factor(525, 10) == pytest.approx(middle)
    assert settings.lr * settings.factor(1000, 10) == pytest.approx(1e-6)


def test_changes_move_what_is_published_with_them():
    short = FINE_TUNING["swav"](0.1).changed(10, 32, lr=0.5)
    assert (short.milestones, short.batch_size, short.lr, short.head_lr) == ((6, 8), 32, 0.5, 0.2)
    small = FINE_TUNING["simclr"](0.1).changed(None, 512)
    assert (small.lr, small.head_lr) == (0.1, 0.1)  # 0.05 x 512 / 256
    given = FINE_TUNING["mae"](1.0).changed(50, 256, lr=1e-3)
    assert (given.warmup_epochs, given.lr, given.head_lr) == (2.5, 1e-3, 5e-4)
    for words in ({"epochs": 0}, {"batch_size": 1}, {"lr": 0}, {"lr_decay": 1.5}):
        with pytest.raises(UserError, match="must be"):
            FINE_TUNING["swav"](1.0).changed(**words)


def test_a_transformer_has_other_settings_by_default():
    assert usual_fine_tuning(build("resnet10", width=0.125, size=16)) == "swav"
    assert usual_fine_tuning(build("timm:vit_tiny_patch16_224", size=32, patch=16)) == "mae"


# --- training ---------------------------------------------------------------------------------


class Net(nn.Module):
    feature_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(6, 4), nn.BatchNorm1d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.bn(self.fc(images.flatten(1))).relu()


def task() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(24, 6, 1, 1, generator=generator(1))
    return images, torch.arange(24) % 3


def fit(model: Classifier, settings: FineTuneSettings, epochs: list[int] | None = None) -> None:
    images, labels = task()

    def batches(epoch: int):
        if epochs is not None:
            epochs.append(epoch)
        order = torch.randperm(24, generator=generator(epoch)).split(8)
        return ((images[i], labels[i]) for i in order)  # Lightning may ask twice for the first

    lightning.Trainer(
        max_epochs=settings.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(FineTuning(model, settings, batches, 3, lambda *_: None))  # fmt: skip


@pytest.mark.parametrize("nesterov", [False, True])
def test_training_equals_sgd_written_out(nesterov: bool):
    """Separate rates of encoder and classifier, batch norm in training mode, a milestone."""
    torch.manual_seed(0)
    net = Net().eval().requires_grad_(False)  # as a loaded encoder is
    kind = "nesterov" if nesterov else "sgd"
    settings = FineTuneSettings(
        4, 8, 0.01, 0.2, 1e-3, kind, "step", "this test", milestones=(2,), gamma=0.1
    )
    model = Classifier(copy.deepcopy(net), 3, 0.01, generator(5))
    plain = copy.deepcopy(model).requires_grad_(True).train()
    epochs: list[int] = []
    fit(model, settings, epochs)
    assert list(dict.fromkeys(epochs)) == [0, 1, 2, 3]
    optimizer = torch.optim.SGD(
        [{"params": plain.backbone.parameters(), "lr": 0.01},
         {"params": plain.head.parameters(), "lr": 0.2}],
        momentum=0.9, weight_decay=1e-3, nesterov=nesterov,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], 0.1)
    images, labels = task()
    for epoch in range(4):
        for index in torch.randperm(24, generator=generator(epoch)).split(8):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(images[index]), labels[index]).backward()
            optimizer.step()
        schedule.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)


def test_layerwise_decay_gives_each_layer_of_a_transformer_its_rate():
    vit = build("timm:vit_tiny_patch16_224", size=32, patch=16)
    model = Classifier(vit, 3, 2e-5, generator())
    settings = FINE_TUNING["mae"](1.0).changed(lr=1.0, head_lr=2.0, lr_decay=0.5)
    module = FineTuning(model, settings, lambda _: [], 1, lambda *_: None)
    optimizer = module.configure_optimizers()[0][0]
    rates, decays = {}, {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            rates[parameter], decays[parameter] = group["initial_lr"], group["weight_decay"]
    # 12 blocks: the embedding is layer 0, the norm behind them has the full rate.
    assert rates[vit.patch_embed.proj.weight] == pytest.approx(0.5**13)
    assert rates[vit.blocks[0].attn.qkv.weight] == pytest.approx(0.5**12)
    assert rates[vit.blocks[11].attn.qkv.weight] == pytest.approx(0.5)
    assert rates[vit.norm.weight] == 1.0
    assert rates[model.head.weight] == 2.0
    assert decays[model.head.weight] == 0.05
    assert decays[model.head.bias] == decays[vit.norm.weight] == 0.0
    assert decays[vit.pos_embed] == decays[vit.cls_token] == 0.0  # as MAE's param_groups_lrd
    assert len(rates) == len(list(model.parameters()))


@pytest.mark.parametrize("operator", [UnMix(1.0), UnMix(0.0), FMix(per="sample")], ids=repr)
def test_the_loss_of_mixtures_is_pytorchs_with_probabilities_as_targets(operator):
    """The label of a mixture: each image's class by its share, smoothed."""
    torch.manual_seed(0)
    model = Classifier(build("resnet10", width=0.125, size=8), 3, 0.1, generator(5))
    settings = FineTuneSettings(
        1, 8, 0.1, 0.1, 0.0, "sgd", "cosine", "this test", label_smoothing=0.1, mixture=operator
    )
    module = FineTuning(model, settings, lambda _: [], 1, lambda *_: None, seed=4)
    images, labels = torch.rand(8, 3, 8, 8), torch.arange(8) % 3
    draw = operator.draw(images.shape, generator_for(4, "finetune", "mixture", 0, 3))
    one_hot = nn.functional.one_hot(labels, 3).float()
    share = draw.shares[:, :1]
    target = share * one_hot + (1 - share) * one_hot[draw.owners[:, 1]]
    expected = nn.functional.cross_entropy(
        copy.deepcopy(model).train()(draw.apply(images)), target, label_smoothing=0.1
    )
    torch.testing.assert_close(module.training_step((images, labels), 3), expected)


def test_a_loss_that_is_not_finite_ends_it():
    torch.manual_seed(0)
    settings = FineTuneSettings(3, 8, 1e30, 1e30, 0.0, "sgd", "cosine", "this test")
    with pytest.raises(UserError, match=r"diverged in epoch .* use smaller rates, --lr and --head"):
        fit(Classifier(Net(), 3, 0.01, generator()), settings)
