"""Shards are found, indexed and read by path and by URL; what is wrong is named in one line."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streams import Server, picture, serving, write_shards, write_tar
from unmix.data import BrokenImage, FileImages, Shards, load, read_uint8
from unmix.data.fingerprint import fingerprint
from unmix.data.streams import NoTestShards, ShardImages, loading, remote, sources, store
from unmix.data.streams.cache import ShardCache, _machine
from unmix.data.streams.locations import expand_braces, shards_of
from unmix.data.streams.remote import ShardError
from unmix.errors import UserError, byte_count
from unmix.names import name_of_stream


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and short pauses."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.01)
    return tmp_path / "cache" / "unmix"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    with serving(tmp_path / "www") as found:
        yield found


def shards(data: str | Path, split: str = "train", **options: Any) -> ShardImages:
    found = load(data, split, **options)
    assert isinstance(found, ShardImages)
    return found


def contents(images: ShardImages) -> list[bytes]:
    return [images.read(i) for i in range(len(images))]


def expected(count: int) -> list[bytes]:
    return [picture(i, ("jpg", "png", "webp")[i % 3]) for i in range(count)]


# --- what is given ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{0..1}/{a,b}", ["0/a", "0/b", "1/a", "1/b"]),
        ("{9..11}", ["9", "10", "11"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces_are_expanded_with_leading_zeros(text: str, words: list[str]) -> None:
    assert list(expand_braces(text)) == words


@pytest.mark.parametrize("text", ["{5..1}", "{0..99999999999}", "{a}", "{0..9..2}", "{}"])
def test_braces_that_are_no_range_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"\{"):
        list(expand_braces(text))


def test_many_braces_are_refused_before_memory_is_full() -> None:
    with pytest.raises(UserError, match="100,000,000 shards, more than a million"):
        shards_of("/x/{0..9999}/{0..9999}.tar")


def test_every_way_to_name_shards_gives_the_same_images(tmp_path: Path, server: Server) -> None:
    www = server.folder
    write_shards(www, [3, 2, 4])
    names = [f"train-{n:04d}.tar" for n in range(3)]
    (tmp_path / "urls.txt").write_text("# shards\n" + "\n".join(f"www/{n}" for n in names) + "\n")
    (www / "list.json").write_text(
        json.dumps({"shardlist": [{"url": name, "nsamples": n} for name, n in zip(names, [3, 2, 4],
                    strict=True)]})
    )  # fmt: skip
    ways = [
        www, f"{www}/train-{{0000..0002}}.tar", f"wds:{www}/train-*.tar", f"wds:{www}/",
        "::".join(f"{www}/{name}" for name in names), f"wds:{tmp_path}/urls.txt",
        f"wds:{www}/list.json", f"{server.url}/train-{{0000..0002}}.tar",
        f"wds:{server.url}/list.json", f"file://{www}/train-{{0000..0002}}.tar",
    ]  # fmt: skip
    for way in ways:
        assert contents(shards(way)) == expected(9), way


def test_relative_paths_are_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "d", [3])
    monkeypatch.chdir(tmp_path)
    images = shards("d/train-{0000..0000}.tar")
    monkeypatch.chdir("/")
    assert len(contents(images)) == 3


def test_splits_and_classes_are_found_by_name(tmp_path: Path) -> None:
    write_shards(tmp_path, [4, 4])
    write_shards(tmp_path, [3], "val", first=20)
    train, test = shards(tmp_path), shards(tmp_path, "test")
    assert (len(train), len(test)) == (8, 3)
    assert train.classes == test.classes == ("0", "1", "2")
    assert train.labels is not None
    assert train.labels.tolist() == [i % 3 for i in range(8)]
    assert test.labels is not None
    assert test.labels.tolist() == [2, 0, 1]
    assert (test.mean, test.std) == (train.mean, train.std)
    assert "train 8 images in 3 classes in 2 shards" in train.notes[0]


def test_folders_of_splits_and_named_shards(tmp_path: Path) -> None:
    write_shards(tmp_path / "a" / "train", [4], "x")
    write_shards(tmp_path / "a" / "validation", [2], "x", first=4)
    write_shards(tmp_path / "b", [5], "part", first=6)
    assert len(shards(tmp_path / "a")) == 4
    assert len(shards(tmp_path / "a", "test")) == 2
    other = f"{tmp_path}/b/part-*.tar"
    assert len(shards(tmp_path / "a", "test", test_folder=other)) == 5
    assert len(shards(tmp_path / "a", "train", train_folder="validation/x-0000.tar")) == 2


@pytest.mark.parametrize(
    ("data", "test"),
    [
        ("file://ROOT/*.tar", "part-0001.tar"),
        ("wds:ROOT/index.json", "part-0001.tar"),
        ("file://ROOT/part-{0000..0001}.tar", "ROOT/part-0001.tar"),
        ("ROOT/*.tar", "ROOT/link.tar"),
        ("URL/part-{0000..0001}.tar", "URL/./part-0001.tar"),
    ],
)
def test_shards_to_evaluate_on_are_not_trained_on_in_any_spelling(
    tmp_path: Path, server: Server, data: str, test: str
) -> None:
    paths = write_shards(server.folder, [4, 5], "part")
    listed = [{"url": f"./{path.name}"} for path in paths]
    (server.folder / "index.json").write_text(json.dumps({"shardlist": listed}))
    if "link" in test:
        (server.folder / "link.tar").symlink_to("part-0001.tar")
    data, test = (
        text.replace("ROOT", str(server.folder)).replace("URL", server.url) for text in (data, test)
    )
    train = shards(data, test_folder=test)
    assert (len(train), len(shards(data, "test", test_folder=test))) == (4, 5)
    assert "not used" not in train.notes[0]
    with pytest.raises(UserError, match=r"test_folder: .*is one of the shards of --train_folder"):
        load(data, "train", train_folder=data.removeprefix("wds:"), test_folder=test)


@pytest.mark.parametrize("again", ["file://{0}/train-0000.tar", "{0}/l.tar"])
def test_a_shard_that_is_named_in_two_ways_is_not_read_twice(tmp_path: Path, again: str) -> None:
    first = write_shards(tmp_path, [3, 4])[0]
    (tmp_path / "l.tar").symlink_to(first)
    (tmp_path / "list.txt").write_text(f"{first}\n{again.format(tmp_path)}\n")
    for spec in (f"{first}::{again.format(tmp_path)}", f"wds:{tmp_path}/list.txt"):
        with pytest.raises(
            UserError, match=r"is the same shard as .*train-0000.tar, so its images"
        ):
            load(spec, "train")
    (tmp_path / "list.txt").write_text(f"{first}\n{first}\n")
    assert len(load(f"wds:{tmp_path}/list.txt", "train")) == 3


def test_a_pattern_of_file_urls_has_the_splits_of_its_paths(tmp_path: Path) -> None:
    write_shards(tmp_path / "val", [4], "part")
    write_shards(tmp_path / "val", [2], "train", first=4)
    assert len(shards(f"file://{tmp_path}/val/*.tar")) == len(shards(f"{tmp_path}/val/*.tar")) == 6


def test_shards_that_are_trained_on_by_request_are_not_evaluated_on(tmp_path: Path) -> None:
    write_shards(tmp_path, [4])
    write_shards(tmp_path, [2], "val", first=4)
    assert "evaluation" not in shards(tmp_path, train_folder="*.tar").notes[0]
    with pytest.raises(NoTestShards, match="test_folder"):
        load(tmp_path, "test", train_folder="*.tar")


def test_without_test_shards_there_is_no_test_split(tmp_path: Path) -> None:
    write_shards(tmp_path, [3])
    with pytest.raises(NoTestShards, match="test_folder"):
        load(tmp_path, "test")


def test_labels_in_json_and_words_as_classes(tmp_path: Path) -> None:
    for name in ("train", "val"):
        members = []
        for i, word in enumerate(("dog", "cat", "dog")):
            members.append((f"d/{i}.jpg", picture(i)))
            members.append((f"d/{i}.json", json.dumps({"label": word, "x": [1]}).encode()))
        write_tar(tmp_path / f"{name}-0.tar", members)
    images = shards(tmp_path)
    assert images.classes == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1]


def test_a_class_of_the_test_shards_alone_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, [4], classes=2)
    write_shards(tmp_path, [4], "val", classes=3)
    with pytest.raises(UserError, match=r"val-0000.tar: class '2' of the test shards"):
        load(tmp_path, "train")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("s3://bucket/imagenet/train-{0000..0146}.tar", "train"),
        ("https://h.org/a/cc12m/{00000..01242}.tar", "cc12m"),
        ("wds:/data/x.tar", "x"), ("gs://b/*.tar", "b"), ("wds:/{0..1}.tar", "shards"),
    ],
)  # fmt: skip
def test_a_run_folder_has_a_plain_name(data: str, name: str) -> None:
    assert name_of_stream(data) == name


@pytest.mark.parametrize(
    ("text", "size"),
    [("50GB", 50 * 10**9), ("1.5 tb", 15 * 10**11), ("2GiB", 2**31), ("0", 0), ("7k", 7000)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert byte_count("cache_size", text) == size


@pytest.mark.parametrize("text", ["", "many", "-1", "1e9", "5 GBs", "nan"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a size"):
        byte_count("cache_size", text)


# --- what is read -----------------------------------------------------------------------------


def test_an_index_is_built_once(tmp_path: Path, cache: Path, server: Server) -> None:
    write_shards(server.folder, [5, 5])
    url = f"{server.url}/train-{{0000..0001}}.tar"
    first = shards(url)
    assert len(list((cache / "index").glob("*.npz"))) == 2
    asked = server.asked.copy()
    loading._store.cache_clear()
    loading._splits_of_minute.cache_clear()
    again = shards(url)
    # A new process asks for sizes and versions alone.
    assert {method for method, _ in (server.asked - asked)} == {"HEAD"} or all(
        path.endswith("sizes.json") for (method, path) in (server.asked - asked) if method == "GET"
    )
    assert contents(again) == contents(first) == expected(10)


def test_every_shard_is_copied_once_and_whole(cache: Path, server: Server) -> None:
    paths = write_shards(server.folder, [5, 5])
    images = shards(f"{server.url}/train-{{0000..0001}}.tar")
    images.prepare(range(10), whole=True)
    assert contents(images) == expected(10)
    assert server.sent == {f"/{path.name}": path.stat().st_size for path in paths}
    assert sorted(path.read_bytes() for path in (cache / "shards").glob("*.tar")) == sorted(
        path.read_bytes() for path in paths
    )


def test_without_a_cache_an_image_is_a_range_of_bytes(cache: Path, server: Server) -> None:
    write_shards(server.folder, [5, 5])
    images = shards(f"{server.url}/train-{{0000..0001}}.tar", shards=Shards("0"))
    assert any("requested on its own" in note for note in images.notes)
    before = server.sent["/train-0000.tar"]
    images.prepare([0, 3], whole=True)
    assert [images.read(0), images.read(3)] == [expected(5)[0], expected(5)[3]]
    assert server.sent["/train-0000.tar"] - before == len(expected(5)[0]) + len(expected(5)[3])
    assert not list((cache / "shards").glob("*.tar"))


def test_sizes_make_reading_everything_first_unnecessary(server: Server) -> None:
    write_shards(server.folder, [4] * 8)
    sizes = {f"train-{n:04d}.tar": 4 for n in range(8)}
    (server.folder / "sizes.json").write_text(json.dumps(sizes))
    images = shards(f"{server.url}/train-{{0000..0007}}.tar")
    assert len(images) == 32
    assert images.labels is None
    assert "labels are not read" in images.notes[0]
    # Four were sampled for the colors.
    assert len([path for path in server.sent if path.endswith(".tar")]) == 4
    assert contents(images) == expected(32)


def test_wrong_sizes_are_named(server: Server) -> None:
    write_shards(server.folder, [4])
    (server.folder / "sizes.json").write_text('{"train-0000.tar": 5}')
    with pytest.raises(ShardError, match="has 4 samples, and the list of sizes says 5"):
        load(f"{server.url}/train-0000.tar", "train")
    (server.folder / "sizes.json").write_text('{"train-0000.tar": "many"}')
    with pytest.raises(UserError, match="must be a positive integer"):
        shards_of(f"{server.url}/train-0000.tar")


def test_a_server_without_ranges_serves_whole_shards(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_CHUNK", 1 << 12)
    server.ranges = False
    write_shards(server.folder, [5])
    assert contents(shards(f"{server.url}/train-0000.tar")) == expected(5)
    with pytest.raises(ShardError, match="ignores requests for a range"):
        load(f"{server.url}/train-0000.tar", "train", shards=Shards("0"), cache_dir=tmp_path / "no")


def test_images_go_to_other_processes(server: Server) -> None:
    write_shards(server.folder, [5])
    images = shards(f"{server.url}/train-0000.tar")
    images.prepare([0])
    assert contents(pickle.loads(pickle.dumps(images))) == expected(5)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(images.read, range(5)) == expected(5)


def test_a_selection_is_of_the_same_images(tmp_path: Path) -> None:
    write_shards(tmp_path, [3, 4, 5])
    images = shards(tmp_path)
    few = images.picked(torch.tensor([11, 0, 5]))
    assert [few.read(i) for i in range(3)] == [images.read(i) for i in (11, 0, 5)]
    assert few.shard_counts() is None
    assert images.evenly(4).shard_counts().tolist() == [1, 1, 2]  # type: ignore[union-attr]
    pixels, index = read_uint8(images, range(12), 16)
    assert (pixels.shape, index.tolist()) == ((12, 3, 16, 16), list(range(12)))


# --- what is wrong ----------------------------------------------------------------------------


def test_a_failure_that_passes_is_not_seen(server: Server) -> None:
    write_shards(server.folder, [5])
    server.fail = lambda path, number: (503, -1, 0)[number % 3] if path.endswith(".tar") else 0
    assert contents(shards(f"{server.url}/train-0000.tar")) == expected(5)


@pytest.mark.parametrize(
    ("status", "says"),
    [(404, "there is no such file"), (403, "403"), (503, "503 .*6 tries"), (-1, "6 tries")],
)
def test_a_shard_that_cannot_be_read_is_named(server: Server, status: int, says: str) -> None:
    write_shards(server.folder, [5])
    server.fail = lambda path, number: status if path.endswith(".tar") else 0
    begun = time.monotonic()
    with pytest.raises(ShardError, match=rf"^{server.url}/train-0000.tar: .*{says}"):
        load(f"{server.url}/train-0000.tar", "train")
    assert time.monotonic() - begun < 10


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(ShardError, match=r"^http://127.0.0.1:9/a.tar: .*6 tries"):
        load("http://127.0.0.1:9/a.tar", "train")


def test_a_server_that_goes_away_is_named_without_waiting_for_ever(server: Server) -> None:
    write_shards(server.folder, [5, 5])
    images = shards(f"{server.url}/train-{{0000..0001}}.tar", shards=Shards("0"))
    server.close()
    begun = time.monotonic()
    with pytest.raises(ShardError, match=r"train-0001.tar: cannot be read .*tries"):
        images.read(7)
    assert time.monotonic() - begun < 10


def test_a_silent_server_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SILENCE", 0.2)
    monkeypatch.setattr(remote, "_OPENED", {})
    monkeypatch.setattr(remote, "TRIES", 2)
    write_shards(server.folder, [2])
    server.delay = 1.0
    with pytest.raises(ShardError, match="no answer within"):
        load(f"{server.url}/train-0000.tar", "train")


def test_an_unknown_protocol_and_a_missing_package_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match=r"foo://a/b.tar: cannot be read"):
        load("foo://a/b.tar", "train")
    import fsspec

    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(UserError, match=r"s3:// needs s3fs, which unmix\[stream\] has"):
        load("s3://bucket/{0..3}.tar", "train")


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 0.77, 0.9])
def test_a_shard_that_is_cut_off_is_named(tmp_path: Path, keep: float) -> None:
    (path,) = write_shards(tmp_path, [8], classes=0)
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
        end = last.offset_data + last.size
    os.truncate(path, int(keep * end))
    with pytest.raises(ShardError, match=r"train-0000.tar: is (cut off|damaged)"):
        load(tmp_path, "train")


def test_a_shard_without_its_end_is_noted(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [4], classes=0)
    with tarfile.open(path) as archive:
        archive.getmembers()
        end = archive.offset
    os.truncate(path, end)
    images = shards(tmp_path)
    assert len(images) == 4
    assert any("may be cut off" in note for note in images.notes)


def test_bytes_of_other_files_are_no_shards(tmp_path: Path) -> None:
    cases = {
        "gz": b"\x1f\x8b" + bytes(600), "text": b"hi " * 400, "empty": b"", "zeros": bytes(10240),
    }  # fmt: skip
    for name, content in cases.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.tar: .*(compressed|damaged|no images)"):
            load(f"{tmp_path}/{name}.tar", "train")
    with pytest.raises(UserError, match="is compressed"):
        load(f"wds:{tmp_path}/x.tar.gz", "train")


def test_damage_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [8], classes=0)
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[4].offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 512] = b"x" * 512
    path.write_bytes(content)
    with pytest.raises(ShardError, match=f"is damaged after 000003.jpg, at byte {offset:,}"):
        load(tmp_path, "train")


def test_hostile_members_are_neither_followed_nor_extracted(tmp_path: Path) -> None:
    path = tmp_path / "evil" / "train-0.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name, kind in (("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE),
                           ("f.jpg", tarfile.FIFOTYPE), ("d.jpg", tarfile.CHRTYPE)):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name in ("../../up.jpg", "/etc/abs.jpg", "a\nb.jpg", ".hidden.jpg", "ok.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(picture(1))
            archive.addfile(member, io.BytesIO(picture(1)))
    before = sorted(tmp_path.rglob("*"))
    images = shards(path.parent)
    assert len(images) == 4
    assert contents(images) == [picture(1)] * 4
    assert all(str(images.place(i)).startswith(str(path)) for i in range(4))
    assert any("4 members that are no regular files" in note for note in images.notes)
    after = [p for p in sorted(tmp_path.rglob("*")) if "cache" not in p.parts]
    assert after == before


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """A header with a valid checksum, of any size, also negative."""
    member = tarfile.TarInfo(name)
    block = bytearray(member.tobuf())
    block[156:157] = kind
    block[124:136] = (
        size.to_bytes(12, "big", signed=True) if size < 0 else b"\x80" + size.to_bytes(11, "big")
    )
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


@pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"g", b"S", b"K"])
@pytest.mark.parametrize("size", [-512, -(10**12), 10**12, 2**80])
def test_sizes_that_lie_end_in_one_line_at_once(tmp_path: Path, kind: bytes, size: int) -> None:
    write_tar(tmp_path / "good.tar", [("0.jpg", picture(0))])
    with tarfile.open(tmp_path / "good.tar") as archive:
        archive.getmembers()
        start = (tmp_path / "good.tar").read_bytes()[: archive.offset]
    (tmp_path / "train-0.tar").write_bytes(start + header("x.jpg", size, kind) + bytes(1 << 20))
    begun = time.monotonic()
    with pytest.raises(ShardError, match=r"train-0.tar: is (cut off|damaged)"):
        load(f"{tmp_path}/train-0.tar", "train")
    assert time.monotonic() - begun < 5


def test_a_fifo_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train-0.tar")
    with pytest.raises(ShardError, match="FIFO"):
        load(f"{tmp_path}/train-0.tar", "train")


def test_samples_without_an_image_are_broken_ones(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [("0.jpg", picture(0)), ("1.txt", b"words"), ("2.jpg", b""), ("3.png", b"no image")],
    )
    images = shards(tmp_path / "a.tar")
    assert len(images) == 4
    with pytest.raises(BrokenImage, match=r"a.tar/1: this sample of the shard has no image"):
        images.read(1)
    with pytest.raises(BrokenImage, match=r"2.jpg: the file is empty"):
        images.decode(2)
    with pytest.raises(BrokenImage, match=r"3.png: not an image"):
        images.decode(3)


def test_tars_of_no_images_say_what_they_hold(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.npy", b"x"), ("0.txt", b"y")])
    with pytest.raises(ShardError, match=r"holds no images; it holds .npy, .txt"):
        load(f"{tmp_path}/a.tar", "train")


def test_labels_that_are_no_labels_are_none(tmp_path: Path) -> None:
    deep = b'{"label":' + b"[" * 100_000
    for content in (deep, b"\xff", b'{"label": null}', b"[]", b'{"label": true}', b"5"):
        write_tar(tmp_path / "a.tar", [("0.jpg", picture(0)), ("0.json", content)])
        assert shards(tmp_path / "a.tar").labels is None


# --- the cache --------------------------------------------------------------------------------


def put(cache: ShardCache, key: int, size: int) -> Path | None:
    return cache.fetch(f"{key:032x}", size, lambda path: path.write_bytes(bytes(size)) and None)


def test_the_least_recently_used_copies_go_first(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "c", 1000)
    for key in range(3):
        assert put(cache, key, 300) is not None
        time.sleep(0.02)
    assert cache.find(f"{0:032x}", 300) is not None
    time.sleep(0.02)
    put(cache, 3, 400)
    held = [key for key in range(4) if (tmp_path / "c" / "shards" / f"{key:032x}.tar").exists()]
    assert held == [0, 2, 3]
    assert put(cache, 9, 1001) is None


def test_a_copy_of_another_size_is_made_again(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "c", 1000)
    path = put(cache, 0, 300)
    assert path is not None
    path.write_bytes(b"cut")
    assert put(cache, 0, 300) == path
    assert path.stat().st_size == 300


def test_a_failed_copy_leaves_nothing(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "c", 1000)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise ShardError("gone")

    with pytest.raises(ShardError, match="gone"):
        cache.fetch("0" * 32, 300, fail)
    assert [
        path.name for path in (tmp_path / "c" / "shards").iterdir() if path.suffix != ".lock"
    ] == []


def test_parts_of_dead_processes_are_removed(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "c", 1000)
    (tmp_path / "c" / "shards").mkdir(parents=True)
    left = tmp_path / "c" / "shards" / f".{7:032x}.900.{_machine()}.{2**22 + 1}.part"
    left.write_bytes(b"x" * 500)
    other = left.with_name(f".{8:032x}.600.{'0' * 8}.{2**22 + 1}.part")  # of another machine
    other.write_bytes(b"x" * 500)
    assert put(cache, 0, 300) is not None
    assert not left.exists()
    assert other.exists()
    assert put(cache, 1, 300) is not None  # in place of the first: 600 are reserved
    assert put(cache, 2, 500) is None


def test_a_full_disk_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ShardCache(tmp_path / "c", 1000)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    assert cache.fetch("0" * 32, 300, full) is None
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 900, 100))
    assert put(cache, 1, 300) is None


def test_a_full_disk_is_noted_and_images_are_requested(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import shutil

    write_shards(server.folder, [5])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 900, 100))
    assert contents(shards(f"{server.url}/train-0000.tar")) == expected(5)
    assert "there is no room for shards" in capfd.readouterr().err


def fill(folder: Path, seed: int, peak: Any) -> None:
    """Fetch copies at random, and look at the size of the folder while it writes."""
    cache = ShardCache(folder, 2000)
    rng = np.random.default_rng(seed)
    for key in rng.integers(0, 12, 40).tolist():
        size = 200 + 30 * key

        def write(path: Path, size: int = size) -> None:
            path.write_bytes(bytes(size))
            used = 0
            with cache._locked("room", True):  # a file that is renamed meanwhile counts twice
                for found in (folder / "shards").iterdir():
                    with suppress(OSError):
                        used += found.stat().st_size
            with peak.get_lock():
                peak.value = max(peak.value, used)

        path = cache.fetch(f"{key:032x}", size, write)
        if path is not None:
            with suppress(FileNotFoundError):  # another process needed the room
                assert path.stat().st_size == size


def test_processes_together_stay_within_the_limit(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    peak = context.Value("q", 0)
    workers = [context.Process(target=fill, args=(tmp_path / "c", seed, peak)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert 1000 < peak.value <= 2000


# --- the fingerprint --------------------------------------------------------------------------


def test_the_same_shards_in_another_place_are_the_same_data(tmp_path: Path, server: Server) -> None:
    write_shards(server.folder, [4, 4])
    here = fingerprint(shards(server.folder))
    there = fingerprint(shards(f"{server.url}/train-{{0000..0001}}.tar"))
    assert there.difference(here) is None
    assert there.versions != here.versions


def test_shards_that_were_written_again_are_other_data(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "a", [4, 4])
    before = fingerprint(shards(tmp_path / "a"))
    assert fingerprint(shards(tmp_path / "a")).difference(before) is None
    os.utime(paths[0], ns=(1, 1))
    clause = fingerprint(shards(tmp_path / "a")).difference(before)
    assert clause is not None
    assert "written again" in clause
    write_shards(tmp_path / "a", [4, 5])
    assert "9 images, the run had 8" in str(fingerprint(shards(tmp_path / "a")).difference(before))


def test_the_next_shards_are_copied_meanwhile(cache: Path, server: Server) -> None:
    write_shards(server.folder, [4] * 6)
    sizes = {f"train-{n:04d}.tar": 4 for n in range(6)}
    (server.folder / "sizes.json").write_text(json.dumps(sizes))
    images = shards(f"{server.url}/train-{{0000..0005}}.tar")
    copied = len(list((cache / "shards").glob("*.tar")))
    missing = [n for n in range(6) if f"/train-{n:04d}.tar" not in server.sent]
    assert missing
    images.fetch_ahead(missing)
    deadline = time.monotonic() + 20
    while len(list((cache / "shards").glob("*.tar"))) < copied + len(missing):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.close()
    assert images.read(4 * missing[0]) == expected(24)[4 * missing[0]]


@pytest.mark.parametrize(("size", "copies"), [("60KB", False), ("2MB", True)])
def test_a_cache_that_is_too_small_for_the_order_is_not_filled(
    server: Server, size: str, copies: bool
) -> None:
    write_shards(server.folder, [4] * 6)
    images = shards(f"{server.url}/train-{{0000..0005}}.tar", shards=Shards(size, 3, 3))
    assert images.store.copies == copies
    assert any("--cache_size" in note for note in images.notes) != copies


@pytest.mark.parametrize("removals", [1, 100])
def test_a_copy_that_is_removed_before_it_is_open_is_made_again_or_done_without(
    server: Server, monkeypatch: pytest.MonkeyPatch, removals: int
) -> None:
    """Another thread needed the room, between the copy's being found and opened."""
    write_shards(server.folder, [4] * 3)
    real, left = sources.open_regular, removals

    def open_regular(path: str | Path) -> int:
        nonlocal left
        if left > 0:
            left -= 1
            Path(path).unlink()
        return real(path)

    monkeypatch.setattr(sources, "open_regular", open_regular)
    images = shards(f"{server.url}/train-{{0000..0002}}.tar")
    assert left < removals
    assert contents(images) == expected(12)


def test_images_without_a_label_among_others_are_noted(tmp_path: Path) -> None:
    write_shards(tmp_path, [4])
    write_shards(tmp_path, [3], "more", classes=0)
    images = shards(tmp_path)
    assert images.labels is None
    assert any("3 of 7 images have none, first in more-0000.tar" in n for n in images.notes)


def test_images_that_are_requested_together_fit_in_memory(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(server.folder, [8])
    images = shards(f"{server.url}/train-0000.tar", shards=Shards("0"))
    sizes = [len(content) for content in expected(8)]
    monkeypatch.setattr(store, "_HELD_BYTES", sum(sizes[:5]))
    images.prepare(range(8))
    assert sum(len(content) for content in images.store._ready.values()) == sum(sizes[:5])
    assert contents(images) == expected(8)


def test_a_cache_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    write_shards(server.folder, [4])
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match=r"train-0000.tar: cannot be copied to .*/file"):
        load(f"{server.url}/train-0000.tar", "train", cache_dir=tmp_path / "file")


def test_images_beside_an_archive_are_a_folder_and_not_shards(tmp_path):
    """The class folders were not read, nor said, where the archive lies that they were in."""
    root = tmp_path / "pets"
    for i in range(12):
        path = root / "cd"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i, "png"))
    write_shards(root, [2], name="old")
    images = load(root, "train")
    assert isinstance(images, FileImages)
    assert (len(images), images.classes) == (10, ("c", "d"))
    assert images.notes[1] == (
        "ignored, since they are not images: 1 .tar (wds:FOLDER reads them as shards)"
    )
    assert len(shards(f"wds:{root}")) == 2
    write_shards(tmp_path / "split" / "train", [2])
    for each in ("c", "d"):
        (root / each).rename(tmp_path / "split" / "train" / each)
    assert len(load(tmp_path / "split", "train")) == 10
    assert len(shards(root)) == 2  # they are alone now
