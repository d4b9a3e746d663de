"""Graphs that run without unmix: ONNX, and PyTorch's exported programs."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, nn

from unmix.errors import UserError, check_number
from unmix.export.base import Source, Target, example
from unmix.views.color_spaces import normalize_lab, normalize_ycbcr, rgb_to_lab, rgb_to_ycbcr

__all__ = ["OPSETS", "Onnx", "TorchExport"]

OPSETS = (18, 23)
"""The lowest and the highest opset that PyTorch's exporter writes."""
_DEFAULT_OPSET = 20


class Graph(nn.Module):
    """What is traced: prepared images, or RGB in [0, 1], to features, or to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.encoder = source.encoder.backbone
        self.head = nn.Identity() if source.classifier is None else source.classifier.head
        self.halves, self.pixels = source.halves, source.pixels
        self.space = source.facts["color_space"]
        for name in ("mean", "std"):
            values = torch.tensor(source.facts[name], dtype=torch.float32)[:, None, None]
            self.register_buffer(name, values)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, size, size) to features (N, D), or logits (N, classes)."""
        if self.pixels:
            images = self._prepared(images)
        encode = self.encoder.features if self.halves else self.encoder
        return self.head(encode(images))  # type: ignore[operator]

    def _prepared(self, images: Tensor) -> Tensor:
        if self.space == "Lab":
            return normalize_lab(rgb_to_lab(images))
        if self.space == "YCbCr":
            return normalize_ycbcr(rgb_to_ycbcr(images))
        return (images - self.mean) / self.std


def _described(source: Source) -> dict[str, str]:
    """What the file says of its input."""
    facts = source.facts
    takes = "RGB in [0, 1]" if source.pixels else source.normalization
    return {
        "unmix": json.dumps({key: facts[key] for key in facts}, default=str),
        "input": takes,
        **({} if source.classifier is None else {"classes": json.dumps(source.classifier.classes)}),
        **source.preparation,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporters print for their developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_same(found: Tensor, expected: Tensor) -> None:
    difference = float((found - expected).abs().max())
    assert difference <= 1e-4 * max(1.0, float(expected.abs().max())), difference


class Onnx(Target):
    """An ONNX file: `images` (N, 3, size, size) to `features` (N, D), or `logits`, for any N."""

    default = "model.onnx"
    endings = (".onnx",)
    package = ("onnxscript", "onnx")

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        if source.opset is not None:
            check_number("opset", source.opset, at_least=OPSETS[0], at_most=OPSETS[1])

    def write(self, folder: Path, out: Path) -> None:
        """Write the file, and compare its features with the encoder's by onnxruntime."""
        graph, file = Graph(self.source).eval(), folder / out.name
        try:
            with _quiet():
                program = torch.onnx.export(
                    graph, (example(self.source),), dynamo=True, input_names=["images"],
                    output_names=[self._output], opset_version=self.source.opset or _DEFAULT_OPSET,
                    dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                )  # fmt: skip
                assert program is not None
                program.model.metadata_props.update(_described(self.source))
                program.save(str(file), external_data=False)
        except OSError:
            raise
        except Exception as error:  # the exporter raises exceptions of many kinds
            lines = str(error).strip().splitlines()
            raise UserError(
                f"PyTorch's exporter cannot write {self.source.facts['backbone']} as ONNX: "
                f"{lines[0] if lines else type(error).__name__}",
                parameter="to",
            ) from None
        self._compare(graph, file)

    @property
    def _output(self) -> str:
        return "features" if self.source.classifier is None else "logits"

    def _compare(self, graph: nn.Module, file: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            return
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        images = example(self.source, 3)
        (found,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            expected = graph(images)
        _check_same(torch.from_numpy(found), expected)

    def usage(self, out: Path) -> list[str]:
        """Lines that load it."""
        return [
            "import onnxruntime",
            f"session = onnxruntime.InferenceSession({str(out)!r})",
            f'{self._output} = session.run(None, {{"images": images}})[0]  # float32 arrays',
        ]


class TorchExport(Target):
    """A program of torch.export (.pt2), for any number of images."""

    default = "model.pt2"
    endings = (".pt2",)

    def write(self, folder: Path, out: Path) -> None:
        """Write the file."""
        graph = Graph(self.source).eval()
        shapes = {"images": {0: torch.export.Dim("batch")}}
        with _quiet():
            program = torch.export.export(graph, (example(self.source),), dynamic_shapes=shapes)
            described = json.dumps(_described(self.source))
            # As a buffer: PyTorch refuses names that do not end in .pt2.
            torch.export.save(program, folder / "model.pt2", extra_files={"unmix.json": described})
            loaded = torch.export.load(folder / "model.pt2").module()
        images = example(self.source, 3)
        with torch.no_grad():
            _check_same(loaded(images), graph(images))
        (folder / "model.pt2").replace(folder / out.name)

    def usage(self, out: Path) -> list[str]:
        """Lines that load it."""
        return ["import torch", f"model = torch.export.load({str(out)!r}).module()"]
