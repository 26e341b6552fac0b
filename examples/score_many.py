"""Score a folder of pictures of any size into parquet files, on all cores and in constant memory.

    pip install 'sqzoo[datasets]'
    python examples/score_many.py PICTURES SCORES [--model sq1] [--part 50000] [--workers CORES]

PICTURES is searched at any depth. SCORES gets a file for every `--part` pictures, part-00000-of-00005.parquet and so
on, with the columns file, label, probability and error (of a file that is no picture). A stopped run goes on behind its
last whole part when the same command is given again. Hugging Face `datasets` does the work: it keeps the list of files
on disk, gives each of its processes batches of it, and collects their answers on disk. Read the result with
`datasets.load_dataset("parquet", data_dir="SCORES")`, or any reader of parquet.
"""

import argparse
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Value, disable_progress_bars
from PIL import Image

from sqzoo import create_model, optimize
from sqzoo.deploy.onnx_graph import image_size
from sqzoo.deploy.optimized import Optimized
from sqzoo.errors import DataError
from sqzoo.images.reader import ImageReader, label_names
from sqzoo.images.walk import image_files

BATCH = 16
_KINDS = {"file": "string", "label": "string", "probability": "float32", "error": "string"}
FEATURES = Features({name: Value(kind) for name, kind in _KINDS.items()})


def list_pictures(folder: str) -> Iterator[dict[str, str]]:
    """Yield the picture files below a folder as rows of a data set."""
    for file in image_files(folder):
        yield {"file": str(file)}


class Scorer:
    """Called by `datasets` with a batch of files in each of its processes; the first call there loads the model."""

    def __init__(self, model: str) -> None:
        self.name = model
        self.run: Optimized | None = None

    def __call__(self, batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        if self.run is None:
            torch.set_num_threads(1)  # a process a core
            model = create_model(self.name, pretrained=True)
            self.labels, self.read, self.side = label_names(model), ImageReader.of(model), image_size(model)
            self.run = optimize(model, batch_size=BATCH, preprocessing=True)
        answers = [self._answer(file) for file in batch["file"]]
        read = [answer for answer in answers if "square" in answer]
        for low in range(0, len(read), BATCH):
            some = read[low : low + BATCH]
            best = self.run(torch.from_numpy(np.stack([answer.pop("square") for answer in some]))).max(1)
            for answer, probability, label in zip(some, best.values.tolist(), best.indices.tolist(), strict=True):
                answer |= {"label": self.labels[label], "probability": probability}
        return {name: [answer.get(name) for answer in answers] for name in ("label", "probability", "error")}

    def _answer(self, file: str) -> dict[str, Any]:
        try:
            square = self.read(file)
        except DataError as e:
            return {"error": str(e)}
        if len(square) != self.side:  # a picture of fewer pixels, which comes enlarged
            square = np.asarray(Image.fromarray(square).resize((self.side, self.side), Image.Resampling.BILINEAR))
        return {"square": square}


def score_many(pictures: str, scores: str, model: str = "sq1", part: int = 50_000, workers: int | None = None) -> int:
    """Score all pictures below `pictures` into `scores`; return their number."""
    if next(image_files(pictures), None) is None:
        raise SystemExit(f"No pictures in {pictures!r}; give a folder that has some, at any depth.")
    out, work = Path(scores), Path(scores) / ".work"
    out.mkdir(parents=True, exist_ok=True)
    files = Dataset.from_generator(
        list_pictures,
        gen_kwargs={"folder": pictures},
        cache_dir=str(work),
        features=Features({"file": Value("string")}),
    )
    parts = -(-len(files) // part)
    for number in range(parts):
        target = out / f"part-{number:05}-of-{parts:05}.parquet"
        if target.exists():
            continue
        some = files.shard(parts, number, contiguous=True)
        scored = some.map(
            Scorer(model),
            batched=True,
            batch_size=256,
            num_proc=min(workers or os.cpu_count() or 1, len(some)),
            features=FEATURES,
            cache_file_name=str(work / "part.arrow"),
            load_from_cache_file=False,
        )
        scored.to_parquet(target.with_suffix(".writing"))
        target.with_suffix(".writing").replace(target)
        print(f"{target}: {len(scored)} pictures", flush=True)
    shutil.rmtree(work)
    return len(files)


def main() -> None:
    """Read the arguments and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="folder of pictures")
    parser.add_argument("scores", help="folder for the parquet files; another one for other pictures")
    parser.add_argument("--model", default="sq1", help="model, weights tag, local-dir:FOLDER or hf-hub:ORG/NAME")
    parser.add_argument("--part", type=int, default=50_000, help="pictures a parquet file")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    arguments = parser.parse_args()
    disable_progress_bars()
    score_many(arguments.pictures, arguments.scores, arguments.model, arguments.part, arguments.workers)


if __name__ == "__main__":
    main()
