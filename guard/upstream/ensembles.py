"""Which models of a server answer where one is asked: an ensemble is a way into all that it is made of."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final

from guard.errors import UpstreamError, UpstreamStatusError
from guard.rpc.pb import open_inference_pb2 as pb
from guard.upstream.link import Link

__all__ = ["ask_if_served", "refuse_guarded_parts"]

_ASK_S: Final = 5.0
_MAX_MODELS: Final = 64


async def refuse_guarded_parts(link: Link, guarded: Container[str]) -> None:
    """Refuse to pass requests to an ensemble that a guarded model is a part of, at any depth.

    A server without configurations, or a model that calls others from code, tells nothing of its parts.

    Args:
        link: To the server, and the model there.
        guarded: Names there of the models that are guarded.

    Raises:
        UpstreamError: Naming the part, or if there are too many to look at.
        UpstreamStatusError: If the server does not say what it is made of.
    """
    waiting, seen = [link.address.model], {link.address.model}
    while waiting:
        name = waiting.pop()
        answer = await ask_if_served(link, "ModelConfig", pb.ModelConfigRequest(name=name))
        parts = () if answer is None else answer.config.ensemble_scheduling.step
        for part in (step.model_name for step in parts):
            if part in guarded:
                raise UpstreamError(
                    f"{link.address} is an ensemble of which the guarded model {part!r} is a part, so it "
                    f"would be a way around the guard; guard the ensemble, or leave it out"
                )
            if part not in seen:
                seen.add(part)
                waiting.append(part)
        if len(seen) > _MAX_MODELS:
            raise UpstreamError(
                f"{link.address} is an ensemble of more than {_MAX_MODELS} models, which nobody looks "
                f"through; leave it out"
            )


async def ask_if_served(link: Link, method: str, request: object) -> Any:
    """Return what a server answers, None where it has no such method."""
    try:
        return await link.ask(method, request, _ASK_S)
    except UpstreamStatusError as error:
        if error.code == "UNIMPLEMENTED":
            return None
        raise
