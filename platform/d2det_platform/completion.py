"""`d2det completion`: lets the shell complete verbs and options."""

from __future__ import annotations

from typing import Literal

import tyro

from d2det.config import Config
from d2det_platform.usage import option_flags

_BASH = """\
_d2det() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{verbs}"
    elif [ "${{current:0:1}}" = - ]; then
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    else
        compopt -o default
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -F _d2det d2det
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


class CompletionCommand(Config):
    """Prints a script that completes verbs and options of d2det in the shell.

    Example: d2det completion bash >> ~/.bashrc
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh"]] = "bash"
    """Shell the script is for."""


def run(options: CompletionCommand) -> int:
    """Prints the script and returns the exit code."""
    print(script(options.shell))
    return 0


def script(shell: Literal["bash", "zsh"]) -> str:
    """Returns the script, written for bash; zsh understands it after one more line."""
    from d2det_platform.cli import VERBS, imported  # which names this module

    cases = []
    for name, verb in VERBS.items():
        flags = " ".join((*option_flags(imported(verb.options)), "--help"))
        cases.append(f'            {name}) words="{flags}" ;;')
    text = _BASH.format(verbs=" ".join(VERBS), cases="\n".join(cases))
    return _ZSH + text if shell == "zsh" else text
