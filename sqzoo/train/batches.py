"""Where a run's batches come from: cached trunk features for a frozen trunk, images for all layers."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from tqdm import tqdm

from sqzoo.data import Dataset
from sqzoo.errors import ArgumentError
from sqzoo.train.augment import augment, cutmix
from sqzoo.train.distributed import part
from sqzoo.train.features import FeatureCache, cache_key, trunk_features
from sqzoo.train.negatives import NONE, wanted, with_noise
from sqzoo.train.nonzeros import NonZeroMaps
from sqzoo.train.panel import is_panel, panel
from sqzoo.train.recipe import Recipe

Batches = Iterator[tuple[torch.Tensor | NonZeroMaps, torch.Tensor]]  # (inputs, labels)
Lessons = Iterator[tuple[torch.Tensor | NonZeroMaps, torch.Tensor, torch.Tensor | None]]
# of training: the labels may be wanted probabilities (N, classes), and there may be a panel's logits


class FrozenBatches:
    """Batches of cached trunk features, for one head or for several on the same trunk."""

    def __init__(
        self,
        recipe: Recipe,
        models: list[nn.Module],
        train_set: Dataset,
        test_set: Dataset | None,
        held: np.ndarray,
        cache: Path | None,
        device: str,
        progress: bool,
    ) -> None:
        self.batch_size, self.device, self.held = recipe.batch_size, device, held
        self.side = recipe.sizes[0][0]
        self.half = recipe.precision == "bfloat16"
        keys = {cache_key(m.features, recipe.preprocessing(self.side), "") for m in models}  # type: ignore[arg-type]
        if len(keys) > 1:
            raise ArgumentError("Recipes trained together need the same trunk; train those of each trunk together.")
        sets = {"train": train_set} | ({"test": test_set} if test_set else {})
        self.labels = {name: torch.from_numpy(data.labels) for name, data in sets.items()}
        began = time.perf_counter()
        self.features = {
            name: self._features(models[0], data, recipe, cache, name if progress else None)
            for name, data in sets.items()
        }
        self.feature_seconds = time.perf_counter() - began

    def _features(
        self, model: nn.Module, data: Dataset, recipe: Recipe, cache: Path | None, name: str | None
    ) -> FeatureCache:
        with tqdm(
            total=len(data), desc=f"trunk features, {name}", unit="img", disable=name is None, leave=False
        ) as bar:
            return trunk_features(
                model.features,  # type: ignore[arg-type]
                data.images,
                recipe.preprocessing(self.side),
                data.digest,
                cache,
                lambda done, of: bar.update(done - bar.n),
            )

    def enter_epoch(self, epoch: int) -> int:
        return self.side

    def training(self, order: np.ndarray) -> Lessons:
        for maps, labels in self._batches("train", order):
            if self.half and isinstance(maps, NonZeroMaps):
                # Half-precision products of all values take less time than float32 ones of those that are not zero.
                maps = maps.dense(torch.bfloat16)  # once for all heads; autocast would round it so for each
            yield maps, labels, None

    def plain(self, numbers: np.ndarray) -> Batches:
        """Return training images by their numbers, as they are."""
        return self._batches("train", numbers)

    def held_out(self) -> Batches:
        return self.plain(self.held)

    def test(self) -> Batches:
        return self._batches("test", np.arange(len(self.labels["test"])))

    def _batches(self, name: str, order: np.ndarray) -> Batches:
        features, labels = self.features[name], self.labels[name]
        for low in range(0, len(order), self.batch_size):
            few = order[low : low + self.batch_size]
            yield features.batch(few).to(self.device), labels[torch.from_numpy(few)].to(self.device)


class ImageBatches:
    """Batches of images, cropped and flipped at 32 pixels, enlarged and normalised by batch; all layers run."""

    feature_seconds = 0.0

    def __init__(
        self,
        recipe: Recipe,
        train_set: Dataset,
        test_set: Dataset | None,
        held: np.ndarray,
        device: str,
    ) -> None:
        self.recipe, self.device, self.held = recipe, device, held
        self.sides = [side for side, epochs in recipe.sizes for _ in range(epochs)]
        self.train_set, self.test_set = train_set, test_set
        self.classes = recipe.model_args.get("num_classes", 10)
        self.ask = panel(recipe.teacher) if is_panel(recipe.teacher) else None

    def enter_epoch(self, epoch: int) -> int:
        self.prepare = self.recipe.preprocessing(self.sides[epoch])
        return self.sides[epoch]

    def training(self, order: np.ndarray) -> Lessons:
        for low in range(0, len(order), self.recipe.batch_size):
            batch = self.train_set[order[low : low + self.recipe.batch_size]]
            # All of the batch, whatever a process's part of it: so the random numbers are the same for any number.
            images = torch.from_numpy(batch.images)
            images = augment(images, self.recipe.pad, self.recipe.flip, self.recipe.cutout)
            labels = torch.from_numpy(batch.labels)
            if self.recipe.noise:
                images, labels = with_noise(images, labels, self.recipe.noise)
            noise = labels == NONE
            if self.recipe.noise or self.recipe.cutmix:
                labels = wanted(labels, self.classes)
            if self.recipe.cutmix:
                images, others, taken = cutmix(images, self.recipe.cutmix)
                labels = torch.lerp(labels, labels[others], taken[:, None])
            mine = part(len(batch))
            own, answers = images[mine], None
            if self.ask and len(own):
                answers = self.ask(own)
                answers[noise[mine]] = 0.0  # all classes alike
                answers = answers.to(self.device)
            yield self.prepare(own.to(self.device)), labels.to(self.device), answers

    def plain(self, numbers: np.ndarray) -> Batches:
        """Return training images by their numbers, as they are."""
        return self._batches(self.train_set, numbers)

    def held_out(self) -> Batches:
        return self.plain(self.held)

    def test(self) -> Batches:
        assert self.test_set is not None
        return self._batches(self.test_set, np.arange(len(self.test_set)))

    def _batches(self, data: Dataset, order: np.ndarray) -> Batches:
        for low in range(0, len(order), 32):
            few = data[order[low : low + 32]]
            yield (
                self.prepare(torch.from_numpy(few.images).to(self.device)),
                torch.from_numpy(few.labels).to(self.device),
            )
