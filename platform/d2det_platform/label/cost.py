"""What a picture costs: windows, and pixels through the network. Pure, and needs no weights."""

from __future__ import annotations

from dataclasses import dataclass

from d2det.config import InputConfig
from d2det.inference.options import PredictOptions
from d2det.inference.preprocess import padded_size, resized_size
from d2det.inference.windows import Window, cut_windows


@dataclass(frozen=True)
class CostModel:
    """How pictures become network input.

    input: sizes of the network's input; None for a callable, which takes pictures as they are.
    tile, overlap: of windows; tile None: pictures are never cut.
    """

    input: InputConfig | None
    tile: int | None
    overlap: int

    @classmethod
    def of(cls, options: PredictOptions, preset_input: InputConfig | None) -> CostModel:
        """Returns the cost model of options and of the input of the weights' preset."""
        resized = None if preset_input is None else options.input_of(preset_input)
        return cls(resized, options.tile, options.overlap)

    def is_tiled(self, height: int, width: int) -> bool:
        """Returns whether a picture is cut into windows."""
        return self.tile is not None and max(height, width) > self.tile

    def cut(self, height: int, width: int) -> list[Window]:
        """Returns the windows of a picture that is cut, row by row."""
        assert self.tile is not None
        return cut_windows((height, width), tile=self.tile, overlap=self.overlap)

    def windows(self, height: int, width: int) -> int:
        """Returns how many windows a picture has; 1 where it is predicted whole."""
        if not self.is_tiled(height, width):
            return 1
        # Counted, not listed: a header may claim anything.
        return self._along(height) * self._along(width)

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Returns the (height, width) that the network sees of a picture or window."""
        if self.input is None:
            return height, width
        return padded_size(
            *resized_size(height, width, self.input.short_side, self.input.long_side)
        )

    def pixels(self, height: int, width: int) -> int:
        """Returns the pixels that a picture runs through the network, over all its windows."""
        windows = self.windows(height, width)
        if self.tile is not None:  # the size of a window, or of a picture that is none larger
            height, width = min(height, self.tile), min(width, self.tile)
        padded = self.padded(height, width)
        return windows * padded[0] * padded[1]

    def _along(self, length: int) -> int:
        assert self.tile is not None
        if length <= self.tile:
            return 1
        return len(range(0, length - self.tile, self.tile - self.overlap)) + 1
