"""The layout rules that keep every Ray worker alive."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_platform_folder_does_not_shadow_the_standard_library() -> None:
    """With an `__init__.py`, workers that have the root on sys.path import it as `platform`."""
    assert (ROOT / "platform" / "d2det_platform" / "__init__.py").exists()
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "platform.py").exists()
