"""Made aerial scenes with exact boxes and masks: data to start with, from nothing but a seed.

A scene is a part of an endless plane on which everything is a function of the seed and the place,
so any window of a scene can be drawn alone, and is the same pixels as that part of the whole.
"""

from d2det.data.synthetic.dataset import write_dataset
from d2det.data.synthetic.scene import CATEGORIES, Scene, SceneObject

__all__ = ["CATEGORIES", "Scene", "SceneObject", "write_dataset"]
