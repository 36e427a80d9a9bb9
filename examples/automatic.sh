#!/bin/sh
# Leaves the choice of the device to the host: `cuda` is the GPU that the policy picks, and the CPU,
# with the reason in the record, where no GPU can compute.
. "$(dirname "$0")/api.sh"

start training "{\"model\": \"cnn\", \"train_path\": \"$data\", \"val_path\": \"$data\",
    \"num_epochs\": 1, \"device\": \"cuda\", \"task_id\": \"$run\"}"
finish "$run"
reason=$(task "$run" | member fallback_reason)
[ -z "$reason" ] || echo "on the CPU, because $reason"
