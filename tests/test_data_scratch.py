from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatspace.data import scratch
from chatspace.data.scratch import repeated_values, scratch_files
from chatspace.errors import OutputError

ANY = st.integers(-(1 << 63), (1 << 63) - 1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stays in memory, and a few values are many."""
    monkeypatch.setattr(scratch, "_MEMORY_BYTES", 0)
    monkeypatch.setattr(scratch, "_PART_VALUES", 4)
    monkeypatch.setattr(scratch, "_GIVEN", 2)


def blocks(values: list[int], size: int) -> list[np.ndarray]:
    return [np.array(values[i : i + size], np.int64) for i in range(0, len(values), size)]


@pytest.mark.usefixtures("small")
@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.one_of(st.sampled_from([-1, 0, 1, 1 << 62]), ANY), max_size=60),
    size=st.integers(1, 20),
)
def test_repeated_values_on_disk_agree_with_a_counter(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], size: int
) -> None:
    folder = tmp_path_factory.mktemp("scratch")
    found = list(repeated_values(blocks(values, size), len(values), folder))
    assert all(0 < len(part) <= 2 for part in found)
    given_ = [int(value) for part in found for value in part]
    assert sorted(given_) == sorted(v for v, n in Counter(values).items() if n > 1)
    assert list(folder.iterdir()) == []


def test_repeated_values_of_few_touches_no_disk(tmp_path: Path) -> None:
    found = list(repeated_values(blocks([3, 1, 3], 2), 3, tmp_path / "none"))
    assert [part.tolist() for part in found] == [[3]]
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("small")
def test_scratch_files_give_back_any_part(tmp_path: Path) -> None:
    with scratch_files(tmp_path / "new", 2, 1) as (one, other):
        one.append(np.arange(5, dtype=np.uint16))
        assert one.read(np.uint16, 1, 3).tolist() == [1, 2]
        one.append(np.arange(2, dtype=np.uint16))
        assert one.read(np.uint16).tolist() == [0, 1, 2, 3, 4, 0, 1]
        assert other.read(np.int64).tolist() == []
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.usefixtures("small")
def test_repeated_values_full_disk_is_one_line(small_disk: Callable[[int], Path]) -> None:
    place = small_disk(64)
    many = np.arange(1 << 15, dtype=np.int64)
    with pytest.raises(OutputError, match=r"^Cannot write: .*small; No space left on device\."):
        list(repeated_values([many], 3, place))
    assert list(place.iterdir()) == []


@pytest.mark.usefixtures("small")
def test_scratch_files_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"^Cannot write: .*file; File exists\."),
        scratch_files(tmp_path / "file", 1, 1),
    ):
        pass
