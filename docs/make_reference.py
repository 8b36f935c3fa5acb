"""Writes docs/reference from the option models, the presets and the endpoint's OpenAPI description.

    python docs/make_reference.py

The pages are made whenever the documentation is built and are not kept, so they cannot be stale.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from d2det.presets import PRESETS
from d2det_platform.cli import VERBS, imported

OUT = Path(__file__).parent / "reference"
_METHODS = ("get", "post", "put", "delete")


def main() -> None:
    """Writes all pages."""
    OUT.mkdir(exist_ok=True)
    for name, text in {"cli": cli(), "presets": presets(), "http": http()}.items():
        (OUT / f"{name}.md").write_text(text)


def cli() -> str:
    """Returns the page of verbs and their options."""
    parts = [
        "# Command line\n",
        "Made from the option models. `d2det train --config` takes the same names as YAML.\n",
        "| verb | |\n|---|---|",
        *(f"| [`d2det {name}`](#d2det-{name}) | {verb.summary} |" for name, verb in VERBS.items()),
        "",
    ]
    for name, verb in VERBS.items():
        options = imported(verb.options)
        parts += [f"## d2det {name}\n", _prose(inspect.getdoc(options) or ""), ""]
        parts += _tables(options)
    return "\n".join(parts) + "\n"


def presets() -> str:
    """Returns the page of presets: what each is, and where it differs from the defaults."""
    parts = [
        "# Presets\n",
        "Where each differs from the defaults; `d2det presets` prints all values of one.\n",
    ]
    for preset in PRESETS.values():
        parts += [f"## {preset.name}\n", f"{preset.summary}. {preset.paper}.\n"]
        rows = [
            (f"{group}.{name}", value)
            for group in ("model", "input", "train")
            for name, value in _differences(getattr(preset, group))
        ]
        parts += ["| option | value |\n|---|---|"] if rows else ["As the defaults.\n"]
        parts += [f"| `{name}` | `{value}` |" for name, value in rows] + [""]
    return "\n".join(parts) + "\n"


def http() -> str:
    """Returns the page of the endpoint's routes and answers."""
    description = openapi()
    parts = [
        "# HTTP\n",
        "Made from the OpenAPI description that the endpoint gives at `/openapi.json`. "
        "[Run the endpoint](../serving.md) explains it.\n",
    ]
    for path, methods in description["paths"].items():
        for method in _METHODS:
            if method in methods:
                parts += _route(method, path, methods[method])
    parts.append("## Schemas\n")
    for name, schema in sorted(description["components"]["schemas"].items()):
        parts += _schema(name, schema)
    return "\n".join(parts) + "\n"


def openapi() -> dict[str, Any]:
    """Returns the OpenAPI description of an endpoint that serves nothing."""
    from d2det_platform.serve.app import create_app
    from d2det_platform.serve.model import ModelInfo
    from d2det_platform.serve.options import ServeOptions
    from d2det_platform.serve.service import Service

    nothing: Any = None  # no request will come
    service = Service(
        options=ServeOptions(model="none:none"),
        info=ModelInfo("d2det", (), has_masks=True),
        courier=nothing,
    )
    return dict(create_app(service).openapi())


def _tables(options: type[BaseModel], prefix: str = "") -> list[str]:
    """A table of the plain options of a model, then one for each group below it."""
    plain, groups = [], []
    for name, field in options.model_fields.items():
        flag = f"{prefix}{_flag(name, field)}"
        group = _group(field)
        if group is not None:
            groups.append((flag, field, group))
        else:
            is_positional = any("positional" in str(note).lower() for note in field.metadata)
            shown = name.upper() if is_positional else f"--{flag}"
            plain.append(f"| `{shown}` | {_default(field)} | {_prose(field.description or '')} |")
    lines = ["| option | default | |\n|---|---|---|", *plain, ""] if plain else []
    for flag, _, group in groups:
        lines += [f"### --{flag}.*\n" if not prefix else f"#### --{flag}.*\n"]
        lines += [_prose(inspect.getdoc(group) or ""), "", *_tables(group, f"{flag}.")]
    return lines


def _group(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a group of options, which may also be None."""
    for kind in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _flag(name: str, field: FieldInfo) -> str:
    given = [note.name for note in field.metadata if getattr(note, "name", None)]
    return given[0] if given else name.replace("_", "-")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined or value is None or value in ("", ()):
        return "-"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _differences(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, field in type(config).model_fields.items():
        value, default = getattr(config, name), field.default
        if isinstance(value, BaseModel):
            yield from _differences(value, f"{prefix}{name}.")
        elif value != default:
            yield f"{prefix}{name}", value


def _route(method: str, path: str, route: dict[str, Any]) -> list[str]:
    lines = [f"## {method.upper()} {path}\n", f"{route.get('summary', '')}.\n"]
    lines += [_prose(route.get("description", "")), ""]
    parameters = route.get("parameters", [])
    if parameters:
        lines.append("| parameter | in | |\n|---|---|---|")
        for parameter in parameters:
            text = parameter.get("description") or parameter.get("schema", {}).get(
                "description", ""
            )
            lines.append(f"| `{parameter['name']}` | {parameter['in']} | {_prose(text)} |")
        lines.append("")
    body = route.get("requestBody", {}).get("content", {})
    if body:
        lines.append("Takes " + ", ".join(f"`{kind}`" for kind in body) + ".\n")
    answers = ", ".join(f"{status} {a.get('description', '')}" for status, a in _answers(route))
    return [*lines, f"Answers: {answers}.\n"]


def _answers(route: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return sorted(route["responses"].items(), key=lambda pair: str(pair[0]))


def _schema(name: str, schema: dict[str, Any]) -> list[str]:
    lines = [f"### {name}\n", _prose(schema.get("description", "")), ""]
    rows = schema.get("properties", {})
    if rows:
        lines.append("| field | type | |\n|---|---|---|")
        for field, part in rows.items():
            lines.append(f"| `{field}` | {_kind(part)} | {_prose(part.get('description', ''))} |")
        lines.append("")
    return lines


def _kind(part: dict[str, Any]) -> str:
    if "$ref" in part:
        name = part["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in part:
        return " or ".join(_kind(each) for each in part["anyOf"])
    if part.get("type") == "array" and "items" in part:
        return f"list of {_kind(part['items'])}"
    if "const" in part:
        return f"`{json.dumps(part['const'])}`"
    return str(part.get("type", "any"))


def _prose(text: str) -> str:
    """Text for a cell or a paragraph: one line, and nothing that means something in Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    main()
