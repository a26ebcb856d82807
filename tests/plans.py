"""Plans made by hand, for tests of what comes after planning."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from chatspace.data.inputs import InputFile
from chatspace.plan.model import Plan, Slice, SplitPlan
from chatspace.plan.slicing import make_slices, shard_text_bytes
from chatspace.spec.cluster import resolve_cluster
from chatspace.spec.loading import spec_from_mapping

DIGEST = "0123456789abcdef" * 4


def split_plan(
    name: str = "train", *, rows: int = 1000, rows_per_shard: int = 100, count: int = 3
) -> SplitPlan:
    file = InputFile(
        path=f"/data/docs/{name}.parquet",
        bytes=rows * 100,
        mtime_ns=1,
        rows=rows,
        row_groups=(rows,),
        text_bytes=(rows * 80,),
    )
    slices: tuple[Slice, ...] = make_slices(shard_text_bytes([file], rows, rows_per_shard), count)
    return SplitPlan(
        name=name,
        dataset="docs",
        revision=None,
        rows=rows,
        rows_per_shard=rows_per_shard,
        text_bytes=rows * 80,
        files=(file,),
        identity=({"name": f"{name}.parquet"},),
        slices=slices,
        output_dir=f"embeddings/tiny/docs/{name}",
        manifest=f"indexes/tiny/docs/{name}/manifest.json",
    )


def plan_of(
    workspace: Path | str = "/workspace",
    splits: tuple[SplitPlan, ...] | None = None,
    **sections: Any,
) -> Plan:
    values = {
        "kind": "embed",
        "name": "docs",
        "workspace": str(workspace),
        "dataset": {"source": "parquet", "path": "/data/docs"},
        **sections,
    }
    spec = spec_from_mapping(values, "test")
    cluster = {**asdict(resolve_cluster(spec)), "image_sha256": None}
    cluster["input_folders"] = ["/data/docs", "/models/tiny"]
    cluster["log_dir"] = sections.get("slurm", {}).get("log_dir", "/home/ada/logs")
    return Plan(
        kind="embed",
        name="docs",
        run_id=f"docs-{DIGEST[:8]}",
        plan_sha256=DIGEST,
        created_at="2026-01-02T03:04:05+00:00",
        workspace=str(workspace),
        spec=spec.science(),
        model={"name": "/models/tiny", "label": "tiny", "path": "/models/tiny", "fingerprint": {}},
        splits=splits or (split_plan(),),
        cluster=cluster,
        provenance={"spec_path": "setups/docs.yaml", "executable": "/opt/venv/bin/python"},
    )
