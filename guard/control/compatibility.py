"""Whether the clients of a model can talk to another version of it without noticing."""

from __future__ import annotations

from guard.artifact import Profile

__all__ = ["differences"]


def differences(served: Profile, candidate: Profile) -> list[str]:
    """Return what a client would have to do otherwise, each as one phrase; nothing where it is nothing.

    Boundary, overlays and value range may differ: they are the guard's own, and change with a calibration.

    Args:
        served: Profile of what serves.
        candidate: Profile of what is to serve.
    """
    pairs = {
        "input name": (served.input.name, candidate.input.name),
        "input datatype": (served.input.datatype, candidate.input.datatype),
        "input shape": (served.input.shape, candidate.input.shape),
        "input layout": (served.input.layout, candidate.input.layout),
        "output name": (served.output.name, candidate.output.name),
        "output datatype": (served.output.datatype, candidate.output.datatype),
        "number of classes": (served.output.classes, candidate.output.classes),
        "kind of output": (served.output.kind, candidate.output.kind),
    }
    return [f"{what} {new!r} in place of {old!r}" for what, (old, new) in pairs.items() if old != new]
