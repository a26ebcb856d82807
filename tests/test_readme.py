"""The README's promises about itself."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from chatspace.spec.loading import spec_from_mapping

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_readme_tree_names_what_exists() -> None:
    tree = README.split("## The repository")[1].split("Words have")[0]
    names = re.findall(r"^    (\S+)  ", tree, re.MULTILINE)
    assert len(names) > 20
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_readme_spec_is_valid() -> None:
    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert block is not None
    spec = spec_from_mapping(yaml.safe_load(block[1]), "README.md")
    assert spec.slices.count == 64


def test_readme_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
