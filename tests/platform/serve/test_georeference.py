"""Georeferences read from tags equal those that rasterio reads; scenes come out on the map."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from d2det_platform.serve.georeference import read_georeference
from tests.platform.serve.endpoint import jpeg
from tests.platform.serve.test_native import in_endpoint
from tests.shared import shared_dir

rasterio = pytest.importorskip("rasterio")


def geotiff(folder: Path, *, crs: str = "EPSG:32633", **more: object) -> bytes:
    path = folder / "scene.tif"
    transform = rasterio.transform.from_origin(500_000, 5_200_000, 0.5, 0.25)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 200, 300), dtype=np.uint8)
    profile = {"driver": "GTiff", "height": 200, "width": 300, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs=crs, transform=transform, **more) as file:
        file.write(pixels)
    return path.read_bytes()


@pytest.mark.parametrize("more", [{}, {"BIGTIFF": "YES"}, {"tiled": True}], ids=str)
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326"])
def test_made_files_are_where_rasterio_says(tmp_path: Path, more: dict, crs: str) -> None:
    data = geotiff(tmp_path, crs=crs, **more)
    place = read_georeference(data)
    assert place is not None
    with rasterio.open(tmp_path / "scene.tif") as file:
        assert place.epsg == file.crs.to_epsg()
        assert np.allclose(place.transform, tuple(file.transform)[:6])


def test_real_files_are_where_rasterio_says() -> None:
    paths = sorted(shared_dir("data", "large", "geotiff").glob("*.tif"))
    assert paths
    for path in paths:
        place = read_georeference(path.read_bytes())
        with rasterio.open(path) as file:
            assert place is not None
            assert place.epsg == file.crs.to_epsg()
            assert np.allclose(place.transform, tuple(file.transform)[:6])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"II*\x00",
        jpeg(),
        cv2.imencode(".tif", np.zeros((9, 9, 3), np.uint8))[1].tobytes(),
        b"II*\x00" + struct.pack("<IH", 8, 65_535) + bytes(100),
        b"II*\x00" + struct.pack("<I", 0xFFFFFFFF),
        b"II*\x00" + struct.pack("<IHHHII", 8, 1, 33550, 12, 4000, 0xFFFFFF00),
        b"II+\x00\x08\x00\x00\x00" + b"\xff" * 8,
    ],
)
def test_whatever_has_none_gives_none(data: bytes) -> None:
    assert read_georeference(data) is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e308])
def test_a_place_that_is_no_number_leaves_objects_in_pixels(tmp_path: Path, number: float) -> None:
    data = geotiff(tmp_path)
    tiepoint = struct.pack("<6d", 0, 0, 0, 500_000, 5_200_000, 0)
    assert data.count(tiepoint) == 1
    data = data.replace(tiepoint, struct.pack("<6d", number, 0, 0, 500_000, 5_200_000, 0))

    async def check(http: httpx.AsyncClient) -> None:
        collection = (await http.post("/v1/scenes?format=geojson", content=data)).json()
        assert collection["frame"] == "pixels"
        corners = [f["geometry"]["coordinates"][0] for f in collection["features"]]
        assert corners
        assert np.isfinite(np.array(corners, float)).all()

    in_endpoint(check)


def test_objects_of_a_georeferenced_scene_come_in_longitude_and_latitude(tmp_path: Path) -> None:
    data = geotiff(tmp_path)
    with rasterio.open(tmp_path / "scene.tif") as file:
        from rasterio.warp import transform_bounds

        west, south, east, north = transform_bounds(file.crs, "EPSG:4326", *file.bounds)

    async def check(http: httpx.AsyncClient) -> None:
        collection = (await http.post("/v1/scenes?format=geojson", content=data)).json()
        assert collection["frame"] == "EPSG:4326"
        corners = np.array([f["geometry"]["coordinates"][0] for f in collection["features"]])
        assert corners[..., 0].min() >= west - 1e-6
        assert corners[..., 0].max() <= east + 1e-6
        assert corners[..., 1].min() >= south - 1e-6
        assert corners[..., 1].max() <= north + 1e-6
        first = corners[0, 0]  # the picture's left upper corner
        assert np.allclose(first, [west, north], atol=1e-5)
        plain = (await http.post("/v1/scenes?format=geojson", content=jpeg(200, 300))).json()
        assert plain["frame"] == "pixels"

    in_endpoint(check)
