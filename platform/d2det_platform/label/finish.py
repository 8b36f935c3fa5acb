"""What is made from the committed labels: exports, error table, run card, and `_SUCCESS` last."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from d2det_platform.label.card import Speed, write_card
from d2det_platform.label.export_coco import write_coco
from d2det_platform.label.export_geo import write_geo
from d2det_platform.label.export_tasks import write_cvat, write_label_studio
from d2det_platform.label.labels import label_batches, output_file
from d2det_platform.label.layout import ERRORS, SUCCESS, Run
from d2det_platform.label.options import OutputOptions
from d2det_platform.label.plan import Plan
from d2det_platform.label.schema import ERRORS as ERRORS_SCHEMA
from d2det_platform.store import RunStore


def finish(
    store: RunStore, run: Run, plan: Plan, outputs: OutputOptions, speed: Speed | None
) -> dict[str, Any]:
    """Writes everything beside the labels and returns the content of `_SUCCESS`.

    speed: of the inference that was done now; None keeps what an earlier card says.
    """
    names = [run.layout.part(shard.index) for shard in plan.shards]
    if outputs.coco:
        names += write_coco(store, run, plan)
    if outputs.label_studio:
        names += write_label_studio(store, run, plan, min_score=outputs.min_score)
    if outputs.cvat:
        names += write_cvat(store, run, plan, min_score=outputs.min_score)
    if outputs.geo:
        names += write_geo(store, run, plan, outputs)
    names += _write_errors(store, run, plan)
    summary, card_names = write_card(store, run, plan, outputs, speed)
    content = {
        "run": run.key,
        "outputs": outputs.model_dump(mode="json"),
        "counts": summary["counts"],
        "files": {name: _file_entry(store, name) for name in names + card_names},
    }
    store.write(SUCCESS, json.dumps(content, indent=1).encode())
    return content


def read_success(store: RunStore, run: Run, outputs: OutputOptions) -> dict[str, Any] | None:
    """Returns the content of `_SUCCESS`, where it is of this run and these outputs."""
    try:
        content = dict(json.loads(store.read(SUCCESS)))
    except FileNotFoundError:
        return None
    wanted = outputs.model_dump(mode="json")
    return content if (content["run"], content["outputs"]) == (run.key, wanted) else None


def _write_errors(store: RunStore, run: Run, plan: Plan) -> list[str]:
    with output_file(store, ERRORS) as file, pq.ParquetWriter(file, ERRORS_SCHEMA) as writer:
        for table in label_batches(store, run, plan):
            bad = table.filter(table.column("error").is_valid()).combine_chunks()
            if not len(bad):
                continue
            error = bad.column("error").chunk(0)
            columns = [bad.column("uri"), bad.column("name"), *error.flatten()]
            writer.write_table(pa.Table.from_arrays(columns, schema=ERRORS_SCHEMA))
    return [ERRORS]


def _file_entry(store: RunStore, name: str) -> dict[str, Any]:
    with store.local_file(name) as path, path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        entry: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": digest}
        if name.endswith(".parquet"):
            entry["rows"] = pq.read_metadata(path).num_rows
    return entry
