"""Writes a checkpoint of the plugin `digits` as an ONNX model.

usage: digits.py CHECKPOINT.safetensors MODEL.onnx
"""

import json
import struct
import sys

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper


def read(path):
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    body = data[8 + size :]
    for name, info in header.items():
        start, end = info["data_offsets"]
        values = numpy.frombuffer(body[start:end], numpy.float32)
        yield numpy_helper.from_array(values.reshape(info["shape"]), name)


def main(checkpoint, target):
    weights = list(read(checkpoint))
    nodes = []
    x = "pixels"
    for layer in ("conv1", "conv2"):
        nodes += [
            helper.make_node("Conv", [x, f"{layer}.weight", f"{layer}.bias"], [layer]),
            helper.make_node("Relu", [layer], [f"{layer}.relu"]),
            helper.make_node(
                "MaxPool", [f"{layer}.relu"], [f"{layer}.pool"], kernel_shape=[2, 2], strides=[2, 2]
            ),
        ]
        x = f"{layer}.pool"
    # What PyTorch's exporter makes of x.view(x.size(0), -1).
    weights.append(numpy_helper.from_array(numpy.array(0), "zero"))
    weights.append(numpy_helper.from_array(numpy.array([-1]), "rest"))
    weights.append(numpy_helper.from_array(numpy.array([0]), "axes"))
    nodes += [
        helper.make_node("Shape", [x], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Unsqueeze", ["batch", "axes"], ["batches"]),
        helper.make_node("Concat", ["batches", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", [x, "target"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc1.weight", "fc1.bias"], ["fc1"], transB=1),
        helper.make_node("Relu", ["fc1"], ["fc1.relu"]),
        helper.make_node("Gemm", ["fc1.relu", "fc2.weight", "fc2.bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    image = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 1, 28, 28])
    result = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "digits", [image], [result], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, target)


main(sys.argv[1], sys.argv[2])
