#!/bin/sh
# Generates the Python code of dugnad.proto (needs grpcio-tools, from the dev extra). tests/protocols/test_wire.py checks that it was run.
set -eu
cd "$(dirname "$0")"
"${PYTHON:-python3}" -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. dugnad.proto
sed -i.bak 's/^import dugnad_pb2 as/from protocols.wire import dugnad_pb2 as/' dugnad_pb2_grpc.py
rm dugnad_pb2_grpc.py.bak
