"""Secrets in URLs: found wherever they stand, and shown nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatspace.data.sources import dataset_label
from chatspace.data.staging import stage_split
from chatspace.errors import ChatspaceError, SpecError
from chatspace.spec.cluster import resolve_cluster
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.loading import spec_from_mapping
from chatspace.spec.secrets import holds_secret, holds_token, without_query
from tests.test_data_staging_together import served

SECRET = "hunter2"
URLS = [
    "s3://key:hunter2@bucket/a",
    "http://hunter2@h/t.parquet",
    "HTTPS://$CRED@h/t.parquet",
    "https://h/t.parquet?auth=hunter2",
    "https://h/t.parquet?a=1&pwd=hunter2",
    "https://h/t.parquet?X-Amz-Signature=hunter2",
    "https://h/t.parquet?AWSAccessKeyId=hunter2",
    "https://h/t.parquet?code=hunter2",
    "https://h/t.parquet?x=a::b&jwt=hunter2",
    "simplecache::https://u:hunter2@h/t.parquet",
    "zip://a.csv::https://u:hunter2@h/t.zip",
    "zip://a.csv::https://h/t.zip?user_pass=hunter2",
]
# Made up, and put together here so that nobody who scans this file for secrets finds one.
TOKENS = [
    "hf_" + "aB3" * 11,
    "sk-" + "proj-aB3" * 4,
    "AKIA" + "ABCDEFGH23456789",
    "ghp_" + "aB3" * 12,
    "github_pat_" + "aB3_" * 9,
    "glpat-" + "aB3-" * 5,
    "xoxb-" + "1234567890-aB3",
    "AIza" + "aB3-_" * 7,
]


@pytest.mark.parametrize("url", URLS)
def test_holds_secret_finds_it_and_the_spec_is_refused_without_showing_it(url: str) -> None:
    assert holds_secret(url)
    values = {
        "kind": "embed",
        "name": "x",
        "dataset": {"source": "parquet", "path": url},
        "model": {"name": "x"},
    }
    with pytest.raises(SpecError, match="path holds a password, a signature or a token") as caught:
        spec_from_mapping(values, "test")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "/data/a?key=1",
        "https://h:8080/t.parquet?version=2&country_code=de&bypass=1",
        "sftp://me@host/a.csv",
        "abfs://box@account.dfs.core.windows.net/a",
        "hf://datasets/org/name@refs/convert/parquet/a.parquet",
        "simplecache::s3://bucket/a?versionId=1",
        "https://h/a@b:c.parquet",
    ],
)
def test_holds_secret_leaves_other_urls_alone(url: str) -> None:
    assert not holds_secret(url)


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("url", ["https://h/{}/t.parquet", "s3://b/a.csv?v={}", "/data/{}.csv"])
def test_holds_secret_knows_tokens_without_a_name(token: str, url: str) -> None:
    assert holds_secret(url.format(token))


@pytest.mark.parametrize(
    "name",
    [
        "hf_datasets_of_many_long_names",
        "sk-learn-20-document-classification",
        "task-2024-AbCdEfGhIjKlMnOpQrSt",
        "AKIAH/part-00000.parquet",
        "ghp_x",
        "glpat-x",
    ],
)
def test_holds_token_leaves_names_alone(name: str) -> None:
    assert not holds_token(f"s3://bucket/{name}/a.parquet")


@pytest.mark.parametrize("token", TOKENS)
def test_resolve_cluster_token_under_an_innocent_name_is_refused_and_not_shown(token: str) -> None:
    values = {
        "kind": "embed",
        "name": "x",
        "dataset": {"source": "parquet", "path": "a"},
        "container": {"env": {"MODEL_USER": token}},
    }
    with pytest.raises(
        SpecError, match=r"Secret in a file: container\.env\.MODEL_USER; "
    ) as caught:
        resolve_cluster(spec_from_mapping(values, "test"))
    assert token not in str(caught.value)


@given(user=st.from_regex(r"[a-z0-9_$]{1,9}", fullmatch=True), chain=st.integers(0, 3))
def test_holds_secret_finds_a_web_user_behind_any_chain(user: str, chain: int) -> None:
    assert holds_secret("zip://*.csv::" * chain + f"https://{user}@host/a.zip")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("http://h/t.parquet?$VALUE", "sv=1&sig=hunter2"),
        ("sftp://$VALUE@h/t.parquet", "me:hunter2"),
        ("http://$VALUE/t.parquet", "hunter2@h"),
        ("$VALUE/t.parquet", "http://hunter2@h"),
        ("http://h/{split}.parquet?sv=$VALUE", "1&token=hunter2"),
    ],
)
def test_stage_variable_with_a_secret_is_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, value: str
) -> None:
    monkeypatch.setenv("VALUE", value)
    section = DatasetSection(source="parquet", path=path)
    with pytest.raises(SpecError) as caught:
        stage_split(section, "train", tmp_path / "ws", dataset_label(section))
    assert str(caught.value).startswith(f"Secret in a path: dataset.path={path!r}; ")
    assert SECRET not in str(caught.value)
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("content", [None, b"no parquet"])
def test_stage_errors_of_a_url_do_not_show_what_a_variable_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.setenv("VALUE", "hunter2")
    (tmp_path / "www").mkdir()
    if content is not None:
        (tmp_path / "www" / "t.parquet").write_bytes(content)
    with served(tmp_path / "www") as url:
        section = DatasetSection(source="parquet", path=f"{url}/t.parquet?v=$VALUE", name="x")
        with pytest.raises(ChatspaceError) as caught:
            stage_split(section, "train", tmp_path / "ws", "x")
    assert "/t.parquet?..." in str(caught.value)
    assert SECRET not in str(caught.value)


def test_without_query_keeps_what_is_no_web_url() -> None:
    text = "s3://b/a?.parquet at 'https://h/a?x=1', is it?"
    assert without_query(text) == "s3://b/a?.parquet at 'https://h/a?...', is it?"
