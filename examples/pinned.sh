#!/bin/sh
# Runs on one GPU and no other: `cuda:1`, or the device named after the data. The task waits while that
# GPU is taken, and is refused where there is none of that name.
. "$(dirname "$0")/api.sh"
device=${3:-cuda:1}

start training "{\"model\": \"cnn\", \"train_path\": \"$data\", \"val_path\": \"$data\",
    \"num_epochs\": 1, \"device\": \"$device\", \"task_id\": \"$run\"}"
finish "$run"
[ "$(task "$run" | member device)" = "$device" ]
