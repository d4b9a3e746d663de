"""YAML that anyone may have written: plain values within bounds, or one line."""

from __future__ import annotations

import os
import re
from typing import Any

import yaml

from unmix.files import read_text

__all__ = ["INVALID", "YamlError", "parse_yaml", "read_yaml", "why_not"]

INVALID = "it is not valid YAML"
_MOST_BYTES, _MOST_VALUES, _DEEPEST, _MOST_DIGITS = 1 << 20, 100_000, 20, 40
_SCALARS = ("null", "bool", "int", "float", "str")
_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + name for name in (*_SCALARS, "seq", "map", "merge")}


class YamlError(ValueError):
    """Why a text is not read, in a clause; with the line, if one is at fault."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Plain values alone: a date such as 2026-01-02 is a text."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in known if tag in _PLAIN]
    for letter, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file of at most 1 MiB.

    Raises:
        OSError: if it cannot be read, is not a regular file, or is larger.
        UnicodeDecodeError: if it is not UTF-8.
        YamlError: as `parse_yaml`.
    """
    return parse_yaml(read_text(path, _MOST_BYTES))


def why_not(error: Exception) -> str:
    """The clause for an error of `read_yaml`."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    line = getattr(error, "line", None)
    return f"{error}, line {line}" if line and str(error) != INVALID else str(error)


def parse_yaml(text: str) -> Any:
    """Parse YAML of mappings, lists, texts, numbers, true, false and null.

    Raises:
        YamlError: if it is not YAML, has a key twice, a tag, an alias of what it is within, a
            number of more than 40 digits, or more than 100,000 values or 20 levels, counting what
            an alias stands for wherever it is used.
    """
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise YamlError(INVALID, mark.line + 1 if mark else None) from None
    except yaml.YAMLError:
        raise YamlError(INVALID) from None
    except RecursionError:
        raise YamlError(f"it is nested more than {_DEEPEST} deep") from None
    except YamlError:
        raise
    except (ValueError, TypeError, OverflowError):  # a number that Python does not take
        raise YamlError(INVALID) from None
    finally:
        if loader is not None:
            loader.dispose()


def _check(root: yaml.Node) -> None:
    sizes: dict[int, tuple[int, int]] = {}
    within: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        """The number of values in a node, itself included, and its levels."""
        if id(node) in within:
            raise YamlError("an alias stands for what it is within", node.start_mark.line + 1)
        if id(node) not in sizes:
            within.add(id(node))
            _check_tag(node)
            inner = [measure(child) for child in _children(node)]
            sizes[id(node)] = (
                1 + sum(count for count, _ in inner),
                1 + max((levels for _, levels in inner), default=0),
            )
            within.remove(id(node))
        return sizes[id(node)]

    count, levels = measure(root)
    if count > _MOST_VALUES:
        raise YamlError(f"it has more than {_MOST_VALUES:,} values, with those of its aliases")
    if levels > _DEEPEST:
        raise YamlError(f"it is nested more than {_DEEPEST} deep")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if not isinstance(node, yaml.MappingNode):
        return []
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise YamlError("a key is not a text", line)
        if key.value in lines:
            first = lines[key.value]
            raise YamlError(f"lines {first} and {line} both set {key.value}; keep one")
        lines[key.value] = line
    return [child for pair in node.value for child in pair]


def _check_tag(node: yaml.Node) -> None:
    line = node.start_mark.line + 1
    if node.tag not in _PLAIN:
        tag = node.tag.removeprefix(_TAG)
        raise YamlError(f"it has a tag, {tag[:60]}, which is not read", line)
    if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}int":
        digits = len(re.sub(r"\W|_", "", node.value))
        if digits > _MOST_DIGITS:
            raise YamlError(f"it has a number of {digits:,} digits", line)
