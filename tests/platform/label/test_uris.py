"""A picture's URI names all bytes of its place, and gives them back."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2det_platform.label import uris


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4))
def test_every_path_comes_back_byte_for_byte(parts: list[bytes]) -> None:
    path = b"/" + b"/".join(part.replace(b"/", b"_").replace(b"\0", b"_") for part in parts)
    path = os.path.abspath(path)  # noqa: PTH100
    uri = uris.of_path(path)
    assert uri.isascii()
    assert uri.isprintable()
    assert os.fsencode(uris.to_path(uri)) == path


@given(st.text(min_size=1, max_size=30).filter(lambda key: key.isprintable()))
def test_every_key_of_an_object_store_comes_back(key: str) -> None:
    uri = uris.of_location(f"s3://bucket/{key}")
    assert uri.isascii()
    assert uris.to_location(uri) == f"s3://bucket/{key}"


@pytest.mark.parametrize(
    "name", ["a#row=3", "a%23row=3", "%2e%2e", "-x", "\u00fc", "u\u0308", "a\nb"]
)
def test_names_that_look_like_something_else_stay_different(name: str) -> None:
    uri = uris.of_path(f"/lake/{name}")
    assert uris.split_row(uri) == (uri, None)
    assert uris.to_path(uri) == f"/lake/{name}"


def test_rows_of_tables_have_their_number() -> None:
    uri = uris.with_row(uris.of_path("/lake/a.parquet"), 17)
    assert uris.split_row(uri) == ("file:///lake/a.parquet", 17)


@pytest.mark.parametrize(
    ("given", "url"), [("s3://b/k", True), ("C:/x", False), ("a:b", False), ("x/y", False)]
)
def test_schemes_are_told_from_colons(given: str, url: bool) -> None:
    assert uris.is_url(given) is url
