"""Compares the tensors of a file with those a network wants, by name and shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

_MAX_NAMED = 8  # names of a kind in the one-line message


@dataclass(frozen=True)
class Mismatch:
    """What keeps a file from fitting a network: names, and for `misshapen` the shapes as well."""

    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    misshapen: tuple[str, ...]

    def __bool__(self) -> bool:
        return any(names for _, names in self._kinds())

    def lines(self) -> list[str]:
        """Returns one line for every tensor that does not fit."""
        return [f"{kind}: {name}" for kind, names in self._kinds() for name in names]

    def summary(self) -> str:
        """Returns one line with the number of each kind and the first names."""
        return "; ".join(
            f"{len(names)} {kind}: {_first(names)}" for kind, names in self._kinds() if names
        )

    def _kinds(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return (
            ("missing", self.missing),
            ("left over", self.left_over),
            ("misshapen", self.misshapen),
        )


class MismatchError(ValueError):
    """A file does not fit a network; the message is one line, `mismatch` has every name."""

    def __init__(self, what: str, mismatch: Mismatch) -> None:
        super().__init__(f"{what}: {mismatch.summary()}")
        self.mismatch = mismatch


def compare(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Mismatch:
    """Returns how the tensors `found` differ from the tensors `wanted` in name and shape."""
    return Mismatch(
        missing=tuple(sorted(wanted.keys() - found.keys())),
        left_over=tuple(sorted(found.keys() - wanted.keys())),
        misshapen=tuple(
            f"{name} {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in sorted(found.keys() & wanted.keys())
            if found[name].shape != wanted[name].shape
        ),
    )


def require_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Raises a `MismatchError` that begins with `what` unless names and shapes agree."""
    mismatch = compare(found, wanted)
    if mismatch:
        raise MismatchError(what, mismatch)


def _first(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
