"""Writes ONNX's node test cases, and its light models with their outputs, into a folder.

usage: cases.py FOLDER

NODE/NAME/{model.onnx, input_0.pb, …, output_0.pb, …}; LIGHT/NAME.onnx and NAME_output_0.pb. Only
cases whose inputs and outputs are tensors are written.
"""

import pathlib
import shutil
import sys

import numpy
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests


def tensor(value, name):
    if isinstance(value, onnx.TensorProto):
        return value
    if isinstance(value, (numpy.ndarray, numpy.generic)):
        return numpy_helper.from_array(numpy.asarray(value), name)
    return None


def main(folder):
    nodes = folder / "node"
    shutil.rmtree(folder, ignore_errors=True)
    for case in load_model_tests(kind="node"):
        graph = case.model.graph
        for inputs, outputs in case.data_sets[:1]:
            names = [value.name for value in graph.input]
            fed = [tensor(value, name) for value, name in zip(inputs, names)]
            names = [value.name for value in graph.output]
            given = [tensor(value, name) for value, name in zip(outputs, names)]
            if None in fed or None in given:
                continue
            target = nodes / case.name
            target.mkdir(parents=True)
            (target / "model.onnx").write_bytes(case.model.SerializeToString())
            for kind, values in (("input", fed), ("output", given)):
                for i, value in enumerate(values):
                    (target / f"{kind}_{i}.pb").write_bytes(value.SerializeToString())
    light = pathlib.Path(onnx.__file__).parent / "backend/test/data/light"
    shutil.copytree(light, folder / "light")


main(pathlib.Path(sys.argv[1]))
