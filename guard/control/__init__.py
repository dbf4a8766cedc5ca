"""Which version of each model is served: swap, roll back, try a candidate on a share of the traffic."""

from guard.control.api import CanaryStatus, Control, Failure, ModelStatus, Step, SwapReport, VersionInfo

__all__ = ["CanaryStatus", "Control", "Failure", "ModelStatus", "Step", "SwapReport", "VersionInfo"]
