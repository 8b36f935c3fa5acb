"""AP on tiles beside AP on the whole scenes they were cut from.

The usual figure for aerial data is that of the tiles. It does not see what stitching does: objects
on seams counted twice or halved. What a user gets is the scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from d2det.evaluation.coco import CocoMetrics, evaluate_coco
from d2det.evaluation.tables import DetectionTable, GroundTruth, IouKind


@dataclass(frozen=True)
class TilesAndScenes:
    """The same numbers at both levels."""

    tiles: CocoMetrics
    scenes: CocoMetrics

    def rows(self) -> list[tuple[str, float, float]]:
        """Returns (name, tiles, scenes) of every number, such as ("bbox/AP", 0.41, 0.39).

        The third AR is named after its cap, and the levels have different ones: it is left out
        where the names differ.
        """
        tiles, scenes = self.tiles.as_dict(), self.scenes.as_dict()
        return [(name, tiles[name], scenes[name]) for name in tiles if name in scenes]


def evaluate_tiles_and_scenes(
    tiles: tuple[GroundTruth, DetectionTable],
    scenes: tuple[GroundTruth, DetectionTable],
    *,
    kinds: Sequence[IouKind] = ("bbox",),
    max_detections_per_tile: int = 500,
    max_detections_per_scene: int = 10_000,
) -> TilesAndScenes:
    """Returns COCO metrics of tiles and of stitched scenes.

    Args:
        tiles: ground truth cut into tiles, and the detections in them.
        scenes: ground truth of the scenes, and the detections after merging across seams.
        kinds: "bbox", "segm" or both.
        max_detections_per_tile: best detections per tile and class that are considered.
        max_detections_per_scene: the same per scene, which holds many tiles.
    """
    return TilesAndScenes(
        tiles=evaluate_coco(*tiles, kinds=kinds, max_detections=max_detections_per_tile),
        scenes=evaluate_coco(*scenes, kinds=kinds, max_detections=max_detections_per_scene),
    )
