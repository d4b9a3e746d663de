"""Golden files of other sizes and seeds, from the published formulas written out plainly.

Nothing of the package is used, so the files judge it as the committed ones do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage import color
from torch import Tensor

__all__ = ["write_all"]

Values = dict[str, Any]
EPS = 1e-7


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def with_gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """The loss of the inputs, and its gradients."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def softmax_loss(scores: Tensor) -> Tensor:
    """The first column among all."""
    return (scores.logsumexp(1) - scores[:, 0]).mean()


def nce_loss(scores: Tensor, z: float, n_data: int) -> Tensor:
    """The first column is data, the others are noise that is uniform over the data."""
    p, m = scores.exp() / z, scores.shape[1] - 1
    noise = m / n_data
    data = (p[:, 0] / (p[:, 0] + noise + EPS)).log().sum()
    others = (noise / (p[:, 1:] + noise + EPS)).log().sum()
    return -(data + others) / len(scores)


def memory_values(random: Callable[..., Tensor], nce: bool, *, two: bool) -> Values:
    """InsDis' bank, or CMC's two, over three steps of which each sees other samples."""
    n_data, dim, n, k, t, m = 37, 10, 6, 9, 0.09, 0.4
    names = ("l", "ab") if two else ("feature",)
    banks = {name: unit(random(n_data, dim)) for name in names}
    key = {name: f"memory_{name}" if two else "memory" for name in names}
    out: Values = {key[name]: bank.clone() for name, bank in banks.items()}
    out |= {"temperature": t, "momentum": m, "n_data": n_data}
    z = dict.fromkeys(names, -1.0)
    for step in range(3):
        index = torch.arange(n) * 5 + step
        candidates = random(n, k + 1, n_data).argsort(dim=2)[:, :, 0]
        candidates[:, 0] = index
        features = [unit(random(n, dim)) for _ in names]
        # What L says is compared with the bank of ab, and the other way round.
        against = [banks[name] for name in (reversed(names) if two else names)]

        def loss(*given: Tensor, against: Any = against, candidates: Any = candidates) -> Tensor:
            total = torch.zeros(())
            for name, x, bank in zip(names, given, against, strict=True):
                scores = torch.einsum("nkd,nd->nk", bank[candidates], x) / t
                if nce and z[name] < 0:
                    z[name] = (scores.exp().mean() * n_data).item()
                total = total + (nce_loss(scores, z[name], n_data) if nce else softmax_loss(scores))
            return total

        value, *slopes = with_gradients(loss, *features)
        out |= {f"s{step}_index": index, f"s{step}_candidates": candidates, f"s{step}_loss": value}
        for name, x, slope in zip(names, features, slopes, strict=True):
            banks[name][index] = unit(m * banks[name][index] + (1 - m) * x)
            out |= {f"s{step}_{name}": x, f"s{step}_{key[name]}": banks[name].clone()}
            out |= {f"s{step}_grad_{name}" if two else f"s{step}_grad": slope}
            out |= {f"s{step}_Z_{name}" if two else f"s{step}_Z": z[name]}
    return out


def moco_values(random: Callable[..., Tensor], nce: bool) -> Values:
    """A queue of 15 that 5 steps of 6 keys fill twice."""
    n_data, dim, n, size, t, z = 41, 12, 6, 15, 0.11, -1.0
    queue = unit(random(size, dim))
    out: Values = {"queue": queue.clone(), "temperature": t, "n_data": n_data}
    for step in range(5):
        query, key = unit(random(n, dim)), unit(random(n, dim))

        def loss(q: Tensor, key: Tensor = key) -> Tensor:
            nonlocal z
            scores = torch.cat([(q * key).sum(1, keepdim=True), q @ queue.T], dim=1) / t
            if nce and z < 0:
                z = int(scores.exp().mean() * n_data)  # the published constant is a whole number
            return nce_loss(scores, z, n_data) if nce else softmax_loss(scores)

        value, slope = with_gradients(loss, query)
        for i in range(n):
            queue[(step * n + i) % size] = key[i]
        out |= {f"s{step}_query": query, f"s{step}_key": key, f"s{step}_loss": value}
        out |= {f"s{step}_grad": slope, f"s{step}_queue": queue.clone(), f"s{step}_Z": int(z)}
    return out


def unmix_values(random: Callable[..., Tensor], symmetric: bool) -> Values:
    """Un-Mix on MoCo: four steps, the second and the last of a region."""
    n, channels, height, width, dim, size, t, m, rate = 6, 3, 5, 6, 7, 36, 0.2, 0.8, 0.05
    pixels = channels * height * width
    q_weight, k_weight = random(pixels, dim) / 5, random(pixels, dim) / 5
    queue = unit(random(size, dim)).T.contiguous()
    out: Values = {
        "query_weight": q_weight.clone(), "key_weight": k_weight.clone(), "queue": queue.clone(),
        "momentum": m, "temperature": t, "learning_rate": rate,
    }  # fmt: skip
    boxes = {1: (1, 4, 2, 6), 3: (0, 2, 0, 3)}
    lams, at = (0.35, 0.0, 0.8, 0.0), 0
    for step in range(4):
        x1, x2 = random(n, channels, height, width), random(n, channels, height, width)
        lam, mixed = lams[step], lams[step] * x1 + (1 - lams[step]) * x1.flip(0)
        if step in boxes:
            top, bottom, left, right = boxes[step]
            mixed = x1.clone()
            mixed[:, :, top:bottom, left:right] = x1.flip(0)[:, :, top:bottom, left:right]
            lam = 1 - (bottom - top) * (right - left) / (height * width)
        k_weight = m * k_weight + (1 - m) * q_weight
        k1, k2 = (unit(x.flatten(1) @ k_weight) for x in (x1, x2))

        def contrast(q: Tensor, k: Tensor) -> Tensor:
            return softmax_loss(torch.cat([(q * k).sum(1, keepdim=True), q @ queue], dim=1) / t)

        def loss(w: Tensor, x1=x1, x2=x2, mixed=mixed, lam=lam, k1=k1, k2=k2) -> Tensor:
            q1, q2, qm = (unit(x.flatten(1) @ w) for x in (x1, x2, mixed))
            total = torch.zeros(())
            for q, k in ((q1, k2), (q2, k1))[: 1 + symmetric]:
                total = total + contrast(q, k)
                total = total + lam * contrast(qm, k) + (1 - lam) * contrast(qm.flip(0), k)
            return total

        value, slope = with_gradients(loss, q_weight)
        for key in torch.cat([k1, k2]) if symmetric else k2:
            queue[:, at % size] = key
            at += 1
        q_weight = q_weight - rate * slope
        out |= {f"s{step}_view1": x1, f"s{step}_view2": x2, f"s{step}_mixed": mixed}
        out |= {f"s{step}_lam": lam, f"s{step}_loss": value, f"s{step}_grad": slope}
        out |= {f"s{step}_key_weight": k_weight.clone(), f"s{step}_queue": queue.clone()}
    return out


def box_of(height: int, width: int, lam: float, row: int, column: int) -> tuple[int, ...]:
    """Top, left, bottom, right of the pasted box, clipped."""
    sides = (int(height * math.sqrt(1 - lam)), int(width * math.sqrt(1 - lam)))
    low = [max(0, c - s // 2) for c, s in zip((row, column), sides, strict=True)]
    high = [
        min(full, c + s // 2)
        for c, s, full in zip((row, column), sides, (height, width), strict=True)
    ]
    return *low, *high


class Sample:
    """One sample of the image space, mixed as it is drawn; and the list of what was drawn."""

    def __init__(self, images: Tensor, numbers: np.random.Generator) -> None:
        self.images, self.numbers, self.drawn = images, numbers, []

    def draw(self, kind: str, value: float) -> float:
        self.drawn.append((kind, value))
        return value

    def number(self, kind: str) -> float:
        return self.draw(kind, float(self.numbers.random()))

    def below(self, kind: str, count: int) -> int:
        return int(self.draw(kind, int(self.numbers.integers(count))))

    def mixed_globally(self, image: Tensor, rounds: int, prob: float) -> Tensor:
        for _ in range(rounds):
            if self.number("u") < prob:
                other = self.images[self.below("partner", len(self.images))]
                lam = self.number("lam")
                image = lam * image + (1 - lam) * other
        return image

    def pasted(self, image: Tensor, rounds: int, prob: float, decay: float, own: Any) -> Tensor:
        for number in range(rounds):
            if self.number("u") >= prob:
                continue
            lam = self.number("lam")
            other = self.mixed_globally(self.images[self.below("partner", len(self.images))], *own)
            image = image * decay if number == 0 else image.clone()
            height, width = image.shape[1:]
            row, column = self.below("centre", height), self.below("centre", width)
            top, left, bottom, right = box_of(height, width, lam, row, column)
            image[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        return image


def image_space_values(random: Callable[..., Tensor], seed: int, kind: str) -> Values:
    """v1_global, v1_region and v1_im: three rounds, images of 20 x 14."""
    images, numbers = random(5, 6, 20, 14), np.random.default_rng(seed)
    index, prob, decay = torch.arange(10) % 5, 0.6, 0.8
    samples, mixed = [], []
    for i in index:
        sample = Sample(images, numbers)
        image, own = images[i], (0 if kind == "region" else 3, prob)
        image = sample.mixed_globally(image, *own)
        if kind != "global":
            image = sample.pasted(image, 3, prob, decay, own)
        samples.append(repr(sample.drawn))
        mixed.append(image)
    words = {
        "global": {"alpha": 1.0, "num": 3, "prob": prob},
        "region": {"beta": 1.0, "num": 3, "prob": prob, "pixel_decay": decay},
        "im": {"g_alpha": 1.0, "g_num": 3, "g_prob": prob, "r_beta": 1.0, "r_num": 3,
               "r_prob": prob, "r_pixel_decay": decay},
    }[kind]  # fmt: skip
    out = {"images": images, "index": index, "draws": np.array(samples)}
    return out | {"mixed": torch.stack(mixed)} | words


def small_values(random: Callable[..., Tensor]) -> dict[str, Values]:
    """Losses of two inputs, assignments, batch norm and kNN."""
    found: dict[str, Values] = {}
    a, b, t = random(9, 5), random(9, 5), 0.3

    def byol(p: Tensor) -> Tensor:
        return (2 - 2 * (unit(p) * unit(b)).sum(1)).mean()

    value, slope = with_gradients(byol, a)
    found["byol_cosine"] = {"prediction": a, "target": b, "loss": value, "grad": slope}

    def simclr(x: Tensor, y: Tensor) -> Tensor:
        z = torch.cat([unit(x), unit(y)])
        scores = (z @ z.T / t).masked_fill(torch.eye(len(z), dtype=torch.bool), -math.inf)
        return F.cross_entropy(scores, torch.arange(len(z)).roll(len(x)))

    value, *slopes = with_gradients(simclr, a, b)
    found["simclr_ntxent"] = {
        "z0": a, "z1": b, "temperature": t, "loss": value, "grad0": slopes[0], "grad1": slopes[1]
    }  # fmt: skip
    x, y = random(40, 6) + 1, random(40, 6) - 2

    def white(v: Tensor) -> Tensor:
        return torch.linalg.solve(torch.linalg.cholesky(torch.cov(v.T)), (v - v.mean(0)).T).T

    def wmse(v: Tensor, w: Tensor) -> Tensor:
        return (2 - 2 * (unit(white(v)) * unit(white(w))).sum(1)).mean()

    value, *slopes = with_gradients(wmse, x, y)
    found["wmse"] = {
        "z0": x, "z1": y, "white0": white(x), "white1": white(y), "loss": value,
        "grad0": slopes[0], "grad1": slopes[1],
    }  # fmt: skip
    scores, epsilon = (unit(random(22, 4)) @ unit(random(7, 4)).T), 0.08
    q = (scores / epsilon).exp().T
    for _ in range(4):
        q = q / q.sum(1, keepdim=True) / len(q)
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    found["sinkhorn"] = {
        "scores": scores, "epsilon": epsilon, "iterations": 4,
        "assignment": (q / q.sum(0, keepdim=True)).T,
    }  # fmt: skip
    images, weight, bias, splits = random(15, 4, 3, 5), random(4), random(4), 3
    out, means, variances = torch.empty_like(images), [], []
    for part in range(splits):
        own = images[part::splits]
        flat = own.transpose(0, 1).flatten(1)
        scaled = (own - flat.mean(1)[:, None, None]) / (
            flat.var(1, correction=0)[:, None, None] + 1e-5
        ).sqrt()
        out[part::splits] = scaled * weight[:, None, None] + bias[:, None, None]
        means.append(0.1 * flat.mean(1))
        variances.append(0.9 + 0.1 * flat.var(1))
    found["split_batch_norm"] = {
        "x": images, "weight": weight, "bias": bias, "splits": splits, "y": out,
        "running_mean": torch.stack(means).mean(0), "running_var": torch.stack(variances).mean(0),
    }  # fmt: skip
    bank, labels, query, k = random(90, 6), torch.arange(90) % 5, random(13, 6), 11
    ranking = []
    for row in unit(query):
        cosines = unit(bank) @ row
        nearest = cosines.argsort(descending=True)[:k]
        votes = torch.zeros(5)
        for i in nearest:
            votes[labels[i]] += (cosines[i] / 0.2).exp()
        ranking.append(votes.argsort(descending=True, stable=True))
    found["knn_weighted"] = {
        "bank": bank, "labels": labels, "query": query, "k": k, "temperature": 0.2,
        "predicted": torch.stack(ranking),
    }  # fmt: skip
    return found


def colour_values(numbers: np.random.Generator) -> Values:
    """scikit-image's conversions; the middle and half extent of Lab and YCbCr are CMC's."""
    rgb = numbers.integers(0, 256, (3, 9, 11, 3), dtype=np.uint8)
    lab, ycbcr = color.rgb2lab(rgb), color.rgb2ycbcr(rgb)
    extent = np.array([[0, 100], [-86.183, 98.233], [-107.857, 94.478]])
    mean, std = extent.mean(1), (extent[:, 1] - extent[:, 0]) / 2
    return {
        "rgb": rgb, "lab": lab, "ycbcr": ycbcr, "lab_normalised": (lab - mean) / std,
        "ycbcr_normalised": (ycbcr - [116.151, 121.080, 132.342]) / [109.500, 111.855, 111.964],
    }  # fmt: skip


def write_all(folder: Path, seed: int) -> None:
    """Every golden file, in a folder that exists."""
    generator = torch.Generator().manual_seed(seed)
    numbers = np.random.default_rng(seed)

    def random(*shape: int) -> Tensor:
        # As float32, the files' type, but counted with in float64.
        return torch.randn(*shape, generator=generator).double()

    files = small_values(random)
    for kind in ("softmax", "nce"):
        files[f"moco_{kind}"] = moco_values(random, kind == "nce")
        files[f"insdis_{kind}"] = memory_values(random, kind == "nce", two=False)
        files[f"cmc_{kind}"] = memory_values(random, kind == "nce", two=True)
    for form in ("asymmetric", "symmetric"):
        files[f"unmix_moco_{form}"] = unmix_values(random, form == "symmetric")
    for kind in ("global", "region", "im"):
        files[f"v1_{kind}"] = image_space_values(random, seed, kind)
    rows = []
    for _ in range(30):
        height, width = numbers.integers(3, 50, 2)
        lam, row, column = numbers.random(), numbers.integers(height), numbers.integers(width)
        rows.append([height, width, lam, row, column, *box_of(height, width, lam, row, column)])
    files["boxes"] = {"rows": np.array(rows, dtype=np.float64)}
    files["colour_spaces"] = colour_values(numbers)
    for name, values in files.items():
        arrays = {
            key: x.float().numpy() if isinstance(x, Tensor) and x.is_floating_point() else x
            for key, x in values.items()
        }
        np.savez(folder / f"{name}.npz", **arrays)
