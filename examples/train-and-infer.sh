#!/bin/sh
# Trains on one GPU while inference runs on another. A short training makes the weights; then a longer one
# goes on with them on cuda:0, and meanwhile they classify the data on cuda:1.
. "$(dirname "$0")/api.sh"

start training "{\"model\": \"cnn\", \"train_path\": \"$data\", \"val_path\": \"$data\",
    \"num_epochs\": 1, \"device\": \"cuda:0\", \"task_id\": \"$run-weights\"}"
finish "$run-weights"
weights=$(task "$run-weights" | member output)/best.safetensors

start training "{\"model\": \"cnn\", \"train_path\": \"$data\", \"val_path\": \"$data\",
    \"num_epochs\": 3, \"weight_path\": \"$weights\", \"device\": \"cuda:0\", \"task_id\": \"$run-training\"}"
begin "$run-training"
start inference "{\"model\": \"cnn\", \"source_path\": \"$data\", \"weight_path\": \"$weights\",
    \"device\": \"cuda:1\", \"task_id\": \"$run-inference\"}"
finish "$run-inference"
finish "$run-training"
