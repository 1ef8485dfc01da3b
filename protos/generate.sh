#!/usr/bin/env bash
# Regenerates the committed protobuf code: protos/generate.sh [PYTHON]
#
# PYTHON is an interpreter of an environment of its own that has grpcio-tools 1.71.x and
# mypy-protobuf 3.6 (default: build/protoc/bin/python, made here if it is missing). 1.71 writes
# protobuf 5.29 gencode, which loads beside protobuf 5.29 to 7; it needs protobuf 5 itself, so never
# generate from the development environment.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${1:-build/protoc/bin/python}"
if [ ! -x "$python" ]; then
  python3 -m venv build/protoc
  build/protoc/bin/python -m pip install --disable-pip-version-check -q \
    'grpcio-tools==1.71.2' 'mypy-protobuf==3.6.0' 'setuptools<81'
  python=build/protoc/bin/python
fi
bin="$(dirname "$python")"
"$python" -m grpc_tools.protoc -I protos \
  --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" \
  --plugin=protoc-gen-mypy_grpc="$bin/protoc-gen-mypy_grpc" \
  --python_out=protos --grpc_python_out=protos \
  --mypy_out=quiet:protos --mypy_grpc_out=quiet:protos \
  protos/secagg_wire/v1/*.proto
