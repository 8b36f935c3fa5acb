"""Which parts of a network keep their weights."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Stops the parameters that `patterns` name, or whose modules they name, from learning.

    Raises:
        ValueError: a pattern names nothing, or nothing is left that learns.
    """
    for pattern in patterns:
        named = [
            parameter
            for name, parameter in model.named_parameters()
            if any(fnmatchcase(part, pattern) for part in _prefixes(name))
        ]
        if not named:
            names = sorted(
                {part for name, _ in model.named_parameters() for part in _prefixes(name)}
            )
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
            raise ValueError(f"--train.frozen {pattern!r} names nothing; did you mean {near[0]!r}?")
        for parameter in named:
            parameter.requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"--train.frozen {' '.join(patterns)} leaves nothing to learn")


def _prefixes(name: str) -> Iterator[str]:
    """The names of a parameter and of all modules it is in: a.b.weight, a.b, a."""
    while name:
        yield name
        name = name.rpartition(".")[0]
