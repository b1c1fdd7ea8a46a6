#!/bin/sh
# Renews proto/generated from proto/inference.proto. With --check, fails when they have drifted apart.
set -eu
cd "$(dirname "$0")/../proto"
if [ "${1:-}" = --check ]; then
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
    protoc-c --c_out="$out" inference.proto
    diff -r "$out" generated
else
    protoc-c --c_out=generated inference.proto
fi
