"""What comes with Ibidem to score candidates: the pair model, and the rule without it."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import Literal

from ibidem._util.faults import Faults
from ibidem.embedding.model_files import shipped_folder
from ibidem.matching.fitted import Database, adopted
from ibidem.matching.learned import LearnedScorer
from ibidem.matching.pair_model import PairModel
from ibidem.matching.policy import Policy, Strictness
from ibidem.matching.scorers import CosineScorer, Scorer, Thresholds

Choice = Literal["default", "none"]  # of `ibidem.open(verifier=...)`, beside a verifier of the user's own


@lru_cache(maxsize=1)
def learned_scorer() -> LearnedScorer:
    """Return the rule that was learned for the default embedder."""
    held = json.loads((files("ibidem.matching") / "scorer.json").read_text(encoding="utf-8"))
    return LearnedScorer(
        held["weights"],
        held["bias"],
        held["slope"],
        held["offset"],
        Thresholds(tuple((share, threshold) for share, threshold in held["calibration"])),
        held["embedder"],
    )


@lru_cache(maxsize=1)
def pair_model() -> PairModel | None:
    """Return the pair model; None if its package is not installed.

    Raises:
        EmbedderUnavailable: A file of it is damaged.
        ConfigurationError: It comes from another version.
    """
    directory = shipped_folder("verifier")
    return None if directory is None else PairModel(directory)


def rule_for(fingerprint: str) -> Scorer:
    """Return what scores without a model: the learned rule for the default embedder, else the cosine."""
    learned = learned_scorer()
    return learned if fingerprint == learned.embedder else CosineScorer(fingerprint)


def scorer_for(fingerprint: str, choice: Choice = "default") -> Scorer:
    """Return what scores by default: the pair model with the embedder of its calibration, else the rule."""
    rule = rule_for(fingerprint)
    if choice == "none" or isinstance(rule, CosineScorer):
        return rule
    return pair_model() or rule


def last_fingerprint(store: Database) -> str:
    """Return the fingerprint of the embedder that was used last, "" if there was none."""
    known = store.embedders.registered()
    return max(known, key=lambda one: known[one], default="")


def policy_in_force(store: Database, strictness: Strictness, scorer: Scorer) -> Policy:
    """Return the policy of caches that are opened on this location; no model is loaded.

    Raises:
        StorageError: The database failed.
    """
    return strictness.policy(scorer, adopted(store, scorer, Faults()))
