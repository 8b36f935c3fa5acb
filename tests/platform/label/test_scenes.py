"""Scenes read by window: each object once, where it is, whatever the units; and on the map."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from d2det.inference.merge import merge_windows
from d2det.inference.windows import ArrayScene, cut_windows, predict_windows
from d2det_platform.label import inspect
from d2det_platform.label.decoders import Decoders, Request
from d2det_platform.label.options import RasterOptions
from d2det_platform.label.uris import of_path
from tests.platform.label.fake_models import Squares
from tests.platform.label.lakes import label_bytes, label_here, options, read_labels
from tests.platform.label.scenes import SIDE, square_pixels, square_places, write_geotiff

pytest.importorskip("rasterio")
WIDTH, HEIGHT = 700, 500
TILE = {"tile": 128, "overlap": 40, "model": "Squares"}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_geotiff(
        tmp_path_factory.mktemp("scene") / "scene.tif", square_pixels(WIDTH, HEIGHT)
    )


@pytest.fixture(autouse=True)
def small_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "SCENE_PIXELS", 100_000)


def test_every_object_is_found_once_where_it_is(scene: Path, tmp_path: Path) -> None:
    label_here(options(scene, out=tmp_path, **TILE))
    (row,) = read_labels(tmp_path)
    expected = {(x, y, x + SIDE, y + SIDE) for x, y in square_places(WIDTH, HEIGHT)}
    assert {tuple(found["bbox"]) for found in row["detections"]} == expected
    assert len(row["detections"]) == len(expected)
    assert row["windows"] == len(cut_windows((HEIGHT, WIDTH), tile=128, overlap=40))
    assert row["seams"]["objects"] == len(expected)
    assert row["seams"]["open_at_seams"] == 0
    assert row["crs"] == "EPSG:32632"


def test_units_of_a_scene_give_what_all_windows_at_once_give(scene: Path, tmp_path: Path) -> None:
    for number, unit_pixels in enumerate((1, 60_000, 10**9)):
        label_here(options(scene, out=tmp_path / f"{number}", unit_pixels=unit_pixels, **TILE))
    pixels = ArrayScene(square_pixels(WIDTH, HEIGHT))
    windows = cut_windows((HEIGHT, WIDTH), tile=128, overlap=40)
    whole = merge_windows(list(predict_windows(Squares(), pixels, windows)), pixels.size)
    for number in range(3):
        (row,) = read_labels(tmp_path / f"{number}")
        assert [d["bbox"] for d in row["detections"]] == whole.detections.boxes.tolist()
        masks = [(tuple(d["mask"]["size"]), d["mask"]["counts"]) for d in row["detections"]]
        assert masks == [(m["size"], m["counts"].decode()) for m in whole.detections.masks or ()]


def test_scenes_share_shards_and_units_with_nobody(scene: Path, tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"lake/{i}.png"), square_pixels(60, 60))
    write_geotiff(tmp_path / "lake/1.tif", square_pixels(WIDTH, HEIGHT))
    label_here(options(tmp_path / "lake", out=tmp_path / "a", **TILE))
    label_here(options(scene, out=tmp_path / "b", **TILE))
    rows = {row["name"]: row for row in read_labels(tmp_path / "a")}
    (alone,) = read_labels(tmp_path / "b")
    assert rows["1.tif"]["detections"] == alone["detections"]
    assert len(rows) == 4


def test_a_picture_cut_in_memory_equals_the_scene_read_by_window(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label_here(options(scene, out=tmp_path / "by-window", **TILE))
    monkeypatch.setattr(inspect, "SCENE_PIXELS", 10**9)
    label_here(options(scene, out=tmp_path / "at-once", **TILE))
    (a,), (b,) = read_labels(tmp_path / "by-window"), read_labels(tmp_path / "at-once")
    assert a == b


def test_a_damaged_scene_is_one_error_row(scene: Path, tmp_path: Path) -> None:
    data = bytearray(scene.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    (tmp_path / "bad.tif").write_bytes(data)
    label_here(options(tmp_path / "bad.tif", out=tmp_path / "out", **TILE))
    (row,) = read_labels(tmp_path / "out")
    assert row["error"]["reason"] == "corrupt"
    assert row["detections"] == []


def test_objects_lie_on_the_map_where_the_transform_puts_them(scene: Path, tmp_path: Path) -> None:
    from pyproj import Transformer
    from shapely.geometry import shape

    given = options(scene, out=tmp_path, **TILE, output={"geo": ("geojson", "geoparquet")})
    label_here(given)
    features = json.loads((tmp_path / "geo/labels.geojson").read_bytes())["features"]
    assert len(features) == len(square_places(WIDTH, HEIGHT))
    to_lon_lat = Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True)
    for feature in features:
        x, y = feature["properties"]["bbox_px"][:2]
        east, north = 500_000 + 0.5 * x, 4_000_000 - 0.5 * y
        corner = to_lon_lat.transform(east, north)
        corners = np.array(shape(feature["geometry"]).exterior.coords)
        assert np.abs(corners - corner).max(1).min() < 1e-9
        assert len(corners) == 5


@pytest.mark.parametrize("crs", ["scene", "EPSG:3857"])
def test_the_coordinate_system_can_be_chosen(scene: Path, tmp_path: Path, crs: str) -> None:
    import pyarrow.parquet as pq
    from shapely import from_wkb

    output = {"geo": ("geojson", "geoparquet"), "geo_crs": crs}
    label_here(options(scene, out=tmp_path, **TILE, output=output))
    collection = json.loads((tmp_path / "geo/labels.geojson").read_bytes())
    code = "32632" if crs == "scene" else "3857"
    assert collection["crs"]["properties"]["name"].endswith(code)
    table = pq.read_table(tmp_path / "geo/labels.parquet")
    meta = json.loads(table.schema.metadata[b"geo"])
    assert meta["columns"]["geometry"]["crs"]["id"]["code"] == int(code)
    areas = [polygon.area for polygon in from_wkb(table.column("geometry").to_pylist())]
    if crs == "scene":
        assert np.allclose(areas, (SIDE * 0.5) ** 2)


@pytest.mark.parametrize(
    ("given", "low", "high"),
    [
        (RasterOptions(), 0, 65535),
        (RasterOptions(stretch="range", low=1000, high=3000), 1000, 3000),
        (RasterOptions(bands=(3, 2, 1), stretch="range", low=0, high=65535), 0, 65535),
        (RasterOptions(bands=(2,)), 0, 65535),
    ],
    ids=["16 bit by 256", "range", "bands", "one band"],
)
def test_samples_become_bytes_as_asked(
    tmp_path: Path, given: RasterOptions, low: float, high: float
) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (50, 70, 4), dtype=np.uint16)
    path = write_geotiff(tmp_path / "a.tif", pixels)
    with Decoders(raster=given) as decoders:
        (content,) = decoders.read([Request(of_path(path), window=(10, 5, 40, 30))])
    bands = [b - 1 for b in given.bands or (1, 2, 3)]
    part = pixels[5:35, 10:50][..., bands if len(bands) == 3 else bands * 3].astype(float)
    scaled = np.clip((part - low) * 255 / (high - low), 0, 255)
    assert np.abs(content.astype(float) - scaled).max() <= 1


def test_a_percentile_stretch_is_the_same_for_all_windows(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).normal(2000, 300, (300, 200, 3)).clip(0).astype(np.uint16)
    path = write_geotiff(tmp_path / "a.tif", pixels)
    with Decoders(raster=RasterOptions(stretch="percentile")) as decoders:
        whole, part = decoders.read(
            [
                Request(of_path(path), window=(0, 0, 200, 300)),
                Request(of_path(path), window=(50, 60, 70, 80)),
            ]
        )
    assert (whole[60:140, 50:120] == part).all()
    assert whole.min() == 0
    assert whole.max() == 255
    assert 100 < whole.mean() < 155


def test_small_tiffs_have_the_pixels_of_the_usual_decoder_either_way(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.uint16):
        top = np.iinfo(dtype).max
        pixels = np.random.default_rng(0).integers(0, top + 1, (60, 70, 3)).astype(dtype)
        path = write_geotiff(tmp_path / f"{top}.tif", pixels, photometric="RGB")
        with Decoders() as decoders:
            usual, by_window = decoders.read(
                [Request(of_path(path)), Request(of_path(path), window=(0, 0, 70, 60))]
            )
        assert (usual == by_window).all()


def test_a_scene_twice_gives_the_same_bytes(scene: Path, tmp_path: Path) -> None:
    for name in "ab":
        label_here(options(scene, out=tmp_path / name, unit_pixels=60_000, **TILE))
    assert label_bytes(tmp_path / "a") == label_bytes(tmp_path / "b")
