"""The geometry and the order of the published mixtures agree with the released code."""

from __future__ import annotations

import ast

import pytest
import torch

from unmix.mixtures import ImageSpaceDraw, PairDraw, clipped_boxes
from unmix.mixtures.draws import whole_image


class Reader:
    """Reads one sample's list of draws in the order in which they were made."""

    def __init__(self, text: str) -> None:
        self.items = list(ast.literal_eval(text))

    def take(self, name: str) -> float:
        kind, value = self.items.pop(0)
        assert kind == name
        return value

    def global_round(self, prob: float) -> tuple[int, float]:
        """Partner and lambda; a round that did not fire is lambda 1."""
        if self.take("u") >= prob:
            return 0, 1.0
        return int(self.take("partner")), self.take("lam")


def replay(golden: dict, size: tuple[int, int]) -> ImageSpaceDraw:
    """Turn the golden draws into this project's record."""
    numbers = {k: v.item() for k, v in golden.items() if hasattr(v, "ndim") and v.ndim == 0}
    region_only = "beta" in numbers
    g_num = 0 if region_only else int(numbers.get("g_num", numbers.get("num", 0)))
    g_prob = numbers.get("g_prob", numbers.get("prob"))
    r_num = int(numbers.get("r_num", numbers["num"] if region_only else 0))
    r_prob = numbers.get("r_prob", numbers.get("prob"))
    decay_factor = numbers.get("r_pixel_decay", numbers.get("pixel_decay", 1.0))
    n = len(golden["draws"])
    own = [[] for _ in range(g_num)]
    regions = [[] for _ in range(r_num)]
    partners = [[[] for _ in range(g_num)] for _ in range(r_num)]
    decay = torch.ones(n)
    for i, text in enumerate(golden["draws"]):
        reader = Reader(str(text))
        for round_ in own:
            round_.append(reader.global_round(g_prob))
        for k in range(r_num):
            if reader.take("u") >= r_prob:
                regions[k].append((0, 1.0, 0, 0, 1.0))
                for round_ in partners[k]:
                    round_.append((0, 1.0))
                continue
            lam, partner = reader.take("lam"), int(reader.take("partner"))
            for round_ in partners[k]:
                round_.append(reader.global_round(g_prob))
            regions[k].append((partner, lam, reader.take("centre"), reader.take("centre"), 0.0))
            if k == 0:
                decay[i] = decay_factor
        assert not reader.items

    def pair(rows: list) -> PairDraw:
        partner = torch.tensor([row[0] for row in rows])
        ratio = torch.tensor([row[1] for row in rows], dtype=torch.float64)
        return PairDraw(partner, whole_image(n, *size), ratio, size)

    def region(rows: list) -> PairDraw:
        partner = torch.tensor([row[0] for row in rows])
        lam = torch.tensor([row[1] for row in rows], dtype=torch.float64)
        box = clipped_boxes(lam, torch.tensor([row[2:4] for row in rows]), *size)
        return PairDraw(partner, box, torch.tensor([row[4] for row in rows]), size)

    return ImageSpaceDraw(
        tuple(pair(rows) for rows in own),
        tuple(region(rows) for rows in regions),
        tuple(tuple(pair(rows) for rows in rounds) for rounds in partners),
        decay,
    )


@pytest.mark.parametrize("name", ["v1_global", "v1_region", "v1_im"])
def test_image_space_agrees_with_the_released_code(golden, name):
    values = golden(name)
    images = values["images"][values["index"]]
    draw = replay(values, tuple(images.shape[2:]))
    torch.testing.assert_close(draw.apply(images), values["mixed"], rtol=1e-5, atol=1e-5)


def test_boxes_agree_with_the_released_code(golden):
    for rows, columns, lam, row, column, *box in golden("boxes")["rows"].tolist():
        ours = clipped_boxes(
            torch.tensor([lam], dtype=torch.float64),
            torch.tensor([[int(row), int(column)]]),
            int(rows),
            int(columns),
        )
        assert ours[0].tolist() == [int(side) for side in box]
