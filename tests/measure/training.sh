#!/bin/sh
# Measures training speed in one run, three times, after `cargo xtask test` has built everything:
# the step without a plugin, the same step from a plugin, and PyTorch.
# usage: training.sh PYTHON_WITH_TORCH
set -eu
cd "$(dirname "$0")/../.."
cargo build --quiet --release --locked --package data --examples
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
mkdir "$work/plugins"
cp tests/guests/target/wasm32-wasip2/release/examples/bench_mlp.wasm dist/plugins/digits.wasm "$work/plugins"
hangar="target/release/hangar --plugins $work/plugins --state $work/state"
data=tests/data/mnist10k
for round in 1 2 3; do
    echo "mlp without a plugin: $(target/release/examples/training_step mlp $data 64 1000 2)"
    echo "mlp from a plugin:    $($hangar run bench-mlp train --data $data --device cpu --param steps=1000 2>&1 | grep 'steps a second')"
    echo "mlp in PyTorch:       $("$1" tests/peer/torch_mlp.py --threads 2)"
    echo "cnn without a plugin: $(target/release/examples/training_step cnn $data 64 500 2)"
    echo "cnn in PyTorch:       $("$1" tests/peer/torch_digits.py --data $data --seeds 0 --threads 2)"
    $hangar --json run digits train --data $data --device cpu --param epochs=5 > "$work/record"
    "$1" - "$work/record" <<'PYTHON'
import datetime, json, sys
record = json.load(open(sys.argv[1]))
time = {key: datetime.datetime.fromisoformat(record[key][:26].rstrip("Z")) for key in ("created_at", "started_at", "ended_at")}
print("digits: submitted to the first step %.0f ms, then %.1f s for 5 epochs with validation"
      % ((time["started_at"] - time["created_at"]).total_seconds() * 1e3, (time["ended_at"] - time["started_at"]).total_seconds()))
PYTHON
done
