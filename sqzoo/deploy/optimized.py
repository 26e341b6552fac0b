"""A model that runs in a faster runtime, which it prepares for each new shape of its images."""

import threading
import warnings
from typing import Any

import torch
import torch.nn as nn

from sqzoo.deploy.backends import ExportModel, Shape, prepare
from sqzoo.deploy.parity import Runtime
from sqzoo.errors import ArgumentError

SHAPES = 8  # shapes of a batch that a runtime is kept for


class Optimized(nn.Module):
    """A model in a faster runtime: the same call, the same outputs, without gradients.

    For each new shape of a batch (batch size and image size) and number of threads, a runtime is prepared and its
    outputs are compared with PyTorch's. So the first call of a shape is slow: 0.1 to 1 s, and some 5 s more at an image
    size whose graph is not cached. The runtimes of the last 8 shapes are kept. Where one cannot be prepared or fails, a
    warning says so, and PyTorch runs that shape.

    Pickles and deep copies hold model and settings, and prepare their runtimes anew. The model stays in evaluation
    mode, on the CPU and in float32; images of another float type are converted.

    Attributes:
        backend: the runtime's name.
        milliseconds: time of a batch in each measured backend; empty if a backend was asked for.
    """

    def __init__(self, model: ExportModel, backend: str, milliseconds: dict[str, float]) -> None:
        super().__init__()
        self.model = model.module
        self.backend, self.milliseconds = backend, milliseconds
        for name in ("pretrained_cfg", "num_classes", "in_chans", "ood_threshold"):  # which `predict` reads
            setattr(self, name, getattr(model.net, name, None))
        self._export_model = model
        self._runs: dict[tuple[int, ...], Runtime] = {}  # by threads and shape, the last used last
        self._lock = threading.Lock()
        self.train(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the model's outputs for the images."""
        images = self._checked(images)
        shape = tuple(images.shape)
        with torch.inference_mode():
            if not len(images):
                return self.model(images)
            try:
                return self.runtime(shape)(images)
            except Exception as e:  # whatever the runtime raises
                result: torch.Tensor = self.model(images)  # raises what is wrong with the images
                warn(f"{self.backend} failed for {list(shape)} ({type(e).__name__}: {e}); PyTorch takes over.")
                with self._lock:
                    self.keep(shape, self.model)
                return result

    def _checked(self, images: torch.Tensor) -> torch.Tensor:
        pixels = self._export_model.preprocessing
        dtype_fits = images.dtype == torch.uint8 if pixels else images.is_floating_point()
        shape_fits = images.ndim == 4 and images.shape[3 if pixels else 1] == self.in_chans
        if not (dtype_fits and shape_fits and images.device.type == "cpu"):
            expected = "uint8 (N, H, W, 3)" if pixels else f"float (N, {self.in_chans}, H, W), normalised,"
            raise ArgumentError(
                f"An optimised model takes images {expected} on the CPU, not {images.dtype} {list(images.shape)} on "
                f"{images.device}."
            )
        return images.detach() if pixels else images.detach().float()

    def runtime(self, shape: Shape) -> Runtime:
        """Return the runtime for a shape, prepared now if it is new."""
        with self._lock:
            runtime = self._runs.pop((torch.get_num_threads(), *shape), None)
            return self.keep(shape, runtime or prepare(self._export_model, self.backend, shape))

    def keep(self, shape: Shape, runtime: Runtime) -> Runtime:
        """Keep a runtime as the one of the last used shape."""
        self._runs[(torch.get_num_threads(), *shape)] = runtime
        if len(self._runs) > SHAPES:
            del self._runs[next(iter(self._runs))]
        return runtime

    def train(self, mode: bool = True) -> "Optimized":
        """Stay in evaluation mode, which the runtime was made in."""
        return super().train(False)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Raise `ArgumentError`: the runtime has its own copy of the weights."""
        raise ArgumentError(
            "An optimised model takes no other weights; load them into the model and optimize it again."
        )

    def _apply(self, fn: Any, recurse: bool = True) -> "Optimized":
        """Refuse `.to(...)`, `.half()` and similar calls that would change something."""
        before = torch.zeros(1, dtype=torch.float32, device="cpu")
        after = fn(before)
        if (after.dtype, after.device) != (before.dtype, before.device):
            raise ArgumentError(
                f"An optimised model stays on the CPU in float32; it does not become {after.dtype} on {after.device}."
            )
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_runs": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.Lock()

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}"


def warn(message: str) -> None:
    """Warn in the name of `sqzoo.optimize`."""
    warnings.warn(f"sqzoo.optimize: {message}", RuntimeWarning, stacklevel=3)
