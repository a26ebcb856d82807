"""The commands that bring datasets to disk as Parquet, for a run spec to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatspace.commands.output import say, say_at_once
from chatspace.wording import counted

if TYPE_CHECKING:
    from chatspace.spec.dataset import DatasetSection


def download_dataset(
    name: Annotated[
        str,
        typer.Option("--name", help="Dataset on the hub, or a URL such as s3://bucket/folder."),
    ],
    split: Annotated[str, typer.Option("--split", help="The split to download.")] = "train",
    source: Annotated[
        str | None,
        typer.Option(
            "--source", help="huggingface, or where NAME lies: s3, gs, hf, https [by NAME]."
        ),
    ] = None,
    subset: Annotated[
        str | None, typer.Option("--subset", help="Configuration of a hub dataset.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Commit, tag or branch of a hub dataset.")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="parquet, jsonl, csv, arrow or text, of files at a URL [by NAME]."
        ),
    ] = None,
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", help="Root of what is written [$CHATSPACE_WORKSPACE]."),
    ] = None,
) -> None:
    """Bring a dataset to disk as Parquet, once."""
    from chatspace.data.download import download
    from chatspace.layout import resolve_workspace

    section = _section(
        {"source": source, "name": name, "subset": subset, "revision": revision, "split": split},
        format_,
    )
    done = download(section, resolve_workspace(workspace), say_at_once)
    record = done.record
    at = f" at {record['revision'][:12]}" if record["revision"] else ""
    came = "downloaded now" if done.is_new else "was there already"
    say(f"{name}, split {split}{at}: {came}")
    _say_folder(done.folder, record)
    _say_section(done.path, f"split: {_yaml(split)}")


def convert(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file, or a folder of files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder that gets a folder for each split.")],
    format_: Annotated[
        str | None, typer.Option("--from", help="json, jsonl, csv, arrow or text [by the names].")
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Split of what does not name its own.")
    ] = "train",
    by_file: Annotated[
        bool, typer.Option("--by-file", help="Each file is a split of its own, named after it.")
    ] = False,
    text_unit: Annotated[
        str, typer.Option("--text-unit", help="A row of text is a line, paragraph or file.")
    ] = "line",
) -> None:
    """Convert JSON, Arrow, CSV or text to Parquet.

    A JSON file is a list of objects, one object, or `{"train": [{...}, ...], "test": [...]}` with
    splits as keys. A folder is one split, of all its files in natural order, unless --by-file or
    the keys of its JSON say otherwise. Of a folder that `datasets` saved, every split is converted.
    """
    from chatspace.data.convert import Conversion
    from chatspace.data.convert import convert as convert_files
    from chatspace.errors import SpecError
    from chatspace.spec.dataset import TEXT_UNITS

    unit = next((known for known in TEXT_UNITS if known == text_unit), None)
    if unit is None:
        raise SpecError(
            f"Unknown unit: --text-unit {text_unit}; known: {', '.join(TEXT_UNITS)}. Name one."
        )
    task = Conversion(
        path=path, out=out, format=format_, split=split, by_file=by_file, text_unit=unit
    )
    done = convert_files(task, say)
    for item in done:
        say(f"split {item.split}: converted from {item.record['source']}")
        _say_folder(item.folder, item.record)
    names = ", ".join(_yaml(item.split) for item in done)
    _say_section(str(out.absolute()), f"split: {names}" if len(done) == 1 else f"splits: [{names}]")


def _section(values: dict[str, Any], format_: str | None) -> DatasetSection:
    """Returns what the options ask for as the dataset section of a spec."""
    from pydantic import ValidationError

    from chatspace.spec.dataset import DatasetSection
    from chatspace.spec.document import Document
    from chatspace.spec.problems import spec_error
    from chatspace.spec.secrets import holds_secret

    source, name = values["source"], values["name"]
    _refuse_unknown(name, source, format_)
    if source in (None, "huggingface") and "://" not in name:
        values = {**values, "source": "huggingface"}
        _refuse_format(format_)
    else:
        url = name if "://" in name else f"{source}://{name}"
        if not holds_secret(url):  # else it is refused below, where it is not shown
            _refuse_hub_options(values)
        values = {"source": format_ or _format_of(url), "path": url, "split": values["split"]}
    values = {key: value for key, value in values.items() if value is not None}
    try:
        return DatasetSection.model_validate(values)
    except ValidationError as error:
        document = Document(values=values, where="download-dataset")
        raise spec_error(error, DatasetSection, document) from None


def _refuse_unknown(name: str, source: str | None, format_: str | None) -> None:
    """Refuses a source, protocol or format that nobody knows, before anything is said or asked.

    Raises:
        SpecError: it names the flag.
    """
    from fsspec import available_protocols

    from chatspace.data.formats import EXTENSIONS
    from chatspace.data.remote import KNOWN_PROTOCOLS
    from chatspace.errors import SpecError
    from chatspace.spec.problems import nearest

    sources = ("huggingface", *KNOWN_PROTOCOLS)
    protocol = name.partition("://")[0] if "://" in name else None
    asked = {"Unknown source: --source {}": source, "Unknown protocol: --name {}://...": protocol}
    for words, given in asked.items():
        if given is not None and given.split("::")[0] not in (*sources, *available_protocols()):
            raise SpecError(
                f"{words.format(given)}; known: {', '.join(sources)} and others of fsspec."
                f"{nearest(given, sources) or ' Name one, or leave it out and give --name a URL.'}"
            )
    if format_ is not None and format_ not in EXTENSIONS:
        raise SpecError(
            f"Unknown format: --format {format_}; known: {', '.join(EXTENSIONS)}."
            f"{nearest(format_, EXTENSIONS) or ' Name one of them.'}"
        )


def _refuse_format(format_: str | None) -> None:
    from chatspace.errors import SpecError

    if format_ is not None:
        raise SpecError(
            f"No such option here: --format {format_}; the hub's datasets come as Parquet. Leave "
            "it out, or name a URL."
        )


def _refuse_hub_options(values: dict[str, Any]) -> None:
    from chatspace.errors import SpecError

    name, source = values["name"], values["source"]
    given = [f"--{key}" for key in ("subset", "revision") if values[key] is not None]
    if given:
        raise SpecError(
            f"No such option here: {' and '.join(given)}; {name} is a URL, and they are for the "
            "hub. Leave them out; a revision goes into the URL, as hf://datasets/org/name@v1."
        )
    if "://" in name and source not in (None, name.partition("://")[0]):
        raise SpecError(f"Two sources: --source {source} and --name {name}. Leave --source out.")


def _format_of(url: str) -> str:
    from chatspace.data.formats import format_of_name

    last = url.partition("?")[0].rsplit("/", 1)[-1]
    return format_of_name(last) or "parquet"


def _say_section(path: str, which: str) -> None:
    say(f"\nIn a run spec:\n  dataset: {{source: parquet, path: {_yaml(path)}, {which}}}")


def _yaml(text: str) -> str:
    """Returns a text as it may stand in a YAML list or mapping, quoted only where it has to be."""
    import yaml

    try:
        is_plain = yaml.safe_load(f"[{text}]") == [text]
    except yaml.YAMLError:
        is_plain = False
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def _say_folder(folder: Path, record: dict[str, Any]) -> None:
    from chatspace.jobs.summary import format_bytes

    files = counted(len(record["parts"]), "file")
    features = [f"{name} ({type_})" for name, type_ in record["features"].items()]
    shown = ", ".join(features[:8]) + (", ..." if len(features) > 8 else "")
    say(f"  {counted(record['rows'], 'row')}, {format_bytes(record['bytes'])}, {files} in {folder}")
    say(f"  columns: {shown}")
    say(f"  checksums: {folder / 'dataset.json'}")
