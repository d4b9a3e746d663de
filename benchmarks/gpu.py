"""Everything that one NVIDIA GPU can show in nine minutes, unattended; writes one JSON file.

    python benchmarks/gpu.py --json gpu.json [--data_dir DIR] [--minutes 9] [--only PART ...]

First correctness: the fast path (bfloat16, channels last, split batch norm in one call, compiled)
against float32, the views against the CPU's, that no step of any method or mixture waits for the
device, and every cell of the matrix. Then the stages of a step and whole steps of MoCo, MoCo +
Un-Mix (asymmetric, symmetric) and CMC at batch 512 on CIFAR-10 with ResNet-18, eager and compiled,
of MoCo v2 with ResNet-50 at 224 px, and what the device does in a step. What no time is left for is
named. The file is written anew after each part, so that a stop loses nothing. DIR holds
`cifar-10-batches-py/`; without it images of random pixels take their place, which costs the same
time. Needs torch, torchvision, lightning, numpy and this repository (PYTHONPATH=src, or installed).

`--only` chooses parts; `--share 0/4` does the first of four shares of the cells, so that processes
beside each other do them all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from unmix.config import IM_TYPES
from unmix.credit import RULES
from unmix.data import ImageSet, TensorImages, load
from unmix.hardware.devices import hardware, versions
from unmix.methods import METHODS, Progress, method_class
from unmix.mixtures import MIXTURES
from unmix.randomness import generator_for
from unmix.training.console import quiet_libraries
from unmix.training.loading.loaders import Batch
from unmix.training.profiling import facts, measure_stages
from unmix.training.run.parts import Parts, build_parts
from unmix.training.run.pretrain import settings_for

COMMON: dict[str, Any] = {
    "data": "cifar10", "backbone": "resnet18", "stem": "small", "size": 32, "batch_size": 512,
    "epochs": 1, "resident": "yes", "logger": "none",
}  # fmt: skip
MOCO = {**COMMON, "config": "moco-cifar10", "symmetric": False, "batch_size": 512}
KINDS: dict[str, dict[str, Any]] = {
    "MoCo": MOCO,
    "MoCo + Un-Mix": {**MOCO, "unmix": True},
    "MoCo + Un-Mix, symmetric": {**MOCO, "unmix": True, "symmetric": True},
    "MoCo, one batch norm": {**MOCO, "bn_splits": 1},
    "MoCo + Un-Mix, joint": {**MOCO, "unmix": True, "unmix_joint": True},
    "MoCo + IM": {**MOCO, "IM": True},
    "CMC": {**COMMON, "method": "cmc"},
}
LARGE: dict[str, Any] = {
    **COMMON, "config": "moco-v2-imagenet", "backbone": "resnet50", "stem": "large", "size": 224,
    "batch_size": 256,
}  # fmt: skip
LARGE_KINDS: dict[str, dict[str, Any]] = {
    "MoCo v2, ResNet-50, 224 px": LARGE,
    "MoCo v2 + Un-Mix, ResNet-50, 224 px": {**LARGE, "unmix": True},
}
VIT: dict[str, Any] = {
    "backbone": "timm:vit_tiny_patch16_224",
    "stem": "auto",
    "width": 1,
    "size": 64,
}
# What the base recipes leave to the data set.
EXTRA: dict[str, dict[str, Any]] = {
    "deepclusterv2": {"prototypes": (64, 64, 64)},
    "swav": {"local_crops": 2},
    "dino": {"local_crops": 2},
    "distill": {"match": "similarities"},
    **dict.fromkeys(("ibot", "ijepa", "mae", "simmim"), VIT),
}
# What mixtures need that others do not.
MIXTURE_EXTRA: dict[str, dict[str, Any]] = {
    "patchmix": VIT,
    "manifold": {"unmix_layer": "layer2"},
}
# Rules that count with owners and shares, and mixtures that have one of these on the device.
CROSSED: dict[str, dict[str, Any]] = {
    f"{rule} with {name}": {"unmix": True, "unmix_rule": rule, **words}
    for rule in ("patchmix", "sdmp", "sdmp_released")
    for name, words in {
        "saliencymix": {"unmix_mixture": "saliencymix"},
        "attentivemix": {"unmix_mixture": "attentivemix"},
        "neighbors": {"unmix_mixture": "region", "unmix_pairing": "neighbor"},
    }.items()
}
ALWAYS: dict[str, dict[str, Any]] = {
    "IM": {"g_prob": 1, "r_prob": 1}, "global": {"g_prob": 1}, "region": {"r_prob": 1},
    "Cutout": {"cutout_p": 1}, "RandomErasing": {"random_erasing_prob": 1},
}  # fmt: skip
FIRST = ("MoCo", "MoCo, one batch norm", "MoCo + Un-Mix")
COMPILED = (*FIRST, "MoCo + Un-Mix, symmetric", "CMC")
PARTS = ("fast path", "views", "no waiting", "mixtures", "cells", "speed", "profile")
TARGETS = {"MoCo": 20_000, "MoCo + Un-Mix": 11_000}
GRAY = 1 / 255


def parts_of(words: dict[str, Any], images: ImageSet, **others: Any) -> Parts:
    """A run's parts from settings in the words of the command line."""
    given = {**words, **others}
    return build_parts(settings_for(given, given.pop("config", None))[0], images)


def cifar(data_dir: str | None) -> ImageSet:
    """CIFAR-10's training images, or random pixels of the same number and size."""
    if data_dir is not None:
        return load("cifar10", "train", data_dir=data_dir)
    return noise(50_000, 32)


def noise(count: int, size: int) -> ImageSet:
    """Images of random pixels."""
    generator = generator_for(0, "pixels")
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return TensorImages(
        name="random pixels", split="train", labels=None, classes=None,
        mean=(0.5, 0.5, 0.5), std=(0.29, 0.29, 0.29), images=pixels,
    )  # fmt: skip


def one_step(parts: Parts, device: torch.device) -> tuple[float, Tensor]:
    """The loss of the first step, and the gradient of the first weight, from the run's seed."""
    module = parts.module
    module.to(device).train()
    assert module.resident is not None
    module.resident = module.resident.to(device)
    batch = Batch(torch.arange(parts.settings.run.batch_size)).to(device)
    dtype = parts.machine.autocast
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        step = module.compute(batch, generator_for(0, "check"))
    step.loss.backward()
    gradient = next(p.grad for p in module.method.parameters() if p.grad is not None)
    return step.loss.item(), gradient.float().flatten()


def check_fast_path(images: ImageSet, device: torch.device) -> dict[str, Any]:
    """Losses and gradients of the fast path against float32 and against the CPU's."""
    found: dict[str, Any] = {}
    for name in ("MoCo", "MoCo + Un-Mix, symmetric", "CMC"):
        # 64 samples, so that the CPU takes its part of the minutes only.
        words = {**KINDS[name], "batch_size": 64, "device": device.type}
        plain = one_step(parts_of(words, images, precision="32"), device)
        fast = one_step(parts_of(words, images), device)
        cpu = one_step(
            parts_of({**words, "device": "cpu"}, images, precision="32"), torch.device("cpu")
        )
        cosine = torch.nn.functional.cosine_similarity(plain[1], fast[1], dim=0).item()
        found[name] = {
            "loss_cpu": cpu[0], "loss_float32": plain[0], "loss_fast": fast[0],
            "gradient_cosine": cosine,
            "passed": abs(fast[0] / plain[0] - 1) < 0.01
            and abs(cpu[0] / plain[0] - 1) < 1e-3
            # A bfloat16 gradient of ResNet-18's first layer has 0.93 on a CPU too.
            and cosine > 0.9,
        }  # fmt: skip
    return found


def check_cells(
    images: ImageSet, device: torch.device, share: tuple[int, int] = (0, 1)
) -> dict[str, Any]:
    """One step of every method with every rule that goes with it: the fast path against float32.

    Small networks, in which a step is rounding and launches; what is drawn on the device differs
    from the CPU's, so the two are not compared here.

    Args:
        images: What is trained on.
        device: The device.
        share: Which of how many shares of the cells are checked.
    """
    pairs = [
        (method, rule)
        for method in METHODS
        for rule, shared in RULES.items()
        if shared.refusal(method_class(method)) is None
    ]
    found: dict[str, Any] = {}
    for method, rule in pairs[share[0] :: share[1]]:
        words = {**small(device), "method": method, "unmix": True, "unmix_rule": rule}
        words |= extra(method) | (VIT if rule == "patchmix" else {})
        if not (RULES[rule].keeps_clean or RULES[rule].every_crop):
            words["local_crops"] = 0  # they would be in no loss
        found[f"{method} {rule}"] = attempt(partial(fast_against_plain, words, images, device))
    return found


def check_mixtures(images: ImageSet, device: torch.device) -> dict[str, Any]:
    """One step of MoCo with every mixture, as input mixture and shared between the two images."""
    found: dict[str, Any] = {}
    for name, words in mixture_kinds().items():
        words = {**small(device), "method": "moco", **words}
        found[name] = attempt(partial(fast_against_plain, words, images, device))
    return found


def small(device: torch.device) -> dict[str, Any]:
    """Settings of a network whose step is rounding and launches."""
    return {
        **COMMON, "backbone": "resnet10", "width": 0.5, "batch_size": 128, "device": device.type,
    }  # fmt: skip


def extra(method: str) -> dict[str, Any]:
    """What a method needs besides."""
    return EXTRA.get(method, {}) | ({"teacher": teacher()} if method == "distill" else {})


@cache
def teacher() -> str:
    """The file of a network with random weights."""
    path = Path(tempfile.mkdtemp()) / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return str(path)


def mixture_kinds() -> dict[str, dict[str, Any]]:
    """Words for every mixture of the label space and every perturbation of the image space."""
    shared: dict[str, dict[str, Any]] = {
        f"Un-Mix with {name}": {"unmix": True, "unmix_mixture": name, **MIXTURE_EXTRA.get(name, {})}
        for name in MIXTURES
    }
    # Where nothing is left to chance, every image is perturbed.
    alone = {
        f"IM {name}": {"IM": True, "IM_type": name, **ALWAYS.get(name, {})} for name in IM_TYPES
    }
    return shared | CROSSED | alone


def fast_against_plain(
    words: dict[str, Any], images: ImageSet, device: torch.device
) -> dict[str, Any]:
    """A step's loss in float32 and on the fast path; they agree to a few of bfloat16's steps."""
    plain = one_step(parts_of(words, images, precision="32"), device)[0]
    fast = one_step(parts_of(words, images), device)[0]
    near = abs(fast - plain) <= 0.05 * abs(plain) + 0.05
    return {"loss_float32": plain, "loss_fast": fast, "passed": near}


def check_views(images: ImageSet, device: torch.device) -> dict[str, Any]:
    """The largest difference of views from the CPU's, in gray levels."""
    parts = parts_of(KINDS["MoCo"], images, blur_p=0.5, solarize_p=0.2, device=device.type)
    views = parts.module.views
    assert isinstance(images, TensorImages)
    pixels = images.images[:512]
    height, width = pixels.shape[2:]
    draw = views.draw(512, height, width, generator_for(0, "views"))
    apart = (views.apply(pixels.to(device), draw).cpu() - views.apply(pixels, draw)).abs()
    # Solarize jumps at its threshold: a pixel on either side of it differs in full.
    worst = apart.flatten().kthvalue(int(0.9999 * apart.numel())).values.item()
    levels = worst * max(views.std) / GRAY
    return {"difference_gray_levels_99.99%": levels, "passed": levels < 0.5}


def check_no_waiting(images: ImageSet, device: torch.device) -> dict[str, Any]:
    """That a step of every kind, from index to memory, never waits for the device."""
    kinds = KINDS | {
        f"{method} + Un-Mix": {**small(device), "method": method, "unmix": True, "epochs": 2}
        | extra(method)
        for method in METHODS
    }
    kinds |= {
        name: {**small(device), "method": "moco", **words}
        for name, words in mixture_kinds().items()
    }
    return {
        name: attempt(partial(step_without_waiting, words, images, device))
        for name, words in kinds.items()
    }


def step_without_waiting(
    words: dict[str, Any], images: ImageSet, device: torch.device
) -> dict[str, Any]:
    """A second step, in which everything that waits for the device is an error."""
    parts = parts_of(words, images, batch_size=128, device=device.type)
    module = parts.module
    one_step(parts, device)  # what is only done once
    index = torch.arange(128).to(device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", dtype=parts.machine.autocast):
            step = module.compute(Batch(index), generator_for(0, "waiting"))
        step.loss.backward()
        step.update_memory()
        module.method.begin_step(Progress(1, 2, 2))
    except RuntimeError as error:
        place = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in place if "/unmix/" in f.filename]
        return {"passed": False, "where": ours[-2:], "error": str(error)[:200]}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"passed": True}


def speed(words: dict[str, Any], images: ImageSet, compiled: bool) -> dict[str, Any]:
    """Stages and whole steps of one kind."""
    start = time.perf_counter()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    parts = parts_of(words, images, compile="yes" if compiled else "no")
    found = facts(parts, measure_stages(parts, steps=10, warmup=5))
    for word in ("settings", "hardware", "versions", "command"):
        found.pop(word)
    found["views_share"] = (
        found["stages"]["views"]["milliseconds_per_step"]
        / found["stages"]["step"]["milliseconds_per_step"]
    )
    found["took_seconds"] = time.perf_counter() - start
    return found


def profile(words: dict[str, Any], images: ImageSet) -> dict[str, Any]:
    """What the device does in a step of one kind, without the optimizer; the longest kernels."""
    device = torch.device("cuda")
    parts = parts_of(words, images, compile="no")
    module, size = parts.module, parts.settings.run.batch_size
    for _ in range(3):
        one_step(parts, device)
    index = torch.arange(size).to(device)
    steps = 5
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as found:
        for number in range(steps):
            with torch.autocast("cuda", dtype=parts.machine.autocast):
                step = module.compute(Batch(index), generator_for(number, "profile"))
            step.loss.backward()
        torch.cuda.synchronize()
    kernels = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    averages = found.key_averages()
    return {
        "kernels_per_step": len(kernels) / steps,
        "device_milliseconds_per_step": sum(e.self_device_time_total for e in kernels)
        / steps
        / 1e3,
        "by_device": averages.table(sort_by="self_cuda_time_total", row_limit=30).splitlines(),
        "by_cpu": averages.table(sort_by="self_cpu_time_total", row_limit=20).splitlines(),
    }


def attempt(run: Callable[[], Any]) -> Any:
    """The result, or what went wrong: one part that fails shall not cost the others."""
    try:
        return run()
    except Exception as error:
        return {"passed": False, "error": "".join(traceback.format_exception(error))[-2000:]}


def failures(checks: dict[str, Any]) -> str:
    """What did not pass, and how many checks did."""
    lines, passed = [], 0
    for name, found in checks.items():
        for key, one in ({name: found} if "passed" in found else found).items():
            passed += bool(one["passed"])
            if not one["passed"]:
                lines.append(f"FAILED {name}, {key}: {json.dumps(one)[-600:]}")
    return "\n".join([*lines, f"{passed} checks passed, {len(lines)} did not"])


def summary(result: dict[str, Any]) -> str:
    """The table that is printed at the end."""
    lines = [f"{'run':<38}{'images/s':>10}{'target':>9}{'views':>8}{'outside':>9}{'of matmul':>11}"]
    for name, row in result["speed"].items():
        if "stages" not in row:
            lines.append(f"{name:<38}{row.get('skipped') or row.get('error', '')[-80:]}")
            continue
        rate = row["stages"]["step"]["images_per_second"]["median"]
        target = TARGETS.get(name.partition(" (")[0])
        lines.append(
            f"{name:<38}{rate:>10,.0f}{f'{target:,}' if target else '':>9}"
            f"{row['views_share']:>8.1%}{row['outside_model_share']:>9.1%}"
            f"{row['model_share_of_matmul_rate']:>11.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default="gpu.json", help="where the results go")
    parser.add_argument("--data_dir", help="folder that holds cifar-10-batches-py")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing is begun")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
        help=f"of {', '.join(PARTS)}; by default all",
    )  # fmt: skip
    parser.add_argument("--share", default="0/1", help="which share of the cells, as 0/4")
    given = parser.parse_args()
    share, _, shares = given.share.partition("/")
    of_cells = partial(check_cells, share=(int(share), int(shares)))
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is here; on a CPU use: unmix bench")
    started = time.perf_counter()
    quiet_libraries()
    device = torch.device("cuda")
    images = cifar(given.data_dir)
    result: dict[str, Any] = {
        "schema": 1, "images": images.name, "hardware": hardware(device), "versions": versions(),
        "checks": {}, "speed": {}, "profiles": {},
    }  # fmt: skip

    def keep(place: str, name: str, value: Any) -> None:
        result[place][name] = value
        beside = Path(given.json).with_suffix(".part")
        beside.write_text(json.dumps(result, indent=1) + "\n")
        beside.replace(given.json)
        print(f"{time.perf_counter() - started:6.0f} s  {name}", flush=True)

    for name, check in (
        ("fast path", check_fast_path),
        ("views", check_views),
        ("no waiting", check_no_waiting),
        ("mixtures", check_mixtures),
        ("cells", of_cells),
    ):
        if name in given.only:
            keep("checks", name, attempt(partial(check, images, device)))
    print(failures(result["checks"]), flush=True)
    if "speed" in given.only:
        # Compiled ones early: where minutes are few, others are known from an H200.
        runs = [(name, False) for name in FIRST] + [(name, True) for name in COMPILED]
        runs += [(name, False) for name in (KINDS | LARGE_KINDS) if name not in FIRST]
        runs += [(name, True) for name in LARGE_KINDS]
        longest = {False: 20.0, True: 60.0}
        large = noise(2048, 224)
        for name, compiled in runs:
            key = f"{name} ({'compiled' if compiled else 'eager'})"
            left = 60 * given.minutes - (time.perf_counter() - started)
            if left < longest[compiled]:
                keep("speed", key, {"skipped": f"{left:.0f} s were left"})
                continue
            words = (KINDS | LARGE_KINDS)[name]
            row = attempt(partial(speed, words, large if name in LARGE_KINDS else images, compiled))
            keep("speed", key, row)
        print(summary(result), flush=True)
    if "profile" in given.only:
        for name in ("MoCo", "MoCo + Un-Mix"):
            keep("profiles", name, attempt(partial(profile, KINDS[name], images)))


if __name__ == "__main__":
    main()
