"""The data plane: what happens to a request between the wire and the device."""

from guard.dataplane.plane import DataPlane
from guard.dataplane.served import ServedModel
from guard.dataplane.statistics import Statistics

__all__ = ["DataPlane", "ServedModel", "Statistics"]
