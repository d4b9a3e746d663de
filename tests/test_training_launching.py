"""What cannot start the processes that it needs is told in one line, before anything is written."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from unmix.errors import UserError
from unmix.training import pretrain
from unmix.training.run import launching
from unmix.training.run.launching import check_launch, check_workers, is_guarded


def test_several_devices_in_a_notebook_are_refused_with_what_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match=r"^--devices: 2 .*notebook.*unmix pretrain --devices 2"):
        pretrain(method="simclr", data="digits", devices=2, device="cpu", run=str(tmp_path / "r"))
    assert not (tmp_path / "r").exists()
    check_launch(1)


@pytest.mark.parametrize("first", ["-c", "-", ""])
def test_several_devices_in_code_of_no_file_are_refused(
    first: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(sys, "ps1", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(sys, "argv", [first])
    with pytest.raises(UserError, match=r"^--devices: 2 .*`python -c`.*unmix pretrain --devices 2"):
        pretrain(method="simclr", data="digits", devices=2, device="cpu", run=str(tmp_path / "r"))
    assert not (tmp_path / "r").exists()
    check_launch(1)
    monkeypatch.setenv("LOCAL_RANK", "0")  # a launcher has started the processes
    check_launch(2)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"}
SRUN = {
    "SLURM_NTASKS": "8", "SLURM_JOB_NAME": "a", "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip


@pytest.mark.parametrize(("launcher", "env"), [("torchrun", TORCHRUN), ("srun", SRUN)])
def test_as_many_processes_as_devices_must_have_been_started(
    launcher: str, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each of them trains all of the run alone, or Lightning ends with a traceback."""
    for name, value in {**env, "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    started = rf"^devices: {launcher} has started 8 processes, and the run has"
    with pytest.raises(UserError, match=rf"{started} 1 device; give `devices=4` and `nodes=2`\.$"):
        check_launch(1)
    with pytest.raises(UserError, match=f"{started} 4 devices; give"):
        check_launch(2, 2)
    check_launch(4, 2)


@pytest.mark.parametrize(
    ("text", "guarded"),
    [
        ("import unmix\nunmix.pretrain()\n", False),
        ("def f():\n    if __name__ == '__main__': pass\nf()\n", False),
        ("if __name__ == '__main__':\n    pass\n", True),
        ("if '__main__' == __name__:\n    pass\n", True),
        ("this is no Python", True),
    ],
)
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_script_that_spawned_processes_would_run_again_is_told(
    text: str, guarded: bool, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "train.py"
    script.write_text(text)
    assert is_guarded(script) == guarded
    monkeypatch.setattr(launching, "start_method", lambda: method)
    main = SimpleNamespace(__file__=str(script), __spec__=None)
    monkeypatch.setitem(sys.modules, "__main__", main)  # type: ignore[arg-type]
    check_workers(0)
    if guarded or method == "fork":
        check_workers(None)
        return
    with pytest.raises(UserError, match=r"train\.py: put the call under `if __name__"):
        check_workers(None)


def test_a_notebook_has_no_script_that_would_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "train.py"
    script.write_text("unmix.pretrain()")
    main = SimpleNamespace(__file__=str(script), __spec__=None)
    monkeypatch.setattr(launching, "start_method", lambda: "spawn")
    monkeypatch.setitem(sys.modules, "__main__", main)  # type: ignore[arg-type]
    with pytest.raises(UserError):
        check_workers(4)
    del main.__file__
    check_workers(4)
