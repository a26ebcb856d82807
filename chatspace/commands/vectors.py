"""Commands that use the vectors of a finished run."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatspace.commands.arguments import RunArgument, WorkspaceOption
from chatspace.commands.output import say
from chatspace.errors import SpecError

if TYPE_CHECKING:
    from chatspace.export.search import Hit
    from chatspace.export.source import VectorSource

SplitOption = Annotated[str | None, typer.Option("--split", help="One split of the run [all].")]
PartialOption = Annotated[
    bool, typer.Option("--partial", help="What is there, although shards are missing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an earlier export.")]

EXCERPT_CHARS = 160
IDS_OF_A_GROUP = 5


def export(
    run: RunArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="One of parquet, datasets, numpy, faiss, usearch, lancedb.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="File or folder to write.")],
    split: SplitOption = None,
    index: Annotated[
        str | None,
        typer.Option("--index", help="For faiss: flat, ivf, hnsw or a factory text [flat]."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="For an index: cosine, dot, l2 or hamming [cosine]."),
    ] = None,
    partial: PartialOption = False,
    force: ForceOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the vectors of a run for another program."""
    from chatspace.export.formats import Export

    started = time.monotonic()
    wanted = Export(to=to, out=out, index=index, metric=metric, force=force)
    wanted.check()
    source = _source(run, workspace, split, partial)
    wanted.write(source)
    what = f"{source.rows:,} vectors of {source.encoding.dim}"
    say(f"{source.plan.run_id}: {what} as {to} in {time.monotonic() - started:.1f} s; {out}")
    say(f"\nNext, in Python:\n  {wanted.how_to_read()}")


def search(
    run: RunArgument,
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="What is searched for.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many rows.")] = 5,
    like: Annotated[
        str | None, typer.Option("--like", metavar="ID", help="Instead of a text: a row's id.")
    ] = None,
    prompt_name: Annotated[
        str | None,
        typer.Option("--prompt-name", help="The model's prompt for TEXT [as in the run]."),
    ] = None,
    split: SplitOption = None,
    as_json: JsonOption = False,
    partial: PartialOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Find the rows nearest to a text, or to another row."""
    from chatspace.export.search import check_k, search_like, search_text

    if text is not None and like is not None:
        raise SpecError(f"Search for what? TEXT and --like {like} are both given; keep one.")
    if text is None and like is None:
        raise SpecError("Search for what? Give a text, or the id of a row with --like.")
    if like is not None and prompt_name is not None:
        raise SpecError("--prompt-name is for a text; a row's vector is there already. Remove it.")
    check_k(k)
    source = _source(run, workspace, split, partial)
    notes: list[str] = []
    if text is not None:
        hits, notes = search_text(source, text, k=k, prompt_name=prompt_name)
    else:
        assert like is not None
        hits = search_like(source, like, k=k)
    if as_json:
        content = {
            "run_id": source.plan.run_id,
            **({"text": text} if like is None else {"like": like}),
            "notes": notes,
            "hits": [hit.to_json() for hit in hits],
        }
        say(json.dumps(content, indent=1, ensure_ascii=False))
        return
    _note(notes)
    _show_hits(hits, with_split=len(source.splits) > 1)


def duplicates(
    run: RunArgument,
    threshold: Annotated[
        float, typer.Option("--threshold", help="Least cosine of two rows that count as one.")
    ] = 0.95,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write all pairs as Parquet.")
    ] = None,
    approximate: Annotated[
        bool,
        typer.Option("--approximate", help="For millions of rows; says how many pairs it misses."),
    ] = False,
    max_pairs: Annotated[
        int, typer.Option("--max-pairs", help="More pairs are an error.")
    ] = 10_000_000,
    show: Annotated[int, typer.Option("--show", min=0, help="Groups to show.")] = 20,
    split: SplitOption = None,
    as_json: JsonOption = False,
    partial: PartialOption = False,
    force: ForceOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Find rows that are nearly the same, also across splits."""
    from chatspace.export.duplicate_report import (
        group_lines,
        grouped,
        shown_groups,
        summary,
        summary_lines,
        write_pairs,
    )
    from chatspace.export.duplicates import Wanted, find_duplicates
    from chatspace.export.place import refuse_taken

    wanted = Wanted(threshold=threshold, approximate=approximate, max_pairs=max_pairs)
    wanted.check()
    if out is not None:
        refuse_taken(out, force=force)
    source = _source(run, workspace, split, partial)
    found = find_duplicates(source, wanted)
    groups = grouped(found)
    shown = shown_groups(source, groups, show, IDS_OF_A_GROUP)
    if out is not None:
        write_pairs(source, found, groups, out, threshold)
    facts = summary(source, wanted, found, groups)
    if as_json:
        content = {**facts, "largest": [group.to_json() for group in shown]}
        say(json.dumps(content, indent=1, ensure_ascii=False))
        return
    say("\n".join(summary_lines(facts)))
    if shown:
        say("")
        say("\n".join(group_lines(shown)))
    if groups.count > len(shown):
        say(f"and {groups.count - len(shown):,} more groups")
    if out is not None:
        say(f"\nall pairs: {out}")


def _source(run: str, workspace: str | None, split: str | None, partial: bool) -> VectorSource:
    from chatspace.api import open_run
    from chatspace.export.source import open_source

    source = open_source(open_run(run, workspace=workspace).plan, split, partial=partial)
    if source.n_missing:
        _note([f"{source.n_missing} shards are missing; `chatspace status {shlex.quote(run)}`"])
    return source


def _note(lines: list[str]) -> None:
    for line in lines:
        sys.stderr.write(f"note: {line}\n")


def _show_hits(hits: list[Hit], *, with_split: bool) -> None:
    from chatspace.export.duplicate_report import excerpt

    for hit in hits:
        chunk = "" if hit.chunk_index is None else f" chunk {hit.chunk_index}"
        where = f"{hit.id}{chunk}{f'  ({hit.split})' if with_split else ''}"
        say(f"{hit.score:7.4f}  {where}")
        if hit.text is not None:
            say(f"         {excerpt(hit.text, EXCERPT_CHARS)}")
