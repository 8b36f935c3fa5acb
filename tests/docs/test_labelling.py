"""The guide to labelling describes every column, every reason and options that exist."""

import re
from typing import get_args

import pytest

from d2det.inference.headers import DecodeReason
from d2det_platform import usage
from d2det_platform.cli import VERBS, imported
from d2det_platform.label.schema import DETECTION, ERRORS, LABELS
from tests.shared import ROOT

TEXT = (ROOT / "docs/labelling.md").read_text()


@pytest.mark.parametrize("column", [*LABELS.names, *(field.name for field in DETECTION)])
def test_every_column_is_described(column: str) -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| `")]
    assert any(re.search(rf"`(detections)?\.?{column}`", row.split("|")[1]) for row in rows)


def test_every_reason_is_listed() -> None:
    paragraph = re.search(r"Reasons: `([^`]+)`", TEXT)
    assert paragraph is not None
    assert set(re.split(r",\s+", paragraph[1])) == set(get_args(DecodeReason))


def test_the_error_table_is_described() -> None:
    assert f"`{', '.join(ERRORS.names)}`" in TEXT


def test_every_option_in_the_text_exists() -> None:
    verbs = ("plan", "label", "merge", "retry-failed", "convert")
    known = {flag for verb in verbs for flag in usage.option_flags(imported(VERBS[verb].options))}
    for flag in re.findall(r"--[a-z][a-z0-9.-]+[a-z0-9]", TEXT):
        assert flag.replace(".no-", ".") in known | {"--help"}, flag
