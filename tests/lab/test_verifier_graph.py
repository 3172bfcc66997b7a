"""The graph of the verifier against the network it is written from."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnx")

from onnx import numpy_helper  # noqa: E402

from ibidem.embedding.onnx_model import open_session  # noqa: E402
from ibidem_lab.models.network import PAIR_WINDOW, CrossEncoder  # noqa: E402
from ibidem_lab.models.verifier_graph import Digits, buckets, build_verifier, weights_of  # noqa: E402


def inputs(rows: int, longest: int) -> dict[str, np.ndarray]:
    """Random ids, the first row without padding."""
    rng = np.random.default_rng(rows)
    ids = rng.integers(4, 30, (rows, longest))
    mask = np.ones_like(ids)
    for row in range(1, rows):
        end = int(rng.integers(1, longest))
        ids[row, end:], mask[row, end:] = 1, 0  # MPNet's padding has the id 1
    return {"input_ids": ids, "attention_mask": mask}


def expected(model: CrossEncoder, given: dict[str, np.ndarray]) -> np.ndarray:
    """In full precision: without autocast."""
    with torch.inference_mode():
        ids, mask = (torch.from_numpy(given[name]) for name in ("input_ids", "attention_mask"))
        hidden = model.body(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1)
        return model.head((hidden * weight).sum(1) / weight.sum(1)).squeeze(-1).numpy()


def run(model: CrossEncoder, given: dict[str, np.ndarray], digits: Digits | None = None) -> np.ndarray:
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    graph = build_verifier(weights, model.body.config.num_attention_heads, digits)
    return open_session(graph.SerializeToString(), 1).run(["logit"], given)[0]


@pytest.mark.parametrize(("rows", "longest"), [(1, 1), (1, 7), (5, 40), (3, PAIR_WINDOW)])
def test_full_precision_agrees(model: CrossEncoder, rows: int, longest: int) -> None:
    """With padding, and for distances of all buckets."""
    given = inputs(rows, longest)
    assert run(model, given) == pytest.approx(expected(model, given), abs=2e-3)


def test_quantised_is_near_and_two_digits_are_nearer(model: CrossEncoder) -> None:
    given = inputs(40, 30)
    right = expected(model, given)
    one = np.abs(run(model, given, Digits(1, 1, 1, 1)) - right).mean() / right.std()
    two = np.abs(run(model, given, Digits(2, 2, 2, 2)) - right).mean() / right.std()
    assert two < one < 0.3
    assert two < 0.1


def test_a_quantised_score_does_not_depend_on_what_is_beside_it(model: CrossEncoder) -> None:
    given = inputs(6, 20)
    together = run(model, given, Digits())
    for row in range(6):
        length = given["attention_mask"][row].sum()
        alone = {name: value[row : row + 1, :length] for name, value in given.items()}
        assert run(model, alone, Digits())[0] == pytest.approx(together[row], abs=1e-3)


@pytest.mark.parametrize("digits", [Digits(1, 1, 1, 1), Digits(2, 1, 1, 2)])
def test_a_graph_gives_its_weights_back(model: CrossEncoder, digits: Digits) -> None:
    """Rounded, so that a graph made of them is the same; training can go on from what ships."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    heads = model.body.config.num_attention_heads
    graph = build_verifier(weights, heads, digits)
    found = weights_of(graph)
    assert set(weights) - set(found) == {name for name in weights if ".embeddings." in name}
    far = "body.encoder.relative_attention_bias.weight"  # one of its rows is of no distance
    weights[far] = weights[far] * np.isin(np.arange(32), buckets(np.arange(-300, 300), 32))[:, None]
    for name, array in found.items():
        step = float(np.abs(weights[name]).max()) / 100
        assert array == pytest.approx(weights[name], abs=step), name
    again = build_verifier(weights | found, heads, digits)
    for one, other in zip(graph.graph.initializer, again.graph.initializer, strict=True):
        assert numpy_helper.to_array(one) == pytest.approx(numpy_helper.to_array(other), rel=1e-5), one.name


def test_a_graph_in_full_precision_is_not_taken_for_one(model: CrossEncoder) -> None:
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="not an int8 graph"):
        weights_of(build_verifier(weights, model.body.config.num_attention_heads))


def test_buckets_are_those_of_mpnet() -> None:
    encoder = transformers.models.mpnet.modeling_mpnet.MPNetEncoder
    distances = np.arange(-PAIR_WINDOW + 1, PAIR_WINDOW)
    theirs = encoder.relative_position_bucket(torch.from_numpy(distances), num_buckets=32)
    assert buckets(distances, 32).tolist() == theirs.tolist()
