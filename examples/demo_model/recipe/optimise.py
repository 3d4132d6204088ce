"""The training loop: Muon and AdamW, warm-up then cosine decay, and an average of the weights.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) steps along the orthogonalised gradient of each matrix
inside the blocks: it reaches the same loss in fewer steps than AdamW, which has the embedding and the norms.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .batches import Batch
from .model import Llama


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn."""

    steps: int
    rate: float = 3e-3
    matrix_rate: float = 4e-3
    warmup: int = 100
    weight_decay: float = 0.2
    clip: float = 1.0
    average_decay: float = 0.998
    smoothing: float = 0.05

    def factor(self, step: int) -> float:
        """What the learning rates are multiplied by at a step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def loss_of(model: Llama, batch: Batch, control_ids: Tensor, smoothing: float) -> Tensor:
    """Weighted mean cross entropy; logits are computed only where a weight is set.

    The target of a control token is smoothed over the control tokens: labels of few rows are not to be learnt as
    certainties.
    """
    chosen = batch.weights > 0
    logits = model.logits(model.hidden(batch.ids)[chosen]).float()
    weights, targets = batch.weights[chosen], batch.targets[chosen]
    log_probabilities = F.log_softmax(logits, dim=-1)
    losses = -log_probabilities.gather(1, targets[:, None])[:, 0]
    is_control = torch.isin(targets, control_ids)
    over_controls = -log_probabilities[:, control_ids].mean(dim=1)
    losses = torch.where(is_control, torch.lerp(losses, over_controls, smoothing), losses)
    return (losses * weights).sum() / weights.sum()


def fit(
    model: Llama,
    stream: Iterator[Batch],
    control_ids: list[int],
    schedule: Schedule,
    report: Callable[[int, float, Llama], None],
) -> None:
    """Train `model`; `report(step, mean loss, averaged model)` is called every 250 steps and at the end."""
    average = copy.deepcopy(model).eval()
    optimisers = _optimisers(model, schedule)
    rates = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    controls = torch.tensor(control_ids)
    model.train()
    total = 0.0
    for step in range(schedule.steps):
        for optimiser, rate in zip(optimisers, rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * schedule.factor(step)
        # The plain attention kernel is the fastest one on a CPU for rows as short as these.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss = loss_of(model, next(stream), controls, schedule.smoothing)
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        for optimiser in optimisers:
            optimiser.step()
        _blend(average, model, min(schedule.average_decay, (step + 1) / (step + 10)))
        total += loss.item()
        if (step + 1) % 250 == 0 or step + 1 == schedule.steps:
            report(step + 1, total / (step % 250 + 1), average)
            total = 0.0


def _optimisers(model: Llama, schedule: Schedule) -> list[torch.optim.Optimizer]:
    inner = {id(p) for p in model.model.layers.parameters() if p.dim() == 2}
    matrices = [p for p in model.parameters() if id(p) in inner]
    embedding = [p for p in model.parameters() if p.dim() == 2 and id(p) not in inner]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    decayed = {"params": embedding, "weight_decay": schedule.weight_decay}
    return [
        torch.optim.AdamW([decayed, {"params": vectors, "weight_decay": 0.0}], lr=schedule.rate, betas=(0.9, 0.98)),
        torch.optim.Muon(
            matrices,
            lr=schedule.matrix_rate,
            weight_decay=schedule.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
    ]


@torch.no_grad()
def _blend(average: Llama, model: Llama, decay: float) -> None:
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1.0 - decay)
