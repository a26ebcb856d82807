import errno
import os
from pathlib import Path

import pytest

from chatspace.atomic import atomic_path, atomic_write_text, read_json_object, temp_path
from chatspace.errors import OutputError


def _raise(number: int, name: str | None = None) -> None:
    raise OSError(number, os.strerror(number), name)


def test_atomic_path_success_leaves_only_the_file(tmp_path: Path) -> None:
    final = tmp_path / "new" / "shard.parquet"
    with atomic_path(final) as temp:
        temp.write_text("whole")
        assert temp.parent == final.parent
        assert not final.exists()
    assert final.read_text() == "whole"
    assert [p.name for p in final.parent.iterdir()] == ["shard.parquet"]


def test_atomic_path_temp_name_is_hidden_and_matches_the_glob(tmp_path: Path) -> None:
    temp = temp_path(tmp_path / "a b.txt")
    assert temp.name.startswith(".a b.txt.")
    assert temp.match(".*.tmp")
    assert str(os.getpid()) in temp.name


def test_atomic_path_error_in_body_keeps_the_old_file(tmp_path: Path) -> None:
    final = tmp_path / "plan.json"
    final.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(final) as temp:
        temp.write_text("half")
        raise RuntimeError
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_atomic_path_interrupt_removes_the_temp_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a") as temp:
        temp.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_atomic_path_full_or_read_only_disk_names_the_final_file(
    tmp_path: Path, number: int
) -> None:
    final = tmp_path / "shard.parquet"
    with pytest.raises(OutputError) as caught, atomic_path(final) as temp:
        temp.write_text("half")
        _raise(number)
    assert str(caught.value).startswith(f"Cannot write: {final}; ")
    assert os.strerror(number) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_atomic_path_real_full_device_is_an_output_error(tmp_path: Path) -> None:
    final = tmp_path / "a"
    with pytest.raises(OutputError, match="No space left"), atomic_path(final) as temp:
        temp.symlink_to("/dev/full")
        with temp.open("wb", buffering=0) as file:
            file.write(b"x")
    assert not final.exists()


def test_atomic_path_forbidden_temp_file_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Permission denied"), atomic_path(tmp_path / "a") as temp:
        _raise(errno.EACCES, str(temp))


def test_atomic_path_error_about_another_file_passes_through(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), atomic_path(tmp_path / "a"):
        _raise(errno.EACCES, "/elsewhere/input.parquet")


def test_atomic_path_file_where_a_folder_is_needed_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="A file stands where a folder is needed"):
        atomic_write_text(tmp_path / "file" / "a", "x")


@pytest.mark.usefixtures("unprivileged")
def test_atomic_path_read_only_folder_is_an_output_error() -> None:
    with pytest.raises(OutputError, match="write permission"):
        atomic_write_text(Path("/of_nobody_else/a"), "x")


def test_atomic_write_text_replaces_and_keeps_unicode(tmp_path: Path) -> None:
    final = tmp_path / "häßlich 'name'\n.txt"
    atomic_write_text(final, "old")
    atomic_write_text(final, "neu ✓\r\n")
    assert final.read_bytes() == "neu ✓\r\n".encode()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b'{"a": 1}', {"a": 1}), (b'{"a": ', {}), (b"[1]", {}), (b"\xff", {}), (None, {})],
)
def test_read_json_object_damaged_or_absent_is_empty(
    tmp_path: Path, content: bytes | None, expected: dict[str, int]
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    assert read_json_object(path) == expected
