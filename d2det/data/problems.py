"""What is wrong with a data set, said so that the bad line can be found."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One finding. An error makes the data unusable; after a warning training does without it.

    file: the annotation file, or the picture.
    kind: short name of the rule, the same for all findings of one sort.
    detail: what was found, with the offending value.
    image_id, annotation_id: as the file states them (they may be of the wrong type), if they apply.
    """

    severity: Severity
    file: str
    kind: str
    detail: str
    image_id: Any = None
    annotation_id: Any = None

    def __str__(self) -> str:
        where = [self.file]
        if self.image_id is not None:
            where.append(f"image {self.image_id!r}")
        if self.annotation_id is not None:
            where.append(f"annotation {self.annotation_id!r}")
        return f"{self.severity}: {', '.join(where)}: {self.kind}: {self.detail}"


@dataclass(frozen=True)
class Report:
    """All findings about one data set, and how much of it there is."""

    problems: tuple[Problem, ...]
    num_images: int = 0
    num_objects: int = 0

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The findings that make the data unusable."""
        return tuple(p for p in self.problems if p.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The findings that training works around."""
        return tuple(p for p in self.problems if p.severity == "warning")

    def text(self, *, max_per_kind: int = 10) -> str:
        """Returns the report for people: a line a finding, long series of one kind cut short."""
        lines: list[str] = []
        for severity in ("error", "warning"):
            groups = defaultdict(list)
            for problem in self.problems:
                if problem.severity == severity:
                    groups[problem.kind].append(problem)
            for kind, group in groups.items():
                lines += map(str, group[:max_per_kind])
                if len(group) > max_per_kind:
                    lines.append(f"{severity}: {kind}: {len(group) - max_per_kind} more like these")
        lines.append(
            f"{self.num_images} pictures, {self.num_objects} objects: "
            f"{len(self.errors)} errors, {len(self.warnings)} warnings"
        )
        return "\n".join(lines)

    def raise_if_bad(self) -> None:
        """Raises ValueError with the report when there is an error."""
        if self.errors:
            raise ValueError(f"the data cannot be used\n{self.text()}")


class Findings:
    """Collects problems of one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def error(
        self, kind: str, detail: str, image_id: Any = None, annotation_id: Any = None
    ) -> None:
        """Notes something that makes the data unusable."""
        self._add("error", kind, detail, image_id, annotation_id)

    def warning(
        self, kind: str, detail: str, image_id: Any = None, annotation_id: Any = None
    ) -> None:
        """Notes something that training works around."""
        self._add("warning", kind, detail, image_id, annotation_id)

    def _add(
        self, severity: Severity, kind: str, detail: str, image_id: Any, annotation_id: Any
    ) -> None:
        self.problems.append(Problem(severity, self.file, kind, detail, image_id, annotation_id))
