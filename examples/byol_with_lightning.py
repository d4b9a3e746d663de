"""BYOL with Un-Mix as a LightningModule; the Stepper is a submodule, saved in checkpoints."""

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import unmix
from unmix.backbones import build
from unmix.data import load
from unmix.views import Views, preset


class Pretraining(L.LightningModule):
    """A method of unmix, trained by Lightning."""

    def __init__(self, method: unmix.BYOL, views: Views, steps_per_epoch: int, epochs: int) -> None:
        super().__init__()
        self.views, self.losses = views, list[float]()
        self.step = unmix.Stepper(
            method, steps_per_epoch=steps_per_epoch, epochs=epochs, mixture=unmix.UnMix()
        )

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        """Loss of a batch: uint8 images (N, 3, H, W) and their indices in the data set."""
        images, index = batch
        loss = self.step(self.views(images, self.step.generator("views")), index)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on the parameters with gradients, not those of the momentum encoder."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, 1e-3)


def main(steps: int = 30, batch_size: int = 64) -> list[float]:
    """Train, and return the loss of each step."""
    L.seed_everything(0, verbose=False)
    data = load("photos", "pretrain")
    images = TensorDataset(data.images, torch.arange(len(data)))
    loader = DataLoader(images, batch_size, shuffle=True, drop_last=True)
    method = unmix.BYOL(
        build("resnet10", width=0.25, size=32), dim=64, hidden=128, encoder_momentum=0.9
    )
    views = Views(preset("byol"), 32, data.mean, data.std)
    module = Pretraining(method, views, len(loader), epochs=2)
    trainer = L.Trainer(
        max_epochs=2, max_steps=steps, accelerator="auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    print(f"loss {module.losses[0]:.3f} -> {module.losses[-1]:.3f}")
    return module.losses


if __name__ == "__main__":
    main()
