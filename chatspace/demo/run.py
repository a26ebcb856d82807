"""What `chatspace demo` does around the run: text and model before it, the picture after it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from chatspace.demo.corpus import corpus_file, corpus_folder, write_corpus
from chatspace.demo.model import model_folder, place_model
from chatspace.jobs.gather import read_manifest
from chatspace.layout import Layout, resolve_workspace
from chatspace.plan.model import Plan
from chatspace.shards.table import float_vectors
from chatspace.shards.vectors import encoding_of
from chatspace.spec.base import RunSpec
from chatspace.spec.loading import load_spec
from chatspace.viz.map import MapRows, write_map
from chatspace.viz.projection import project, sample_rows


def prepare_demo(spec: RunSpec) -> None:
    """Writes the passages and places the model that `setups/demo.yaml` names, once.

    Raises:
        ModelError: the packaged model is missing or not the published one.
        OutputError: the workspace cannot be written.
    """
    workspace = resolve_workspace(spec.workspace)
    write_corpus(corpus_folder(workspace))
    place_model(workspace)


def demo_overrides(spec_path: Path, overrides: Sequence[str]) -> list[str]:
    """Returns overrides that place passages and model below the workspace that is chosen by them.

    Args:
        spec_path: `setups/demo.yaml`, which names both below its own workspace.
        overrides: `key=value` texts; what they say of the two goes first.

    Raises:
        SpecError: an override is wrong.
        OutputError: the workspace cannot be written.
    """
    chosen = load_spec(spec_path, overrides).workspace
    if chosen == load_spec(spec_path).workspace:
        return list(overrides)
    workspace = resolve_workspace(chosen)
    passages, model = corpus_file(workspace), model_folder(workspace)
    return [f"dataset.path={passages}", f"model.name={model}", *overrides]


def write_demo_map(plan: Plan) -> tuple[Path, Path]:
    """Draws the vectors of a gathered run, coloured by package, as PNG and as HTML page.

    Returns:
        The two files, in the run's folder.
    """
    split = plan.splits[0]
    manifest = read_manifest(plan, split)
    assert manifest is not None
    paths = [Path(plan.workspace) / shard["path"] for shard in manifest["shards"]]
    columns = ["id", "text", "metadata", *encoding_of(pq.read_schema(paths[0])).columns]
    tables = [pq.read_table(path, columns=columns, partitioning=None) for path in paths]
    rows = [row for t in tables for row in t.select(columns[:3]).to_pylist()]
    vectors = np.concatenate([float_vectors(t) for t in tables])  # (rows, dim)
    chosen = sample_rows(len(rows), seed=plan.spec["seed"])
    shown = MapRows(
        ids=[rows[i]["id"] for i in chosen],
        texts=[rows[i]["text"] or "" for i in chosen],
        groups=[json.loads(rows[i]["metadata"])["package"] for i in chosen],
        xy=project(vectors[chosen], plan.spec["seed"]),
    )
    folder = Layout(Path(plan.workspace)).run(plan.run_id).folder
    subtitle = (
        f"{len(rows):,} passages, {Path(plan.model['name']).name}, {vectors.shape[1]} dimensions"
    )
    return write_map(shown, folder, title="Python's documentation, embedded", subtitle=subtitle)
