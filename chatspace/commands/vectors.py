"""Commands that use the vectors of a finished run."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatspace.commands.arguments import RunArgument, WorkspaceOption
from chatspace.commands.output import say
from chatspace.errors import SpecError
from chatspace.wording import counted

if TYPE_CHECKING:
    from chatspace.export.duplicate_report import Group
    from chatspace.export.search import Hit
    from chatspace.export.source import VectorSource

SplitOption = Annotated[str | None, typer.Option("--split", help="One split of the run [all].")]
PartialOption = Annotated[
    bool, typer.Option("--partial", help="Take the shards that are there, if others are missing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an earlier export at --out.")]

# Of export
FormatOption = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="One of parquet, datasets, numpy, faiss, usearch, lancedb.",
    ),
]
ExportOutOption = Annotated[
    Path,
    typer.Option("--out", metavar="PATH", help="For parquet a file, else a folder."),
]
IndexOption = Annotated[
    str | None,
    typer.Option(
        "--index",
        help="Of faiss: flat, ivf, hnsw, or a text such as IVF4096,PQ64; hnsw must fit into "
        "memory [flat].",
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option("--metric", help="Of faiss and usearch: cosine, dot, l2 or hamming [cosine]."),
]

# Of search
TextArgument = Annotated[str | None, typer.Argument(metavar="TEXT", help="What is searched for.")]
CountOption = Annotated[int, typer.Option("-k", metavar="N", help="How many rows.")]
LikeOption = Annotated[
    str | None, typer.Option("--like", metavar="ID", help="Instead of a text: a row's id.")
]
PromptNameOption = Annotated[
    str | None,
    typer.Option(
        "--prompt-name",
        metavar="NAME",
        help="The model's prompt before TEXT, such as query [that of the run].",
    ),
]

BaseUrlOption = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        metavar="URL",
        help="Where the endpoint of an embed_openai run is now [its spec, $OPENAI_BASE_URL].",
    ),
]

# Of duplicates
ThresholdOption = Annotated[
    float, typer.Option("--threshold", help="Least cosine of two rows that are alike.")
]
PairsOutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write all pairs as Parquet [no].")
]
ApproximateOption = Annotated[
    bool,
    typer.Option("--approximate", help="For millions of rows; says how many pairs it misses."),
]
MaxPairsOption = Annotated[
    int, typer.Option("--max-pairs", metavar="N", help="More pairs are an error.")
]
ShowOption = Annotated[
    int, typer.Option("--show", metavar="N", min=0, help="How many groups are shown.")
]

EXCERPT_CHARS = 160
IDS_OF_A_GROUP = 5


def export(
    run: RunArgument,
    to: FormatOption,
    out: ExportOutOption,
    split: SplitOption = None,
    index: IndexOption = None,
    metric: MetricOption = None,
    partial: PartialOption = False,
    force: ForceOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the vectors of a run for another program.

    Example: chatspace export RUN --to parquet --out wiki.parquet
    """
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
    text: TextArgument = None,
    k: CountOption = 5,
    like: LikeOption = None,
    prompt_name: PromptNameOption = None,
    base_url: BaseUrlOption = None,
    split: SplitOption = None,
    as_json: JsonOption = False,
    partial: PartialOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Find the rows nearest to a text, or to another row.

    Example: chatspace search RUN "how do I read a file" -k 3
    """
    from chatspace.export.search import check_k, search_like, search_text

    _check_question(text, like, {"--prompt-name": prompt_name, "--base-url": base_url})
    check_k(k)
    source = _source(run, workspace, split, partial)
    notes: list[str] = []
    if like is None:
        hits, notes = search_text(
            source, text or "", k=k, prompt_name=prompt_name, base_url=base_url
        )
    else:
        hits = search_like(source, like, k=k)
    if as_json:
        asked = {"text": text} if like is None else {"like": like}
        found = [hit.to_json() for hit in hits]
        _say_json({"run_id": source.plan.run_id, **asked, "notes": notes, "hits": found})
        return
    _note(notes)
    _show_hits(hits, with_split=len(source.splits) > 1)


def duplicates(
    run: RunArgument,
    threshold: ThresholdOption = 0.95,
    out: PairsOutOption = None,
    approximate: ApproximateOption = False,
    max_pairs: MaxPairsOption = 10_000_000,
    show: ShowOption = 20,
    split: SplitOption = None,
    as_json: JsonOption = False,
    partial: PartialOption = False,
    force: ForceOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Find rows that are nearly the same, also across splits.

    Example: chatspace duplicates RUN --threshold 0.9 --out pairs.parquet
    """
    from chatspace.export.duplicate_report import grouped, shown_groups, summary, write_pairs
    from chatspace.export.duplicates import Wanted, find_duplicates
    from chatspace.export.place import refuse_taken

    wanted = Wanted(threshold=threshold, approximate=approximate, max_pairs=max_pairs)
    wanted.check()
    if out is not None:
        refuse_taken(out, force=force, one_file=True)
    source = _source(run, workspace, split, partial)
    found = find_duplicates(source, wanted)
    groups = grouped(found)
    shown = shown_groups(source, groups, show, IDS_OF_A_GROUP)
    if out is not None:
        write_pairs(source, found, groups, out, threshold=threshold)
    facts = summary(source, wanted, found, groups)
    if as_json:
        _say_json({**facts, "largest": [group.to_json() for group in shown]})
        return
    _show_groups(facts, shown, out)


def _source(run: str, workspace: str | None, split: str | None, partial: bool) -> VectorSource:
    from chatspace.api import open_run
    from chatspace.export.source import open_source

    source = open_source(open_run(run, workspace=workspace).plan, split, partial=partial)
    if source.n_missing:
        _note(
            [f"{counted(source.n_missing, 'shard')} missing; `chatspace status {shlex.quote(run)}`"]
        )
    return source


def _check_question(text: str | None, like: str | None, of_text: Mapping[str, str | None]) -> None:
    """Refuses a search for nothing, or for two things.

    Args:
        text: what is searched for.
        like: or the id of a row.
        of_text: options that make sense with a text alone.

    Raises:
        SpecError: not one of text and id is given, or an option of a text without one.
    """
    if text is not None and like is not None:
        raise SpecError(f"Search for what? TEXT and --like {like} are both given; keep one.")
    if text is None and like is None:
        raise SpecError("Search for what? Give a text, or the id of a row with --like.")
    for name in (name for name, value in of_text.items() if value is not None):
        if like is not None:
            raise SpecError(f"{name} is for a text; a row's vector is there already. Remove it.")


def _say_json(content: dict[str, Any]) -> None:
    say(json.dumps(content, indent=1, ensure_ascii=False))


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


def _show_groups(facts: dict[str, Any], shown: list[Group], out: Path | None) -> None:
    from chatspace.export.duplicate_report import group_lines, summary_lines

    say("\n".join(summary_lines(facts)))
    if shown:
        say("")
        say("\n".join(group_lines(shown)))
    if more := facts["groups"] - len(shown):
        say(f"and {counted(more, 'more group')}")
    if out is not None:
        say(f"\nall pairs: {out}")
