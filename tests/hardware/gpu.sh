#!/bin/bash
# Checks and measures Hangar on a machine with an NVIDIA GPU: CUDA 13 and PyTorch, no network, no Rust.
#
# usage: gpu.sh prepare                   here, with Rust: packs what is needed as dist/hardware.tar.gz
#        gpu.sh correctness [ROW...]      there: contract conformance golden digits spoken-digits infer memory fault
#        gpu.sh speed [ROW...]            mlp speed-digits speed-spoken-digits infer-b1 models models-tf32 models-bf16
#                                         ceilings kernels
#        gpu.sh sanitize [ROW...]         memcheck racecheck
#
# Rows write $OUT/ROW.txt (by default dist/hardware/results), take at most three minutes each and begin
# only within $LIMIT seconds (by default 540) of the start; rows whose file is there already are left
# out, so that a call goes on where one ended.
set -u
cd "$(dirname "$0")/../.."
built=dist/hardware
out=${OUT:-$built/results}
limit=${LIMIT:-540}

prepare() {
    set -e
    cargo xtask build
    cargo build --release --locked --package compute --example step
    tests=$({ cargo test --release --locked --package compute --lib --test golden --test cuda --no-run --message-format json
        cargo test --release --locked --package fake-driver --test contract --no-run --message-format json; } |
        python3 -c 'import json, sys
for line in sys.stdin:
    built = json.loads(line)
    if built.get("executable") and built["profile"]["test"]:
        print(built["target"]["name"], built["executable"])')
    rm -rf "$built"
    mkdir -p "$built/plugins"
    cp dist/hangar target/release/examples/step "$built"
    cp dist/plugins/*.wasm "$built/plugins"
    echo "$tests" | while read -r name path; do cp "$path" "$built/test-$name"; done
    strip "$built/hangar" "$built/step" "$built"/test-*
    tar -czf "$built.tar.gz" "$built"
    du -sh "$built.tar.gz"
}

# The GPU, and where PyTorch keeps cuBLAS and cuDNN.
machine() {
    uuid=$(nvidia-smi --query-gpu=uuid --format=csv,noheader | head -1)
    export HANGAR_TEST_GPU=$uuid HANGAR_GOLDEN=tests/golden
    libraries=$(python3 - <<'PYTHON'
import glob, os, sysconfig
roots = {sysconfig.get_path("purelib"), "/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu"}
found = set()
for name in ("libcublasLt.so.13", "libcudnn.so.9"):
    for root in roots:
        paths = glob.glob(f"{root}/**/{name}", recursive=True)
        found.update(os.path.dirname(path) for path in paths[:1])
print(":".join(sorted(found)))
PYTHON
    )
    export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    echo "libraries: $libraries"
    state=$(mktemp -d)
    trap 'rm -rf "$state"' EXIT
}

hangar() { "$built/hangar" --plugins "$built/plugins" --state "$state" "$@"; }
member() { python3 -c 'import json, sys; r = json.load(sys.stdin); print({k: r.get(k) for k in sys.argv[1:]})' "$@"; }
ratio() { # ROW's model, mode, batch, precision
    ours=$("$built/step" "$1" "$2" "$3" "$uuid" "$4") && echo "ours:  $ours"
    for how in eager graph; do
        peer=$(python3 tests/hardware/torch_step.py "$1" "$2" "$3" "$4" $how) && echo "peer:  $peer"
        python3 -c 'import json, sys; a, b = map(json.loads, sys.argv[1:3]); print("ratio (PyTorch / ours), peer %s: %.2f" % (sys.argv[3], b["seconds"] / a["seconds"]))' "$ours" "$peer" $how
    done
}
demo() { # plugin, data
    hangar --json run "$1" train --data "$2" --device cuda --output "$state/$1" >"$state/record" 2>"$state/log" || tail -5 "$state/log"
    member state device device_uuid lease_bytes device_memory latest_metrics <"$state/record"
    python3 -c 'import json, sys
r = json.load(open(sys.argv[1])); m = r["device_memory"]; context = json.load(open(sys.argv[2]))["Ok"]["context_bytes"]
observed = m["during_bytes"] - m["before_bytes"]; lease = r["lease_bytes"] + context
print("observed", observed, "of lease and context", lease, "- holds" if observed <= lease else "- EXCEEDED")' "$state/record" <("$built/hangar" probe "$uuid")
}

row_contract() {
    nvidia-smi -q -x >"$out/nvidia-smi.xml"
    nvidia-smi --query-gpu=name,driver_version,memory.total,memory.reserved,memory.used,compute_cap --format=csv
    "$built/hangar" gpus
    "$built/hangar" --json gpus >"$out/gpus.json"
    echo "a context with all kernels and libraries: $("$built/hangar" probe "$uuid")"
    "$built/test-contract" --nocapture --test-threads=1 2>&1
}
row_conformance() { "$built/test-compute" cuda --nocapture --test-threads=1 2>&1; }
row_golden() {
    echo "with cuDNN where it is installed:"
    "$built/test-golden" on_cuda --nocapture --test-threads=1 2>&1
    echo "with our own kernels only:"
    HANGAR_TEST_OWN_KERNELS=1 "$built/test-golden" on_cuda --nocapture --test-threads=1 2>&1
    "$built/test-cuda" --nocapture --test-threads=1 cuda_trains cuda_labels cuda_spectrograms cuda_agrees cuda_tf32 2>&1
}
row_digits() { demo digits tests/data/mnist10k; }
row_spoken_digits() { demo spoken-digits tests/data/spoken-digits; }
row_infer() {
    hangar run digits train --data tests/data/mnist10k --device cuda --param epochs=1 --output "$state/w" >/dev/null 2>&1
    for device in cuda:0 cpu; do
        hangar --json run digits infer --data tests/data/mnist10k --weights "$state/w/best.safetensors" --device $device --output "$state/$device" 2>/dev/null |
            member state device device_memory
    done
    python3 - "$state/cuda:0/"* "$state/cpu/"* <<'PYTHON'
import json, sys
ours, theirs = ([json.loads(line) for line in open(path)] for path in sys.argv[1:])
pairs = list(zip(ours, theirs, strict=True))
other = sum(a["class"] != b["class"] for a, b in pairs)
print(len(pairs), "predictions, of another class than the CPU's:", other, "; largest difference of a confidence:",
      max(abs(a["confidence"] - b["confidence"]) for a, b in pairs))
PYTHON
}
row_memory() {
    used() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -1; }
    echo "used before: $(used) MiB"
    "$built/hangar" --plugins "$built/plugins" --state "$state" run digits train --data tests/data/mnist10k --device cuda --param epochs=200 >/dev/null 2>&1 &
    own=$!
    sleep 8
    echo "used while training: $(used) MiB"
    worker=$(nvidia-smi --query-compute-apps=pid --format=csv,noheader | head -1)
    kill -9 "$worker"
    for wait in 0.05 0.25 0.5; do sleep $wait; echo "used $wait s later: $(used) MiB"; done
    wait $own
}
row_fault() {
    hangar --json run digits train --data tests/data/mnist10k --device cuda >"$state/during" 2>/dev/null &
    own=$!
    sleep 4
    "$built/test-contract" child_reads_nowhere --exact --ignored --nocapture | grep told
    wait $own
    echo "the training that ran beside the fault: $(member state latest_metrics <"$state/during")"
    hangar --json run digits train --data tests/data/mnist10k --device cuda --param epochs=1 2>/dev/null | member state device
}
row_mlp() { ratio mlp train 128 f32; ratio mlp train 128 tf32; }
# Bytes read and written by the copies, operations of the products, a second.
row_ceilings() {
    { ratio copy infer 1024 f32; ratio product infer 8192 f32; ratio product infer 8192 tf32; } | python3 -c 'import json, sys
for line in sys.stdin:
    print(line, end="")
    who, _, text = line.partition(":")
    if who in ("ours", "peer"):
        r = json.loads(text)
        n, s = r["batch"], r["seconds"]
        print(f"       {2 * n * 2**20 / s / 1e9:.0f} GB/s" if r["model"] == "copy" else f"       {2 * n**3 / s / 1e12:.1f} TFLOP/s")'
}
row_infer_b1() { for model in mlp digits spoken-digits; do ratio $model infer 1 f32; done; }
models() { python3 tests/measure/models.py --program "$built/hangar" --device cuda --dtype "$1"; }
row_models() { models f32; }
row_models_tf32() { models tf32; }
row_models_bf16() { models bf16; }
row_speed_digits() { ratio digits train 64 f32; }
row_speed_spoken_digits() { ratio spoken-digits train 32 f32; }
# The kernels that take most of a model's time, by Nsight Compute.
row_kernels() {
    if ! command -v ncu >/dev/null; then echo "ncu is not installed: no share of time by kernel"; return; fi
    for run in "resnet18 train 16 f32" "resnet18 train 16 bf16" "vit_b_16 train 32 f32" "gpt2 train 4 f32"; do
        set -- $run
        echo "$run"
        timeout 45 ncu --clock-control none --target-processes all --launch-skip 600 --launch-count 1500 \
            --metrics gpu__time_duration.sum --csv --log-file "$state/kernels.csv" \
            "$built/hangar" bench --model "$1" --mode "$2" --batch "$3" --dtype "$4" --device cuda --steps 3 >/dev/null 2>&1
        python3 - "$state/kernels.csv" <<'PYTHON'
import collections, csv, sys
lines = [line for line in open(sys.argv[1]) if not line.startswith("==")]
times, counts = collections.Counter(), collections.Counter()
for row in csv.DictReader(lines):
    name = row["Kernel Name"].split("(")[0][:90]
    times[name] += float(row["Metric Value"].replace(",", "")) * {"ns": 1e-3, "us": 1, "ms": 1e3}.get(row["Metric Unit"], 1e-3)
    counts[name] += 1
whole = sum(times.values())
for name, time in times.most_common(14):
    print(f"{100 * time / whole:5.1f} %  {counts[name]:5} of {time / counts[name]:8.1f} µs  {name}")
PYTHON
    done
}
# Every kernel runs in one of these: operators and their gradients, optimizers, every size of transform.
sanitize() {
    for run in "test-golden golden_operators_agree_with_pytorch_on_cuda" \
        "test-golden golden_training_runs_agree_with_pytorch_on_cuda" \
        "test-cuda cuda_agrees_with_the_cpu_where_there_is_no_reference" \
        "test-cuda cuda_spectrograms_of_any_size_agree_with_the_cpu"; do
        set -- "$1" $run
        HANGAR_TEST_OWN_KERNELS=1 timeout 140 compute-sanitizer --tool "$1" --error-exitcode 9 "$built/$2" "$3" --exact --nocapture 2>&1 | tail -8
    done
}
row_memcheck() { sanitize memcheck; }
row_racecheck() { sanitize racecheck; }

call=${1:-}
shift || true
case $call in
    prepare) prepare; exit ;;
    correctness) rows=(contract conformance golden digits spoken_digits infer memory fault) ;;
    speed) rows=(mlp speed_digits speed_spoken_digits infer_b1 models models_tf32 models_bf16 ceilings kernels) ;;
    sanitize) rows=(memcheck racecheck) ;;
    row) machine; "row_$1" 2>&1; exit ;;
    *) sed -n '4,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
[ $# -gt 0 ] && rows=("${@//-/_}")
[ -d "$built" ] || tar -xzf "$built.tar.gz"
mkdir -p "$out"
for row in "${rows[@]}"; do
    file=$out/$row.txt
    if ! declare -F "row_$row" >/dev/null; then echo "no row $row"; exit 2; fi
    if [ -e "$file" ]; then echo "== $row: done before"; continue; fi
    if [ $SECONDS -gt "$limit" ]; then echo "== $row: left for another call"; continue; fi
    echo "== $row, after $SECONDS s"
    timeout 180 "$0" row "$row" 2>&1 | tee "$file.part"
    mv "$file.part" "$file"
done
