from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ...) -> None: ...

class SwapRequest(_message.Message):
    __slots__ = ("model", "version", "digest")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    digest: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class StartCanaryRequest(_message.Message):
    __slots__ = ("model", "version", "share")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    share: float
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class PromoteRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class StopCanaryRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class SecondOpinion(_message.Message):
    __slots__ = ("name", "why_off")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHY_OFF_FIELD_NUMBER: _ClassVar[int]
    name: str
    why_off: str
    def __init__(self, name: _Optional[str] = ..., why_off: _Optional[str] = ...) -> None: ...

class VersionInfo(_message.Message):
    __slots__ = ("version", "digest", "model_sha256", "boundary_bits", "certified_frr", "loaded_at", "detector", "boundary", "block_boundary", "block_certified_frr", "second_opinions")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    BOUNDARY_BITS_FIELD_NUMBER: _ClassVar[int]
    CERTIFIED_FRR_FIELD_NUMBER: _ClassVar[int]
    LOADED_AT_FIELD_NUMBER: _ClassVar[int]
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    BOUNDARY_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BOUNDARY_FIELD_NUMBER: _ClassVar[int]
    BLOCK_CERTIFIED_FRR_FIELD_NUMBER: _ClassVar[int]
    SECOND_OPINIONS_FIELD_NUMBER: _ClassVar[int]
    version: str
    digest: str
    model_sha256: str
    boundary_bits: float
    certified_frr: float
    loaded_at: float
    detector: str
    boundary: float
    block_boundary: float
    block_certified_frr: float
    second_opinions: _containers.RepeatedCompositeFieldContainer[SecondOpinion]
    def __init__(self, version: _Optional[str] = ..., digest: _Optional[str] = ..., model_sha256: _Optional[str] = ..., boundary_bits: _Optional[float] = ..., certified_frr: _Optional[float] = ..., loaded_at: _Optional[float] = ..., detector: _Optional[str] = ..., boundary: _Optional[float] = ..., block_boundary: _Optional[float] = ..., block_certified_frr: _Optional[float] = ..., second_opinions: _Optional[_Iterable[_Union[SecondOpinion, _Mapping]]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("version", "at", "error")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    version: str
    at: float
    error: str
    def __init__(self, version: _Optional[str] = ..., at: _Optional[float] = ..., error: _Optional[str] = ...) -> None: ...

class CanaryStatus(_message.Message):
    __slots__ = ("candidate", "share", "started_at", "running", "outcome", "figures")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    candidate: VersionInfo
    share: float
    started_at: float
    running: bool
    outcome: str
    figures: _containers.ScalarMap[str, float]
    def __init__(self, candidate: _Optional[_Union[VersionInfo, _Mapping]] = ..., share: _Optional[float] = ..., started_at: _Optional[float] = ..., running: bool = ..., outcome: _Optional[str] = ..., figures: _Optional[_Mapping[str, float]] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("name", "policy", "current", "previous", "available", "canary", "failures", "note", "doing")
    NAME_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    DOING_FIELD_NUMBER: _ClassVar[int]
    name: str
    policy: str
    current: VersionInfo
    previous: _containers.RepeatedScalarFieldContainer[str]
    available: _containers.RepeatedScalarFieldContainer[str]
    canary: CanaryStatus
    failures: _containers.RepeatedCompositeFieldContainer[Failure]
    note: str
    doing: str
    def __init__(self, name: _Optional[str] = ..., policy: _Optional[str] = ..., current: _Optional[_Union[VersionInfo, _Mapping]] = ..., previous: _Optional[_Iterable[str]] = ..., available: _Optional[_Iterable[str]] = ..., canary: _Optional[_Union[CanaryStatus, _Mapping]] = ..., failures: _Optional[_Iterable[_Union[Failure, _Mapping]]] = ..., note: _Optional[str] = ..., doing: _Optional[str] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("words", "seconds")
    WORDS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    words: str
    seconds: float
    def __init__(self, words: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class SwapReport(_message.Message):
    __slots__ = ("model", "old", "new", "seconds", "changed", "note", "steps")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OLD_FIELD_NUMBER: _ClassVar[int]
    NEW_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    model: str
    old: VersionInfo
    new: VersionInfo
    seconds: float
    changed: bool
    note: str
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    def __init__(self, model: _Optional[str] = ..., old: _Optional[_Union[VersionInfo, _Mapping]] = ..., new: _Optional[_Union[VersionInfo, _Mapping]] = ..., seconds: _Optional[float] = ..., changed: bool = ..., note: _Optional[str] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ...) -> None: ...
