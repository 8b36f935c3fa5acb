"""What a stranger may ask for: every limit of the endpoint, stated by `GET /v1/model`."""

from __future__ import annotations

from pydantic import Field

from d2det.config import Config
from d2det.inference.limits import DecodeLimits


class Limits(Config):
    """Limits of one request, and of all requests that a process holds at once."""

    max_body_bytes: int = Field(default=25_000_000, ge=1)
    """Largest request body, before and after decompression."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """Largest width times height of a picture."""
    max_side: int = Field(default=30_000, ge=1)
    """Largest width or height in pixels."""
    max_pictures: int = Field(default=16, ge=1)
    """Pictures in one request."""
    max_detections: int = Field(default=1000, ge=1)
    """Detections of one picture that a request may ask for."""
    timeout_s: float = Field(default=30.0, gt=0)
    """From the first byte to the answer; a client may ask for less, not for more."""
    body_timeout_s: float = Field(default=20.0, gt=0)
    """A body that has not arrived after this is given up; scenes have longer, as their limit is
    larger."""
    max_buffered_bytes: int = Field(default=512_000_000, ge=1)
    """Bodies that one ingress process holds at once."""
    max_scene_bytes: int = Field(default=500_000_000, ge=1)
    """Largest upload of a scene."""
    max_scene_pixels: int = Field(default=200_000_000, ge=1)
    """Largest scene; it is decoded whole. The bulk job reads larger ones by window."""
    max_windows: int = Field(default=20_000, ge=1)
    """Windows that a picture or scene is cut into."""
    max_scenes: int = Field(default=2, ge=1)
    """Scenes that one ingress process works on at once."""
    scene_timeout_s: float = Field(default=900.0, gt=0)
    """From the first byte of a scene to its result."""
    jpeg2000: bool = False
    """Read JPEG 2000 too: its decoder is slow and rarely fuzzed."""

    def picture(self) -> DecodeLimits:
        """Returns what the decoder may be given of a request."""
        return DecodeLimits(
            max_bytes=self.max_body_bytes,
            max_pixels=self.max_pixels,
            max_side=self.max_side,
            jpeg2000=self.jpeg2000,
        )

    def scene(self) -> DecodeLimits:
        """Returns what the decoder may be given of a scene."""
        return DecodeLimits(
            max_bytes=self.max_scene_bytes,
            max_pixels=self.max_scene_pixels,
            max_side=max(self.max_side, 65_500),
            jpeg2000=self.jpeg2000,
        )
