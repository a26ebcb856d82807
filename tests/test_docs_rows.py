"""Every example of docs/rows.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatspace.jobs.setup import set_up
from tests.conftest import SpecMaker, texts, write_parquet

PAGE = (Path(__file__).parents[1] / "docs" / "rows.md").read_text(encoding="utf-8")
EXAMPLES = [
    yaml.safe_load(block)["dataset"] for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
]
LANGS = ["en", "de", "en", "fr"]


@pytest.mark.parametrize(
    ("example", "rows"),
    list(zip(EXAMPLES, (None, 50, 40, 50), strict=True)),
    ids=range(len(EXAMPLES)),
)
def test_example_of_the_page_chooses_rows(
    make_spec: SpecMaker, tmp_path: Path, example: dict[str, Any], rows: int | None
) -> None:
    columns = {
        "text": texts(400),
        "lang": LANGS * 100,
        "score": [1.0 if n % 2 else 0.0 for n in range(400)],
    }
    data = write_parquet(tmp_path / "rows" / "train.parquet", columns)
    dataset = {**example, "path": example["path"].replace("$DATA", str(data))}
    (split,) = set_up(make_spec(dataset=dataset)).plan.splits
    pairs = zip(texts(400), LANGS * 100, strict=True)
    long = [len(text) > 20 and lang == "en" for text, lang in pairs]
    assert split.rows == (sum(long) if rows is None else rows)
