"""From what the user gives to the shards: braces, patterns, folders, lists, splits."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from unmix.data.streams.remote import ShardError, facts, filesystem, local_path, read_range
from unmix.errors import UserError
from unmix.files import parse_json
from unmix.names import SHARDS

__all__ = ["Given", "absolute_spec", "expand_braces", "one_spelling", "shards_of"]

_MOST = 1_000_000
_LIST_BYTES = 1 << 28
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_PACKED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
_SPLIT = re.compile(r"(train|validation|valid|val|test)(?=$|[^a-z])", re.IGNORECASE)
_SIZES = "sizes.json"
_ALIASES = {"s3a": "s3", "gcs": "gs"}


@dataclass
class Given:
    """Shards by URL, in order.

    Attributes:
        urls: Each with the number of its samples, or None.
        base: Folder or prefix that names of a split are relative to.
    """

    urls: dict[str, int | None] = field(default_factory=dict)
    base: str = ""


def expand_braces(text: str) -> Iterator[str]:
    """All words of a pattern: `{000..146}`, with leading zeros as given, and `{a,b}`.

    Raises:
        UserError: if a range is reversed, or they are more than a million.
    """
    match = _BRACES.search(text)
    if match is None:
        yield text
        return
    if (many := _product(text)) > _MOST:
        raise UserError(
            f"{text}: stands for {many:,} shards, more than a million.", parameter="data"
        )
    found = _RANGE.fullmatch(match[1])
    if found is None and "," not in match[1]:
        raise UserError(
            f"{text}: {match[0]} is neither a range such as {{000..146}} nor a list such as "
            "{a,b}.", parameter="data",
        )  # fmt: skip
    if found is None:
        words: list[str] | Iterator[str] = match[1].split(",")
    else:
        first, last = int(found[1][:19]), int(found[2][:19])
        if last < first or last - first >= _MOST:
            raise UserError(
                f"{text}: {match[0]} must be an increasing range of at most a million shards.",
                parameter="data",
            )
        width = len(found[1]) if found[1].startswith("0") else 0
        words = (f"{number:0{width}d}" for number in range(first, last + 1))
    for word in words:
        yield from expand_braces(text[: match.start()] + word + text[match.end() :])


def _product(text: str) -> int:
    """How many words a pattern has, if its braces are not nested."""
    count = 1
    for match in _BRACES.finditer(text):
        found = _RANGE.fullmatch(match[1])
        last, first = (int(found[2][:19]), int(found[1][:19])) if found else (0, 0)
        count *= max(1, last - first + 1) if found else match[1].count(",") + 1
    return count


def absolute_spec(spec: str) -> str:
    """The same shards from any working directory: local paths are made absolute."""
    prefix = SHARDS if spec.startswith(SHARDS) else ""
    parts = spec.removeprefix(SHARDS).split("::")
    return prefix + "::".join(map(_absolute, parts))


def _absolute(text: str) -> str:
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


def one_spelling(url: str) -> str:
    """The same text for all the ways to write where a shard is, to compare them.

    Shards keep the spelling they were given in, which names them in caches and messages.
    """
    path = local_path(url)
    if path is not None:
        return os.path.realpath(path)
    protocol, _, rest = url.partition("://")
    place, mark, query = rest.partition("?")
    host, slash, inside = place.partition("/")
    if protocol in ("http", "https"):
        host, inside = host.lower(), unquote(inside)
    inside = posixpath.normpath(f"/{inside}").lstrip("/")
    return f"{_ALIASES.get(protocol, protocol)}://{host}{slash}{inside}{mark}{query}"


def shards_of(spec: str, base: str | None = None) -> Given:
    """The shards that a text stands for.

    Args:
        spec: One or several, joined by `::`, of: a tar file, with braces or a pattern (`*`, `?`,
            `[...]`); a folder or a prefix of a bucket; a text file with one of these in each line;
            a JSON file `{"shardlist": [{"url": ..., "nsamples": ...}]}`. Each a path or a URL.
        base: What relative paths are relative to, if not to the working directory.

    Raises:
        UserError: if there are none.
    """
    given = Given()
    for part in spec.removeprefix(SHARDS).split("::"):
        if base is not None and "://" not in part and not os.path.isabs(part):
            part = f"{base.rstrip('/')}/{part}"
        for text in expand_braces(_absolute(part)):
            for url, count in _shards_at(text):
                given.urls.setdefault(url, count)
                if len(given.urls) > _MOST:
                    raise UserError(f"{spec}: is more than a million shards.", parameter="data")
        folder = part if _is_folder(part) else part.partition("{")[0].partition("*")[0]
        given.base = given.base or _absolute(folder if _is_folder(part) else _parent(folder))
    if not given.urls:
        raise UserError(f"{spec}: there are no shards (.tar) there.", parameter="data")
    return _with_sizes(given)


def _parent(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[0]


def _ending(url: str) -> str:
    return (url.partition("?")[0] if "://" in url else url).lower()


def _is_folder(text: str) -> bool:
    return not _ending(text).endswith((".tar", ".txt", ".json", *_PACKED))


def _shards_at(text: str) -> Iterator[tuple[str, int | None]]:
    ending = _ending(text)
    if ending.endswith(_PACKED):
        raise UserError(
            f"{text}: is compressed; images of a compressed shard cannot be read one by one: "
            "unpack it to .tar (images are compressed already).", parameter="data",
        )  # fmt: skip
    wild = any(letter in text for letter in ("*[" if "://" in text else "*?["))
    if wild and not os.path.exists(text):
        found = _globbed(text)
        if not found:
            raise UserError(f"{text}: no shard matches this pattern.", parameter="data")
        yield from ((url, None) for url in found)
    elif ending.endswith(".txt"):
        for line in _text(text).splitlines():
            if (word := line.strip()) and not word.startswith("#"):
                given = shards_of(word, _parent(text))
                yield from given.urls.items()
    elif ending.endswith(".json"):
        yield from _listed(text)
    elif _is_folder(text):
        yield from ((url, None) for url in _in_folder(text))
    else:
        yield text, None


def _globbed(pattern: str) -> list[str]:
    fs, place = filesystem(pattern)
    found = _listing(pattern, lambda: fs.glob(place))
    return [_url(fs, pattern, str(name)) for name in sorted(found) if str(name).endswith(".tar")]


def _in_folder(folder: str) -> list[str]:
    """The tar files in a folder, and in those in it that are splits."""
    fs, place = filesystem(folder)
    entries = _listing(folder, lambda: fs.ls(place, detail=True))
    tars, inner = [], []
    for entry in entries:
        name = str(entry["name"]).rstrip("/")
        if entry.get("type") == "directory" and _SPLIT.fullmatch(name.rpartition("/")[2]):
            inner += _listing(folder, lambda name=name: fs.ls(name, detail=False))
        elif name.endswith(".tar"):
            tars.append(name)
    tars += [str(name) for name in inner if str(name).endswith(".tar")]
    return [_url(fs, folder, name) for name in sorted(set(tars))]


def _listing(url: str, call: Any) -> Any:
    try:
        return call()
    except FileNotFoundError:
        raise UserError(f"{url}: there is no such folder.", parameter="data") from None
    except UserError:
        raise
    except Exception as error:  # libraries of each protocol have their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{url}: cannot be listed ({reason}).", parameter="data") from None


def _url(fs: Any, given: str, name: str) -> str:
    if local_path(given) is not None:
        return name
    return name if "://" in name else f"{given.partition('://')[0]}://{name}"


def _text(url: str) -> str:
    size = facts(url).size
    if size > _LIST_BYTES:
        raise UserError(f"{url}: a list of {size:,} bytes is too long.", parameter="data")
    path = local_path(url)
    try:
        if path is not None:
            with open(path, encoding="utf-8") as file:
                return file.read()
        return read_range(url, 0, size).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text in UTF-8"
        raise UserError(f"{url}: cannot be read ({reason}).", parameter="data") from None


def _json(url: str) -> Any:
    text = _text(url)
    try:
        return parse_json(text, url)
    except UserError as error:
        raise UserError(str(error), parameter="data") from None


def _listed(url: str) -> Iterator[tuple[str, int | None]]:
    """The shards of an index of WebDataset."""
    content = _json(url)
    listed = content.get("shardlist") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise UserError(
            f'{url}: is no list of shards; it needs {{"shardlist": [{{"url": ..., "nsamples": '
            "...}, ...]}.", parameter="data",
        )  # fmt: skip
    for entry in listed:
        name = entry.get("url") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise UserError(f"{url}: an entry of its shardlist has no url.", parameter="data")
        whole = name if "://" in name or os.path.isabs(name) else f"{_parent(url)}/{name}"
        yield whole, _count(url, name, entry.get("nsamples"))


def _count(where: str, name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 40:
        raise UserError(
            f"{where}: the number of samples of {name} is {value!r}; it must be a positive "
            "integer.", parameter="data",
        )  # fmt: skip
    return value


def _with_sizes(given: Given) -> Given:
    """Add the numbers of samples of each `sizes.json` beside shards without one."""
    sizes: dict[str, Mapping[str, Any]] = {}
    for url in [url for url, count in given.urls.items() if count is None]:
        folder = _parent(url)
        if folder not in sizes:
            sizes[folder] = _sizes(f"{folder}/{_SIZES}", url)
        name = url.partition("?")[0].rpartition("/")[2]
        given.urls[url] = _count(f"{folder}/{_SIZES}", name, sizes[folder].get(name))
    return given


def _sizes(url: str, shard: str) -> Mapping[str, Any]:
    path = local_path(url)
    if path is not None and not os.path.isfile(path):
        return {}
    try:
        facts(url)
    except UserError as error:
        if isinstance(error, ShardError) and error.refused:
            return {}
        facts(shard)  # rather name a shard, where the server cannot be reached
        raise
    content = _json(url)
    return content if isinstance(content, dict) else {}
