"""Every command in the documentation and the manifests is one that the programs understand."""

from __future__ import annotations

import pytest

from tests.docs.commands import JOBS, MANIFESTS, PAGES, Command, commands, look_up, parse

COMMANDS = commands()


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_understood(command: Command) -> None:
    if command.is_mention:
        look_up(command.text)
    else:
        parse(command.text)


def test_commands_are_found_at_all() -> None:
    """The search above would pass with nothing found."""
    ran = {command.text.split()[1] for command in COMMANDS if command.text.startswith("d2det")}
    assert ran >= {"train", "predict", "evaluate", "analyze", "convert", "label", "serve", "doctor"}
    assert len(COMMANDS) > 60
    pages = {command.path for command in COMMANDS}
    assert len(pages & set(PAGES)) > 8
    assert pages & set(MANIFESTS)
    assert {job for job in JOBS if any(job in command.text for command in COMMANDS)} == set(JOBS)


@pytest.mark.parametrize(
    "text",
    [
        "d2det trian --name x",
        "d2det predict a.jpg --weights w --tiel 800",
        "d2det evaluate --annotations a.json",
        "d2det label lake --weights w",
        "make everything",
        "python jobs/nowhere.py",
        "ray job submit --working-dir . -- python jobs/label_images.py lake --out o --weihgts w",
    ],
)
def test_a_command_that_is_wrong_would_be_noticed(text: str) -> None:
    with pytest.raises((ValueError, AssertionError, KeyError)):
        parse(text)


@pytest.mark.parametrize("text", ["d2det lable x", "d2det serve --prot 1", "make evrything"])
def test_a_mention_that_is_wrong_would_be_noticed(text: str) -> None:
    with pytest.raises(AssertionError):
        look_up(text)
