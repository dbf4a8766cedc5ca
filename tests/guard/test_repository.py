"""The repository: the latest version of every model, by number and not by name."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.errors import MissingFileError
from guard.repository import find_models, latest_version


def make(root: Path, *directories: str) -> Path:
    for directory in directories:
        (root / directory).mkdir(parents=True)
    return root


def test_each_model_is_found_in_its_latest_version(tmp_path: Path) -> None:
    make(tmp_path, "cats/1", "cats/2", "cats/10", "dogs/3")

    assert find_models(tmp_path) == {"cats": tmp_path / "cats/10", "dogs": tmp_path / "dogs/3"}


def test_models_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    make(tmp_path, "b/1", "c/1", "a/1")

    assert list(find_models(tmp_path)) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["0", "01", "-3", "v4", "4.bak", ".writing-5", "latest", "٤"])
def test_a_directory_whose_name_is_no_version_number_is_passed_over(tmp_path: Path, name: str) -> None:
    make(tmp_path, "2", name)

    assert latest_version(tmp_path) == tmp_path / "2"


def test_a_file_named_like_a_version_is_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "2")
    (tmp_path / "3").write_text("no directory")

    assert latest_version(tmp_path) == tmp_path / "2"


def test_files_and_hidden_directories_are_no_models(tmp_path: Path) -> None:
    make(tmp_path, "cats/1", ".cache", "..data")
    (tmp_path / "README.md").write_text("no model")

    assert find_models(tmp_path) == {"cats": tmp_path / "cats/1"}


def test_a_repository_may_be_made_of_links(tmp_path: Path) -> None:
    make(tmp_path, "store/cats/1", "repository")
    (tmp_path / "repository/cats").symlink_to(tmp_path / "store/cats")

    assert find_models(tmp_path / "repository") == {"cats": tmp_path / "repository/cats/1"}


def test_a_repository_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError) as missing:
        find_models(tmp_path / "nope")

    assert str(missing.value) == (
        f"model repository {tmp_path}/nope is not a directory; make one with `guard calibrate --out`"
    )


def test_the_directory_of_one_model_is_told_from_a_repository(tmp_path: Path) -> None:
    make(tmp_path, "cats/1", "cats/2")

    with pytest.raises(MissingFileError) as one_model:
        find_models(tmp_path / "cats")

    assert str(one_model.value) == (
        f"model repository {tmp_path}/cats holds the versions of one model; expected the directory above it, "
        f"{tmp_path}"
    )


def test_one_version_is_told_from_a_repository(tmp_path: Path) -> None:
    make(tmp_path, "cats/1")
    (tmp_path / "cats" / "1" / "manifest.json").touch()

    with pytest.raises(MissingFileError) as one_version:
        find_models(tmp_path / "cats" / "1")

    assert str(one_version.value) == (
        f"model repository {tmp_path}/cats/1 is one version of a model; expected the directory two above it, "
        f"{tmp_path}"
    )


def test_models_named_like_versions_are_models(tmp_path: Path) -> None:
    make(tmp_path, "7/1")

    assert find_models(tmp_path) == {"7": tmp_path / "7" / "1"}


def test_an_empty_repository_says_what_was_expected_in_it(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError) as missing:
        find_models(tmp_path)

    assert str(missing.value) == (
        f"model repository {tmp_path} holds no model; expected {tmp_path}/<model>/<version>/: "
        f"make one with `guard calibrate --out {tmp_path}/<model>`"
    )


def test_what_it_says_to_run_can_be_run_where_names_hold_spaces(tmp_path: Path) -> None:
    (tmp_path / "my models" / "it's").mkdir(parents=True)
    for call in (find_models, latest_version):
        folder = tmp_path / "my models" if call is find_models else tmp_path / "my models" / "it's"
        with pytest.raises(MissingFileError) as missing:
            call(folder)
        command = str(missing.value).split("`")[1]
        given = folder / "<model>" if call is find_models else folder
        assert shlex.split(command) == ["guard", "calibrate", "--out", str(given)]


def unreadable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a directory unreadable, for root too."""
    iterdir = Path.iterdir

    def refuse(self: Path) -> Iterator[Path]:
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", refuse)


def test_a_directory_that_is_no_model_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "cats/1", "dogs/newest", "lost+found")
    unreadable(tmp_path / "lost+found", monkeypatch)

    assert find_models(tmp_path) == {"cats": tmp_path / "cats" / "1"}

    assert [(record.levelno, record.path) for record in caplog.records] == [
        (logging.WARNING, f"{tmp_path}/dogs"),
        (logging.WARNING, f"{tmp_path}/lost+found"),
    ]
    assert "holds no version" in caplog.records[0].why
    assert "Permission denied" in caplog.records[1].why


def test_a_repository_in_which_nothing_is_a_model_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, "lost+found", "dogs/newest")

    with pytest.raises(MissingFileError, match="holds no model; expected"):
        find_models(tmp_path)


def test_a_repository_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreadable(tmp_path, monkeypatch)

    with pytest.raises(MissingFileError, match=r"cannot be read \(.*Permission denied"):
        find_models(tmp_path)


def test_a_model_without_a_version_is_named(tmp_path: Path) -> None:
    make(tmp_path, "dogs/newest")

    with pytest.raises(MissingFileError) as missing:
        latest_version(tmp_path / "dogs")

    assert str(missing.value) == (
        f"{tmp_path}/dogs holds no version; expected a directory named 1, 2, …: "
        f"make one with `guard calibrate --out {tmp_path}/dogs`"
    )
