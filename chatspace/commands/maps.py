"""Commands that show the vectors of a run in the plane."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatspace.commands.arguments import RunArgument, WorkspaceOption
from chatspace.commands.output import say, say_at_once

if TYPE_CHECKING:
    import pyarrow as pa

    from chatspace.export.source import VectorSource

MethodOption = Annotated[
    str, typer.Option("--method", help="How rows are placed: umap, pca or tsne.")
]
NeighborsOption = Annotated[
    int, typer.Option("--n-neighbors", help="Of UMAP: near rows that a row stays together with.")
]
MinDistOption = Annotated[
    float, typer.Option("--min-dist", help="Of UMAP: how close points may stand, 0 to 1.")
]
MetricOption = Annotated[
    str,
    typer.Option(
        "--metric",
        help="What is near: cosine, euclidean, manhattan or correlation; for pca the first two, "
        "for tsne cosine.",
    ),
]
SampleOption = Annotated[
    int, typer.Option("--sample", metavar="N", help="So many rows, drawn by the seed; 0 for all.")
]
SeedOption = Annotated[
    int,
    typer.Option("--seed", metavar="N", min=0, max=2**32 - 1, help="Of the draw and the method."),
]
SplitOption = Annotated[str | None, typer.Option("--split", help="One split of the run [all].")]
PartialOption = Annotated[
    bool, typer.Option("--partial", help="Take the shards that are there, if others are missing.")
]

# By what became of points that lay there before.
_ORIGINS = {
    "new": "",
    "kept": ", made before with the same settings",
    "replaced": ", in place of earlier ones",
}


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
    """Bring the vectors of a run into the plane, as Parquet.

    The points lie in the run's folder, a file for each method.

    Example: chatspace reduce RUN --method umap --n-neighbors 30 --sample 20000
    """
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
    made = reduced(source, wanted, say_at_once)
    path = reduction_path(source.plan, method)
    what = f"{made.points.num_rows:,} points by {method}{_ORIGINS[made.origin]}"
    where = f" --workspace {shlex.quote(workspace)}" if workspace else ""
    rest = f"{shlex.quote(run)} --method {method}{where}"
    say(f"{source.plan.run_id}: {what}; {path}")
    say(f"\nNext:\n  chatspace map {rest}\n  chatspace atlas {rest}")


def map(
    run: RunArgument,
    color: Annotated[
        str | None,
        typer.Option(
            "--color",
            metavar="COLUMN",
            help="What colours points: split, or a column of output.keep_columns [split].",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where the files go [the run's maps/]."),
    ] = None,
    method: MethodOption = "umap",
    split: SplitOption = None,
    partial: PartialOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Draw a map of a run: a picture and a web page.

    The page is one file that needs no network. The points are those of `chatspace reduce`, made
    with its defaults where there are none.

    Example: chatspace map RUN --color topic --out maps/topic
    """
    from chatspace.viz.map import refuse_foreign
    from chatspace.viz.run_map import write_run_map

    if out is not None:
        refuse_foreign(out)
    source, points = _points(run, workspace, split, partial, method)
    made = write_run_map(source, points, colour=color, folder=out)
    earlier = ", in place of an earlier map" if made.is_replaced else ""
    say(
        f"{source.plan.run_id}: {points.num_rows:,} points by {method}{earlier}\n"
        f"  {made.png}\n  {made.html}"
    )


def atlas(
    run: RunArgument,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "localhost",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=1, max=65535, help="The first port to try.")
    ] = 5055,
    method: MethodOption = "umap",
    split: SplitOption = None,
    partial: PartialOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Explore a run in Embedding Atlas, until interrupted.

    The points are those of `chatspace reduce`, made with its defaults where there are none.

    Example: chatspace atlas RUN --port 5055
    """
    from chatspace.viz.atlas import address_lines, atlas_command, free_port, serve
    from chatspace.viz.reduction import reduction_path

    source, points = _points(run, workspace, split, partial, method)
    chosen = free_port(host, port)
    command = atlas_command(reduction_path(source.plan, method), host=host, port=chosen)
    taken = "" if chosen == port else f" (port {port} is taken)"
    say(f"{source.plan.run_id}: {points.num_rows:,} points by {method}{taken}")
    say_at_once("\n".join(address_lines(host, chosen)))
    serve(command)


def _points(
    run: str, workspace: str | None, split: str | None, partial: bool, method: str
) -> tuple[VectorSource, pa.Table]:
    """Returns the rows of a run and their points, made with the defaults where there are none."""
    from chatspace.viz.reduction import Reduction, points_of, reduced

    wanted = Reduction(method=method)
    wanted.check()
    source = _source(run, workspace, split, partial)
    points = points_of(source, method)
    return source, reduced(source, wanted, say_at_once).points if points is None else points


def _source(run: str, workspace: str | None, split: str | None, partial: bool) -> VectorSource:
    from chatspace.api import open_run
    from chatspace.export.source import open_source

    return open_source(open_run(run, workspace=workspace).plan, split, partial=partial)
