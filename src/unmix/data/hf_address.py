"""Where a Hugging Face data set is, and its splits as they are opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unmix.errors import UserError
from unmix.files import as_path
from unmix.names import HUGGING_FACE

__all__ = ["Address", "splits_of"]


@dataclass(frozen=True)
class Address:
    """What `hf:...` names: `hf:NAME`, `hf:NAME:CONFIG`, `hf:NAME@REVISION`, or `hf:PATH`.

    Attributes:
        name: Name on the Hub, or a path.
        config: Name of the configuration, if it is given.
        revision: Branch, tag or commit on the Hub, if it is given.
        local: Whether it is a path.
    """

    name: str
    config: str | None
    revision: str | None
    local: bool

    @classmethod
    def of(cls, data: str) -> Address:
        """Parse `hf:...`. What exists as a path is one, and what looks like one."""
        text = data.removeprefix(HUGGING_FACE)
        if _is_path(text):
            return cls(text, None, None, True)
        before, mark, config = text.rpartition(":")
        if mark and _is_path(before):
            return cls(before, config, None, True)
        text, _, revision = text.partition("@")
        text, _, config = text.partition(":")
        if not text:
            raise UserError(f"{data!r} names no data set; give hf:NAME or hf:PATH.",
                            parameter="data")  # fmt: skip
        return cls(text, config or None, revision or None, False)

    def with_path(self, path: str) -> str:
        """The same, at another path."""
        return f"{HUGGING_FACE}{path}" + (f":{self.config}" if self.config else "")


def _is_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or (text != "" and as_path(text).exists())


def splits_of(address: Address, data: str) -> dict[str, Any]:
    """The splits of a data set by name.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{data} needs the datasets package: pip install 'unmix[hf]'", parameter="data"
        ) from None
    datasets.disable_progress_bars()
    path = as_path(address.name)
    if address.local and not path.exists():
        raise UserError(f"there is no {address.name}.", parameter="data")
    try:
        if not address.local:
            found = datasets.load_dataset(address.name, address.config, revision=address.revision)
        elif path.is_file():
            found = datasets.load_dataset("parquet", data_files=str(path))
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(path), address.config)
    except Exception as error:  # of the Hub, of Arrow, of the network
        raise _refused(address, data, error) from error
    if isinstance(found, datasets.Dataset):
        name = str(found.split or "train")
        return {name if name.isidentifier() else "train": found}
    return dict(found)


def _refused(address: Address, data: str, error: Exception) -> UserError:
    kind, text = type(error).__name__, (str(error).splitlines() or [""])[0].rstrip(".")
    if "config" in text.lower() and "missing" in text.lower():
        known = str(error).partition("[")[2].partition("]")[0].replace("'", "")
        return UserError(
            f"{data} has several configurations; give one as hf:{address.name}:CONFIG, of {known}.",
            parameter="data",
        )
    if address.local:
        return UserError(f"{data} cannot be read ({kind}: {text}).", parameter="data")
    revision = f" --revision {address.revision}" if address.revision else ""
    return UserError(
        f"{data} cannot be read from the Hub or its cache ({kind}: {text}). Without a network, run "
        f"`hf download {address.name} --repo-type dataset{revision} --local-dir FOLDER` where "
        "there is one, copy FOLDER here, and give hf:FOLDER.",
        parameter="data",
    )
