"""The training loop: AdamW, warm-up then cosine decay by the clock of epochs, and an average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .batches import Batch
from .model import Llama


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn."""

    steps: int
    peak_rate: float = 2.5e-3
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    average_decay: float = 0.997

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        if step < self.warmup:
            return self.peak_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def loss_of(model: Llama, batch: Batch) -> torch.Tensor:
    """Weighted mean cross entropy; logits are computed only where a weight is set."""
    chosen = batch.weights > 0
    logits = model.logits(model.hidden(batch.ids)[chosen])
    weights = batch.weights[chosen]
    losses = F.cross_entropy(logits.float(), batch.targets[chosen], reduction="none")
    return (losses * weights).sum() / weights.sum()


def fit(
    model: Llama,
    stream: Iterator[Batch],
    schedule: Schedule,
    report: Callable[[int, float, Llama], None],
) -> None:
    """Train `model`; `report(step, mean loss, averaged model)` is called every 250 steps and at the end."""
    average = copy.deepcopy(model).eval()
    optimiser = torch.optim.AdamW(_groups(model, schedule.weight_decay), betas=(0.9, 0.98))
    model.train()
    total = 0.0
    for step in range(schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        # The plain attention kernel is the fastest one on a CPU for rows as short as these.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss = loss_of(model, next(stream))
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimiser.step()
        _blend(average, model, min(schedule.average_decay, (step + 1) / (step + 10)))
        total += loss.item()
        if (step + 1) % 250 == 0 or step + 1 == schedule.steps:
            report(step + 1, total / (step % 250 + 1), average)
            total = 0.0


def _groups(model: Llama, weight_decay: float) -> list[dict[str, object]]:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


@torch.no_grad()
def _blend(average: Llama, model: Llama, decay: float) -> None:
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1.0 - decay)
