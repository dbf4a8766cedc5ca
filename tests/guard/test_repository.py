"""The repository: the latest version of every model, by number and not by name."""

from __future__ import annotations

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


def test_an_empty_repository_says_what_was_expected_in_it(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError) as missing:
        find_models(tmp_path)

    assert str(missing.value) == (
        f"model repository {tmp_path} holds no model; expected {tmp_path}/<model>/<version>/: "
        f"make one with `guard calibrate --out {tmp_path}/<model>`"
    )


def test_a_model_without_a_version_is_named(tmp_path: Path) -> None:
    make(tmp_path, "cats/1", "dogs/newest")

    with pytest.raises(MissingFileError) as missing:
        find_models(tmp_path)

    assert str(missing.value) == (
        f"{tmp_path}/dogs holds no version; expected a directory named 1, 2, …: "
        f"make one with `guard calibrate --out {tmp_path}/dogs`"
    )
