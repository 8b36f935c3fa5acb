"""A large picture looked at window by window through the same detectors as everybody's pictures.

Windows wait behind the pictures of people who wait, and few are on their way at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np

from d2det.inference.windows import SceneReader, Window, WindowDetections, in_scene
from d2det.structures import Detections
from d2det_platform.serve.courier import Courier
from d2det_platform.serve.messages import Job

WINDOWS_AT_ONCE = 8
"""Windows of one scene that are read, travel or wait: its share of memory."""


async def look(
    courier: Courier,
    scene: SceneReader,
    windows: Sequence[Window],
    *,
    masks: bool,
    deadline: float,
) -> AsyncIterator[WindowDetections]:
    """Yields what is in each window, in the frame of the scene, as they are finished.

    Raises:
        Problem: timeout, unavailable or internal.
    """
    places = asyncio.Semaphore(WINDOWS_AT_ONCE)

    async def predict(window: Window) -> WindowDetections:
        async with places:
            pixels = await asyncio.to_thread(_read, scene, window)
            size = (window.height, window.width)
            job = Job(pixels, size, masks=masks, raw=True, background=True)
            answer = await courier.predict(job, deadline=deadline)
            assert answer.found is not None
            found = await asyncio.to_thread(in_scene, answer.found, window, scene.size)
            return WindowDetections(window, found)

    tasks = [asyncio.create_task(predict(window)) for window in windows]
    try:
        for task in asyncio.as_completed(tasks):
            yield await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def predict_scene(
    courier: Courier,
    scene: SceneReader,
    windows: Sequence[Window],
    *,
    masks: bool,
    deadline: float,
) -> Detections:
    """Returns what is in a scene, merged across windows, as `Predictor.predict_scene` does."""
    results = [each async for each in look(courier, scene, windows, masks=masks, deadline=deadline)]
    return await merge(results, scene.size)


async def merge(results: Sequence[WindowDetections], size: tuple[int, int]) -> Detections:
    """Returns the detections of a scene of `size` from those of its windows."""
    from d2det.inference.merge import merge_windows  # scipy and torch, for scenes alone

    merged = await asyncio.to_thread(merge_windows, results, size)
    return merged.detections


def _read(scene: SceneReader, window: Window) -> np.ndarray:
    pixels = scene.read(window.x, window.y, window.width, window.height)
    return np.ascontiguousarray(pixels)
