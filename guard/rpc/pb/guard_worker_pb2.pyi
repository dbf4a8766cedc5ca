from guard.rpc.pb import guard_admin_pb2 as _guard_admin_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChangeStep(_message.Message):
    __slots__ = ("actor", "swap", "rollback", "start_canary", "promote", "make_it", "refuse")
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    SWAP_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    START_CANARY_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_FIELD_NUMBER: _ClassVar[int]
    MAKE_IT_FIELD_NUMBER: _ClassVar[int]
    REFUSE_FIELD_NUMBER: _ClassVar[int]
    actor: str
    swap: _guard_admin_pb2.SwapRequest
    rollback: _guard_admin_pb2.RollbackRequest
    start_canary: _guard_admin_pb2.StartCanaryRequest
    promote: _guard_admin_pb2.PromoteRequest
    make_it: bool
    refuse: ChangeFailure
    def __init__(self, actor: _Optional[str] = ..., swap: _Optional[_Union[_guard_admin_pb2.SwapRequest, _Mapping]] = ..., rollback: _Optional[_Union[_guard_admin_pb2.RollbackRequest, _Mapping]] = ..., start_canary: _Optional[_Union[_guard_admin_pb2.StartCanaryRequest, _Mapping]] = ..., promote: _Optional[_Union[_guard_admin_pb2.PromoteRequest, _Mapping]] = ..., make_it: bool = ..., refuse: _Optional[_Union[ChangeFailure, _Mapping]] = ...) -> None: ...

class ChangeState(_message.Message):
    __slots__ = ("could", "swapped", "trying", "failed")
    COULD_FIELD_NUMBER: _ClassVar[int]
    SWAPPED_FIELD_NUMBER: _ClassVar[int]
    TRYING_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    could: _guard_admin_pb2.VersionInfo
    swapped: _guard_admin_pb2.SwapReport
    trying: _guard_admin_pb2.CanaryStatus
    failed: ChangeFailure
    def __init__(self, could: _Optional[_Union[_guard_admin_pb2.VersionInfo, _Mapping]] = ..., swapped: _Optional[_Union[_guard_admin_pb2.SwapReport, _Mapping]] = ..., trying: _Optional[_Union[_guard_admin_pb2.CanaryStatus, _Mapping]] = ..., failed: _Optional[_Union[ChangeFailure, _Mapping]] = ...) -> None: ...

class ChangeFailure(_message.Message):
    __slots__ = ("kind", "words", "its_own", "reason")
    KIND_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    ITS_OWN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    kind: str
    words: str
    its_own: bool
    reason: str
    def __init__(self, kind: _Optional[str] = ..., words: _Optional[str] = ..., its_own: bool = ..., reason: _Optional[str] = ...) -> None: ...
