"""Evaluation during and after training, on the images of the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unmix.config import EvaluationSettings
from unmix.data import ImageSet
from unmix.data.fingerprint import digest_of
from unmix.distributed import pace, rank, world_size
from unmix.errors import UserError
from unmix.evaluation import (
    LabeledFeatures,
    Measurement,
    effective_rank,
    evaluate_features,
    quality,
    split_features,
    spread,
)
from unmix.evaluation.features import NotFiniteError
from unmix.evaluation.pixels import MAX_WORKERS
from unmix.hardware.devices import Machine
from unmix.per_image import PerImage
from unmix.randomness import generator_for
from unmix.training.console import Estimate, is_leader, say
from unmix.training.loading.loaders import worker_count
from unmix.training.loop.module import Pretraining
from unmix.training.loop.sharing import gathered, statistics_of_first

__all__ = ["Evaluator", "health_of", "spread_and_rank"]

_HEALTH_SAMPLE, _SAMPLE = 2048, 256
# More would cost seconds at each evaluation.
_QUALITY_SAMPLE = 1024
_VIEWED, _VIEWS = 256, 8
_BATCH = 256


class Evaluator:
    """Evaluates a method on the training and test images.

    Args:
        module: The module whose method is evaluated.
        train: Images to fit classifiers on.
        test: Images to predict, or None.
        settings: Hyperparameters of the protocols, and which features.
        machine: Where to compute.
        say: Prints a line if an evaluation takes long.
    """

    def __init__(
        self,
        module: Pretraining,
        train: ImageSet,
        test: ImageSet | None,
        settings: EvaluationSettings,
        machine: Machine,
        say: Callable[[str], None] = say,
    ) -> None:
        self.module, self.train, self.test = module, train, test
        self.settings, self.machine, self.say = settings, machine, say
        self._kept: tuple[LabeledFeatures, LabeledFeatures] | None = None

    @property
    def labeled(self) -> bool:
        """Whether there are labels to predict."""
        return self.test is not None and self.train.labels is not None and len(self.test) > 0

    def sample(self) -> Tensor:
        """Backbone features (N, D) of up to 256 training images, evenly spaced."""
        few = self.train.sample(min(_SAMPLE, len(self.train)))
        return self.features(few, "backbone").features

    def features(
        self, images: ImageSet, kind: str | None = None, together: bool = False
    ) -> LabeledFeatures:
        """Features of a split, of the backbone or the projector; by default as in the settings.

        Args:
            images: The split.
            kind: "backbone" or "projector".
            together: Whether all processes call it: each encodes a part, and the first gets all.
        """
        method = self.module.method
        kind = kind or self.settings.features
        encode = method.features if kind == "backbone" else method.projections
        try:
            # Compiling the encoders again for evaluation would cost more than it saves.
            with torch.compiler.set_stance("force_eager"):
                if together and world_size() > 1:
                    return self._encoded_together(encode, images)
                return self._encoded(encode, images, self._estimate(images))
        except NotFiniteError as error:
            fault = str(error).partition(";")[0]
            raise UserError(f"{fault}; {self.module.advice.if_diverged}.") from None

    def _estimate(self, images: ImageSet) -> Estimate:
        return Estimate(f"evaluation, {images.split} split", "images", self.say)

    def _encoded(
        self,
        encode: Callable[[Tensor], Tensor],
        images: ImageSet,
        progress: Callable[[int, int], None],
        part: tuple[int, int] = (0, 1),
        workers: int | None = None,
    ) -> LabeledFeatures:
        views = self.module.views
        return split_features(
            encode, images, views.plain, views.size, device=self.module.device,
            dtype=self.machine.autocast, batch_size=_BATCH, part=part, progress=progress,
            workers=self.machine.workers if workers is None else workers,
        )  # fmt: skip

    def _encoded_together(
        self, encode: Callable[[Tensor], Tensor], images: ImageSet
    ) -> LabeledFeatures:
        """All features in the first process, this process's part in the others."""
        estimate, processes = self._estimate(images), world_size()

        def progress(done: int, total: int) -> None:
            pace.tick()
            estimate(done, total)

        workers = self.machine.workers
        if workers is None:
            workers = min(worker_count(self.machine.devices), MAX_WORKERS)
        ticks = -(-len(images) // (_BATCH * processes))
        with statistics_of_first(self.module.method), pace.at_own_pace(ticks):
            part = self._encoded(encode, images, progress, (rank(), processes), workers)
        return gathered(part, images, self.module.device)

    def __call__(
        self, protocols: tuple[str, ...], epoch: int, *, together: bool = False
    ) -> tuple[list[Measurement], LabeledFeatures]:
        """The measurements of an epoch, and the training features that they used.

        Args:
            protocols: Names of protocols that need features alone.
            epoch: Of the run.
            together: Whether the other processes `assist`.

        Raises:
            UserError: if the features are not finite.
        """
        if not self.labeled or not protocols:
            return [], self.features(self.train, together=together)
        assert self.train.classes is not None
        kept, self._kept = self._kept, None  # of these weights alone
        train, test = kept or self._both(together)
        measured = evaluate_features(
            train, test, len(self.train.classes), protocols,
            k=self.settings.knn_k, temperature=self.settings.knn_temperature,
            generator=generator_for(self.module.seed, "probe"), device=self.module.device,
        )  # fmt: skip
        at = {"epoch": epoch, "features": self.settings.features}
        return [replace(each, row={**each.row, **at}) for each in measured], train

    def _both(self, together: bool) -> tuple[LabeledFeatures, LabeledFeatures]:
        assert self.test is not None
        return self.features(self.train, together=together), self.features(
            self.test, together=together
        )

    def assist(self) -> None:
        """Encode this process's part of what the first one measures `together` with it."""
        if self.labeled:
            self._both(together=True)
        else:
            self.features(self.train, together=True)

    def encode_together(self) -> None:
        """Encode for the last evaluation, by all processes; the first one keeps what it needs."""
        if not self.labeled:
            return
        both = self._both(together=True)
        if is_leader():
            self._kept = both

    def quality(self, epoch: int, features: Tensor | None = None) -> dict[str, Any]:
        """Measures that need no labels, for `results.json`, and what they were taken on.

        RankMe, alpha-ReQ and uniformity of up to 2,048 training images, LiDAR and alignment of 8
        views of 256 of them, augmented as in training; without augmentation, which would make their
        views all the same, these two are left out.

        Args:
            epoch: Of the run.
            features: Of all training images, if they are known.
        """
        if features is None:
            features = self.features(self.train.sample(_HEALTH_SAMPLE)).features
        sample = features[:: -(-len(features) // _HEALTH_SAMPLE)]
        method, kind = self.module.method, self.settings.features
        found = {"epoch": epoch, "features": kind, "dimension": features.shape[1]}
        found |= {**quality.of_features(sample), "images": len(sample)}
        if self.module.views.kinds[0].settings.changes_nothing:
            return found
        with torch.compiler.set_stance("force_eager"):
            views = quality.augmented_features(
                method.features if kind == "backbone" else method.projections,
                self.train.sample(_VIEWED), self.module.views, _VIEWS,
                generator_for(self.module.seed, "quality"), device=self.module.device,
                dtype=self.machine.autocast, workers=self.machine.workers,
            )  # fmt: skip
        found |= quality.of_views(views)
        return {**found, "viewed_images": len(views), "views": _VIEWS}

    def per_image(self, measured: Measurement) -> PerImage:
        """A measurement with the identity of its test images, as it is kept in the run folder."""
        assert self.test is not None
        images = digest_of(self.test, measured.index)
        return PerImage(measured.row, images, measured.correct.numpy())


def spread_and_rank(features: Tensor) -> dict[str, float]:
    """Spread and effective rank of a sample of the features, evenly spaced."""
    step = max(1, len(features) // _HEALTH_SAMPLE)
    sample = features[::step]
    return {"spread": spread(sample), "effective_rank": effective_rank(sample)}


def health_of(features: Tensor) -> dict[str, float]:
    """`spread_and_rank`, and of fewer features alpha-ReQ and uniformity; all need no labels."""
    found = spread_and_rank(features)
    sample = features[:: -(-len(features) // _QUALITY_SAMPLE)]
    alpha = quality.alpha_req(sample)
    if not math.isnan(alpha):
        found["alpha_req"] = alpha
    return {**found, "uniformity": quality.uniformity(sample)}
