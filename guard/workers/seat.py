"""What a worker is told when it starts: which one it is, where it is asked, and what the others serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from guard.control.served_versions import ModelRecord

__all__ = ["Order", "Seat"]


class Seat(BaseModel):
    """The place of one worker among all.

    Attributes:
        number: Which it is, from 1; the first also keeps on disk what all serve, and watches the repository.
        folder: Where its private sockets are; nobody but the guard's user may look into it.
        records: What the others serve, and it has to serve too; empty for the first one at the start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: Annotated[int, Field(ge=1)]
    folder: Path
    records: dict[str, ModelRecord] = {}

    @property
    def name(self) -> str:
        """What logs call it."""
        return f"worker-{self.number}"

    @property
    def leads(self) -> bool:
        """Whether it does what only one may do."""
        return self.number == 1

    @property
    def admin_socket(self) -> Path:
        """Where the parent asks it for changes."""
        return self.folder / f"{self.number}-admin.sock"

    @property
    def metrics_socket(self) -> Path:
        """Where the parent asks it for what it counted, and whether it is ready."""
        return self.folder / f"{self.number}-metrics.sock"


class Order(BaseModel):
    """The first line that a worker reads: its seat, and the settings that differ from the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seat: Seat
    settings: dict[str, Any]
