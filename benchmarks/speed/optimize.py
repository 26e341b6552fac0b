"""`sqzoo.optimize` at batch 1 against torchvision's eager SqueezeNet 1.1, ONNX Runtime and OpenVINO.

    python benchmarks/speed/optimize.py [--seconds 20] [--threads 2]

Two networks: sq1 with its own weights, which takes 32x32 images, and sq1 without enlargement at 224 pixels. Both
runtimes get the graph that `optimize` makes, in float32, with the shape fixed; since "auto" may choose bf16, its best
choice in float32 is measured too. All are in one process, in turns of a tenth of a second, with a rest between so that
the threads of the one before are asleep. The time of each is its fastest run: other programs can only add to it. Writes
results/speed/optimize.json, with the machine's load.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision

import sqzoo
from benchmarks import RESULTS
from benchmarks.record import write_record
from sqzoo.deploy.backends import ExportModel
from sqzoo.deploy.optimize import EXACT
from sqzoo.environment import environment, package_version, require

RESULT = RESULTS / "speed" / "optimize.json"
NETWORKS = ("sq1.ft_cifar10", "sq1")
BASE = "torchvision squeezenet1_1, 224, eager"
EAGER_TARGET, RUNTIME_TARGET = 4.0, 0.95
TURN, REST = 0.1, 0.05  # seconds


def candidates(threads: int) -> tuple[dict[str, Callable[[], Any]], dict[str, dict[str, str]]]:
    """Return what is measured, by name, and the backends that `optimize` chose."""
    eager, images = torchvision.models.squeezenet1_1().eval(), torch.randn(1, 3, 224, 224)
    runs: dict[str, Callable[[], Any]] = {BASE: lambda: eager(images)}
    chosen = {}
    for name in NETWORKS:
        model = sqzoo.create_model(name, pretrained="." in name, num_classes=10)
        fast = sqzoo.optimize(model, seconds=10)
        ours = ExportModel(model)
        shape = ours.shape(1)
        exact = min(EXACT, key=fast.milliseconds.__getitem__)
        array = np.random.default_rng(0).standard_normal(shape, np.float32)
        runs[f"{name}, optimize"] = partial(fast, torch.from_numpy(array))
        runs[f"{name}, optimize in float32"] = partial(sqzoo.optimize(model, exact), torch.from_numpy(array))
        runs[f"{name}, onnxruntime"] = onnxruntime(ours.onnx(shape), array, threads)
        runs[f"{name}, openvino"] = openvino(ours.onnx(shape), array, threads)
        chosen[name] = {"optimize": fast.backend, "optimize in float32": exact}
    return runs, chosen


def onnxruntime(graph: bytes, images: np.ndarray, threads: int) -> Callable[[], Any]:
    """Return a run of ONNX Runtime."""
    runtime = require("onnxruntime", "export", "The benchmark")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})


def openvino(graph: bytes, images: np.ndarray, threads: int) -> Callable[[], Any]:
    """Return a run of OpenVINO."""
    core = require("openvino", "openvino", "The benchmark").Core()
    network = core.read_model(graph)
    network.reshape({0: list(images.shape)})
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(network, "CPU", hints).create_infer_request()
    return lambda: request.infer([images], share_inputs=True, share_outputs=True)


def measure(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Return the milliseconds of each run, in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    with torch.inference_mode():
        while time.perf_counter() < end:
            for name, run in runs.items():
                time.sleep(REST)
                run()  # the caches are full of the other's data
                turn = time.perf_counter() + TURN
                while (began := time.perf_counter()) < turn:
                    run()
                    times[name].append(1000 * (time.perf_counter() - began))
    return times


def ratios(milliseconds: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return for each network and precision the speed of `optimize` over torchvision's and the better runtime's."""
    found = {}
    for name in NETWORKS:
        best = min(milliseconds[f"{name}, {runtime}"] for runtime in ("onnxruntime", "openvino"))
        for how in ("optimize", "optimize in float32"):
            own = milliseconds[f"{name}, {how}"]
            found[f"{name}, {how}"] = {"eager": milliseconds[BASE] / own, "best_runtime": best / own}
    return found


def main() -> None:
    """Measure, record, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="time to measure for, in all")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SQZOO_CACHE"] = cache  # what optimize chose another day does not count
        runs, chosen = candidates(arguments.threads)
        times = measure(runs, arguments.seconds)
    load.append(os.getloadavg()[0])
    milliseconds = {name: min(values) for name, values in times.items()}
    found = ratios(milliseconds)
    record = {
        "environment": environment(),
        "runtimes": {name: package_version(name) for name in ("onnxruntime", "openvino", "onnx")},
        "threads": arguments.threads,
        "load_average": load,
        "runs": {name: len(values) for name, values in times.items()},
        "milliseconds": milliseconds,
        "chosen": chosen,
        "ratios": found,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_record(RESULT, record, [name for name in NETWORKS if "." in name])
    for name, value in milliseconds.items():
        print(f"{value:8.3f} ms  {name}")
    for name, values in found.items():
        print(
            f"{name}: {values['eager']:.2f} times torchvision's eager SqueezeNet 1.1 (target "
            f"{EAGER_TARGET:g}), {values['best_runtime']:.2f} times the better runtime (target {RUNTIME_TARGET:g})"
        )
    print(f"chosen: {chosen}")
    print(f"load of the machine: {load[0]:.1f} before, {load[1]:.1f} after")


if __name__ == "__main__":
    main()
