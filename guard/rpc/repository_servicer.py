"""The model repository calls of V2, on the admin port: other tools know how to use them.

Only what is in the repository can be loaded. Triton also takes a configuration and whole model files in
the request; those would go around the artifact, its hashes and its calibration.
"""

# ruff: noqa: N802  the protocol names the methods

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import grpc

from guard.control.api import Control, ModelStatus
from guard.errors import UnsupportedRequestError
from guard.rpc.access import AdminContext
from guard.rpc.admin_codec import checked_version
from guard.rpc.listing import READY, UNAVAILABLE, refuse_other_repository
from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.reception import Reception
from guard.rpc.status import UnservedRpcError

__all__ = ["RepositoryServicer", "add_repository_servicer"]

_MAX_NAMES_KEPT: Final = 8
_UNLOAD: Final = (
    "RepositoryModelUnload is not served: a guard serves every model of its repository for as long as it "
    "runs; load another version, or `guard rollback`; to take a model away remove its directory and restart"
)


class RepositoryServicer:
    """Serves RepositoryIndex and RepositoryModelLoad, and says why it does not unload.

    Args:
        control: Does it, to the end, whether or not the caller still waits.
        reception: Lets calls in and out.
    """

    def __init__(self, control: Control, reception: Reception) -> None:
        self._control = control
        self._reception = reception

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: AdminContext
    ) -> pb.RepositoryIndexResponse:
        """Return every version of every model, and which are served."""
        async with self._reception.call(context, "RepositoryIndex"):
            refuse_other_repository(request.repository_name)
            entries = [entry for status in await self._control.status() for entry in _entries(status)]
            wanted = [entry for entry in entries if entry.state == READY or not request.ready]
            return pb.RepositoryIndexResponse(models=wanted)

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: AdminContext
    ) -> pb.RepositoryModelLoadResponse:
        """Swap to the highest version, or to that of the parameter ``version``."""
        name, asked = request.model_name, ", ".join(sorted(request.parameters)[:_MAX_NAMES_KEPT])
        async with self._reception.call(context, "RepositoryModelLoad", name, parameters=asked) as actor:
            refuse_other_repository(request.repository_name)
            await self._control.swap(name, _version_asked_for(request), actor=actor)
            return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: AdminContext
    ) -> pb.RepositoryModelUnloadResponse:
        """Refuse."""
        async with self._reception.call(context, "RepositoryModelUnload", request.model_name):
            raise UnservedRpcError(_UNLOAD)


def add_repository_servicer(servicer: RepositoryServicer, server: Any) -> None:
    """Add the three calls, and none of the inference service's others, to a server."""
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, name),
            request_deserializer=getattr(pb, f"{name}Request").FromString,
            response_serializer=getattr(pb, f"{name}Response").SerializeToString,
        )
        for name in ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload")
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


def _entries(status: ModelStatus) -> Iterator[pb.RepositoryIndexResponse.ModelIndex]:
    """Yield a model's versions, ascending: those that answer requests are ready."""
    answering_now = {status.current.version} if status.current else set()
    if status.canary and status.canary.running:
        answering_now.add(status.canary.candidate.version)
    for version in sorted({*status.available, *answering_now}, key=int):
        ready = version in answering_now
        yield pb.RepositoryIndexResponse.ModelIndex(
            name=status.name,
            version=version,
            state=READY if ready else UNAVAILABLE,
            reason="" if ready else _why_not(status, version),
        )


def _why_not(status: ModelStatus, version: str) -> str:
    why = next((failure.error for failure in status.failures if failure.version == version), "not served")
    return f"{why}; {status.note}" if status.note else why


def _version_asked_for(request: pb.RepositoryModelLoadRequest) -> str:
    """Return the version asked for, empty for the highest; refuse every other parameter by name."""
    for name in sorted(request.parameters):
        if name != "version":
            raise UnsupportedRequestError(
                f"parameter {name!r} is not accepted: a model is loaded as it lies in the repository, with "
                f"its hashes and calibration; put a new version there, or leave the parameter out"
            )
    if "version" not in request.parameters:
        return ""
    given = request.parameters["version"]
    choice = given.WhichOneof("parameter_choice")
    if choice not in {"string_param", "int64_param"}:
        raise UnsupportedRequestError(
            f"parameter 'version': expected string_param or int64_param, got {choice or 'no value'}"
        )
    return checked_version(str(getattr(given, choice)))
