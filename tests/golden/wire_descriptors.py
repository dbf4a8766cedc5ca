"""What of a compiled proto file must not change, as plain data: messages, enumerations and rpcs.

Imports protobuf and nothing of ours, so that the two scripts which record other projects' descriptors
can run in those projects' own environments (their messages carry the same names as ours and cannot
live in one process with them).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor

Field = descriptor_pb2.FieldDescriptorProto
Message = descriptor_pb2.DescriptorProto


def describe(files: Iterable[FileDescriptor]) -> dict[str, Any]:
    """Return ``{"messages": …, "enums": …, "rpcs": …}`` for the given files together."""
    protos = []
    for file in files:
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        protos.append(proto)
    messages = dict(pair for proto in protos for pair in _messages(proto.package, proto.message_type))
    return {
        "messages": {name: _fields(message) for name, message in sorted(messages.items())},
        "enums": dict(sorted(pair for proto in protos for pair in _enums(proto, messages))),
        "rpcs": dict(sorted(pair for proto in protos for pair in _rpcs(proto))),
    }


def _messages(scope: str, nested: Iterable[Message]) -> Iterator[tuple[str, Message]]:
    """Yield every message under ``scope`` with its full name, map entries included."""
    for message in nested:
        name = f"{scope}.{message.name}"
        yield name, message
        yield from _messages(name, message.nested_type)


def _fields(message: Message) -> dict[str, dict[str, Any]]:
    """Return name → number, type, label and oneof of each field."""
    fields = {}
    for field in sorted(message.field, key=lambda field: field.number):
        kind = field.type_name.removeprefix(".") or Field.Type.Name(field.type).removeprefix("TYPE_").lower()
        label = Field.Label.Name(field.label).removeprefix("LABEL_").lower()
        fields[field.name] = {"number": field.number, "type": kind, "label": label}
        if field.HasField("oneof_index"):
            fields[field.name]["oneof"] = message.oneof_decl[field.oneof_index].name
    return fields


def _enums(
    file: descriptor_pb2.FileDescriptorProto, messages: dict[str, Message]
) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the full name of every enumeration with its values."""
    scopes = [(file.package, file.enum_type), *((name, m.enum_type) for name, m in messages.items())]
    for scope, enums in scopes:
        for enum in enums:
            yield f"{scope}.{enum.name}", {value.name: value.number for value in enum.value}


def _rpcs(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``package.Service/Method`` with its request, its response and which of them stream."""
    for service in file.service:
        for method in service.method:
            yield (
                f"{file.package}.{service.name}/{method.name}",
                {
                    "request": method.input_type.removeprefix("."),
                    "response": method.output_type.removeprefix("."),
                    "client_streaming": method.client_streaming,
                    "server_streaming": method.server_streaming,
                },
            )
