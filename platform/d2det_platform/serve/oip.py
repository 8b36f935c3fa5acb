"""The Open Inference Protocol v2 with its binary extension: bytes to tensors and back.

A request is JSON; with the extension, JSON of a length that a header states, and after it the
tensors that say `binary_data_size`, end to end. BYTES elements have a length of four bytes before
them there; in JSON they are base64, for pictures are no text.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from d2det_platform.serve.bodies import bytes_in_header, from_base64
from d2det_platform.serve.problems import Problem

LENGTH_HEADER = "Inference-Header-Content-Length"
DTYPES: dict[str, Any] = {"FP32": "<f4", "INT64": "<i8", "INT32": "<i4", "UINT8": "u1"}
MAX_OUTPUTS = 16
MAX_RANK = 8

Tensor = NDArray[Any] | list[bytes]
"""Numbers as an array; BYTES as a list of its elements."""


class InputTensor(BaseModel):
    """The input of a request: encoded pictures, or RGB pixels of pictures of one size.

    Fields the protocol may gain are ignored.
    """

    name: Literal["image", "pixels"]
    datatype: Literal["BYTES", "UINT8"]
    shape: list[Annotated[int, Field(ge=1)]] = Field(max_length=MAX_RANK)
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class OutputRequest(BaseModel):
    """An output that is asked for."""

    name: str = Field(max_length=256)
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """The JSON of a request."""

    id: str | None = Field(default=None, max_length=256)
    parameters: dict[str, Any] = {}
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[OutputRequest] = Field(default=[], max_length=MAX_OUTPUTS)


def read_request(body: bytes, header_length: str | None) -> tuple[InferRequest, Tensor]:
    """Returns a request and the tensor of its input.

    header_length: value of the header `Inference-Header-Content-Length`, where there is one.

    Raises:
        Problem: malformed or invalid_parameter.
    """
    head, rest = body, memoryview(b"")
    if header_length is not None:
        if (length := bytes_in_header(header_length)) is None:
            raise Problem("malformed", f"{LENGTH_HEADER} is no number of bytes")
        if length > len(body):
            raise Problem("malformed", f"{LENGTH_HEADER} {length} passes the body's end")
        head, rest = body[:length], memoryview(body)[length:]
    try:
        request = InferRequest.model_validate_json(head)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        code = "malformed" if first["type"] == "json_invalid" else "invalid_parameter"
        raise Problem(code, f"{place}: {first['msg']}".lstrip(": "), parameter=place) from None
    given = request.inputs[0]
    size = given.parameters.get("binary_data_size")
    if size is None:
        tensor, end = _from_json(given), 0
    elif type(size) is int and 0 <= size <= len(rest):
        tensor, end = _from_binary(given, rest[:size]), size
    else:
        raise _invalid(given.name, "binary_data_size does not fit the body")
    if end < len(rest):
        raise Problem("malformed", f"{len(rest) - end} bytes follow the tensor")
    return request, tensor


def write_response(
    head: Mapping[str, Any],
    outputs: Mapping[str, tuple[str, Sequence[int], Tensor]],
    binary: Mapping[str, bool],
) -> tuple[bytes, int | None]:
    """Returns the body of an answer, and the length of its JSON where tensors follow that.

    head: members of the answer besides `outputs`.
    outputs: datatype, shape and values by name.
    binary: which of them go behind the JSON.
    """
    described, tail = [], []
    for name, (datatype, shape, values) in outputs.items():
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape)}
        if binary.get(name):
            data = _to_binary(datatype, values)
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            entry["data"] = _to_json(datatype, values)
        described.append(entry)
    text = orjson.dumps({**head, "outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join((text, *tail)), len(text) if tail else None


def wants_binary(request: InferRequest, names: Sequence[str]) -> dict[str, bool]:
    """Returns the outputs to give, in order, and whether each is wanted in binary.

    Raises:
        Problem: invalid_parameter, where one does not exist.
    """
    everywhere = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return dict.fromkeys(names, everywhere)
    wanted = {}
    for output in request.outputs:
        if output.name not in names:
            raise _invalid(output.name, f"is no output; there are {', '.join(names)}")
        wanted[output.name] = output.parameters.get("binary_data", everywhere) is True
    return wanted


def _from_json(given: InputTensor) -> Tensor:
    if given.data is None:
        raise _invalid(given.name, "has neither data nor binary_data_size")
    values = _flat(given.data)
    if len(values) != math.prod(given.shape):
        raise _invalid(given.name, f"has {len(values)} elements for shape {given.shape}")
    if given.datatype == "BYTES":
        if not all(isinstance(value, str) for value in values):
            raise _invalid(given.name, "must hold base64 texts")
        return [from_base64(value) for value in values]
    if not all(type(value) is int and 0 <= value <= 255 for value in values):
        raise _invalid(given.name, "must hold whole numbers from 0 to 255")
    return np.array(values, np.uint8).reshape(given.shape)


def _from_binary(given: InputTensor, data: memoryview) -> Tensor:
    count = math.prod(given.shape)
    if given.datatype == "UINT8":
        if len(data) != count:
            raise _invalid(given.name, f"has {len(data)} bytes for shape {given.shape}")
        return np.frombuffer(data, np.uint8).reshape(given.shape)
    elements, place = [], 0
    while place + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, place)
        place += 4
        if place + size > len(data):
            break
        elements.append(bytes(data[place : place + size]))
        place += size
    if place != len(data) or len(elements) != count:
        raise _invalid(given.name, f"does not hold {count} elements with their lengths")
    return elements


def _flat(data: list[Any]) -> list[Any]:
    """The elements of nested lists, row by row."""
    for _ in range(MAX_RANK):
        if not any(isinstance(each, list) for each in data):
            return data
        data = [v for each in data for v in (each if isinstance(each, list) else [each])]
    return data


def _to_binary(datatype: str, values: Tensor) -> bytes:
    if isinstance(values, list):
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return np.ascontiguousarray(values, DTYPES[datatype]).tobytes()


def _to_json(datatype: str, values: Tensor) -> Any:
    if isinstance(values, list):
        return [_text(value) for value in values]
    return np.ascontiguousarray(values, DTYPES[datatype]).ravel()


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return base64.b64encode(value).decode("ascii")


def _invalid(name: str, problem: str) -> Problem:
    return Problem("invalid_parameter", f"tensor {name[:80]!r} {problem}", parameter=name[:80])
