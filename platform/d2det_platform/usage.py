"""Command lines to options, and what is wrong with a command line in one line."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import tyro
from pydantic import BaseModel

Options = TypeVar("Options")

_COLOURS = re.compile("\x1b\\[[0-9;]*m")
_WIDE = "1000"
"""Columns of the pretended terminal, so that no message is broken in the middle of a path."""
_INVALID = re.compile(
    r"(?:parsing (?P<group>[a-z][\w.-]*): .*?)?"
    r"for \w+ (?:(?P<field>[a-z]\w*)[\d.]* )?(?P<problem>(?:Input|Value|Tuple|List|String) .*?) "
    r"\[type=\w+, input_value=(?P<value>.*?), input_type="
)
"""A pydantic error in one line: parsing group: 1 validation error for Model field Problem
[type=..., input_value=..., ...]; places in a list are numbers behind the field."""


class UsageError(ValueError):
    """A command line that cannot be carried out; the message is one line for the person."""


def parse(options: type[Options], args: Sequence[str], *, prog: str) -> Options:
    """Returns the options in `args`; where they ask for help, prints it and exits.

    Raises:
        UsageError: With what is wrong and, for an unknown option, the nearest valid one.
    """
    flags = list(option_flags(options))
    return explained(lambda: tyro.cli(options, prog=prog, args=args), args, flags=flags)


def option_flags(options: type, prefix: str = "--") -> Iterator[str]:
    """Yields the flags of a model's options, nested ones with dots; names given to tyro hold."""
    if not issubclass(options, BaseModel):
        return
    for name, field in options.model_fields.items():
        given = [note.name for note in field.metadata if getattr(note, "name", None)]
        flag = prefix + (given[0] if given else name.replace("_", "-"))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from option_flags(field.annotation, f"{flag}.")
        elif tyro.conf.Positional not in field.metadata:
            yield flag


def explained(
    parser: Callable[[], Options], args: Sequence[str], *, flags: Sequence[str] = ()
) -> Options:
    """Returns what `parser` makes of `args`; what it prints when it refuses is the UsageError.

    flags: valid options, for a hint where the printed text has none.
    """
    if {"-h", "--help"} & set(args):
        return parser()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), _wide_terminal():
            return parser()
    except SystemExit as exit:
        if not exit.code:
            raise
        message = one_line(printed.getvalue(), flags)
        if message.startswith("missing "):
            # A misspelt option is the reason more often than a forgotten one.
            message = _unknown_option(args, flags) or message
        raise UsageError(message) from None


def one_line(text: str, flags: Sequence[str] = ()) -> str:
    """Returns the essence of the framed text in which tyro says what is wrong.

    The frame is drawn with lines, in colours on a terminal; where the encoding has no lines, the
    title stands over a rule.

    flags: valid options; the nearest is named when the text has an unknown one and no hint.
    """
    text = _COLOURS.sub("", text)
    lines = [line.strip("│ ") for line in text.splitlines() if line[:1] not in ("╭", "╰")]
    parts = re.split(r"\n[─-]{3,}(?:\n|$)", "\n".join(lines).strip())
    if "╭" not in text and len(parts) > 1:
        parts = parts[1:]
    message, *notes = parts
    if message.startswith("Missing from"):
        missing = [line for line in map(str.strip, message.splitlines()) if line[:1] == "-"]
        return f"missing {', '.join(missing)}"
    message = " ".join(message.split()).partition(" Got errors:")[0]
    if invalid := _INVALID.search(message):
        return _invalid(invalid)
    unknown = re.search(r"Unrecognized options: (--\S+?),? ?(?: |$)", message + " ")
    if unknown is None:
        return message
    hint = re.search(r"Perhaps you meant:\s+(--\S+)", "\n".join(notes))
    return _unknown(unknown[1], [hint[1]] if hint else flags)


def _unknown(option: str, flags: Sequence[str]) -> str:
    near = difflib.get_close_matches(option, flags, n=1, cutoff=0.0)
    return f"unknown option {option}" + (f"; did you mean {near[0]}?" if near else "")


def _unknown_option(args: Sequence[str], flags: Sequence[str]) -> str:
    """What is wrong with the first option in `args` that is none of `flags`; empty if all are."""
    for word in args:
        option = word.partition("=")[0].replace("_", "-")
        if not re.match(r"--[a-z]", option) or not flags:
            continue
        # Switches are turned off by --no-switch, in groups by --group.no-switch.
        plain = re.sub(r"^(--|--.*\.)no-(?=[^.]*$)", r"\1", option)
        if not any(flag in (option, plain) or option.startswith(f"{flag}.") for flag in flags):
            return _unknown(option, flags)
    return ""


def _invalid(error: re.Match[str]) -> str:
    problem = error["problem"].removeprefix("Value error, ")
    if error["field"] is None:
        return problem
    group = f"{error['group']}." if error["group"] else ""
    flag = f"--{group}{error['field']}".replace("_", "-")
    return f"{flag}: {problem[0].lower()}{problem[1:]}, got {error['value']}"


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _WIDE
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
