"""Write tests/golden.json: the logits of every weights tag on a fixed image.

    python tools/golden.py

Tags stored as a head need the ImageNet trunk (SQZOO_TRUNKS, or torchvision's). Run it when weights are added or
replaced on purpose; otherwise a change in the file is a change in the models.
"""

import json
from pathlib import Path

import torch

import sqzoo

FILE = Path(__file__).parents[1] / "tests" / "golden.json"


def golden_logits(tag: str) -> list[float]:
    """Return a tag's logits for a smooth pattern of waves; of noise, networks that end in a ReLU give 0 everywhere."""
    model = sqzoo.create_model(tag, pretrained=True)
    channels, height, width = sqzoo.get_weights(tag).input_size
    channel, row, column = (torch.arange(n, dtype=torch.float64) for n in (channels, height, width))
    waves = torch.sin(row[:, None] / 5 + channel[:, None, None]) + torch.cos(column / 7 + 2 * channel[:, None, None])
    image = waves.float()[None]
    with torch.inference_mode():
        return [round(v, 6) for v in model(image)[0].tolist()]


if __name__ == "__main__":
    golden = {tag: golden_logits(tag) for tag in sqzoo.list_models(pretrained=True)}
    FILE.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    print(f"{FILE}: {len(golden)} tags")
