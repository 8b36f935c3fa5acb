"""One HTML file with an error analysis: pictures inside, no outside resource, text escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

import cv2

from d2det.evaluation.coco import CocoScores, coco_metrics_table, percent
from d2det.evaluation.error_analysis import ErrorAnalysis
from d2det.evaluation.error_types import ERROR_TYPES
from d2det.evaluation.examples import Example
from d2det.visualize import Picture

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #2b2f36; background: #f4f5f7; margin: 0 }
main { max-width: 1240px; margin: 0 auto; padding: 24px }
h1 { font-size: 26px; margin: 8px 0 } h2 { font-size: 19px; margin: 0 0 10px }
p { max-width: 80ch } .faint { color: #69717d }
section { background: #fff; border: 1px solid #e1e4e9; border-radius: 8px; padding: 18px 20px;
  margin: 16px 0; overflow-x: auto }
img { max-width: 100%; height: auto; display: block }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: 3px 12px; text-align: right; border-bottom: 1px solid #eceef1 }
th:first-child, td:first-child, .words td:nth-child(2), .words th:nth-child(2) { text-align: left }
table, details { margin-bottom: 14px }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(80px, 1fr)); gap: 10px }
.number { border: 1px solid #e1e4e9; border-radius: 6px; padding: 6px 10px }
.number b { display: block; font-size: 20px }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 12px }
figure { margin: 0 } figcaption { font-size: 13px; overflow-wrap: anywhere }
summary { cursor: pointer; padding: 3px 0 } i.true { color: #2a9d4c } i.wrong { color: #e0492a }
"""
_EXPLAINED = """C75 and C50: what is reached at IoU 0.75 and 0.5. The following areas are what one
kind of error costs: Loc, a place between IoU 0.1 and 0.5; Sim, confusion with classes of the same
supercategory; Oth, with any other class; BG, detections of nothing; FN, objects never found."""
_KINDS = {
    "class": "on an object of another class",
    "location": "on the right object, with IoU between 0.1 and 0.5",
    "both": "on an object of another class, with IoU between 0.1 and 0.5",
    "duplicate": "on an object that a better detection found",
    "background": "on nothing",
    "missed": "found by no detection",
}


def html_report(
    analysis: ErrorAnalysis,
    *,
    title: str,
    facts: Mapping[str, str],
    figures: Mapping[str, bytes],
    class_figures: Mapping[str, bytes],
    examples: Sequence[Example],
) -> str:
    """Returns the page.

    Args:
        analysis: the numbers.
        title: of the page.
        facts: what was evaluated, for the head: name and value.
        figures: PNGs "curves", "breakdown", "precision_recall", "class_ap", "error_types",
            "confusion" and "scores".
        class_figures: error curves of single classes, class name to PNG.
        examples: of the worst errors.
    """
    head = "".join(f"{escape(k)}: <b>{escape(v)}</b> &nbsp; " for k, v in facts.items())
    sections = [
        _section("Numbers", _numbers(analysis.scores)),
        _section("Where average precision is lost", f"<p>{_EXPLAINED}</p>", figures["curves"]),
        _section(
            "Kinds of mistakes",
            "<p>AP50 points gained if only this kind were mended, and how often it happens.</p>"
            + _error_table(analysis),
            figures["error_types"],
        ),
        _section("Examples of the worst mistakes", _examples(examples)),
        _section("Score and threshold", _thresholds(analysis), figures["scores"]),
        _section("Precision and recall", "", figures["precision_recall"]),
        _section("Confusions", _confusions(analysis), figures["confusion"]),
        _section("Classes", _class_table(analysis.scores), figures["class_ap"]),
        _section("What each class loses", f"<p>{_EXPLAINED}</p>", figures["breakdown"]),
        _section("Error curves of single classes", _details(class_figures)),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_CSS}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="faint">{head}</p>{"".join(sections)}'
        "</main></body></html>"
    )


def _section(title: str, content: str, png: bytes | None = None) -> str:
    picture = "" if png is None else _image(png, "png", title)
    return f"<section><h2>{escape(title)}</h2>{content}{picture}</section>"


def _image(data: bytes, form: str, text: str) -> str:
    code = base64.b64encode(data).decode()
    return f'<img alt="{escape(text)}" loading="lazy" src="data:image/{form};base64,{code}">'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows
    )
    return f'<table class="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _numbers(scores: CocoScores) -> str:
    cells = "".join(
        f'<div class="number">{escape(name)}<b>{percent(value)}</b></div>'
        for name, value in scores.summary.items()
    )
    return f'<div class="numbers">{cells}</div>'


def _error_table(analysis: ErrorAnalysis) -> str:
    types = analysis.types
    rows = [
        (kind, _KINDS[kind], f"{100 * gain:.1f}", f"{count:,}")
        for kind, gain, count in zip(
            ERROR_TYPES, types.gains.tolist(), types.counts.sum(1).tolist(), strict=True
        )
    ]
    return _table(("kind", "what it is", "AP50 points", "number"), rows, style="words")


def _examples(examples: Sequence[Example]) -> str:
    if not examples:
        return '<p class="faint">No pictures were given (--images), or there are no mistakes.</p>'
    parts = [
        '<p><i class="true">Green</i>: the object. <i class="wrong">Red</i>: the detection.</p>'
    ]
    for kind in ERROR_TYPES:
        figures = "".join(
            f"<figure>{_image(_jpeg(one.picture), 'jpeg', one.caption)}<figcaption>"
            f'{escape(one.caption)}<br><span class="faint">{escape(one.file_name)}</span>'
            "</figcaption></figure>"
            for one in examples
            if one.error == kind
        )
        if figures:
            parts.append(f'<h3>{kind}: {_KINDS[kind]}</h3><div class="grid">{figures}</div>')
    return "".join(parts)


def _jpeg(picture: Picture) -> bytes:
    ok, data = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert ok
    return data.tobytes()


def _thresholds(analysis: ErrorAnalysis) -> str:
    points = [("all classes", analysis.thresholds.best)]
    points += [
        (row.category.name, point)
        for row, point in zip(
            analysis.scores.per_class, analysis.thresholds.best_of_class, strict=True
        )
    ]
    rows = [
        (name, *(f"{v:.2f}" for v in (point.threshold, point.f1, point.precision, point.recall)))
        for name, point in points
        if point is not None
    ]
    table = _table(("class", "threshold of best F1", "F1", "precision", "recall"), rows)
    return f"<details><summary>Best threshold of each class</summary>{table}</details>"


def _confusions(analysis: ErrorAnalysis) -> str:
    pairs = analysis.confusion.top_confusions()
    if not pairs:
        return '<p class="faint">No object was taken for one of another class.</p>'
    rows = [(true, found, f"{count:,}") for true, found, count in pairs]
    return _table(("true class", "taken for", "number"), rows, style="words")


def _class_table(scores: CocoScores) -> str:
    header, *rows = coco_metrics_table(scores)
    return f"<details><summary>Table</summary>{_table(header, rows)}</details>"


def _details(figures: Mapping[str, bytes]) -> str:
    return "".join(
        f"<details><summary>{escape(name)}</summary>{_image(png, 'png', name)}</details>"
        for name, png in figures.items()
    )
