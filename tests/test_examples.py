"""The examples run with the real packages, learn, are short, and are in the documentation."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DOCS = ROOT / "docs" / "examples.md"
each = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@each
def test_the_loss_falls(path):
    options = {"workers": 0} if path.stem == "with_torchvision" else {}
    losses = imported(path).main(steps=16, batch_size=32, **options)
    assert len(losses) >= 8
    assert sum(losses[-4:]) < sum(losses[:4])


def test_the_script_with_workers_prints_the_loss_before_and_after():
    """The example whose draws are made in worker processes."""
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "with_torchvision.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ran.returncode == 0, ran.stderr
    before, after = map(float, re.fullmatch(r"loss (\S+) -> (\S+)\n", ran.stdout).groups())
    assert after < before


@each
def test_an_example_has_at_most_60_lines_and_is_a_script(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    assert lines[-2:] == ['if __name__ == "__main__":', "    main()"]


def test_the_documentation_includes_every_example():
    """By inclusion of the files, which mkdocs checks to exist."""
    shown = re.findall(r'^```python\n--8<-- "examples/(\w+)\.py"\n```$', DOCS.read_text(), re.M)
    assert sorted(shown) == [path.stem for path in EXAMPLES]
    assert "pymdownx.snippets" in (ROOT / "mkdocs.yml").read_text()


def test_imports_of_the_examples_are_development_dependencies():
    needed = re.search(r"^dev = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert {"lightly", "timm"} <= set(re.findall(r'"([\w-]+)', needed.group(1)))


def test_the_bank_of_lightly_gets_each_clean_key_once():
    """Nine steps, nine batches of keys; NTXentLoss with a bank would store three per step."""
    from lightly.models.modules.memory_bank import MemoryBankModule

    module, taken = imported(ROOT / "examples" / "with_lightly_moco.py"), []

    class Counting(MemoryBankModule):
        def _dequeue_and_enqueue(self, batch):
            taken.append(batch)
            super()._dequeue_and_enqueue(batch)

    module.MemoryBankModule = Counting
    module.main(steps=9, batch_size=32)
    assert [batch.shape for batch in taken] == [(32, 128)] * 9
    assert not any(batch.requires_grad for batch in taken)


def test_lightlys_loss_with_a_bank_stores_keys_at_every_call():
    """As the documentation warns: the clean loss and the two of a mixture store 3 N rows."""
    from lightly.loss import NTXentLoss

    from unmix import UnMix, shared_loss

    N, D = 4, 8
    criterion = NTXentLoss(memory_bank_size=(64, D))
    q, q_mix, k = torch.randn(3, N, D, generator=torch.Generator().manual_seed(0))
    criterion(q.requires_grad_(), k)
    shared_loss(criterion, q_mix.requires_grad_(), k, UnMix().draw((N, 3, 4, 4)))
    assert int(criterion.memory_bank.bank_ptr) == 3 * N


def test_moco_in_your_loop_updates_encoder_queue_and_step(tmp_path):
    """After three steps: the momentum encoder, the queue, and the count of the schedules."""
    module, losses = imported(ROOT / "examples" / "moco_in_your_loop.py"), []
    for steps in (2, 3, 5):
        module.main(steps=steps, batch_size=32, save=tmp_path / f"{steps}.pt", K=32)
        losses.append(torch.load(tmp_path / f"{steps}.pt", weights_only=True)["step"])
    for before, after in itertools.pairwise(losses):
        key = "method.f_k.backbone.conv1.weight"
        assert not torch.equal(before[key], after[key])
        assert not torch.equal(before["method.queue.keys"], after["method.queue.keys"])
        assert before["_extra_state"]["batches"] < after["_extra_state"]["batches"]
    assert int(losses[-1]["method.queue.seen"]) == 5 * 32


def test_byol_with_lightning_updates_its_target_and_is_in_the_checkpoint(tmp_path):
    import lightning as L
    from torch.utils.data import DataLoader, TensorDataset

    import unmix
    from unmix.backbones import build
    from unmix.views import Views, preset

    module = imported(ROOT / "examples" / "byol_with_lightning.py")
    images = torch.randint(256, (24, 3, 32, 32), dtype=torch.uint8)
    loader = DataLoader(TensorDataset(images, torch.arange(24)), 8)
    method = unmix.BYOL(build("resnet10", width=0.125, size=32), dim=8, hidden=8)
    views = Views(preset("byol"), 32, (0.5,) * 3, (0.25,) * 3)
    pretraining = module.Pretraining(method, views, steps_per_epoch=3, epochs=1)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(pretraining, loader)
    assert not torch.equal(before["f_k.conv1.weight"], method.state_dict()["f_k.conv1.weight"])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert state["step._extra_state"]["batches"] == 3


def test_the_documented_loop_runs_and_updates_the_momentum_encoder():
    """docs/rules.md, "In your own loop", as a reader pastes it."""
    import unmix
    from unmix.backbones import build

    page = (ROOT / "docs" / "rules.md").read_text()
    code = re.search(r"^## In your own loop$.*?^```python\n(.*?)^```$", page, re.M | re.S).group(1)
    images = torch.randn(24, 3, 16, 16)
    loader = [(*torch.randn(2, 8, 3, 16, 16), torch.arange(8) + 8 * i) for i in range(3)]
    backbone, small = build("resnet10", width=0.125, size=16), unmix.MoCo

    class Optimizer(torch.optim.SGD):
        pass

    made = []

    class MoCo(small):
        def __init__(self, backbone, n_data):
            super().__init__(backbone, n_data, queue_size=32, bn_splits=1)
            made.append(({k: v.clone() for k, v in self.state_dict().items()}, self))
            scope["optimizer"] = Optimizer(self.f_q.parameters(), 0.1)

    scope = {"backbone": backbone, "images": images, "loader": loader, "epochs": 1}
    unmix.MoCo = MoCo
    try:
        exec(code, scope)
    finally:
        unmix.MoCo = small
    ((before, method),) = made
    after = method.state_dict()
    for moved in ("f_q.backbone.conv1.weight", "f_k.backbone.conv1.weight", "queue.keys"):
        assert not torch.equal(before[moved], after[moved])
    assert int(after["queue.seen"]) == 24
