"""The settings of method, data and length of a run."""

from __future__ import annotations

from dataclasses import dataclass

from unmix.config.augmentation import AUGMENTATIONS, RECIPE
from unmix.config.catalog import catalog
from unmix.errors import UserError, byte_count, check_choice, check_given, check_number

__all__ = ["RunSettings"]


@dataclass(frozen=True)
class RunSettings:
    """Method, data and length of the run.

    Args:
        method: Self-supervised method, such as moco, simclr or byol; `unmix methods` lists them.
        data: Data set by name, a folder of images, a list of them (.txt, .csv, .tsv or .parquet,
            with paths relative to its own folder), hf:NAME or hf:PATH of a Hugging Face
            data set, or shards of images by path or URL.
        data_dir: Folder of the data set's files (for the names that need files).
        train_folder: Folder of the training images, relative to the data; by default found by the
            usual names, such as train/. With a dot every folder is a class. Of a list or a
            Hugging Face data set, the name of the training split.
        test_folder: Folder of the images to evaluate on, likewise; by default val/, else test/.
        image_column: Column of the images or their paths, if its name is not a usual one.
        label_column: Column of the labels, likewise.
        split_column: Column that says to which split an image belongs, likewise.
        run: Run folder; give it again to resume. By default
            runs/METHOD-DATA-MIXTURE-seedSEED.
        epochs: Passes over the training images.
        batch_size: Images in a batch.
        drop_last: Drop the last batch of an epoch if it is incomplete.
        size: Side of the views in pixels; by default the data set's own.
        limit: Number of training images to use, evenly spaced; by default all.
        mean: RGB mean in [0, 1] to normalize by; by default the data set's own.
        std: RGB standard deviation to normalize by; by default the data set's own.
        max_pixels: Images with more pixels are not decoded.
        bit_depth: Bits that images of more than 8 bits really use, such as 12; by default their
            range is measured on the data set.
        range: Values that become black and white in images of more than 8 bits, instead of
            bit_depth.
        augmentation: Of the views, by name: none (the whole image), crop-flip, or that of a paper,
            such as moco-v2; flags of the views override it. By default that of the recipe.
        seed: Seed of all random numbers; the same seed gives the same run.
        shuffle_buffer: Of images in shards, the number that are shuffled together.
        interleave: Of images in shards, the number of shards that are read side by side; by
            default 8, or as many as there are devices.
        cache_dir: Folder of copies of remote shards; by default ~/.cache/unmix.
        cache_size: Limit of their size, such as 50GB; 0 for no copies.
        manifest: Keep the names of the files of a large folder or list in cache_dir, and list only
            folders that have changed since.
        strict: Stop at the first broken image instead of skipping it.
        download: Download the data set where torchvision can.
    """

    method: str = "moco"
    data: str = "photos"
    data_dir: str | None = None
    train_folder: str | None = None
    test_folder: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    run: str | None = None
    epochs: int = 20
    batch_size: int = 128
    drop_last: bool = False
    size: int | None = None
    limit: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    max_pixels: int = 178_956_970
    bit_depth: int | None = None
    range: tuple[float, float] | None = None
    augmentation: str = RECIPE
    seed: int = 0
    shuffle_buffer: int = 32_768
    interleave: int | None = None
    cache_dir: str | None = None
    cache_size: str = "50GB"
    manifest: bool = True
    strict: bool = False
    download: bool = False

    def __post_init__(self) -> None:
        paths = ("data", "data_dir", "run", "cache_dir")
        for name in (*paths, "image_column", "label_column", "split_column"):
            check_given(name, getattr(self, name))
        check_choice("method", self.method, catalog().methods)
        check_choice("augmentation", self.augmentation, AUGMENTATIONS)
        check_number("epochs", self.epochs, at_least=1)
        check_number("seed", self.seed, at_least=0, at_most=2**63 - 1)
        if self.batch_size < 2:
            raise UserError(
                f"{self.batch_size} is too small; batch norm and mixtures need at least 2 images.",
                parameter="batch_size",
            )
        if self.size is not None:
            check_number("size", self.size, at_least=1)
        for name, values in (("mean", self.mean), ("std", self.std)):
            for value in values or ():
                check_number(name, value, at_least=0, at_most=1)
            if name == "std" and 0 in (values or ()):
                raise UserError("each number must be greater than 0.", parameter="std")
        if self.limit is not None:
            check_number("limit", self.limit, at_least=2)
        check_number("max_pixels", self.max_pixels, at_least=1)
        check_number("shuffle_buffer", self.shuffle_buffer, at_least=1)
        if self.interleave is not None:
            check_number("interleave", self.interleave, at_least=1, at_most=4096)
        byte_count("cache_size", self.cache_size)
        self._check_range()

    def _check_range(self) -> None:
        if self.bit_depth is not None:
            check_number("bit_depth", self.bit_depth, at_least=1, at_most=32)
            if self.range is not None:
                raise UserError("cannot be combined with `range`; give one.", parameter="bit_depth")
        if self.range is not None:
            for value in self.range:
                check_number("range", value)
            if self.range[0] >= self.range[1]:
                raise UserError(
                    f"{self.range[0]:g} {self.range[1]:g} must be increasing, such as 0 4095.",
                    parameter="range",
                )

    @property
    def limits(self) -> tuple[float, float] | None:
        """The values of black and white in images of more than 8 bits, if they are given."""
        return self.range if self.bit_depth is None else (0.0, 2.0**self.bit_depth - 1)
