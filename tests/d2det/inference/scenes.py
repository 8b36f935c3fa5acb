"""Made-up scenes and a detector that sees exactly what lies in its window, give or take noise."""

from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as coco

from d2det import rng
from d2det.inference.windows import Window, WindowDetections, cut_windows
from d2det.structures import Detections, Rle


@dataclass(frozen=True)
class Scene:
    """Objects of a scene; boxes: (G, 4) float64.  labels: (G,)."""

    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray


def random_scene(seed: int, *, size: tuple[int, int], count: int, largest: int) -> Scene:
    """Objects of sides 8..largest that overlap little, so that each is one thing."""
    random = np.random.default_rng(seed)
    boxes: list[np.ndarray] = []
    for _ in range(3 * count):
        side = random.integers(8, largest + 1, 2)
        corner = random.integers(0, np.maximum(np.array(size[::-1]) - side, 1))
        box = np.concatenate((corner, np.minimum(corner + side, size[::-1]))).astype(float)
        if len(boxes) < count and not any(_touch(box, other, margin=4) for other in boxes):
            boxes.append(box)
    return Scene(size, np.array(boxes), random.integers(0, 3, len(boxes)))


def _touch(a: np.ndarray, b: np.ndarray, margin: int) -> bool:
    return bool((np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) > -margin).all())


def look(scene: Scene, window: Window, *, noise: float = 1.0, masks: bool = False) -> Detections:
    """What a good detector finds in a window, in the frame of the scene.

    An object is found when a fifth of it shows, 4 pixels at least. Its sides are off by up to
    `noise` pixels, keyed by window and object, so that two windows draw it differently.
    """
    frame = np.array([window.x, window.y, window.x + window.width, window.y + window.height])
    found = []
    for i, box in enumerate(scene.boxes):
        shown = np.concatenate((np.maximum(box[:2], frame[:2]), np.minimum(box[2:], frame[2:])))
        sides = np.maximum(shown[2:] - shown[:2], 0)
        if sides.min() < 4 or sides.prod() < 0.2 * (box[2:] - box[:2]).prod():
            continue
        random = rng.generator(window.x, window.y, i)
        noise_here = min(noise, sides.min() / 8)
        drawn = shown + random.uniform(-noise_here, noise_here, 4).round(2)
        drawn = np.concatenate((np.maximum(drawn[:2], frame[:2]), np.minimum(drawn[2:], frame[2:])))
        found.append((drawn, random.uniform(0.5, 1), scene.labels[i]))
    boxes = torch.tensor(np.array([f[0] for f in found]).reshape(-1, 4), dtype=torch.float32)
    return Detections(
        boxes=boxes,
        scores=torch.tensor([f[1] for f in found], dtype=torch.float32),
        labels=torch.tensor([int(f[2]) for f in found], dtype=torch.int64),
        size=scene.size,
        masks=tuple(filled(box, scene.size) for box in boxes.tolist()) if masks else None,
        mask_scores=torch.zeros(len(found)) if masks else None,
    )


def filled(box: list[float], size: tuple[int, int]) -> Rle:
    """The mask that fills a box, rounded to pixels."""
    canvas = np.zeros(size, np.uint8, order="F")
    x1, y1, x2, y2 = (round(v) for v in box)
    canvas[y1:y2, x1:x2] = 1
    encoded = coco.encode(canvas)
    return {"size": size, "counts": encoded["counts"]}


def look_everywhere(
    scene: Scene, *, tile: int, overlap: int, noise: float = 1.0, masks: bool = False
) -> list[WindowDetections]:
    """The detections of all windows of a scene."""
    windows = cut_windows(scene.size, tile=tile, overlap=overlap)
    return [WindowDetections(w, look(scene, w, noise=noise, masks=masks)) for w in windows]
