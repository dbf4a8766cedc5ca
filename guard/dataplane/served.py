"""A served model: its slot and what the operator decided about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guard.artifact import Preprocessing, Profile
from guard.dataplane.drift_watch import DriftWatch
from guard.dataplane.intake import Accepts
from guard.dataplane.model_server import ModelServer
from guard.dataplane.second_opinions import Consultant
from guard.dataplane.share import Share
from guard.dataplane.trial import Trial
from guard.detection.threshold import Policy
from guard.metrics import Outcome
from guard.runtime.loader import LoadedModel
from guard.runtime.slot import ModelSlot

__all__ = ["OnUncheckable", "ServedModel"]

OnUncheckable = Literal["refuse", "answer"]


@dataclass
class ServedModel:
    """A slot and the policy over it.

    Attributes:
        policy: What is done with suspicious rows.
        on_uncheckable: ``refuse`` fails closed; ``answer`` lets rows that cannot be checked
            through and counts them.
        trial: Of the slot's candidate; None while none is tried.
        upstream: The model server that answers what the slot's model checks; None where that model answers
            itself.
        sampling: Picks the requests that are checked; None where all are.
        watch: Sees whether its inputs drift; None where nobody wants to know.
        consultant: Asks others about inputs that were judged; None where nobody wants to know.
        encoded: What the operator says of encoded images; None for what the artifact says.
        encoded_input: Name of the model server's input that takes them; empty for that of the artifact.
    """

    slot: ModelSlot[LoadedModel]
    policy: Policy
    on_uncheckable: OnUncheckable
    trial: Trial | None = None
    upstream: ModelServer | None = None
    sampling: Share | None = None
    watch: DriftWatch | None = None
    consultant: Consultant | None = None
    encoded: Preprocessing | None = None
    encoded_input: str = ""

    def draws(self) -> bool:
        """Return whether the next request is checked; what could be refused always is."""
        if self.sampling is None or self.policy is not Policy.MONITOR:
            return True
        return self.sampling.takes()

    def is_held(self) -> bool:
        """Return whether its model server is being given another model, and is to be left alone for that."""
        return self.upstream is not None and self.upstream.held

    def accepts(self, profile: Profile) -> Accepts:
        """Return what callers may send.

        Args:
            profile: Of the version that is asked.
        """
        if self.encoded is not None:
            if self.upstream is not None:
                return Accepts(self.encoded_input or profile.input.name, "", self.encoded, plain=True)
            return Accepts(profile.input.name, profile.input.datatype, self.encoded)
        if self.upstream is not None:
            return Accepts(profile.input.name, self.upstream.datatype or profile.input.datatype)
        return Accepts.by_model(profile)

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.slot.current is not None and (self.upstream is None or self.upstream.ready)

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions that answer: the current one, and the candidate that is tried; none once it is closed.

        Where a model server answers they are its own.
        """
        if self.upstream is not None:
            return self.upstream.versions
        current, candidate = self.slot.current, self.slot.candidate
        return tuple(model.version for model in (current, candidate) if model is not None)

    @property
    def outcome_of_uncheckable(self) -> Outcome:
        """What becomes of rows that cannot be checked; ``monitor`` never refuses."""
        answers = self.on_uncheckable == "answer" or self.policy is Policy.MONITOR
        return Outcome.ANSWERED if answers else Outcome.REFUSED
