"""How large a picture may be before it is refused."""

from __future__ import annotations

from pydantic import Field

from d2det.config import Config


class DecodeLimits(Config):
    """What is refused before it can cost memory or time."""

    max_bytes: int = Field(default=512 << 20, ge=1)
    """Largest file."""
    max_pixels: int = Field(default=200_000_000, ge=1)
    """Largest width times height; decoding needs 3 bytes a pixel, or 6 for 16-bit pictures."""
    max_side: int = Field(default=65_500, ge=1)
    """Largest width or height in pixels."""
    jpeg2000: bool = False
    """Read JPEG 2000 too: its decoder is slow and rarely fuzzed, so it is off."""


DEFAULT_LIMITS = DecodeLimits()
