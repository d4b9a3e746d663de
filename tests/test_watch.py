"""`unmix watch`: a page of this machine alone, which follows runs and studies while they train."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from unmix.commands import watch as command
from unmix.commands.serving import HOST, Page, address, bound, serving
from unmix.commands.watch import _Live
from unmix.commands.watched import watched
from unmix.config import Settings
from unmix.errors import UserError
from unmix.results import write_results
from unmix.studies import Study
from unmix.studies.watching import State, run_state
from unmix.training.run.folder import RunFolder

EPOCHS = 40


def begin(folder: Path, seed: int = 0, **changes: object) -> Path:
    """A run that this process trains, before its first epoch."""
    words = {
        "method": "moco", "data": "photos", "epochs": EPOCHS, "batch_size": 10, "seed": seed,
        "backbone": "resnet10", "width": 0.25, "size": 16, **changes,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    RunFolder(folder).write_settings(Settings.of(words), [])
    owner = {"host": socket.gethostname(), "process": os.getpid(), "since": "now"}
    (folder / ".owner.json").write_text(json.dumps(owner))
    return folder


def train(folder: Path, epochs: int) -> None:
    """Its `metrics.csv` after so many epochs of 30 s, replaced in one piece."""
    rows = [
        f"{e},{e + 1}0,{5 - e / 20},{50 + e / 2},{10 / 3}" for e in range(epochs)
    ]  # 10 steps of 10 images
    text = "\n".join(["epoch,step,loss,knn,images_per_second", *rows]) + "\n"
    (folder / "beside").write_text(text)
    (folder / "beside").replace(folder / "metrics.csv")


def finish(folder: Path, top1: float) -> None:
    train(folder, EPOCHS)
    words = RunFolder(folder).settings().flat()
    names = ("method", "data", "backbone", "width", "size", "epochs", "seed")
    rows = [{"protocol": "knn", "epoch": EPOCHS, "top1": top1, "features": "backbone"}]
    content = {"schema": 1, "name": folder.name, "mixture": "none", "command": "unmix pretrain"}
    content |= {"evaluations": rows, "training": {"seconds": 1200.0}}
    write_results(folder / "results.json", {**{n: words[n] for n in names}, **content})
    (folder / ".owner.json").unlink()


def live(*paths: Path, refresh: float = 3.0) -> tuple[_Live, list[str]]:
    said: list[str] = []
    return _Live(watched(paths), said.append, refresh), said


def asked(
    port: int, path: str = "/", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        if value:
            connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def test_the_page_is_for_this_machine_alone_and_there_is_nothing_else() -> None:
    with bound() as server, serving(server, lambda: Page("<p>page</p>", "a")) as url:
        port = server.server_address[1]
        assert (url, address(server)) == (f"http://127.0.0.1:{port}/",) * 2
        assert server.server_address[0] == "127.0.0.1"
        status, headers, body = asked(port)
        assert (status, body) == (200, b"<p>page</p>")
        assert not any(name.lower().startswith("access-control") for name in headers)
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert asked(port, Host=f"localhost:{port}")[0] == 200
        for other in ("evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", ""):
            status, headers, body = asked(port, Host=other)
            assert status == 421
            assert b"page</p>" not in body
            assert "ETag" not in headers
        for path in ("/config.yaml", "/../pyproject.toml", "//etc/passwd", "/%2e%2e/x", "/index"):
            assert asked(port, path)[0] == 404
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
            status, headers, _ = asked(port, method=method)
            assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_what_has_not_changed_is_not_sent_again() -> None:
    page = [Page("one", "1")]
    with bound() as server, serving(server, lambda: page[0]):
        port = server.server_address[1]
        _, headers, body = asked(port)
        tag = headers["ETag"]
        status, same, nothing = asked(port, method="HEAD")
        assert (status, same["ETag"], same["Content-Length"], nothing) == (200, tag, "3", b"")
        assert asked(port, If_None_Match=tag)[0::2] == (304, b"")
        page[0] = Page("two", "2")
        assert asked(port, If_None_Match=tag)[0::2] == (200, b"two")
        assert body == b"one"


def test_a_port_in_use_is_one_line_and_without_one_the_next_is_taken(tmp_path: Path) -> None:
    begin(tmp_path / "a")
    with bound() as first, bound() as second:
        taken = first.server_address[1]
        assert second.server_address[1] != taken
        with pytest.raises(UserError, match=rf"{taken} cannot be used .*none for a free") as caught:
            command(tmp_path / "a", port=taken)
        assert caught.value.on_command_line().startswith(f"--port: {taken} cannot be used")
    for port in (0, 65536, -1):
        with pytest.raises(UserError, match="port"):
            bound(port)


@pytest.mark.parametrize("epochs", [0, 2, 18, EPOCHS])
def test_how_far_a_run_is(tmp_path: Path, epochs: int) -> None:
    folder = begin(tmp_path / "a")
    train(folder, epochs)
    state = run_state(folder)
    assert (state.running, state.finished, state.done) == (True, False, epochs / EPOCHS)
    left = {
        0: "epoch 0 of 40", 2: "epoch 2 of 40, about 19 minutes left",
        18: "epoch 18 of 40, about 11 minutes left", EPOCHS: "epoch 40 of 40, evaluating",
    }  # fmt: skip
    assert state.text == f"running, {left[epochs]}"
    (folder / ".owner.json").write_text(
        json.dumps({"host": socket.gethostname(), "process": 2**22 + 1})
    )
    assert run_state(folder).text == f"stopped at epoch {epochs} of 40, no process trains it"
    finish(folder, 70.0)
    assert run_state(folder) == State("finished", 1.0, True, False)


def test_durations_are_in_words() -> None:
    texts = [State("running", 0.5, False, True, s).text for s in (10, 61, 600, 5400, 36000)]
    assert [text.removeprefix("running, ") for text in texts] == [
        "less than a minute left", "about 1 minute left", "about 10 minutes left",
        "about 1.5 hours left", "about 10.0 hours left",
    ]  # fmt: skip


def test_runs_are_followed_from_before_they_begin_to_their_end(tmp_path: Path) -> None:
    paths = tmp_path / "a", tmp_path / "b"
    page, said = live(*paths)
    assert page.renew().what == "no run has begun yet"
    assert "does not exist; waiting for a run" in page.page().html
    begin(paths[0])
    train(paths[0], 3)
    assert page.renew().what == "running, 0 of 2 runs are finished, 1 not begun; a: epoch 3 of 40"
    assert "a: epoch 3 of 40" in page.page().html
    assert "Still training." in page.page().html
    begin(paths[1], seed=1)
    finish(paths[0], 70.0)
    finish(paths[1], 72.0)
    assert page.renew().text == "finished, all 2 runs"
    html = page.page().html
    assert "Finished, all 2 runs." in html
    assert "Still training." not in html
    assert "71.0 ± 1.4" in html  # both seeds are one condition
    assert said == []


def test_a_damaged_file_is_one_line_and_the_page_shows_what_was_there(tmp_path: Path) -> None:
    folder = begin(tmp_path / "a")
    finish(folder, 70.0)
    page, said = live(folder)
    page.renew()
    assert "70.0" in page.page().html
    (folder / "results.json").write_text("{")
    for _ in range(2):
        page.renew()
    assert len(said) == 1
    assert "results.json: is not valid JSON" in said[0]
    assert "70.0" in page.page().html
    assert "is not valid JSON" in page.page().html


def test_a_deleted_run_ends_it_if_nothing_is_left(tmp_path: Path) -> None:
    paths = begin(tmp_path / "a"), begin(tmp_path / "b", seed=1)
    page, _ = live(*paths)
    page.renew()
    shutil.rmtree(paths[0])
    page.renew()
    assert "a: " in page.page().html
    shutil.rmtree(paths[1])
    with pytest.raises(UserError, match="was deleted; there is nothing left to watch"):
        page.renew()


def test_a_study_without_cells_and_one_that_was_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    study = Study.of({"vary": {"lr": [0.1, 0.2]}, "base": {"method": "moco", "data": "photos"},
                      "seeds": "0-5"}, "s")  # fmt: skip
    (folder / "study.yaml").write_text(json.dumps(study.content()))
    page, _ = live(folder)
    assert page.renew().what == "stopped, 0 of 12 cells measured; no process works on it"
    assert "Stopped, 0 of 12 cells measured" in page.page().html
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="was deleted"):
        page.renew()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p.write_text("x"), "is a file"),
        (lambda p: (p / "x").mkdir(parents=True), "is neither a run nor a study"),
        (lambda p: begin(p / "r"), "is neither a run nor a study; it holds runs"),
    ],
)
def test_what_is_no_run_is_refused(
    tmp_path: Path, make: Callable[[Path], object], says: str, refuse: Callable[..., str]
) -> None:
    make(tmp_path / "a")
    assert says in refuse("watch", tmp_path / "a")


def test_nothing_twice_or_mixed_is_refused(tmp_path: Path, refuse: Callable[..., str]) -> None:
    begin(tmp_path / "a")
    assert "RUN is required" in refuse("watch")
    assert "is given 2 times" in refuse("watch", tmp_path / "a", tmp_path / "a")


def test_without_a_browser_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, said = begin(tmp_path / "a"), []

    def no_browser(url: str) -> bool:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "open", no_browser)
    monkeypatch.setattr(time, "sleep", lambda _: shutil.rmtree(folder))
    with pytest.raises(UserError, match="was deleted"):
        command(folder, open=True, say=said.append)
    assert "no browser can be opened here; open the address in one" in said[1]
    assert said[2] == "running, epoch 0 of 40"


def test_ctrl_c_ends_it_with_a_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "unmix", "watch", str(begin(tmp_path / "a"))]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "unmix: interrupted.\n"


@pytest.mark.browser
def test_in_a_browser_it_follows_the_training_without_a_flicker(
    browser: Browser, tmp_path: Path
) -> None:
    plain = [begin(tmp_path / f"plain-{seed}", seed) for seed in (0, 1)]
    mixed = [begin(tmp_path / f"mixed-{seed}", seed, unmix=True) for seed in (0, 1)]
    for folder in (*plain, *mixed):
        train(folder, 10)
    page, said = live(*plain, *mixed, refresh=0.2)
    page.renew()
    window, faults, asked_for = browser.new_page(viewport={"width": 900, "height": 700}), [], []
    window.on("pageerror", lambda error: faults.append(str(error)))
    window.on("console", lambda line: faults.append(line.text))
    window.on("response", lambda answer: asked_for.append((answer.url, answer.status)))
    with bound() as server, serving(server, page.page) as url:
        window.goto(url)
        window.locator(".running", has_text="epoch 10 of 40").wait_for()
        entry = window.locator(".legend button", has_text="MoCo + Un-Mix").first
        entry.click()
        window.evaluate("scrollTo(0, 300); document.querySelector('main').dataset.same = 'yes'")
        window.wait_for_timeout(1200)
        # Nothing has changed: the very same elements are there.
        assert window.evaluate("document.querySelector('main').dataset.same") == "yes"
        assert {status for _, status in asked_for[-3:]} == {304}
        train(plain[0], 30)
        page.renew()
        window.locator(".running", has_text="epoch 30 of 40").wait_for()
        assert window.evaluate("scrollY") == 300
        assert entry.get_attribute("aria-pressed") == "false"
        for folder in (*plain, *mixed):
            finish(folder, 70.0)
        page.renew()
        window.locator(".running", has_text="Finished, all 4 runs.").wait_for()
    window.close()
    assert faults == []
    assert said == []
    assert {address for address, _ in asked_for} == {url}
