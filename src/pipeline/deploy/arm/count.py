"""python count.py INPUTS.npz NUMBER: inferences of the models beside it, between harmless system calls that are marks.

A model is computed by the library of its name, where there is one.
"""

import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime

given, counted = np.load(sys.argv[1]), int(sys.argv[2])
one = {key.removeprefix("inputs/"): given[key][:1] for key in given.files if key.startswith("inputs/")}
for model in sorted(Path().glob("*.onnx")):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if model.with_suffix(".so").exists():
        options.register_custom_ops_library(f"./{model.stem}.so")
    # a path would be part of what is counted
    session = onnxruntime.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])
    for _ in range(counted + 1):  # Python's interpreter specialises its own code in these
        session.run(None, one)
    for _ in range(counted):
        os.getppid()
        session.run(None, one)
    os.getppid()
