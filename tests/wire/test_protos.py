"""The protobuf files keep to buf's STANDARD and COMMENTS rules, and the committed code to them."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from google.protobuf.descriptor import EnumDescriptor, FileDescriptor, ServiceDescriptor

from secagg_wire.v1 import (
    model_service_pb2,
    owner_service_pb2,
    round_pb2,
    round_service_pb2,
    transcript_service_pb2,
)

FILES: list[FileDescriptor] = [
    module.DESCRIPTOR
    for module in (
        round_pb2, round_service_pb2, model_service_pb2, owner_service_pb2, transcript_service_pb2
    )
]  # fmt: skip
SOURCES = sorted(Path(round_pb2.__file__).parent.glob("*.proto"))
SERVICES: list[ServiceDescriptor] = [s for f in FILES for s in f.services_by_name.values()]
ENUMS: list[EnumDescriptor] = [e for f in FILES for e in f.enum_types_by_name.values()]


def test_every_source_has_its_generated_code() -> None:
    assert [path.name for path in SOURCES] == sorted(Path(f.name).name for f in FILES)
    assert {f.package for f in FILES} == {"secagg.v1"}


def test_services_end_in_service_and_calls_have_types_of_their_own() -> None:
    used: list[str] = []
    for service in SERVICES:
        assert service.name.endswith("Service")
        for method in service.methods:
            assert method.input_type.name == f"{method.name}Request"
            assert method.output_type.name == f"{method.name}Response"
            used += [method.input_type.name, method.output_type.name]
    assert len(used) == len(set(used))


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.name)
def test_enums_begin_with_an_unspecified_zero_and_carry_their_name(enum: EnumDescriptor) -> None:
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
    assert enum.values[0].name == f"{prefix}_UNSPECIFIED"
    assert enum.values[0].number == 0
    assert all(value.name.startswith(f"{prefix}_") for value in enum.values)


def test_fields_are_lower_snake_case() -> None:
    names = [
        f.name for file in FILES for m in file.message_types_by_name.values() for f in m.fields
    ]
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_everything_declared_has_a_comment_above_it(source: Path) -> None:
    lines = source.read_text().splitlines()
    declared = re.compile(
        r"\s*(message|enum|service|rpc|oneof)\s|\s*(repeated\s)?[\w.]+\s\w+\s=\s\d+;|\s*\w+\s=\s\d+;"
    )
    bare = [
        line
        for above, line in pairwise(lines)
        if declared.match(line) and not above.strip().startswith("//")
    ]
    assert bare == []


def test_generated_code_loads_beside_protobuf_5() -> None:
    for source in SOURCES:
        code = source.with_name(f"{source.stem}_pb2.py").read_text()
        assert "# Protobuf Python Version: 5.29." in code
        assert "GRPC_GENERATED_VERSION = '1.71." in (
            source.with_name(f"{source.stem}_pb2_grpc.py").read_text()
        )
