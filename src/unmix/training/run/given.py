"""Images that are given as Python objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unmix.config import RunSettings
from unmix.data import Decoding, ImageSet
from unmix.data.fingerprint import Fingerprint, fingerprint
from unmix.data.from_python import evaluation_images, from_python

__all__ = ["Given"]


@dataclass(frozen=True)
class Given:
    """Images given as Python objects.

    Attributes:
        train: Training images.
        test: Images to evaluate on, with the same classes, or None.
    """

    train: ImageSet
    test: ImageSet | None

    @classmethod
    def of(cls, data: Any, test_data: Any, run: RunSettings) -> Given:
        """Make image sets of objects, read as the settings say.

        Args:
            data: The object to train on; see `from_python`.
            test_data: The one to evaluate on, or None.
            run: Has the range of values, the most pixels of an image, and whether to be strict.

        Raises:
            UserError: if they cannot be read.
        """
        decoding = Decoding(run.max_pixels, run.limits)
        train = from_python(data, "train", strict=run.strict, decoding=decoding)
        if test_data is None:
            return cls(train, None)
        return cls(train, evaluation_images(test_data, train, strict=run.strict, decoding=decoding))

    def fingerprints(self) -> dict[str, Fingerprint]:
        """The fingerprint of each split."""
        splits = (self.train, self.test)
        return {images.split: fingerprint(images) for images in splits if images is not None}
