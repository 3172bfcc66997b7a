"""One training loop for all models: batches of like lengths, checkpoints, resumed after a kill."""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: examples seen, examples a step, peak rate of the body, seed.

    The rate rises over the first `warmup` steps, stays at its peak, and falls linearly to 0 over the last
    `cooldown` of the steps (warmup-stable-decay, Hu et al. 2024, arXiv 2404.06395). Since nothing before the
    cooldown depends on `examples`, a training may be prolonged: the state at its start is kept. A new head
    learns ten times as fast as the body.
    """

    examples: int
    batch: int = 32
    rate: float = 4e-5
    seed: int = 3
    warmup: int = 120
    cooldown: float = 0.25
    checkpoint_seconds: float = 300.0

    @property
    def steps(self) -> int:
        """Steps of the optimizer."""
        return max(1, self.examples // self.batch)

    @property
    def stable(self) -> int:
        """Steps before the cooldown."""
        return self.steps - int(self.steps * self.cooldown)

    def factor(self, step: int) -> float:
        """The share of the peak rate at a step."""
        left = (self.steps - step) / (self.steps - self.stable + 1)
        return min(1.0, (step + 1) / (self.warmup + 1), left)

    def terms(self, examples: int) -> str:
        """What must agree for a state of one training to be continued in another, beside its step."""
        of = f"{examples} examples, batch {self.batch}, rate {self.rate}, seed {self.seed}"
        return f"{of}, warmup {self.warmup}"


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
    loss_of: Callable[[list[int], int], Tensor],
    lengths: Sequence[int],
    schedule: Schedule,
    checkpoint: Path,
    report: Callable[[str], None],
    validate: Callable[[Model], str] | None = None,
) -> None:
    """Train a model in place; from its checkpoint, if that was made for the same.

    `loss_of` gets the places of a batch's examples and the step, and returns their mean loss. When done, the
    checkpoint holds the model and the last step, so that a repeated call only loads it; beside it lies the
    state before the cooldown (`.stable`), from which a call with more examples goes on. `validate` says how
    good the model is, eight times.
    """
    optimizer = torch.optim.AdamW(_parameters(model, schedule.rate), weight_decay=0.01, fused=True)
    states = _States(checkpoint, schedule, schedule.terms(len(lengths)))
    first = states.resume(model, optimizer)
    torch.manual_seed(schedule.seed + first)
    source = batches_of(lengths, schedule.batch, schedule.seed)
    for _ in range(first):
        next(source)
    losses: list[Tensor] = []
    begun = saved = time.monotonic()
    for step in range(first, schedule.steps):
        if step == schedule.stable:
            states.save(states.stable, step, model, optimizer)
        model.train()
        loss = loss_of(next(source), step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule.factor(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if (step + 1) % max(1, schedule.steps // 8) == 0 or step + 1 == schedule.steps:
            speed = (step + 1 - first) * schedule.batch / (time.monotonic() - begun)
            mean = torch.stack(losses[-200:]).mean().item()
            found = validate(model) if validate else ""
            told = f"step {step + 1:,} of {schedule.steps:,}: loss {mean:.4f}"
            report(f"{told}, {speed:.0f} examples a second {found}")
        if time.monotonic() - saved > schedule.checkpoint_seconds:
            states.save(checkpoint, step + 1, model, optimizer)
            saved = time.monotonic()
    if first < schedule.steps:
        states.save(checkpoint, schedule.steps, model)


def load(model: nn.Module, checkpoint: Path) -> None:
    """Put the weights of a checkpoint into a model.

    Raises:
        FileNotFoundError: it has not been trained.
    """
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["model"])


def _parameters(model: nn.Module, rate: float) -> list[dict[str, object]]:
    """Groups for the optimizer, each with its peak rate; what is frozen is in none."""
    learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    head = [p for name, p in learned if not name.startswith("body.")]
    body = [p for name, p in learned if name.startswith("body.")]
    return [{"params": body, "peak": rate}, *([{"params": head, "peak": 10 * rate}] if head else [])]


class _States:
    """The states of one training on disk: the newest, and the one before the cooldown."""

    def __init__(self, checkpoint: Path, schedule: Schedule, terms: str) -> None:
        self.stable = checkpoint.with_suffix(".stable")
        self._checkpoint, self._schedule, self._terms = checkpoint, schedule, terms

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the farthest state that this schedule passes through; the steps done, 0 without one."""
        for path in (self._checkpoint, self.stable):
            if not path.exists():
                continue
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not self._fits(state["terms"], state["of"], state["step"]):
                continue
            model.load_state_dict(state["model"])
            if "optimizer" in state:
                optimizer.load_state_dict(state["optimizer"])
            return int(state["step"])
        return 0

    def _fits(self, terms: str, of: int, step: int) -> bool:
        """Whether a state after `step` of `of` steps lies on the way: before any cooldown, or in the same."""
        other = replace(self._schedule, examples=of * self._schedule.batch)
        before = step <= min(self._schedule.stable, other.stable)
        return terms == self._terms and (of == self._schedule.steps or before)

    def save(
        self, path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Write a state, whole or not at all; without its optimizer it is the last one."""
        state = {"terms": self._terms, "of": self._schedule.steps, "step": step, "model": model.state_dict()}
        if optimizer is not None:
            state["optimizer"] = optimizer.state_dict()
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        torch.save(state, new)
        os.replace(new, path)
