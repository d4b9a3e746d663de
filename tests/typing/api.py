"""What a type checker accepts and refuses of the public API; `make test` runs mypy on this file.

A comment `type: ignore[...]` that is not needed is an error here, so each is an expected error.
"""

from __future__ import annotations

from typing import Any

import torch

import unmix

__all__: list[str] = []


def runs(settings: dict[str, Any]) -> None:
    unmix.pretrain(method="moco", data="photos", IM=True, epochs=2, lr=1, run="runs/a")
    unmix.pretrain("moco-cifar10", precision=16, compile=True, jitter=[0.4, 0.4, 0.4, 0.1])
    unmix.pretrain(method="moco", second_view={"jitter_p": 0, "interpolation": "bicubic"})
    unmix.pretrain(method="swav", prototypes=100, data=torch.zeros(8, 3, 32, 32).byte())
    unmix.pretrain(**settings)
    unmix.commands.bench(method="simclr", steps=3)
    unmix.commands.study("first", vary=["lr=0.1,0.2"], method="moco")


def mistakes() -> None:
    unmix.pretrain(metod="moco")  # type: ignore[call-arg]
    unmix.pretrain(method="mocco")  # type: ignore[arg-type]
    unmix.pretrain(method="moco", epochs="many")  # type: ignore[arg-type]
    unmix.pretrain(method="moco", optimizer="adagrad")  # type: ignore[arg-type]
    unmix.pretrain(method="moco", second_view={"jiter_p": 0})  # type: ignore[typeddict-unknown-key]
    unmix.commands.bench(metod="moco")  # type: ignore[call-arg]
    unmix.commands.study("first", metod="moco")  # type: ignore[call-arg]
    unmix.UnMix(pairing="nonsense")  # type: ignore[arg-type]
    unmix.MixUp(per="image")  # type: ignore[arg-type]
    unmix.views.ViewSettings(interpolation="nearest")  # type: ignore[arg-type]
    unmix.views.ViewSettings(blur=0.5)  # type: ignore[call-arg]
    print(unmix.Moco)  # type: ignore[attr-defined]
    unmix.UnMix(pairing="nonsense")  # type: ignore[arg-type]
    unmix.MixUp(per="image")  # type: ignore[arg-type]
    unmix.CutMix(beta=0.2)  # type: ignore[call-arg]
    unmix.Weight("normal")  # type: ignore[arg-type]


def mixtures(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    operators: list[unmix.mixtures.MixtureOperator] = [
        unmix.UnMix(prob=0.3, per="sample", pairing="neighbor"),
        unmix.MixUp(alpha=0.4, pairing="random"),
        unmix.FMix(weight=unmix.Weight("uniform", low=0.1)),
    ]
    draw = operators[0].draw(images.shape, generator)
    mixed, draw = unmix.mixup(images, alpha=1.0, generator=generator)
    return mixed * draw.weight


def encoder(images: torch.Tensor) -> torch.Tensor:
    found = unmix.load_encoder("runs/a", device="cpu")
    network: torch.nn.Module = found
    size: int = found.feature_dim
    network.eval()
    return found.encode(images)[:, :size]


def parts(backbone: torch.nn.Module, generator: torch.Generator) -> unmix.Stepper:
    method: unmix.Method = unmix.MoCo(backbone, n_data=100)
    rules: dict[str, unmix.Rule] = unmix.RULES
    assert issubclass(unmix.METHODS["moco"], unmix.Method)
    x = torch.zeros(4, 3, 8, 8)
    mixed, draw = unmix.mixup(x, alpha=0.4, generator=generator)
    assert mixed.shape == unmix.CutMix(per="sample").draw(x.shape, generator).apply(x).shape
    assert isinstance(unmix.MixUp(), unmix.mixtures.MixtureOperator)
    assert draw.weight is not None
    views = unmix.views.Views(unmix.views.preset("moco-v2"), 32, (0.5,) * 3, (0.2,) * 3)
    assert len(views) == 2
    assert rules
    return unmix.Stepper(method, steps_per_epoch=3, epochs=2, mixture=unmix.UnMix(), rule="imix")
