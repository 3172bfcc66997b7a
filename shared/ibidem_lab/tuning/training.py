"""Fine-tune an embedding model on labelled pairs, with the trainer of sentence-transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import BaseEvaluator
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

from ibidem._util.statistics import auc
from ibidem_lab.fitting.labels import Label
from ibidem_lab.tuning.loss import SharedAnswerLoss
from ibidem_lab.tuning.metrics import cosines, labels_of

LOSS_RATE = 5e-3  # of the two numbers of the loss, which are far from where they end
WARM_UP = 0.1
WINDOW = 128  # tokens of a question in training; longer ones are cut
EMBEDDED_AT_ONCE = 128
METRIC = "auc"

Progress = Callable[[int, int, float | None], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Training parameters.

    Args:
        temperature: The loss's lambda; None to learn it.
        offset: The loss's c; None to learn it.
        epochs: Maximum; the best by validation is kept.
        patience: Epochs without a better one until early stopping.
        batch_size: Pairs per step.
        learning_rate: Peak rate of the encoder, after a warm-up of a tenth of the steps; linear decay.
        blend: Interpolation between the base weights (0) and the trained ones (1), in (0, 1]. Half of the way
            keeps what the base knows of questions unlike the pairs (Wortsman et al. 2022, WiSE-FT,
            arXiv 2109.01903).
        freeze_words: Leave the word embeddings as they are: a small log would only bend those it holds.
        seed: Seed of order and dropout.
        device: "cpu", "cuda", ...; None for the best available.
    """

    temperature: float | None = None
    offset: float | None = None
    epochs: int = 4
    patience: int = 2
    batch_size: int = 32
    learning_rate: float = 1e-4
    blend: float = 0.5
    freeze_words: bool = True
    seed: int = 0
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """The blended model in evaluation mode, and the final parameters of the loss.

    `validation_auc` is that of the best epoch, before blending.
    """

    model: SentenceTransformer
    temperature: float
    offset: float
    epochs: float
    validation_auc: float


def train(
    base: str,
    pairs: Sequence[Label],
    validation: Sequence[Label],
    recipe: Recipe,
    progress: Progress = lambda step, steps, auc: None,
) -> Trained:
    """Train on `pairs`, keep the epoch with the highest AUC on `validation`.

    Args:
        base: Name or directory of a sentence-transformers model.
        pairs: The training pairs.
        validation: The pairs that choose the epoch; none of their questions should be in `pairs`.
        recipe: The training parameters.
        progress: Called with steps done, steps in all, and the validation AUC once it is known.
    """
    torch.manual_seed(recipe.seed)
    model = load(base, recipe.device)
    loss = SharedAnswerLoss(model, recipe.temperature, recipe.offset)
    if recipe.freeze_words:
        _words_of(model).requires_grad_(False)
    evaluator = _AucEvaluator(validation)
    with tempfile.TemporaryDirectory(prefix="ibidem-tune-") as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=_arguments(folder, recipe, model.device.type),
            train_dataset=_dataset(pairs),
            eval_dataset=_dataset(validation),
            loss=loss,
            evaluator=evaluator,
            callbacks=[EarlyStoppingCallback(recipe.patience), _Reporting(progress)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        epochs = trainer.state.epoch or 0.0
    best = max(evaluator.found, default=float("nan"))
    _blend(model, load(base, recipe.device), recipe.blend)
    return Trained(model.eval(), loss.temperature, loss.offset.item(), epochs, best)


@torch.no_grad()
def _blend(model: SentenceTransformer, base: SentenceTransformer, share: float) -> None:
    """Move the weights of `model` to this share of the way from `base`."""
    begin = base.state_dict()
    for name, weights in model.state_dict().items():
        if weights.is_floating_point():
            weights.copy_(torch.lerp(begin[name], weights, share))


def _arguments(folder: str, recipe: Recipe, device: str) -> SentenceTransformerTrainingArguments:
    return SentenceTransformerTrainingArguments(
        output_dir=folder,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=EMBEDDED_AT_ONCE,
        learning_rate=recipe.learning_rate,
        learning_rate_mapping={r"^(loss\.)?(log_temperature|offset)$": LOSS_RATE},
        warmup_steps=WARM_UP,
        weight_decay=0.01,
        bf16=_has_bfloat16(device),
        use_cpu=device == "cpu",
        seed=recipe.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{METRIC}",
        greater_is_better=True,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _has_bfloat16(device: str) -> bool:
    if device == "cpu":  # emulated where the processor lacks it, which is slower than full precision
        return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return device == "cuda" and torch.cuda.is_bf16_supported()


def _silence() -> None:
    """Turn off the progress bars of the libraries: `progress` replaces them."""
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load(base: str, device: str | None = None) -> SentenceTransformer:
    """Load the model of this name or directory."""
    _silence()
    model = SentenceTransformer(base, device=device)
    model.max_seq_length = min(model.max_seq_length or WINDOW, WINDOW)
    model.model_card_data.generate_widget_examples = False  # the card is Ibidem's own
    model.model_card_data.widget = [{"text": ""}]  # else some are computed all the same, with a bar
    return model


def _dataset(pairs: Sequence[Label]) -> Dataset:
    return Dataset.from_dict(
        {
            "a": [pair.asked for pair in pairs],
            "b": [pair.stored for pair in pairs],
            "label": [float(pair.right) for pair in pairs],
        }
    )


def _words_of(model: SentenceTransformer) -> torch.nn.Module:
    transformer: Any = model[0]
    words: torch.nn.Module = transformer.auto_model.get_input_embeddings()
    return words


def embed(model: SentenceTransformer, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed questions as unit vectors, float32[n, d]."""
    found: NDArray[np.float32] = model.encode(
        list(texts), batch_size=EMBEDDED_AT_ONCE, normalize_embeddings=True, show_progress_bar=False
    )
    return found


class _AucEvaluator(BaseEvaluator):
    """Compute the AUC of the cosines on labelled pairs, after each epoch."""

    def __init__(self, pairs: Sequence[Label]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.primary_metric = METRIC
        self._pairs, self.found = pairs, list[float]()

    def __call__(self, model: Any, *args: object, **kwargs: object) -> dict[str, float]:
        found = auc(cosines(lambda texts: embed(model, texts), self._pairs), labels_of(self._pairs))
        self.found.append(found)
        return {METRIC: found}


class _Reporting(TrainerCallback):
    """Report steps and validation AUC."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress(state.global_step, state.max_steps, None)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress(state.global_step, state.max_steps, kwargs["metrics"][f"eval_{METRIC}"])
