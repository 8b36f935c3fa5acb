"""What a Label Studio labelling interface (XML) asks for: its rectangles, picture and labels."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from d2det_platform.serve.problems import Problem

MAX_CHARACTERS = 200_000


@dataclass(frozen=True)
class LabelConfig:
    """Where predictions go.

    from_name: of the rectangles' tag.  to_name: of the picture's tag.
    key: under which a task's data holds the picture's address.
    labels: label of the interface by name of a class, in lower case; an alias counts too.
    """

    from_name: str
    to_name: str
    key: str
    labels: dict[str, str]


def read_label_config(text: str) -> LabelConfig:
    """Returns what an interface with RectangleLabels over an Image asks for.

    Raises:
        Problem: invalid_parameter.
    """
    if len(text) > MAX_CHARACTERS or "<!" in text.replace("<!--", ""):
        # No document types, so no entities that grow; nothing in an interface needs them.
        raise _invalid("is too long or declares a document type")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        raise _invalid("is not XML") from None
    rectangles = next(root.iter("RectangleLabels"), None)
    if rectangles is None:
        raise _invalid("has no RectangleLabels")
    to_name = rectangles.get("toName", "")
    picture = next((tag for tag in root.iter("Image") if tag.get("name") == to_name), None)
    value = "" if picture is None else picture.get("value", "")
    if not value.startswith("$"):
        raise _invalid("has no Image that its RectangleLabels belong to")
    labels: dict[str, str] = {}
    for tag in rectangles.iter("Label"):
        name = tag.get("value", "")
        for spelling in (name, *tag.get("alias", "").split(","), *_predicted(tag)):
            if spelling.strip():
                labels.setdefault(spelling.strip().lower(), name)
    return LabelConfig(rectangles.get("name", ""), to_name, value[1:], labels)


def _predicted(tag: ElementTree.Element) -> list[str]:
    """Classes that the interface maps to a label, as Label Studio's own examples write it."""
    return tag.get("predicted_values", "").split(",")


def _invalid(problem: str) -> Problem:
    return Problem("invalid_parameter", f"label_config {problem}", parameter="label_config")
