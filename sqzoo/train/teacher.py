"""Learning from a teacher as well as from the labels: distillation (Hinton, Vinyals, Dean 2015).

What the teacher says of each training image, as it is, is worked out once and looked up from then on.
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from sqzoo.data import Dataset
from sqzoo.registry import create_model
from sqzoo.train.checkpoint import write_tensors
from sqzoo.train.evaluate import logits

_SHARE = 0.7  # of the loss that is the teacher's
TEMPERATURE = 3.0  # that both are softened by: of images it has learnt, a teacher is all too sure


def lessons(teacher: str, data: Dataset, file: Path, trunk: str | os.PathLike[str] | None, device: str) -> torch.Tensor:
    """Return the logits (N, classes) of the weights tag `teacher` for the images of `data`; they are kept in `file`."""
    if not file.is_file():
        model = create_model(teacher, pretrained=True, trunk=trunk).to(device)
        write_tensors(file, {"logits": logits(model, data)}, {"format": "pt"})
    return load_file(file)["logits"].to(device)


def taught(loss: torch.Tensor, found: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the loss of the labels mixed with that of the teacher's logits `wanted` for the logits `found`."""
    said = F.log_softmax(wanted / temperature, 1)
    apart = F.kl_div(F.log_softmax(found / temperature, 1), said, reduction="batchmean", log_target=True)
    return (1 - _SHARE) * loss + _SHARE * temperature**2 * apart
