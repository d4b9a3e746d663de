"""Training from shards: the same weights wherever they are, and after a kill within an epoch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forked import program
from streams import Server, serving, write_shards, write_tar
from unmix.cli import main
from unmix.data.streams import loading, remote
from unmix.errors import UserError
from unmix.results import load_results
from unmix.training import pretrain

TINY: dict[str, Any] = {
    "method": "moco", "backbone": "resnet10", "width": 0.125, "size": 8, "batch_size": 16,
    "epochs": 2, "knn_every": 0, "knn_k": 5, "queue_size": 32, "bn_splits": 1, "logger": "none",
    "device": "cpu", "precision": "32", "threads": 1, "workers": 0, "evaluate": False,
    "shuffle_buffer": 20, "interleave": 2,
}  # fmt: skip
SHARDS = [12, 9, 15, 10, 14, 6]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.01)
    return tmp_path / "cache" / "unmix"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_shards(tmp_path / "www", SHARDS)
    with serving(tmp_path / "www") as found:
        yield found


def forget() -> None:
    """What a process knows of shards, which a new one does not."""
    loading._splits_of_minute.cache_clear()
    loading._store.cache_clear()


def trained(run: Path, data: str | Path, **more: Any) -> dict[str, Tensor]:
    """The weights of a run."""
    forget()
    pretrain(run=str(run), data=str(data), **{**TINY, **more})
    return weights(run)


def weights(run: Path) -> dict[str, Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def flags(**more: Any) -> list[str]:
    """The settings as a command line."""
    words = []
    for name, value in {**TINY, **more}.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return words


def start(*words: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "unmix", "pretrain", *map(str, words)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


def test_weights_do_not_depend_on_place_cache_or_workers(tmp_path: Path, server: Server) -> None:
    url = f"{server.url}/train-{{0000..0005}}.tar"
    runs: list[dict[str, Tensor]] = [
        trained(tmp_path / "local", server.folder),
        trained(tmp_path / "url", url),
        trained(tmp_path / "workers", url, workers=2),
        trained(tmp_path / "one", url, cache_size="0", cache_dir=str(tmp_path / "x"), workers=1),
    ]
    sizes = {f"train-{n:04d}.tar": count for n, count in enumerate(SHARDS)}
    (server.folder / "sizes.json").write_text(json.dumps(sizes))
    runs.append(trained(tmp_path / "lazy", url, cache_dir=str(tmp_path / "y"), workers=2))
    for other in runs[1:]:
        assert same(runs[0], other)


def test_a_run_killed_within_an_epoch_goes_on_with_the_same_weights(
    tmp_path: Path, server: Server
) -> None:
    """By the real command line, over HTTP, with workers; images before the kill are not read."""
    url = f"{server.url}/train-{{0000..0005}}.tar"
    more = {"checkpoint_steps": 1, "workers": 2, "epochs": 3, "cache_size": "0"}
    whole = trained(tmp_path / "whole", url, **more)
    run = tmp_path / "run"
    process = start(*flags(**more), "--data", url, "--run", run)
    deadline = time.monotonic() + 120
    server.delay = 0.02  # so that it is killed before it ends
    while not (run / "checkpoints" / "last.ckpt").exists() or done(run) < 6:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = done(run)
    assert 6 <= before < 15
    server.delay = 0
    ended = start(*flags(**more), "--data", url, "--run", run)
    out, err = ended.communicate(timeout=120)
    assert ended.returncode == 0, err
    assert f"resuming from {run}/checkpoints/last.ckpt, after {done(run, out)} steps" in out
    assert same(weights(run), whole)


def done(run: Path, out: str = "") -> int:
    """Steps that are saved; those that a run resumed from, if its output is given."""
    if out:
        return int(out.partition("last.ckpt, after ")[2].split()[0])
    try:
        return int(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])
    except (OSError, RuntimeError, EOFError):
        return 0


def test_two_processes_end_with_as_many_steps(tmp_path: Path, server: Server) -> None:
    run = tmp_path / "run"
    more = {"devices": 2, "workers": 1, "method": "simclr"}
    words = flags(**more)
    for name in ("queue_size", "bn_splits"):
        at = words.index(f"--{name}")
        del words[at : at + 2]
    said, data = tmp_path / "said", f"{server.url}/train-{{0000..0005}}.tar"
    process = program(
        ["pretrain", *words, "--data", data, "--run", str(run)], said, devices=2,
        change=lambda _: server.leave(),
    )  # fmt: skip
    assert process.wait() == 0, said.read_text()
    # 66 images are 4 batches of 16; the last would give one image to each.
    assert load_results(run).training["steps"] == 2 * 4
    assert said.read_text().count("epoch 2/2") == 1


def test_a_server_that_goes_away_ends_the_run_in_one_line(tmp_path: Path, server: Server) -> None:
    run, words = tmp_path / "run", flags(workers=2, epochs=400, cache_size="0", checkpoint_steps=1)
    data = f"{server.url}/train-{{0000..0005}}.tar"
    server.delay = 0.005
    with (tmp_path / "err").open("w") as file:
        child = os.fork()  # not a new Python, whose imports take longer than the run
        if child == 0:
            sys.stderr = file
            server.leave()
            code = 1
            try:
                code = main(["pretrain", *words, "--data", data, "--run", str(run)])
            finally:
                file.flush()
                os._exit(code)
    while done(run) < 2:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.05)
    server.close()
    begun = time.monotonic()
    _, status = os.waitpid(child, 0)
    assert time.monotonic() - begun < 60
    assert os.WEXITSTATUS(status) == 2
    err = (tmp_path / "err").read_text()
    lines = [line for line in err.splitlines() if line.startswith("unmix: error")]
    assert len(lines) == 1
    assert f"{server.url}/train-000" in lines[0]
    assert "cannot be read" in lines[0]
    assert "Traceback" not in err


def test_a_shard_that_vanishes_is_named(tmp_path: Path, server: Server) -> None:
    sizes = {f"train-{n:04d}.tar": count for n, count in enumerate(SHARDS)}
    (server.folder / "sizes.json").write_text(json.dumps(sizes))
    gone = "/train-0001.tar"  # not among those that are sampled for the colors
    server.fail = lambda path, number: 404 if path == gone and seen(server, path) else 0
    with pytest.raises(UserError, match=rf"^{server.url}{gone}: there is no such file"):
        trained(tmp_path / "r", f"{server.url}/train-{{0000..0005}}.tar", workers=2)


def seen(server: Server, path: str) -> bool:
    return server.asked["HEAD", path] >= 1 and server.asked["GET", path] >= 1


def test_evaluation_is_on_the_test_shards(tmp_path: Path, server: Server) -> None:
    write_shards(server.folder, [8, 8], "val", first=100)
    url = f"{server.url}/train-{{0000..0005}}.tar"
    run = tmp_path / "run"
    trained(run, url, test_folder="val-{0000..0001}.tar", evaluate=True)
    rows = load_results(run).evaluations
    assert {(row.protocol, row.details["test_images"]) for row in rows} >= {
        ("knn", 16),
        ("linear", 16),
    }
    forget()
    assert main(["knn", str(run), "--k", "3"]) == 0
    rows = load_results(run).evaluations
    assert [row.details["test_images"] for row in rows if row.details.get("k") == 3] == [16]
    # The same shards at another place are the run's data.
    forget()
    assert main(["knn", str(run), "--k", "4", "--data", str(server.folder)]) == 0
    (row,) = [row for row in load_results(run).evaluations if row.details.get("k") == 4]
    assert "data" not in row.details


def test_shards_that_moved_are_gone_on_with(tmp_path: Path, server: Server) -> None:
    run, url = tmp_path / "run", f"{server.url}/train-{{0000..0005}}.tar"
    whole = trained(tmp_path / "whole", url)
    stopped(run, url)
    assert same(trained(run, server.folder), whole)


def stopped(run: Path, data: str, **more: Any) -> None:
    """A run that is killed after its first epoch."""
    child = os.fork()
    if child == 0:
        try:
            from unmix.training.loop.callbacks import Checkpoints

            save = Checkpoints.end_of_epoch

            def end(self: Checkpoints, *arguments: Any) -> None:
                save(self, *arguments)
                os.kill(os.getpid(), signal.SIGKILL)

            Checkpoints.end_of_epoch = end  # type: ignore[method-assign]
            trained(run, data, **more)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


BANK = {"method": "insdis", "negatives": 8}


def of_bank(words: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in words.items() if k not in ("queue_size", "bn_splits")}


def test_memory_banks_have_stable_ids_and_refuse_other_shards(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "TINY", of_bank(TINY))
    run, url = tmp_path / "run", f"{server.url}/train-{{0000..0005}}.tar"
    whole = trained(tmp_path / "whole", url, **BANK)
    stopped(run, url, **BANK)
    assert same(trained(run, url, **BANK), whole)
    other = tmp_path / "other"
    stopped(other, url, **BANK)
    os.utime(server.folder / "train-0002.tar", ns=(1, 1))
    with pytest.raises(UserError, match=r"shards were written again .* stores something per image"):
        trained(other, url, **BANK)


def test_broken_images_of_shards_are_named_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "d", [20, 20], classes=0)
    write_tar(tmp_path / "d" / "train-0002.tar", [("x.jpg", b"no image"), ("y.txt", b"words")])
    trained(tmp_path / "r", tmp_path / "d")
    out = capsys.readouterr().out
    listed = (tmp_path / "r" / "skipped.csv").read_text()
    assert "Skipped 2 image files" in out
    assert f'{tmp_path}/d/train-0002.tar/x.jpg,"not an image' in listed
    assert f"{tmp_path}/d/train-0002.tar/y,this sample of the shard has no image" in listed


def test_labels_without_test_shards_train_without_evaluation(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path / "r", server.folder, evaluate=True)
    why = (
        "has no shards to evaluate on (--test_folder names some), so kNN and linear probes are off"
    )
    assert why in capsys.readouterr().out


def test_another_interleave_is_another_run(tmp_path: Path, server: Server) -> None:
    run = tmp_path / "run"
    stopped(run, str(server.folder))
    with pytest.raises(UserError, match="its interleave is 2, not 3"):
        trained(run, server.folder, interleave=3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data", "x.tar"], "x.tar: this shard cannot be read (No such file or directory)."),
        (["--data", "wds:nowhere"], "there is no such folder."),
        (["--data", "d/{0..2}.tar", "--cache_size", "lots"], "--cache_size: 'lots' is not a size"),
        (["--data", "d/{2..0}.tar"], "--data: "),
        (["--data", "d/*.tar"], "no shard matches this pattern."),
        (["--data", "foo://a/b.tar"], "foo://a/b.tar: cannot be read (Protocol not known: foo)."),
        (["--data", "a.tar", "--interleave", "0"], "--interleave: 0 is out of range"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], says: str, refuse: Callable[..., str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert says in refuse("pretrain", *words)
    assert not (tmp_path / "runs").exists()
