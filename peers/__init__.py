"""Other projects' servers and clients, each in an environment of its own, for tests and benchmarks."""

from peers.environments import NAMES, environment

__all__ = ["NAMES", "environment"]
