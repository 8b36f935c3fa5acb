"""Objects of georeferenced scenes as GeoJSON and GeoParquet, in one coordinate system.

Polygons follow the edges of mask pixels where there are masks, else they are the boxes' corners.
Scenes without a georeference have no place on a map and are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from d2det import rle
from d2det.structures import Rle
from d2det_platform.label.labels import label_rows, output_file
from d2det_platform.label.layout import Run
from d2det_platform.label.options import OutputOptions
from d2det_platform.label.plan import Plan
from d2det_platform.store import RunStore

GEOJSON, GEOPARQUET = "geo/labels.geojson", "geo/labels.parquet"
_LON_LAT = "EPSG:4326"
_BATCH = 4096


def write_geo(store: RunStore, run: Run, plan: Plan, outputs: OutputOptions) -> list[str]:
    """Writes the formats asked for and returns their names.

    Raises:
        ValueError: no such coordinate system, or "scene" with scenes of several.
    """
    names = []
    crs = _target_crs(store, run, plan, outputs.geo_crs)
    if "geojson" in outputs.geo:
        _write_geojson(store, _features(store, run, plan, outputs, crs), crs)
        names.append(GEOJSON)
    if "geoparquet" in outputs.geo:
        _write_geoparquet(store, _features(store, run, plan, outputs, crs), crs)
        names.append(GEOPARQUET)
    return names


def _target_crs(store: RunStore, run: Run, plan: Plan, asked: str) -> str:
    """The coordinate system of the outputs, as text that pyproj reads."""
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    if asked == "scene":
        found = {row["crs"] for row in label_rows(store, run, plan) if row["crs"] is not None}
        if len(found) > 1:
            raise ValueError(
                f"the scenes have {len(found)} coordinate systems: set --output.geo-crs"
            )
        return str(next(iter(found), _LON_LAT))
    try:
        CRS.from_user_input(asked)
    except CRSError as error:
        raise ValueError(f"--output.geo-crs {asked!r} is not known: {error}") from None
    return asked


def _features(
    store: RunStore, run: Run, plan: Plan, outputs: OutputOptions, crs: str
) -> Iterator[dict[str, Any]]:
    """Yields objects with their polygon in `crs` as a shapely geometry."""
    for row in label_rows(store, run, plan):
        if row["crs"] is None or row["error"] is not None:
            continue
        for found in row["detections"]:
            if found["score"] < outputs.min_score:
                continue
            geometry = _on_the_map(_polygon(found, row), row["crs"], crs)
            yield {
                "uri": row["uri"],
                "label": found["label"],
                "category_id": found["category_id"],
                "score": found["score"],
                "bbox_px": found["bbox"],
                "geometry": geometry,
            }


def _polygon(found: dict[str, Any], row: dict[str, Any]) -> Any:
    """The object in coordinates of its scene's CRS."""
    from affine import Affine
    from shapely import affinity, box

    to_map = Affine(*row["transform"])
    geometry = None
    if found["mask"] is not None:
        geometry = _mask_polygon(found["mask"])
    if geometry is None:
        geometry = box(*found["bbox"])
    a, b, c, d, e, f = tuple(to_map)[:6]
    return affinity.affine_transform(geometry, [a, b, d, e, c, f])


def _mask_polygon(mask: dict[str, Any]) -> Any:
    """The outline of a mask along the edges of its pixels, in the scene's; None if empty."""
    from affine import Affine
    from rasterio.features import shapes
    from shapely import union_all
    from shapely.geometry import shape

    crop, x, y = _crop(mask)
    if crop is None:
        return None
    found = shapes(crop, mask=crop.astype(bool), transform=Affine.translation(x, y))
    return union_all([shape(geometry) for geometry, _ in found])


def _crop(mask: dict[str, Any]) -> tuple[Any, int, int]:
    """The pixels of a mask inside its bounds, uint8, and where they lie; never the whole scene."""
    height = mask["size"][0]
    encoded = Rle(size=tuple(mask["size"]), counts=mask["counts"].encode())
    runs = rle.to_intervals(encoded)
    runs = runs[runs[:, 1] > runs[:, 0]]
    if not len(runs):
        return None, 0, 0
    pixels = np.concatenate([np.arange(low, high) for low, high in runs.tolist()])
    columns, rows = pixels // height, pixels % height
    x, y = int(columns.min()), int(rows.min())
    crop = np.zeros((int(rows.max()) - y + 1, int(columns.max()) - x + 1), np.uint8)
    crop[rows - y, columns - x] = 1
    return crop, x, y


def _on_the_map(geometry: Any, source: str, target: str) -> Any:
    from shapely import transform

    if source == target:
        return geometry
    change = _transformer(source, target)
    return transform(geometry, lambda x, y: change.transform(x, y), interleaved=False)


@lru_cache(maxsize=64)
def _transformer(source: str, target: str) -> Any:
    from pyproj import Transformer

    # x before y, as GeoJSON and GeoParquet have it, whatever the CRS says.
    return Transformer.from_crs(source, target, always_xy=True)


def _write_geojson(store: RunStore, features: Iterator[dict[str, Any]], crs: str) -> None:
    """RFC 7946 has longitude and latitude only; others carry the older `crs` member."""
    from shapely import to_geojson

    head = b'{"type":"FeatureCollection","name":"labels",'
    if crs != _LON_LAT:
        head += b'"crs":' + orjson.dumps({"type": "name", "properties": {"name": _urn(crs)}}) + b","
    with output_file(store, GEOJSON) as file:
        file.write(head + b'"features":[')
        separator = b"\n"
        for feature in features:
            geometry = orjson.loads(to_geojson(feature.pop("geometry")))
            row = {"type": "Feature", "geometry": geometry, "properties": feature}
            file.write(separator + orjson.dumps(row))
            separator = b",\n"
        file.write(b"\n]}\n")


def _urn(crs: str) -> str:
    from pyproj import CRS

    authority = CRS.from_user_input(crs).to_authority()
    return f"urn:ogc:def:crs:{authority[0]}::{authority[1]}" if authority else crs


def _write_geoparquet(store: RunStore, features: Iterator[dict[str, Any]], crs: str) -> None:
    from pyproj import CRS

    column = {
        "encoding": "WKB",
        "geometry_types": [],
        "crs": CRS.from_user_input(crs).to_json_dict(),
    }
    meta = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    schema = pa.schema(
        [
            ("uri", pa.string()),
            ("label", pa.string()),
            ("category_id", pa.int64()),
            ("score", pa.float32()),
            ("bbox_px", pa.list_(pa.float32())),
            ("geometry", pa.binary()),
        ],
        metadata={"geo": json.dumps(meta)},
    )
    with (
        output_file(store, GEOPARQUET) as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        batch: list[dict[str, Any]] = []
        for feature in features:
            batch.append(feature)
            if len(batch) == _BATCH:
                writer.write_table(_geo_table(batch, schema))
                batch = []
        writer.write_table(_geo_table(batch, schema))


def _geo_table(batch: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    from shapely import to_wkb

    rows = [{**feature, "geometry": to_wkb(feature["geometry"])} for feature in batch]
    return pa.Table.from_pylist(rows, schema)
