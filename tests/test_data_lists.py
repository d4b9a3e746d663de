"""Lists of image files: text, CSV, Parquet."""

from __future__ import annotations

import cProfile
import os
import pstats
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unmix.cli import main
from unmix.commands import knn
from unmix.data import FileImages, Lists, kept, list_cache, lists, load
from unmix.data.columns import Columns
from unmix.data.fingerprint import fingerprint
from unmix.errors import UserError
from unmix.training.run.folder import RunFolder

ROWS = [(f"img/{c}/{i} x.png", c) for c in ("cat", "dog") for i in range(10)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, (path, _) in enumerate(ROWS):
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place)
    return tmp_path


def listed(path: Path, split: str = "train", **words: Any) -> FileImages:
    found = load(path, split, **words)
    assert isinstance(found, FileImages)
    return found


def relative(images: FileImages, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in images.paths]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff", "# made by hand\n\n"])
def test_a_text_of_paths_is_relative_to_its_own_folder(root, end, start, monkeypatch):
    text = start.replace("\n", end) + end.join(path for path, _ in ROWS) + end
    monkeypatch.chdir("/")
    found = listed(write(root / "list.txt", text))
    assert relative(found, root) == [path for path, _ in ROWS]
    assert found.labels is None
    assert found.notes == ("split: train 20 images without classes",)
    with pytest.raises(UserError, match="has no test split; give each image its label in a CSV"):
        load(root / "list.txt", "test")


def test_names_with_spaces_bytes_that_are_no_utf8_and_a_hash_are_kept(root):
    for name in (b"\xff\xfe.png", b" a.png", b"b.png ", b"#c.png", "é.png".encode()):
        shutil.copy(root / ROWS[0][0], os.path.join(os.fsencode(root), name))
    text = b"\xff\xfe.png\n a.png\nb.png \n#c.png\n./#c.png\n\xc3\xa9.png\n"
    found = listed(write(root / "list.txt", b"\n" + text))
    names = [os.fsencode(path.name) for path in found.paths]
    assert names == [b"\xff\xfe.png", b" a.png", b"b.png ", b"#c.png", b"\xc3\xa9.png"]
    assert found.decode(0).size == (8, 8)


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_a_csv_with_a_header_has_labels_and_splits(root, mark):
    names = [f"{p}{mark}{'valid' if i % 5 == 0 else 'train'}{mark}{c}" for i, (p, c) in
             enumerate(ROWS)]  # fmt: skip
    path = write(root / "list.csv", "\n".join([mark.join(("File", "Subset", "CLASS")), *names]))
    train, test = listed(path), listed(path, "test")
    assert relative(train, root) == [p for i, (p, _) in enumerate(ROWS) if i % 5]
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels is not None
    assert train.labels.tolist() == [0] * 8 + [1] * 8
    assert test.labels is not None
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert train.notes == (
        "split: train 16 images in 2 classes (cat, dog) from train, evaluation on 4 from valid "
        "(paths from column File, labels from CLASS, splits from Subset)",
    )


def test_a_csv_without_a_header_is_recognized_by_its_first_path(root):
    text = "".join(f"{number},{path},train\r\n" for number, (path, _) in enumerate(ROWS))
    found = listed(write(root / "list.csv", text))
    assert len(found) == 20
    assert found.classes == tuple(map(str, range(20)))  # as numbers, not as text
    assert found.labels is not None
    assert found.labels.tolist() == list(range(20))
    pair = write(root / "pair.csv", "".join(f"{path},{c}\n" for path, c in ROWS))
    assert listed(pair).classes == ("cat", "dog")
    four = write(root / "four.csv", "".join(f"{path},{c},x,y\n" for path, c in ROWS))
    with pytest.raises(UserError, match="columns 2 and 3 and 4 beside the paths; say which"):
        load(four, "train")
    assert listed(four, lists=Lists(Columns(label="2"))).classes == ("cat", "dog")


def test_a_quoted_name_may_hold_the_separator(root):
    shutil.copy(root / ROWS[0][0], root / "a,b.png")
    path = write(root / "list.csv", 'path,label\n"a,b.png",1\n' + f"{ROWS[1][0]},2\n")
    assert relative(listed(path), root) == ["a,b.png", ROWS[1][0]]
    bad = write(root / "bad.csv", f"path,label\n{ROWS[1][0]},2\na,b.png,1\n")
    with pytest.raises(UserError, match=r"line 3 has 3 cells, the first 2; a name with ',' in it"):
        load(bad, "train")


def test_parquet_has_paths_labels_and_splits(root):
    splits = ["test" if i % 5 == 0 else "train" for i in range(20)]
    numbers = [0 if c == "cat" else 1 for _, c in ROWS]
    table = pa.table({"image": [p for p, _ in ROWS], "label": numbers, "split": splits})
    pq.write_table(table, root / "list.parquet")
    train, test = listed(root / "list.parquet"), listed(root / "list.parquet", "test")
    assert (len(train), len(test), train.classes) == (16, 4, ("0", "1"))
    pixels = pa.table({"image": [{"bytes": b"x", "path": "a"}]})
    pq.write_table(pixels, root / "images.parquet")
    with pytest.raises(UserError, match=r"holds images, not paths; give hf:.*images\.parquet"):
        load(root / "images.parquet", "train")
    write(root / "no.parquet", b"PAR1")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        load(root / "no.parquet", "train")


def test_a_path_that_is_listed_again_is_in_one_part_of_the_split(root):
    """Each row was held out by itself, so that an image was in both."""
    rows = [*ROWS[:5], *ROWS[10:15]] * 2
    single, other = ROWS[15][0], ROWS[16][0]
    rows += [(single, "ant"), (single, "ant"), (other, "bee"), *[(other, "dog")] * 6]
    path = write(root / "list.csv", "path,label\n" + "".join(f"{p},{c}\n" for p, c in rows))
    train, test = listed(path), listed(path, "test")
    assert {*train.paths}.isdisjoint({*test.paths})
    assert len(train) + len(test) == len(rows)
    assert train.classes is not None
    assert test.labels is not None
    held = [train.classes[label] for label in test.labels]
    assert held.count("cat") == 2
    assert "ant" not in held  # an image alone is not split, however often it is listed


def test_the_same_images_are_held_out_as_of_the_folder(root):
    path = write(root / "list.csv", "path,label\n" + "".join(f"{p},{c}\n" for p, c in ROWS))
    for split in ("train", "test"):
        of_folder = load(root / "img", split)
        assert isinstance(of_folder, FileImages)
        assert set(listed(path, split).paths) == set(of_folder.paths)
        assert (listed(path).mean, listed(path).std) == (of_folder.mean, of_folder.std)


@pytest.mark.parametrize(
    ("labels", "classes", "why"),
    [
        (["10", "9"], ("9", "10"), None),
        (["01", "1"], ("01", "1"), None),
        (["1.0", "2.0"], ("1", "2"), None),
        (["a", ""], None, "10 images have no label"),
        (["3", "-1"], None, "10 images have no label"),
        (["a", "a"], None, "all have one label"),
    ],
)
def test_labels_are_names_or_numbers(root, labels, classes, why):
    text = "".join(f"{p},{labels[i % 2]}\n" for i, (p, _) in enumerate(ROWS))
    found = listed(write(root / "list.csv", "path,label\n" + text))
    assert found.classes == classes
    assert (why is None) or f"without classes ({why})" in found.notes[0]


def test_what_is_not_there_is_counted_and_named_before_training(root):
    os.mkfifo(root / "f.png")
    text = "gone/1.png\n../gone.png\nimg\nf.png\n" + "\n".join(p for p, _ in ROWS)
    path = write(root / "list.txt", text)
    found = listed(path)
    assert len(found) == 20
    assert found.notes[1:] == (
        f"warning: left out: 2 of 24 paths do not exist: gone/1.png, {root.parent}/gone.png",
        "warning: left out: 1 of 24 paths is a folder; list its files: img",
        "warning: left out: 1 of 24 paths is a FIFO, not a regular file: f.png",
    )
    with pytest.raises(UserError, match="2 of 24 paths do not exist"):
        load(path, "train", strict=True)


def test_a_list_of_nothing_that_exists_says_what_may_be_meant(root, monkeypatch):
    (root / "lists").mkdir()
    paths = "\n".join(p for p, _ in ROWS)
    path = write(root / "lists" / "list.txt", paths)
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match=r"20 of 20 paths do not exist.* not to the working dir"):
        load(path, "train")
    labeled = write(root / "labeled.txt", "\n".join(f"{p} {c}" for p, c in ROWS))
    with pytest.raises(UserError, match=r"With more than a path in a line.*save it as a CSV"):
        load(labeled, "train")
    windows = write(root / "windows.txt", paths.replace("/", "\\"))
    with pytest.raises(UserError, match="Write / between folders"):
        load(windows, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no images"),
        (b"# nothing\n\n", "lists no images"),
        (b"a\0b\n", "is not a text"),
        ("a.png\n".encode("utf-16"), "is a text in UTF-16; save it as UTF-8"),
        (b"s3://bucket/a.png\n", "lists s3://bucket/a.png; only files are read from a list"),
        (b"a.png\t1\nb.png\t2\n", "a list with columns is called .tsv"),
    ],
)
def test_a_text_that_is_no_list_is_told(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        load(write(tmp_path / "list.txt", content), "train")


def test_repeated_paths_and_contradicting_labels_are_said(root):
    text = "path,label\n" + "".join(f"{p},{c}\n" for p, c in ROWS)
    text += f"./{ROWS[0][0]},cat\n{root}//{ROWS[1][0]},dog\n"
    notes = listed(write(root / "list.csv", text)).notes
    assert any("2 paths are listed more than once" in note for note in notes)
    assert any(note.startswith("warning: 1 path listed with several labels") for note in notes)


def test_an_image_of_both_splits_is_warned_of(root):
    text = "path,label,split\n" + "".join(f"{p},{c},train\n" for p, c in ROWS)
    text += f"{ROWS[0][0]},cat,test\n"
    notes = listed(write(root / "list.csv", text)).notes
    assert any("1 of the images to evaluate on is a training image too" in n for n in notes)


def test_columns_and_splits_that_are_not_there_name_the_nearest(root):
    text = "where,kind,part\n" + "".join(f"{p},{c},a\n" for p, c in ROWS)
    path = write(root / "list.csv", text)
    with pytest.raises(UserError) as caught:
        load(path, "train")
    assert "--image_column" in caught.value.on_command_line()
    assert "where, kind, part" in str(caught.value)
    with pytest.raises(UserError, match=r"image_column: .*no column 'were'.*mean 'where'"):
        load(path, "train", lists=Lists(Columns("were")))
    chosen = Columns("where", "kind", "part")
    assert len(load(path, "train", lists=Lists(chosen))) == 20 - 2  # a single split: held out
    with pytest.raises(UserError, match="train_folder: there is no split 'b'"):
        load(path, "train", lists=Lists(chosen), train_folder="b")
    with pytest.raises(UserError, match="image_column: applies only to a list"):
        load(root / "img", "train", lists=Lists(Columns("where")))
    with pytest.raises(UserError, match=r"image_column: .* is a text of paths"):
        load(write(root / "a.txt", ROWS[0][0]), "train", lists=Lists(Columns("path")))


def test_ambiguous_splits_of_a_list_are_settled_by_name(root):
    text = "path,label,split\n" + "".join(
        f"{p},{c},{('a', 'b', 'validation')[i % 3]}\n" for i, (p, c) in enumerate(ROWS)
    )
    path = write(root / "list.csv", text)
    with pytest.raises(UserError, match=r"train_folder: .* has a, b, validation: none"):
        load(path, "train")
    found = listed(path, train_folder="b")
    assert "not used: a" in found.notes[0]
    assert len(listed(path, "test", train_folder="b", test_folder="a")) == 7


def test_a_run_from_a_list_is_resumed_elsewhere_and_evaluated(root, tmp_path):
    text = "file,label\n" + "".join(f"{p},{c}\n" for p, c in ROWS)
    write(root / "list.csv", text)
    run = tmp_path / "run"
    tiny = ["--method", "simclr", "--backbone", "resnet10", "--width", "0.125", "--dim", "8",
            "--hidden", "8", "--size", "8", "--batch_size", "8", "--epochs", "1", "--device",
            "cpu", "--logger", "none", "--knn_every", "0", "--workers", "0"]  # fmt: skip
    assert main(["pretrain", *tiny, "--data", str(root / "list.csv"), "--run", str(run)]) == 0
    assert RunFolder(run).settings().run.data == str(root / "list.csv")
    assert knn(str(run))["test_images"] == 2
    moved = tmp_path / "moved"
    shutil.copytree(root / "img", moved / "img")
    shutil.copy(root / "list.csv", moved)
    assert fingerprint(load(moved / "list.csv", "train")) == fingerprint(
        load(root / "list.csv", "train")
    )
    assert "data" not in knn(str(run), data=str(moved / "list.csv"))


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of 100,000 files: 1,000 of them in a folder that has 100 names."""
    root = tmp_path_factory.mktemp("long")
    (root / "store").mkdir()
    for i in range(1000):
        Image.new("RGB", (2, 2), (i % 256, 9, 9)).save(root / "store" / f"{i}.bmp")
    for folder in range(100):
        (root / f"f{folder:02}").symlink_to("store")
    rows = [f"f{n % 100:02}/{n // 100}.bmp,{n % 8}\n" for n in range(100_000)]
    write(root / "list.csv", "path,label\n" + "".join(rows))
    return root


def work(call: Callable[[], FileImages]) -> tuple[FileImages, int, int]:
    """What a call gives, the number of calls of functions within it, and those of `os.stat`."""
    profile = cProfile.Profile()
    found = profile.runcall(call)
    stats = pstats.Stats(profile)
    asked = sum(count for (_, _, name), (_, count, *_) in stats.stats.items()  # type: ignore[attr-defined]
                if name == "<built-in method posix.stat>")  # fmt: skip
    return found, stats.total_calls, asked  # type: ignore[attr-defined]


def test_a_long_list_is_read_with_little_work_and_once(long, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "_SETTLED", 0)
    words = {"lists": Lists(manifest=True), "cache_dir": tmp_path / "cache"}
    path = long / "list.csv"
    plain, calls, asked = work(lambda: listed(path))
    assert (len(plain), plain.classes) == (90_000, tuple("01234567"))
    assert calls < 20 * 100_000  # 48 a line before
    assert asked < 3000  # of the images that statistics are of, not of each
    first = listed(path, **words)
    again, calls, asked = work(lambda: listed(path, **words))
    assert calls < 100_000 / 2
    assert asked < 3000
    assert fingerprint(again, sizes=False) == fingerprint(plain, sizes=False)
    assert first.notes == plain.notes
    assert again.notes[:-1] == plain.notes
    assert "note: 100,000 paths are from" in again.notes[-1]


@pytest.fixture
def short(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list that is kept though it is short."""
    monkeypatch.setattr(list_cache, "_FEWEST", 1)
    monkeypatch.setattr(kept, "_SETTLED", 0)
    text = "".join(f"{p},{c},{'test' if i % 5 == 0 else 'train'}\n" for i, (p, c) in
                   enumerate(ROWS))  # fmt: skip
    write(root / "list.csv", "path,label,split\n" + text)
    return root


KEPT = Lists(manifest=True)


def is_kept(root: Path, split: str = "train", columns: Columns | None = None, **more: Any) -> bool:
    """Whether a list is not read; what is found must be what it says."""
    columns = columns or Columns()
    words: dict[str, Any] = {"lists": Lists(columns, True), "cache_dir": root / "cache", **more}
    with pytest.MonkeyPatch.context() as patch:
        read: list[Path] = []
        table = lists.read_table
        patch.setattr(lists, "read_table", lambda *each: read.append(each[0]) or table(*each))
        found = listed(root / "list.csv", split, **words)
    plain = listed(root / "list.csv", split, lists=Lists(columns), **more)
    assert fingerprint(found) == fingerprint(plain)
    assert [note for note in found.notes if not note.startswith("note:")] == list(plain.notes)
    return not read


def test_a_list_is_read_again_when_it_or_a_folder_or_a_setting_is_another(short):
    assert [is_kept(short), is_kept(short), is_kept(short, "test")] == [False, True, True]
    (short / "img" / "cat" / "0 x.png").rename(short / "img" / "cat" / "away.png")
    assert [is_kept(short, "test"), is_kept(short, "test"), is_kept(short)] == [False, True, True]
    with pytest.raises(UserError, match="1 of 4 paths does not exist"):
        listed(short / "list.csv", "test", strict=True, lists=KEPT, cache_dir=short / "cache")
    (short / "img" / "cat" / "away.png").rename(short / "img" / "cat" / "0 x.png")
    assert not is_kept(short)
    write(short / "list.csv", (short / "list.csv").read_bytes().replace(b",dog", b",cow"))
    assert [is_kept(short), is_kept(short)] == [False, True]
    assert not is_kept(short, columns=Columns(label="split"))
    assert not is_kept(short, train_folder="test", test_folder="train")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b'"cat"', b'"car"'),
        lambda content: signed(body(content).replace(b'"count": 16', b'"count": 15')),
        lambda content: signed(body(content).replace(b'"labels": [0', b'"labels": [9')),
        lambda content: signed(b"[]"),
        lambda content: signed(b"[" * 100_000),
    ],
)  # fmt: skip
def test_what_is_kept_of_a_list_and_damaged_is_read_anew(short, damage):
    assert not is_kept(short)
    (file,) = (short / "cache" / "listings").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert not is_kept(short)
    assert file.read_bytes() == whole


def body(content: bytes) -> bytes:
    return content.partition(b"\n")[2]


def signed(content: bytes) -> bytes:
    """What the cache holds, with a checksum that is right."""
    return kept.checksum(content) + b"\n" + content


def test_a_list_that_was_just_written_or_whose_names_are_odd_is_not_kept(short, monkeypatch):
    odd = "img/cat/a\nb \udcff.png"
    shutil.copy(short / ROWS[0][0], short / odd)
    with (short / "list.csv").open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f'"{odd}",cat,train\n')
    assert [is_kept(short), is_kept(short)] == [False, True]
    monkeypatch.setattr(kept, "_SETTLED", 10**15)
    shutil.rmtree(short / "cache")
    assert [is_kept(short), is_kept(short)] == [False, False]


def test_a_csv_of_many_lines_names_the_first_that_is_wrong(tmp_path):
    lines = [f"{i}.png,{i % 3}" for i in range(1000)]
    lines[700] += ",x"
    lines[710] += '"a'
    with pytest.raises(UserError, match="line 701 has 3 cells, the first 2"):
        load(write(tmp_path / "list.csv", "\n".join(lines)), "train")


def test_commands_read_another_table_by_the_columns_that_they_are_given(root, tmp_path, capsys):
    rows = [f"{p},{c},{'a' if i % 5 else 'b'}" for i, (p, c) in enumerate(ROWS)]
    own = write(root / "own.csv", "\n".join(["where,kind,part", *rows]))
    write(root / "other.csv", "\n".join(["place,sort,piece", *rows]))
    run = tmp_path / "run"
    tiny = ["--method", "simclr", "--backbone", "resnet10", "--width", "0.125", "--dim", "8",
            "--hidden", "8", "--size", "8", "--batch_size", "8", "--epochs", "1", "--device",
            "cpu", "--logger", "none", "--knn_every", "0", "--workers", "0", "--image_column",
            "where", "--label_column", "kind", "--split_column", "part", "--train_folder", "a",
            "--test_folder", "b"]  # fmt: skip
    assert main(["pretrain", *tiny, "--data", str(own), "--run", str(run)]) == 0
    assert knn(str(run))["test_images"] == 4
    others = ["--image_column", "place", "--label_column", "sort", "--split_column", "piece",
              "--train_folder", "a", "--test_folder", "b"]  # fmt: skip
    data = ["--data", str(root / "other.csv")]
    features = ["--out", str(tmp_path / "f.npz")]
    for words in (["knn"], ["probe"], ["embed", *features]):
        capsys.readouterr()
        assert main([words[0], str(run), *words[1:], *data]) == 2
        assert "--image_column" in capsys.readouterr().err
        assert main([words[0], str(run), *words[1:], *data, *others]) == 0
    with np.load(tmp_path / "f.npz") as found:
        assert len(found["features"]) == 20
    capsys.readouterr()
    assert main(["knn", str(run), "--image_column", "whom"]) == 2
    assert "no column 'whom'; it has where, kind, part" in capsys.readouterr().err
    assert main(["knn", str(run), "--data", str(root / "img"), "--label_column", "x"]) == 2
    assert "--label_column: applies only to a list of files" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("with_splits", [False, True])
def test_a_row_without_a_path_takes_its_label_and_its_split_along(root, kind, with_splits):
    """Every later image had the label of its neighbor, and its split."""
    rows = [(path, c, "valid" if i % 4 == 3 else "train") for i, (path, c) in enumerate(ROWS)]
    rows.sort(key=lambda row: row[0][-9:])  # cats and dogs in turn
    rows.insert(1, ("", "cat", "valid"))
    rows.insert(5, (" ", "dog", "train"))
    names = ["path", "label", "split"][: 3 if with_splits else 2]
    table = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    if kind == "csv":
        cells = [names, *zip(*table.values(), strict=True)]
        write(root / "list.csv", "".join(",".join(row) + "\n" for row in cells))
    else:
        pq.write_table(pa.table(table), root / "list.parquet")
    path, seen = root / f"list.{kind}", 0
    for split in ("train", "test"):
        images = listed(path, split)
        assert images.labels is not None
        found = zip(relative(images, root), images.labels.tolist(), strict=True)
        assert all(images.classes[label] == Path(name).parent.name for name, label in found)
        if with_splits:
            role = "train" if split == "train" else "valid"
            assert set(relative(images, root)) == {
                r[0] for r in rows if r[2] == role and r[0] > " "
            }
        seen += len(images)
    assert seen == len(ROWS)
    assert "warning: left out: 2 of 22 rows have no path, first 2" in listed(path).notes
    with pytest.raises(UserError, match="2 of 22 rows have no path, first 2"):
        load(path, "train", strict=True)
