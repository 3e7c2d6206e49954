"""The linear probe's classifier, compared with scikit-learn's logistic regression."""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from worlds import on_ranks

from trainer.evaluation import linear
from trainer.evaluation.linear import STRENGTHS, UNVALIDATED_STRENGTH, LinearClassifier, fit_linear
from trainer.evaluation.ranks import Ranks, alone
from trainer.evaluation.subsets import validation_split

CPU = torch.device("cpu")


def overlapping(images: int = 600, shares: Sequence[float] = (0.6, 0.25, 0.1, 0.05)) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, 12) of classes that no line separates, with a constant column and correlated ones of other sizes."""
    rng = np.random.default_rng(0)
    labels = rng.choice(len(shares), images, p=shares)
    x = rng.normal(size=(len(shares), 12))[labels] + 2 * rng.normal(size=(images, 12))
    x[:, 3] = 5.1
    x[:, 4] = 1000 + 40 * (x[:, 5] + 0.3 * rng.normal(size=images))
    return x.astype(np.float32), labels


def fit(x: np.ndarray, y: np.ndarray, classes: int | None = None, seed: int = 0, **options) -> LinearClassifier:
    features = {12: torch.from_numpy(x)}
    return fit_linear(features, y, classes or int(y.max()) + 1, seed=seed, device=CPU, ranks=alone(), **options)


def digits(noise: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (1797, 64) of digits, some of them constant, under noise."""
    x, y = load_digits(return_X_y=True)
    return (x + noise * np.random.default_rng(0).normal(size=x.shape) * (x.std(axis=0) > 0)).astype(np.float32), y


@pytest.mark.parametrize("strength", [1.0, 0.1, 1e-2, 1e-3])
def test_coefficients_are_those_of_scikit_learn(strength):
    x, y = overlapping()
    found = fit(x, y, strengths=[strength])
    scaler = StandardScaler().fit(x.astype(np.float64))
    reference = LogisticRegression(C=1 / (strength * len(y)), tol=1e-10, max_iter=100_000)
    reference.fit(scaler.transform(x.astype(np.float64)), y)
    np.testing.assert_allclose(found.weight.numpy(), reference.coef_, atol=1e-3)
    np.testing.assert_allclose(found.bias.numpy(), reference.intercept_, atol=1e-3)
    np.testing.assert_allclose(found.mean.numpy(), scaler.mean_, rtol=1e-5)
    np.testing.assert_allclose(found.deviation.numpy(), scaler.scale_, rtol=1e-5)
    expected = reference.decision_function(scaler.transform(x.astype(np.float64)))
    np.testing.assert_allclose(found.scores(torch.from_numpy(x)).numpy(), expected, atol=5e-3)
    assert (found.converged, found.strength, found.strength_at_end) == (True, strength, False)
    assert found.gradient <= linear.TOLERANCE


def test_coefficients_of_two_classes_are_those_of_scikit_learn():
    """Its single row of weights is the difference of ours, and its penalty on that twice ours on both."""
    x, y = overlapping(shares=(0.7, 0.3))
    found = fit(x, y, strengths=[0.01])
    reference = LogisticRegression(C=2 / (0.01 * len(y)), tol=1e-10, max_iter=100_000)
    reference.fit(StandardScaler().fit_transform(x.astype(np.float64)), y)
    np.testing.assert_allclose((found.weight[1:] - found.weight[:1]).numpy(), reference.coef_, atol=1e-3)
    np.testing.assert_allclose((found.bias[1:] - found.bias[:1]).numpy(), reference.intercept_, atol=1e-3)


def test_the_strength_is_that_of_the_best_prediction_for_a_fifth_of_the_images():
    x, y = digits()
    found = fit(x[:1000], y[:1000])
    rows, held = validation_split(y[:1000], seed=0)
    scaled = StandardScaler().fit_transform(x[:1000])
    correct = {
        strength: LogisticRegression(C=1 / (strength * len(rows)), tol=1e-6, max_iter=5000)
        .fit(scaled[rows], y[rows])
        .score(scaled[held], y[held])
        for strength in STRENGTHS
    }
    assert found.validation_top1 == pytest.approx(correct[found.strength], abs=1.5 / len(held))
    assert correct[found.strength] >= max(correct.values()) - 1.5 / len(held)
    assert not found.strength_at_end
    assert max(correct.values()) - min(correct.values()) > 0.05, "the choice matters"


def test_accuracy_on_other_images_is_that_of_scikit_learn():
    x, y = digits()
    found = fit(x[:1000], y[:1000])
    scaler = StandardScaler().fit(x[:1000])
    reference = LogisticRegression(C=1 / (found.strength * 1000), max_iter=5000).fit(
        scaler.transform(x[:1000]), y[:1000]
    )
    predicted = found.scores(torch.from_numpy(x[1000:])).argmax(dim=1).numpy()
    expected = reference.predict(scaler.transform(x[1000:]))
    assert np.mean(predicted != expected) < 0.005
    assert np.mean(predicted == y[1000:]) > 0.6


def test_a_strength_at_the_end_of_those_offered_is_said():
    x, y = digits()
    assert fit(x, y, strengths=[100.0, 10.0]).strength_at_end
    assert not fit(x, y, strengths=[10.0]).strength_at_end


def test_the_layer_is_chosen_on_training_images():
    x, y = digits()
    noise = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    features = {3: torch.from_numpy(noise), 6: torch.from_numpy(x), 12: torch.from_numpy(noise)}
    found = fit_linear(features, y, 10, seed=0, device=CPU, ranks=alone())
    assert found.layer == 6
    alone_on_it = fit_linear({6: features[6]}, y, 10, seed=0, device=CPU, ranks=alone())
    assert found.validation_by_layer.keys() == features.keys()
    assert max(found.validation_by_layer.values()) == found.validation_by_layer[6] == found.validation_top1
    assert same(dataclasses.replace(found, validation_by_layer=alone_on_it.validation_by_layer), alone_on_it)


def same(one: LinearClassifier, other: LinearClassifier) -> bool:
    """Whether two classifiers are equal to the bit."""
    fields = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(LinearClassifier)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in fields)


def fit_on(ranks: Ranks) -> dict[str, object]:
    x, y = digits()
    features = {layer: torch.from_numpy(x[:400] ** power) for layer, power in ((1, 3), (2, 1))}
    found = fit_linear(features, y[:400], 10, seed=3, device=CPU, ranks=ranks)
    values = dataclasses.asdict(found)
    return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def test_any_number_of_ranks_finds_the_same_classifier_to_the_bit(tmp_path):
    expected = fit_on(alone())
    for world in (1, 2, 3):
        for found in on_ranks(world, tmp_path / str(world), fit_on):
            for name, value in expected.items():
                np.testing.assert_array_equal(found[name], value, err_msg=f"{name} of {world} ranks")


def test_a_seed_draws_the_images_that_decide():
    x, y = digits(noise=12)
    assert same(fit(x, y, seed=5), fit(x, y, seed=5))
    assert len({fit(x, y, seed=seed).validation_top1 for seed in range(4)}) > 1


def test_three_images_of_two_classes_are_enough():
    found = fit(np.array([[0, 1], [0, 2], [3, 0]], dtype=np.float32), np.array([0, 0, 1]))
    assert found.scores(torch.tensor([[0.0, 1.5], [3.0, 0.1]])).argmax(dim=1).tolist() == [0, 1]
    assert found.validation_top1 == 1


def test_without_two_images_of_a_class_a_middle_strength_is_used():
    x, y = digits()
    first = np.unique(y, return_index=True)[1]
    found = fit(x[first], y[first])
    assert (found.strength, found.validation_top1) == (UNVALIDATED_STRENGTH, None)
    assert found.scores(torch.from_numpy(x[first])).argmax(dim=1).tolist() == y[first].tolist()
    assert fit(x[first], y[first], strengths=[10.0, 1.0, 1e-6]).strength == 1.0


def test_a_class_with_one_image_is_fitted_and_one_without_is_never_predicted():
    x, y = overlapping(200, shares=(0.5, 0.5))
    x[0], y[0] = 20.0, 3
    found = fit(x, y, classes=5, strengths=[1e-3])
    scores = found.scores(torch.from_numpy(x))
    assert scores.shape == (200, 5)
    assert scores[0].argmax() == 3
    assert (scores[:, [2, 4]] == -torch.inf).all()
    assert scores[:, [0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_constant_and_nearly_constant_features_count_for_nothing(offset):
    """Of values about 10,000 float32 leaves steps of 0.001: what jumps between two of them holds rounding alone."""
    x, y = overlapping()
    jumping = np.full(len(y), offset, dtype=np.float32)
    jumping[::100] = np.nextafter(jumping[::100], np.float32(np.inf))
    jumping[::100] = jumping[::100] if offset else 0
    found = fit(np.column_stack([x, jumping, np.full_like(jumping, offset)]), y, strengths=[0.01])
    assert found.weight[:, -2:].abs().max() < 1e-2
    assert found.weight[:, 3].abs().max() < 1e-6
    torch.testing.assert_close(found.weight[:, :-2], fit(x, y, strengths=[0.01]).weight, atol=1e-3, rtol=0)


def test_more_features_than_images():
    rng = np.random.default_rng(0)
    y = np.arange(40) % 4
    x = (rng.normal(size=(4, 300))[y] + rng.normal(size=(40, 300))).astype(np.float32)
    found = fit(x, y, strengths=[0.01])
    scaled = StandardScaler().fit_transform(x.astype(np.float64))
    reference = LogisticRegression(C=1 / (0.01 * 40), tol=1e-10, max_iter=10_000).fit(scaled, y)
    np.testing.assert_allclose(found.weight.numpy(), reference.coef_, atol=1e-3)
    assert found.converged


def test_what_float32_leaves_is_finished_in_float64(monkeypatch):
    monkeypatch.setattr(linear, "TOLERANCE", 1e-10)
    x, y = overlapping()
    found = fit(x, y, strengths=[0.1])
    assert found.converged
    assert found.gradient <= 1e-10


def test_a_fit_that_is_stopped_early_says_so(monkeypatch):
    stopped = linear.minimise
    monkeypatch.setattr(linear, "minimise", lambda *args: stopped(*args, max_iterations=2))
    x, y = overlapping()
    found = fit(x, y, strengths=[1e-3])
    assert not found.converged
    assert found.gradient > linear.TOLERANCE
    assert found.iterations == 4


def test_blocks_do_not_change_the_classifier(monkeypatch):
    x, y = overlapping()
    whole = fit(x, y, strengths=[0.01])
    monkeypatch.setattr(linear, "BLOCK_VALUES", {"cpu": 12 * 7})
    cut = fit(x, y, strengths=[0.01])
    torch.testing.assert_close(cut.weight, whole.weight, atol=1e-4, rtol=0)
    torch.testing.assert_close(cut.scores(torch.from_numpy(x)), whole.scores(torch.from_numpy(x)), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y * 0), "of two classes or more, not of 1"),
        (lambda x, y: (x[:0], y[:0]), "of two classes or more, not of 0"),
        (lambda x, y: (x, y - 1), "labels are from -1 to 2: they must be from 0 to 3"),
        (lambda x, y: (x, y + 1), "labels are from 1 to 4: they must be from 0 to 3"),
        (lambda x, y: (x[:-1], y), "layer 12 has features of 599 images, and there are 600 labels"),
        (lambda x, y: (np.where(x == x[5, 5], np.nan, x), y), "features of layer 12 are not finite"),
    ],
)
def test_what_cannot_be_fitted_is_an_error(change, message):
    x, y = change(*overlapping())
    with pytest.raises(ValueError, match=message):
        fit(x, y, classes=4)


@pytest.mark.parametrize("strengths", [[], [0.1, 0.0], [-1.0]])
def test_strengths_must_be_positive(strengths):
    with pytest.raises(ValueError, match="positive strengths"):
        fit(*overlapping(), strengths=strengths)


def test_a_probe_reads_nothing_from_noise_and_warns_of_nothing():
    rng = np.random.default_rng(0)
    noise, labels = rng.normal(size=(1500, 8)).astype(np.float32), rng.integers(0, 10, 1500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit(noise[500:], labels[500:])
    assert np.mean(found.scores(torch.from_numpy(noise[:500])).argmax(dim=1).numpy() == labels[:500]) < 0.2
