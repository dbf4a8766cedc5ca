"""Every class of guard.errors has a line in the one table of gRPC statuses."""

from __future__ import annotations

import inspect

import grpc
import pytest

from guard import errors
from guard.rpc.status import STATUS_OF

CLASSES = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.GuardError)
]


def unmapped(classes: list[type[errors.GuardError]]) -> list[str]:
    return [cls.__name__ for cls in classes if cls not in STATUS_OF]


def test_no_error_is_without_a_status() -> None:
    assert len(CLASSES) >= 20
    assert unmapped(CLASSES) == []


def test_an_error_left_out_of_the_table_would_be_found() -> None:
    class ForgottenError(errors.GuardError): ...

    assert unmapped([*CLASSES, ForgottenError]) == ["ForgottenError"]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_no_error_is_mapped_to_success(cls: type[errors.GuardError]) -> None:
    assert STATUS_OF[cls] not in {grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN}
