"""Our proto file against the descriptors of Triton's and KServe's published Python packages.

Provenance is in the two JSON files: package, version and proto files they were read from. They are
made by ``make_triton_descriptors.py`` and ``make_kserve_descriptors.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from wire_descriptors import describe

from guard.rpc.pb import open_inference_pb2

HERE = Path(__file__).parent
OURS = describe([open_inference_pb2.DESCRIPTOR])
TRITON: dict[str, Any] = json.loads((HERE / "triton_descriptors.json").read_text())
KSERVE: dict[str, Any] = json.loads((HERE / "kserve_descriptors.json").read_text())

# What Triton has and we leave out on purpose: nothing.
OMITTED_FROM_TRITON: frozenset[str] = frozenset()

# Where KServe's file says otherwise than Triton's, which wins. All of it is model repository control,
# refused by the guard, so no client of either dialect can be misread.
KSERVE_DISAGREES = {
    "inference.RepositoryModelLoadRequest": "model_name is 1; Triton has repository_name there",
    "inference.RepositoryModelLoadResponse": "has model_name and isLoaded; Triton's is empty",
    "inference.RepositoryModelUnloadRequest": "model_name is 1; Triton has repository_name there",
    "inference.RepositoryModelUnloadResponse": "has model_name and isUnloaded; Triton's is empty",
}


@pytest.mark.parametrize("name", sorted(TRITON["messages"]))
def test_a_message_has_tritons_fields_and_no_others(name: str) -> None:
    if name not in OMITTED_FROM_TRITON:
        assert OURS["messages"].get(name) == TRITON["messages"][name]


@pytest.mark.parametrize("name", sorted(TRITON["enums"]))
def test_an_enumeration_has_tritons_values(name: str) -> None:
    assert OURS["enums"].get(name) == TRITON["enums"][name]


@pytest.mark.parametrize("name", sorted(TRITON["rpcs"]))
def test_an_rpc_has_tritons_request_response_and_streaming(name: str) -> None:
    assert OURS["rpcs"].get(name) == TRITON["rpcs"][name]


@pytest.mark.parametrize("kind", ["messages", "enums", "rpcs"])
def test_nothing_is_declared_that_triton_does_not_have(kind: str) -> None:
    assert sorted(set(OURS[kind]) - set(TRITON[kind])) == []


@pytest.mark.parametrize("name", sorted(set(KSERVE["messages"]) - set(KSERVE_DISAGREES)))
def test_a_message_has_every_field_of_kserves(name: str) -> None:
    ours = OURS["messages"][name]
    assert {field: ours.get(field) for field in KSERVE["messages"][name]} == KSERVE["messages"][name]


@pytest.mark.parametrize("name", sorted(KSERVE["rpcs"]))
def test_an_rpc_has_kserves_request_response_and_streaming(name: str) -> None:
    assert OURS["rpcs"].get(name) == KSERVE["rpcs"][name]


@pytest.mark.parametrize("name", sorted(KSERVE_DISAGREES))
def test_a_listed_disagreement_with_kserve_is_still_one(name: str) -> None:
    assert OURS["messages"][name] != KSERVE["messages"][name]


def test_the_goldens_say_where_they_come_from() -> None:
    assert TRITON["provenance"]["package"] == "tritonclient"
    assert KSERVE["provenance"]["package"] == "kserve"
    assert len(TRITON["messages"]) > len(KSERVE["messages"]) > 20
