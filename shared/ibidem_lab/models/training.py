"""One training loop for all models: batches of like lengths, checkpoints, resumed after a kill."""

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: examples seen, examples a step, peak rate of the body, seed.

    The rate rises over the first `warmup` of the steps and falls linearly to `floor` of its peak. A new
    head learns ten times as fast as the body.
    """

    examples: int
    batch: int = 32
    rate: float = 4e-5
    seed: int = 3
    warmup: float = 0.06
    floor: float = 0.03
    checkpoint_seconds: float = 300.0

    @property
    def steps(self) -> int:
        """Steps of the optimizer."""
        return max(1, self.examples // self.batch)

    def factor(self, step: int) -> float:
        """The share of the peak rate at a step."""
        return min(1.0, (step + 1) / (self.warmup * self.steps + 1)) * max(self.floor, 1 - step / self.steps)


def batches_of(lengths: Sequence[int], size: int, seed: int) -> Iterator[list[int]]:
    """Places of examples of like lengths, in random order, for ever; the same for the same seed."""
    rng = random.Random(seed)  # noqa: S311
    places = list(range(len(lengths)))
    while True:
        rng.shuffle(places)
        for start in range(0, len(places), size * 50):
            block = sorted(places[start : start + size * 50], key=lengths.__getitem__)
            cut = [block[i : i + size] for i in range(0, len(block), size)]
            rng.shuffle(cut)
            yield from cut


def train(
    model: Model,
    loss_of: Callable[[list[int]], Tensor],
    lengths: Sequence[int],
    schedule: Schedule,
    checkpoint: Path,
    report: Callable[[str], None],
    validate: Callable[[Model], str] | None = None,
) -> None:
    """Train a model in place; from its checkpoint, if that was made for the same.

    `loss_of` gets the places of a batch's examples and returns their mean loss. When done, the checkpoint
    holds the model and the last step, so that a repeated call only loads it. `validate` says how good the
    model is, eight times.
    """
    optimizer = torch.optim.AdamW(
        _parameters(model, schedule.rate), weight_decay=0.01, fused=torch.cuda.is_available()
    )
    plan = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
    terms = hashlib.sha256(json.dumps([asdict(schedule), len(lengths)]).encode()).hexdigest()
    first = _resume(checkpoint, terms, model, optimizer, plan)
    torch.manual_seed(schedule.seed + first)
    source = batches_of(lengths, schedule.batch, schedule.seed)
    for _ in range(first):
        next(source)
    losses: list[Tensor] = []
    begun = saved = time.monotonic()
    for step in range(first, schedule.steps):
        model.train()
        loss = loss_of(next(source))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        plan.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if (step + 1) % max(1, schedule.steps // 8) == 0 or step + 1 == schedule.steps:
            speed = (step + 1 - first) * schedule.batch / (time.monotonic() - begun)
            mean = torch.stack(losses[-200:]).mean().item()
            found = validate(model) if validate else ""
            told = f"step {step + 1:,} of {schedule.steps:,}: loss {mean:.4f}"
            report(f"{told}, {speed:.0f} examples a second {found}")
        if time.monotonic() - saved > schedule.checkpoint_seconds:
            _save(checkpoint, terms, step + 1, model, optimizer, plan)
            saved = time.monotonic()
    if first < schedule.steps:
        _save(checkpoint, terms, schedule.steps, model)


def load(model: nn.Module, checkpoint: Path) -> None:
    """Put the weights of a checkpoint into a model.

    Raises:
        FileNotFoundError: it has not been trained.
    """
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["model"])


def _parameters(model: nn.Module, rate: float) -> list[dict[str, object]]:
    head = [p for name, p in model.named_parameters() if not name.startswith("body.")]
    body = [p for name, p in model.named_parameters() if name.startswith("body.")]
    return [{"params": body, "lr": rate}, *([{"params": head, "lr": 10 * rate}] if head else [])]


def _resume(
    checkpoint: Path,
    terms: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: torch.optim.lr_scheduler.LambdaLR,
) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if state["terms"] != terms:
        return 0
    model.load_state_dict(state["model"])
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])
        plan.load_state_dict(state["plan"])
    return int(state["step"])


def _save(
    checkpoint: Path,
    terms: str,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    plan: torch.optim.lr_scheduler.LambdaLR | None = None,
) -> None:
    state = {"terms": terms, "step": step, "model": model.state_dict()}
    if optimizer is not None and plan is not None:
        state |= {"optimizer": optimizer.state_dict(), "plan": plan.state_dict()}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    new = checkpoint.with_suffix(".new")
    torch.save(state, new)
    os.replace(new, checkpoint)
