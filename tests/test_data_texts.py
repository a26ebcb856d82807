"""What of a row is embedded: places within columns, conversations, templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatspace.data.conversations import all_turns_text, first_assistant_text, last_user_text
from chatspace.data.cursor import Cursor
from chatspace.data.fields import find_field
from chatspace.data.inventory import inventory
from chatspace.data.rows import PreparedRows, SplitReader
from chatspace.data.selection import RowRange
from chatspace.data.templates import UnfitRow, row_template
from chatspace.errors import InputError, SpecError, UserError
from chatspace.shards.records import ShardSpan
from chatspace.spec.dataset import DatasetSection

OPENAI = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "q2"},
]
SHAREGPT = [
    {"from": "system", "value": "be brief"},
    {"from": "human", "value": "q1"},
    {"from": "gpt", "value": "a1"},
    {"from": "human", "value": "q2"},
]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "q1"}, {"type": "image", "text": None}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a1"}]},
]


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def section(**dataset: Any) -> DatasetSection:
    return DatasetSection(**{"source": "parquet", "path": "unused", **dataset})


def read(path: Path, keep_columns: tuple[str, ...] = (), **dataset: Any) -> PreparedRows:
    made = section(**dataset)
    files = inventory([path], made, keep_columns=keep_columns)
    reader = SplitReader(
        made,
        label="data",
        split="train",
        files=files,
        selection=RowRange(),
        keep_columns=keep_columns,
    )
    return reader.read(ShardSpan(index=0, row_start=0, row_stop=sum(f.rows for f in files)))


def refused(path: Path, **dataset: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


NESTED = [
    {
        "meta": {"title": "t0", "by": {"name": "n0"}, "tags": ["x", "y"]},
        "messages": OPENAI,
        "a.b": "dotted",
        "a": {"b": "nested", "c.d": "inner dot"},
    },
    {"meta": None, "messages": [], "a.b": None, "a": {"b": None, "c.d": ""}},
    {
        "meta": {"title": " ", "by": None, "tags": []},
        "messages": [{"role": None, "content": None}, {"role": "user", "content": "only"}],
        "a.b": "z",
        "a": None,
    },
]


@pytest.mark.parametrize(
    ("field", "texts", "skipped"),
    [
        ("meta.title", ["t0"], {"empty_text": 1, "null_text": 1}),
        ("meta.by.name", ["n0"], {"null_text": 2}),
        ("meta.tags[]", ["x\ny"], {"null_text": 2}),
        ("messages[].content", ["be brief\nq1\na1\nq2", "only"], {"null_text": 1}),
        ("messages[0].content", ["be brief"], {"null_text": 2}),
        ("messages[-1].content", ["q2", "only"], {"null_text": 1}),
        ("messages[3].content", ["q2"], {"null_text": 2}),
        ("a.b", ["dotted", "z"], {"null_text": 1}),
        ("a.c.d", ["inner dot"], {"empty_text": 1, "null_text": 1}),
    ],
)
def test_read_nested_field_gives_its_texts(
    tmp_path: Path, field: str, texts: list[str], skipped: dict[str, int]
) -> None:
    rows = read(write(tmp_path / "a.parquet", NESTED), text_field=field)
    assert rows.texts == texts
    assert rows.skipped == skipped
    assert len(rows.texts) + sum(rows.skipped.values()) == 3


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("meta.titel", "meta has title, by, tags. Did you mean title?"),
        ("metta.title", "Missing column: dataset.text_field='metta'; {path} has meta, messages"),
        ("messages.content", "every item is messages[], the first messages[0]. Write messages[].c"),
        ("messages[x].content", "messages is a list; "),
        ("messages[].text", "messages[] has role, content."),
        ("meta.title[0]", "meta.title is string, not a list"),
        ("meta.title.x", "meta.title is string and has no fields"),
        ("meta", "Name one of its fields, such as meta.title."),
        ("meta.tags", "Name its items, meta.tags[] or meta.tags[0]."),
        ("messages", "Set conversation: first_assistant, all_turns or last_user."),
        ("", "Missing column"),
    ],
)
def test_read_wrong_nested_field_names_what_there_is(
    tmp_path: Path, field: str, expected: str
) -> None:
    path = write(tmp_path / "a.parquet", NESTED)
    if not field:
        with pytest.raises(InputError, match="Missing column"):
            find_field(pq.read_schema(path), "", path, "dataset.text_field")
        return
    assert expected.format(path=path) in refused(path, text_field=field)


def test_read_nested_field_reads_its_leaf_columns_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"n": {"x": 1, "y": 2}, "turns": [{"role": "u" * 900, "content": f"c{i}"}], "z": "z" * 900}
        for i in range(50)
    ]
    path = write(tmp_path / "a.parquet", rows, use_dictionary=False)
    made = section(text_field="turns[].content")
    (file,) = inventory([path], made)
    assert 50 * 2 < sum(file.text_bytes) < 50 * 30
    cursor = Cursor([file], RowRange(), 0, made, ())
    (chunk,) = cursor.take(50)
    assert chunk.batch.schema.names == ["turns"]
    assert [field.name for field in chunk.batch.schema.field("turns").type.value_type] == [
        "content"
    ]
    kept = read(path, ("turns",), text_field="turns[].content")
    assert kept.texts == [f"c{i}" for i in range(50)]
    assert json.loads(kept.metadata[0].as_py()) == {"turns": rows[0]["turns"]}


@given(
    names=st.lists(st.text("ab.[]0", min_size=1, max_size=5), min_size=1, max_size=4, unique=True),
    data=st.data(),
)
def test_find_field_a_literal_column_always_wins(names: list[str], data: st.DataObject) -> None:
    inner = pa.struct([("a", pa.string()), ("b", pa.list_(pa.string()))])
    schema = pa.schema([(name, data.draw(st.sampled_from([pa.string(), inner]))) for name in names])
    leaf = 0
    for name in names:
        found = find_field(schema, name, "x", "dataset.text_field")
        assert (found.column, found.steps) == (name, ())
        assert found.leaves == range(leaf, leaf + (1 if found.type == pa.string() else 2))
        leaf = found.leaves.stop


@pytest.mark.parametrize(
    "conversation",
    [
        OPENAI,
        SHAREGPT,
        json.dumps(OPENAI),
        json.dumps(SHAREGPT),
        {"role": [t["role"] for t in OPENAI], "content": [t["content"] for t in OPENAI]},
    ],
)
def test_renderings_are_the_same_for_every_shape(conversation: Any) -> None:
    assert first_assistant_text(conversation) == "a1"
    assert last_user_text(conversation) == "q2"
    assert (
        all_turns_text(conversation) == "system: be brief\n\nuser: q1\n\nassistant: a1\n\nuser: q2"
    )


def test_renderings_take_the_text_parts_of_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"chat": PARTS}])
    assert read(path, text_field="chat", conversation="last_user").texts == ["q1"]
    whole = read(path, text_field="chat", conversation="all_turns")
    assert whole.texts == ["user: q1\n\nassistant: a1"]
    assert json.loads(whole.metadata[0].as_py()) == {"chat": PARTS}


@pytest.mark.parametrize(
    ("rendering", "texts", "reason"),
    [
        ("first_assistant", ["a1", "A"], "no_assistant_turn"),
        ("all_turns", ["user: q1\n\nassistant: a1", "assistant: A", "user: only"], "no_turns"),
        ("last_user", ["q1", "only"], "no_user_turn"),
    ],
)
def test_read_conversation_rows_without_the_turn_are_counted(
    tmp_path: Path, rendering: str, texts: list[str], reason: str
) -> None:
    conversations = [
        OPENAI[1:3],
        [{"role": "assistant", "content": "A"}, {"role": "user", "content": " "}],
        [{"role": "user", "content": "only"}],
        [],
        None,
    ]
    path = write(tmp_path / "a.parquet", [{"data": {"chat": chat}} for chat in conversations])
    rows = read(path, text_field="data.chat", conversation=rendering)
    assert rows.texts == texts
    assert rows.skipped == {reason: 4 - len(texts), "null_text": 1}


def test_read_conversation_words_give_what_the_older_key_gives(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"chat": OPENAI}, {"chat": SHAREGPT[:0]}])
    old = read(path, text_field="chat", extract_first_assistant=True)
    new = read(path, text_field="chat", conversation="first_assistant")
    assert (old.texts, old.skipped) == (new.texts, new.skipped)
    assert old.metadata.to_pylist() == new.metadata.to_pylist()


TEMPLATE_ROWS = [
    {"title": "T0", "body": "B0", "tags": ["a", "b"], "n": 1.5, "m": {"k": "v"}, "my col": "c0"},
    {"title": None, "body": "B1", "tags": [], "n": None, "m": {"k": None}, "my col": "c1"},
    {"title": None, "body": None, "tags": None, "n": None, "m": None, "my col": None},
]


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        ("{{ title }}\n{{ body }}", ["T0\nB0", "\nB1"]),
        ("{% if tags %}{{ tags | join(', ') }}{% endif %}", ["a, b"]),
        ("{{ m.k }}", ["v"]),
        ("{{ row['my col'] }}", ["c0", "c1"]),
        ("{% if n is not none %}{{ '%.2f' | format(n) }}{% endif %}", ["1.50"]),
        ("{% for i in range(2) %}{{ title }}{% endfor %}", ["T0T0"]),
        ("{{ row | length }}", ["6", "6", "6"]),
    ],
)
def test_read_template_gives_its_texts_and_counts_the_blank(
    tmp_path: Path, template: str, texts: list[str]
) -> None:
    path = write(tmp_path / "a.parquet", TEMPLATE_ROWS[:2] if "m.k" in template else TEMPLATE_ROWS)
    rows = read(path, template=template)
    assert rows.texts == texts
    blank = inventory([path], section(template=template))[0].rows - len(texts)
    assert rows.skipped == ({"empty_text": blank} if blank else {})


def test_read_template_reads_its_columns_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", TEMPLATE_ROWS)
    made = section(template="{{ title }} {{ row['my col'] }}")
    (file,) = inventory([path], made)
    (chunk,) = Cursor([file], RowRange(), 0, made, ()).take(3)
    assert chunk.batch.schema.names == ["title", "my col"]
    one = inventory([path], section(text_field="title"))[0].text_bytes
    other = inventory([path], section(text_field="my col"))[0].text_bytes
    assert file.text_bytes == (one[0] + other[0],)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a\n{{ title ", "Invalid template: dataset.template, line 2: '{{{{ title'; unexpected e"),
        ("{% for x in tags %}", "Invalid template: dataset.template, line 1: "),
        ("{{ title | nofilter }}", "No filter named 'nofilter'"),
        ("{{ title | random }}", "No filter named 'random'"),
        ("{{ titel }}", "Unknown variable: dataset.template uses titel; {path} has title, body"),
        ("{{ titel }}", "Did you mean title?"),
        ("{{ lipsum() }}", "dataset.template uses lipsum; "),
        ("{{ row['no'] }}", "dataset.template uses no; "),
        ("same", "Same text for every row: "),
        (
            "{{ m.nope }}",
            "Template fails: dataset.template in row 0 of {path}; 'dict object' has no",
        ),
        ("{{ m.nope }}", "attribute 'nope'. Guard it"),
        ("{{ tags[0] }}", "in row 1 of {path}; list object has no element 0"),
        ("{{ title.upper }}", "in row 0 of {path}; upper is a method; call it: upper()"),
        ("{{ title.__class__ }}", "is unsafe"),
        ("{{ n + title }}", "in row 0 of {path}; unsupported operand"),
        ("{{ tags.append('x') }}", "in row 0 of {path}; "),
        ("{{ range(999999999) | join }}{{ title }}", "Range too big"),
    ],
)
def test_read_wrong_template_says_line_or_row_and_variable(
    tmp_path: Path, template: str, expected: str
) -> None:
    path = write(tmp_path / "a.parquet", TEMPLATE_ROWS)
    assert expected.format(path=path) in refused(path, template=template)


def test_inventory_tries_a_template_before_tasks_do_unless_rows_are_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", TEMPLATE_ROWS)
    with pytest.raises(InputError, match=r"Template fails: .* in row 0 of .*a\.parquet"):
        inventory([path], section(template="{{ m.nope }}"))
    assert inventory([path], section(template="{{ m.nope }}", where="n > 9"))[0].rows == 3


@given(
    values=st.fixed_dictionaries(
        {
            "a": st.one_of(st.none(), st.text(), st.integers(), st.lists(st.text())),
            "items": st.text(),
        }
    )
)
def test_row_template_is_a_function_of_the_row(values: dict[str, Any]) -> None:
    source = "{{ row.items }}|{{ a }}|{{ items }}"
    text = row_template(source).render(values)
    row_template.cache_clear()
    assert row_template(source).render(dict(values)) == text
    assert text.startswith(values["items"] + "|")


def test_row_template_what_prints_as_an_address_is_refused() -> None:
    template = row_template("{{ x | map('upper') }}")
    with pytest.raises(UnfitRow, match="generator is not text; join it, loop over it"):
        template.render({"x": ["a"]})


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ({"template": "{{ x }}", "text_field": "body"}, "template excludes text_field"),
        ({"template": "{{ x }}", "conversation": "all_turns"}, "template excludes text_field"),
        (
            {"conversation": "all_turns", "extract_first_assistant": True},
            "extract_first_assistant and conversation exclude each other",
        ),
        ({"text_unit": "file"}, "text_unit is for source text, not for parquet"),
    ],
)
def test_dataset_section_keys_that_contradict_are_refused(
    dataset: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        section(**dataset)


def test_find_field_of_many_conversations_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"all": [{"chat": OPENAI}]}])
    message = refused(path, text_field="all[].chat", conversation="all_turns")
    assert message.endswith("Name one, such as all[0].chat.")
    assert read(path, text_field="all[0].chat", conversation="last_user").texts == ["q2"]


def test_row_template_syntax_error_is_a_spec_error() -> None:
    with pytest.raises(SpecError):
        row_template("{{")


def test_run_spec_hash_knows_the_keys_of_texts_only_where_they_are_written() -> None:
    from chatspace.spec.loading import spec_from_mapping

    def hashed(**dataset: Any) -> set[str]:
        values = {
            "kind": "embed",
            "name": "x",
            "dataset": {"source": "text", "path": "a", **dataset},
            "model": {"name": "x"},
        }
        return set(spec_from_mapping(values, "test").hashed()["dataset"])

    plain = hashed()
    assert not {"conversation", "template", "text_unit"} & plain
    assert hashed(text_unit="file") - plain == {"text_unit"}
    assert hashed(template="{{ text }}") - plain == {"template"}
    assert hashed(conversation="all_turns") - plain == {"conversation"}
    assert hashed(extract_first_assistant=True) == plain


def test_template_that_prints_an_address_is_refused_and_a_row_about_one_is_not() -> None:
    template = row_template("{{ m.keys ~ '' }} {{ text }}")
    with pytest.raises(UnfitRow, match="is no text"):
        template.render({"m": {"a": 1}, "text": "t"})
    about = "<function f at 0x7f00>"
    assert row_template("{{ text }}").render({"text": about}) == about
    with pytest.raises(UnfitRow):
        row_template("{{ text * 10**15 }}").render({"text": "long"})


def test_inventory_column_of_no_conversations_is_refused(tmp_path: Path) -> None:
    wrong: dict[str, list[Any]] = {
        "text": ["plain text", None, "more"],
        "number": ["1", "[1, 2]", "true"],
        "other": [json.dumps({"title": "t"}), json.dumps([{"speaker": "a", "says": "b"}]), "{"],
    }
    for name, values in wrong.items():
        path = write(tmp_path / f"{name}.parquet", [{name: value} for value in values])
        for turns in ("all_turns", "first_assistant", "last_user"):
            made = section(text_field=name, conversation=turns)
            with pytest.raises(InputError, match="Not a conversation: ") as caught:
                inventory([path], made)
            assert "\n" not in str(caught.value)
            assert f"the first {2 if name == 'text' else 3} values of " in str(caught.value)
    with pytest.raises(InputError, match=r"such as 'plain text'\. Name another column"):
        inventory(
            [tmp_path / "text.parquet"],
            section(conversation="all_turns", sample={"n": 1}, skip_rows=1),
        )


@pytest.mark.parametrize(
    "values",
    [
        [None, "", None],
        ["no json", "[]"],
        ["no json", json.dumps(OPENAI)],
        ["{", json.dumps({"role": ["user"], "content": ["q"]})],
        ["no json", json.dumps([{"value": "a turn without a role"}])],
    ],
)
def test_inventory_column_that_may_hold_conversations_is_taken(
    tmp_path: Path, values: list[str | None]
) -> None:
    path = write(tmp_path / "a.parquet", [{"text": v, "n": i} for i, v in enumerate(values)])
    (file,) = inventory([path], section(conversation="first_assistant"))
    assert file.rows == len(values)
