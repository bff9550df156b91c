"""Inferences by the engine that a model's ending names.

``python infer.py serve MODEL INPUT.npy``: the answer, as JSON, and then milliseconds, the median of three, for every
line that comes in. ``python infer.py count MODEL INPUT.npy NUMBER PACKAGES``: so many between harmless system calls
that are marks, for what counts under emulation; the engine is imported from the folder PACKAGES. All on one thread.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np

Infer = Callable[[Any], Any]


def by_ncnn(model: str) -> Infer:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = 1
    net.load_param(model)
    net.load_model(model.removesuffix("param") + "bin")

    def infer(image: Any) -> Any:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image[0]))
        return np.array(extractor.extract("out0")[1])

    return infer


def by_mnn(model: str) -> Infer:
    import MNN

    interpreter = MNN.Interpreter(model)
    session = interpreter.createSession({"numThread": 1, "backend": "CPU"})
    given, scores = interpreter.getSessionInput(session), interpreter.getSessionOutput(session)

    def infer(image: Any) -> Any:
        given.copyFrom(MNN.Tensor(image.shape, MNN.Halide_Type_Float, image, MNN.Tensor_DimensionType_Caffe))
        interpreter.runSession(session)
        found = MNN.Tensor(
            scores.getShape(), MNN.Halide_Type_Float, np.zeros(scores.getShape(), np.float32),
            MNN.Tensor_DimensionType_Caffe,
        )  # fmt: skip
        scores.copyToHostTensor(found)
        return np.array(found.getData(), dtype=np.float32)

    return infer


def by_litert(model: str) -> Infer:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model, num_threads=1)
    interpreter.allocate_tensors()
    given, scores = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def infer(image: Any) -> Any:
        interpreter.set_tensor(given, np.ascontiguousarray(image.transpose(0, 2, 3, 1)))
        interpreter.invoke()
        return interpreter.get_tensor(scores)

    return infer


ENGINES = {"param": by_ncnn, "mnn": by_mnn, "tflite": by_litert}


def serve(infer: Infer, image: Any, answers: TextIO) -> None:
    print(json.dumps(np.ravel(infer(image)).tolist()), file=answers, flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        infer(image)
        print((time.perf_counter() - begin) * 1000, file=answers, flush=True)


def count(infer: Infer, image: Any, counted: int) -> None:
    for _ in range(counted + 1):  # Python's interpreter specialises its own code in these
        infer(image)
    for _ in range(counted):
        os.getppid()
        infer(image)
    os.getppid()


def main() -> None:
    way, model, image, *rest = sys.argv[1:]
    sys.path[:0] = rest[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines print there what they found
    infer = ENGINES[model.rpartition(".")[2]](model)
    if way == "count":
        count(infer, np.load(image), int(rest[0]))
    else:
        serve(infer, np.load(image), answers)


if __name__ == "__main__":
    main()
