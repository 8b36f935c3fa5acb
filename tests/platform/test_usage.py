"""What tyro prints in a frame becomes one line."""

import pytest

from d2det.evaluation.evaluate import EvaluateCommand
from d2det_platform.serve.options import ServeCommand
from d2det_platform.usage import UsageError, one_line, parse

FRAMED = """\
╭─ Unrecognized options ───────╮
│ Unrecognized options: --fo,  │
│ 3                            │
│ ──────────────────────────── │
│ Perhaps you meant:           │
│     --foo INT                │
│         Foos. (default: 3)   │
│ ──────────────────────────── │
│ For full helptext, run a     │
╰──────────────────────────────╯
"""


PLAIN = """\
 Unrecognized options
 ------------------------------
  Unrecognized options: --fo,
  3
  ------------------------------
  Perhaps you meant:
      --foo INT
          Foos. (default: 3)
  ------------------------------
  For full helptext, run a

"""


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        pytest.param(FRAMED, [], "unknown option --fo; did you mean --foo?", id="hint"),
        pytest.param(
            FRAMED.replace("│", "\x1b[31m│\x1b[0m").replace("╭", "\x1b[31m╭"),
            [],
            "unknown option --fo; did you mean --foo?",
            id="colours",
        ),
        pytest.param(PLAIN, [], "unknown option --fo; did you mean --foo?", id="no frame"),
        pytest.param(
            "│ Unrecognized options: --bat │",
            ["--bar"],
            "unknown option --bat; did you mean --bar?",
            id="nearest",
        ),
        pytest.param("│ Unrecognized options: --x │", [], "unknown option --x", id="no options"),
        pytest.param("│ Unrecognized options: y │", [], "Unrecognized options: y", id="a word"),
        pytest.param(
            "╭─ R ─╮\n│ Missing from d2det a: │\n│   --out PATH │\n│   Where. (required) │",
            [],
            "missing --out PATH",
            id="required",
        ),
        pytest.param("error: plain\ntext", [], "error: plain text", id="not framed"),
        pytest.param("", [], "", id="nothing"),
    ],
)
def test_one_line(text: str, flags: list[str], expected: str) -> None:
    assert one_line(text, flags) == expected


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--anotations", "a.json"], "unknown option --anotations; did you mean --annotations?"),
        (["--no-mask"], "unknown option --no-mask; did you mean --masks?"),
        (["--no-masks"], "missing --annotations PATH"),
        (["--iou", "0.5", "-1"], "missing --annotations PATH"),
    ],
)
def test_a_misspelt_option_is_named_rather_than_what_it_left_missing(
    args: list[str], expected: str
) -> None:
    with pytest.raises(UsageError) as error:
        parse(EvaluateCommand, args, prog="d2det evaluate")
    assert str(error.value) == expected


def test_options_of_groups_and_their_negations_are_known() -> None:
    given = ["--model", "m:f", "--predict.no-masks", "--scaling.max_replicas=2"]
    assert parse(ServeCommand, given, prog="d2det serve").predict.masks is False
