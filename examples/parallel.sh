#!/bin/sh
# Starts four trainings at once. With the policy `round-robin` each goes to the GPU whose last task is
# longest ago, so that on four GPUs they run side by side; on fewer, those that find no place wait.
. "$(dirname "$0")/api.sh"

for number in 1 2 3 4; do
    start training "{\"model\": \"cnn\", \"train_path\": \"$data\", \"val_path\": \"$data\",
        \"num_epochs\": 1, \"device\": \"cuda\", \"policy\": \"round-robin\", \"task_id\": \"$run-$number\"}"
done
for number in 1 2 3 4; do
    finish "$run-$number"
done
