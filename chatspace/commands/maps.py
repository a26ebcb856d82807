"""Commands that show the vectors of a run in the plane."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatspace.commands.arguments import RunArgument, WorkspaceOption
from chatspace.commands.output import say, say_at_once

if TYPE_CHECKING:
    import pyarrow as pa

    from chatspace.export.source import VectorSource

MethodOption = Annotated[str, typer.Option("--method", help="umap, pca or tsne.")]
NeighborsOption = Annotated[
    int, typer.Option("--n-neighbors", help="Of UMAP: near rows that a row stays together with.")
]
MinDistOption = Annotated[
    float, typer.Option("--min-dist", help="Of UMAP: how close points may stand, 0 to 1.")
]
MetricOption = Annotated[
    str, typer.Option("--metric", help="cosine, euclidean, manhattan or correlation.")
]
SampleOption = Annotated[
    int, typer.Option("--sample", help="So many rows, drawn by the seed; 0 for all.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1)]
SplitOption = Annotated[str | None, typer.Option("--split", help="One split of the run [all].")]
PartialOption = Annotated[
    bool, typer.Option("--partial", help="What is there, although shards are missing.")
]


def reduce(
    run: RunArgument,
    method: MethodOption = "umap",
    n_neighbors: NeighborsOption = 15,
    min_dist: MinDistOption = 0.1,
    metric: MetricOption = "cosine",
    sample: SampleOption = 50_000,
    seed: SeedOption = 0,
    split: SplitOption = None,
    partial: PartialOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Bring the vectors of a run into the plane, as Parquet."""
    from chatspace.viz.reduction import Reduction, reduced, reduction_path

    wanted = Reduction(
        method=method,
        n_neighbors=n_neighbors,
        min_dist=min_dist,
        metric=metric,
        sample=sample,
        seed=seed,
    )
    wanted.check()
    source = _source(run, workspace, split, partial)
    points = reduced(source, wanted, say_at_once)
    path = reduction_path(source.plan, method)
    say(f"{source.plan.run_id}: {points.num_rows:,} points by {method}; {path}")
    where = f" --workspace {shlex.quote(workspace)}" if workspace else ""
    rest = f"{shlex.quote(run)} --method {method}{where}"
    say(f"\nNext:\n  chatspace map {rest}\n  chatspace atlas {rest}")


def map(
    run: RunArgument,
    color: Annotated[
        str | None,
        typer.Option("--color", metavar="COLUMN", help="split, or a kept column [split]."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder [the run's maps/].")] = None,
    method: MethodOption = "umap",
    split: SplitOption = None,
    partial: PartialOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Draw a map of a run: a picture, and a page that needs no network."""
    from chatspace.viz.run_map import write_run_map

    source, points = _points(run, workspace, split, partial, method)
    png, html = write_run_map(source, points, colour=color, folder=out)
    say(f"{source.plan.run_id}: {points.num_rows:,} points by {method}\n  {png}\n  {html}")


def atlas(
    run: RunArgument,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "localhost",
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="The first port to try.")
    ] = 5055,
    method: MethodOption = "umap",
    split: SplitOption = None,
    partial: PartialOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Explore a run in Embedding Atlas, until interrupted."""
    from chatspace.viz.atlas import atlas_command
    from chatspace.viz.reduction import reduction_path

    source, _ = _points(run, workspace, split, partial, method)
    command = atlas_command(reduction_path(source.plan, method), host=host, port=port)
    say_at_once(f"From another machine: ssh -L {port}:localhost:{port} THIS-MACHINE")
    os.execv(command[0], command)


def _points(
    run: str, workspace: str | None, split: str | None, partial: bool, method: str
) -> tuple[VectorSource, pa.Table]:
    """Returns the rows of a run and their points, made with the defaults where there are none."""
    from chatspace.viz.reduction import Reduction, points_of, reduced

    wanted = Reduction(method=method)
    wanted.check()
    source = _source(run, workspace, split, partial)
    points = points_of(source, method)
    return source, reduced(source, wanted, say_at_once) if points is None else points


def _source(run: str, workspace: str | None, split: str | None, partial: bool) -> VectorSource:
    from chatspace.api import open_run
    from chatspace.export.source import open_source

    return open_source(open_run(run, workspace=workspace).plan, split, partial=partial)
