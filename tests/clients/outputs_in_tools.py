"""Opens the outputs of a labelling in the tools people have, unmodified, and compares the counts.

    PYTHON tests/clients/outputs_in_tools.py LABELS PHOTOS

PYTHON is of an environment with pycocotools, supervision, duckdb, geopandas and label-studio-sdk;
LABELS was written with --output.label-studio --output.geo geojson geoparquet, from the folder
PHOTOS.
"""

import json
import sys
from pathlib import Path

import duckdb
import geopandas
import supervision
from label_studio_sdk.label_interface import LabelInterface
from pycocotools.coco import COCO

labels, photos = (Path(argument) for argument in sys.argv[1:])
parts = f"'{labels}/labels/*.parquet'"
((pictures, objects, placed),) = duckdb.sql(
    "SELECT count(*), coalesce(sum(len(detections)), 0)::BIGINT, "
    f"coalesce(sum(len(detections)) FILTER (crs IS NOT NULL), 0)::BIGINT FROM {parts} "
    "WHERE error IS NULL"
).fetchall()
assert pictures, "nothing is labelled"
by_class = dict(
    duckdb.sql(
        "SELECT found.label, count(*) "
        f"FROM (SELECT unnest(detections) AS found FROM {parts}) GROUP BY 1"
    ).fetchall()
)
assert sum(by_class.values()) == objects
print(f"duckdb: {pictures} pictures, {objects} objects: {by_class}")

dataset = COCO(str(labels / "coco/dataset.json"))
results = dataset.loadRes(str(labels / "coco/results.json"))
assert (len(dataset.imgs), len(results.anns)) == (pictures, objects)
names = {category["id"]: category["name"] for category in dataset.cats.values()}
counted = [names[annotation["category_id"]] for annotation in results.anns.values()]
assert {name: counted.count(name) for name in set(counted)} == by_class
areas = [int(results.annToMask(a).sum()) for a in results.anns.values() if "segmentation" in a]
print(f"pycocotools: {len(results.anns)} results, {sum(areas)} mask pixels")

opened = supervision.DetectionDataset.from_coco(
    str(photos), str(labels / "coco/dataset.json"), force_masks=bool(areas)
)
assert sum(len(found) for found in opened.annotations.values()) == objects
found_areas = [found.mask.sum() for found in opened.annotations.values() if found.mask is not None]
assert int(sum(found_areas)) == sum(areas)
print(f"supervision: {len(opened)} pictures, the same mask pixels")

for name in ("labels.geojson", "labels.parquet"):
    path = labels / "geo" / name
    read = geopandas.read_parquet if path.suffix == ".parquet" else geopandas.read_file
    table = read(path)
    assert len(table) == placed
    assert table.geometry.is_valid.all()
    assert table.crs is not None
    print(f"geopandas: {name}, {len(table)} polygons in {table.crs.to_string()}")

interface = LabelInterface((labels / "tasks/label_studio.xml").read_text())
tasks = json.loads((labels / "tasks/label_studio.json").read_text())
assert len(tasks) == pictures
for task in tasks:
    # Without its predictions, on which this method fails by a fault of its own.
    assert interface.validate_task({"data": task["data"]})
    for prediction in task["predictions"]:
        errors = interface.validate_prediction(prediction, return_errors=True)
        assert not errors, errors
print(f"label studio: {len(tasks)} tasks and their predictions are valid")
