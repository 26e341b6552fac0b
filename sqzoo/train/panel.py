"""Teachers that are asked about each image as their pupil sees it: shifted, mirrored, with a square cut out.

So the pupil learns what they make of every picture, and not of the ones that they know by heart (Beyer and others
2022). They are ONNX files, so that any kind of network may teach.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import torch

from sqzoo.errors import ArgumentError
from sqzoo.extras import require
from sqzoo.hashing import file_sha256

Panel = Callable[[torch.Tensor], torch.Tensor]


def is_panel(teacher: str) -> bool:
    """Whether a recipe's `teacher` is ONNX files, joined by "+", and not a weights tag."""
    return teacher.endswith(".onnx")


def panel_sha256(teacher: str) -> str:
    """Return the digest of a panel's files; raise `ArgumentError` where one is missing."""
    try:
        digests = [file_sha256(file) for file in teacher.split("+")]
    except OSError as e:
        raise ArgumentError(
            f"Cannot read teacher={teacher!r} ({e.strerror}: {e.filename}); give ONNX files joined by '+'."
        ) from e
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def panel(teacher: str) -> Panel:
    """Return a function from images (N, H, W, 3) uint8 to the log of the teachers' mean probabilities (N, classes).

    teacher: files joined by "+", each a graph from such images to probabilities, as `sqzoo export FILE --preprocessing`
    writes them. OpenVINO runs them, in bfloat16 where the processor has instructions for it.
    """
    openvino = require("openvino", "openvino", "A teacher in an ONNX file")
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    requests = []
    for file in teacher.split("+"):
        try:
            network = openvino.Core().compile_model(file, "CPU", hints)
        except RuntimeError as e:
            raise ArgumentError(
                f"teacher={file!r} is no ONNX graph that OpenVINO can run; give one that `sqzoo export` wrote."
            ) from e
        requests.append(network.create_infer_request())

    def ask(images: torch.Tensor) -> torch.Tensor:
        return torch.stack([_answer(request, images) for request in requests]).mean(0).clamp_min(1e-8).log()

    return ask


def _answer(request: Any, images: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(request.infer([images.contiguous().numpy()])[0])
