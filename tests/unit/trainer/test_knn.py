"""Exact nearest neighbours and their votes, compared with scikit-learn's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from worlds import on_ranks

from trainer.evaluation import knn
from trainer.evaluation.knn import knn_scores, nearest
from trainer.evaluation.ranks import Ranks

CPU = torch.device("cpu")


def clusters(images: int, seed: int, classes: int = 5, width: int = 12) -> tuple[torch.Tensor, np.ndarray]:
    centres = np.random.default_rng(0).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    return torch.tensor(centres[labels] + rng.normal(size=(images, width)), dtype=torch.float32), labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 0.5)])
def test_scores_are_the_probabilities_of_scikit_learn(k, temperature):
    (train, labels), (queries, _) = clusters(400, 1), clusters(150, 2)
    similarities, rows = nearest(train, queries, 25, CPU)
    found = knn_scores(similarities, rows, labels, 5, [k], temperature)[k]
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / temperature)
    ).fit(train.numpy(), labels)
    np.testing.assert_allclose(found.numpy(), reference.predict_proba(queries.numpy()), atol=1e-4)
    distances, neighbours = reference.kneighbors(queries.numpy())
    np.testing.assert_array_equal(rows[:, :k].numpy(), neighbours)
    np.testing.assert_allclose(similarities[:, :k].numpy(), 1 - distances, atol=1e-5)


def test_scores_of_several_k_are_those_of_each():
    (train, labels), (queries, _) = clusters(60, 1), clusters(9, 2)
    neighbours = nearest(train, queries, 60, CPU)
    together = knn_scores(*neighbours, labels, 5, (3, 60))
    assert list(together) == [3, 60]
    for k, scores in together.items():
        assert torch.equal(scores, knn_scores(*neighbours, labels, 5, (k,))[k])


AXES = [[sign * (axis == place) for place in range(3)] for axis in range(3) for sign in (1, -1)] + [[0, 0, 0]]
"""Directions along which a product has no rounding, so that equal similarities are equal bits wherever they stand."""


@given(
    st.lists(st.sampled_from(AXES), min_size=1, max_size=40),
    st.lists(st.lists(st.integers(-1, 1), min_size=3, max_size=3), min_size=1, max_size=6),
    st.integers(1, 40),
    st.integers(1, 20),
)
def test_of_equal_similarities_the_lower_row_is_nearer_however_the_images_are_cut(train, queries, k, part):
    """With few directions most similarities occur several times, to the bit; a zero is no direction."""
    x, q = torch.tensor(train, dtype=torch.float32), torch.tensor(queries, dtype=torch.float32)
    k = min(k, len(x))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "SIMILARITIES", {"cpu": part * knn.QUERIES})
        similarities, rows = nearest(x, q, k, CPU)
    for query, row_of, similarity_of in zip(q, rows, similarities, strict=True):
        lengths = np.linalg.norm(train, axis=1) * float(query.norm())
        cosine = np.divide(np.array(train) @ query.numpy(), lengths, out=np.zeros(len(x)), where=lengths > 0)
        order = np.lexsort((np.arange(len(x)), -cosine.round(5)))[:k]
        assert row_of.tolist() == order.tolist()
        np.testing.assert_allclose(similarity_of, cosine[order], atol=1e-6)


def test_copies_of_an_image_come_in_their_order():
    train, _ = clusters(3000, 1)
    train[2048], train[100] = train[7], 2 * train[7]
    similarities, rows = nearest(train, train[7:8], 2, CPU)
    assert rows.tolist() == [[7, 100]]
    np.testing.assert_allclose(similarities, 1, atol=1e-6)


def test_a_small_temperature_overflows_nowhere():
    (train, labels), (queries, _) = clusters(50, 1), clusters(20, 2)
    neighbours = nearest(train, queries, 10, CPU)
    scores = knn_scores(*neighbours, labels, 5, [10], temperature=1e-4)[10]
    np.testing.assert_array_equal(scores.argmax(dim=1).numpy(), labels[neighbours[1][:, 0]])
    assert scores.sum(dim=1).numpy() == pytest.approx(1)


def test_more_neighbours_than_there_are_is_an_error():
    (train, labels), (queries, _) = clusters(10, 1), clusters(3, 2)
    with pytest.raises(ValueError, match="k is 11: it must be from 1 to the number of training images, 10"):
        nearest(train, queries, 11, CPU)
    with pytest.raises(ValueError, match="k is 6: it must be from 1 to the number of neighbours, 5"):
        knn_scores(*nearest(train, queries, 5, CPU), labels, 5, [6])


def test_features_that_are_not_finite_are_an_error():
    train, _ = clusters(10, 1)
    train[3, 2] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        nearest(train, train[:2], 3, CPU)


def neighbours_of_clusters(ranks: Ranks) -> tuple[np.ndarray, np.ndarray]:
    train, queries = clusters(300, 1)[0], clusters(2 * knn.QUERIES + 5, 2)[0]
    return tuple(found.numpy() for found in nearest(train, queries, 10, CPU, ranks))


def test_any_number_of_ranks_finds_the_same_neighbours_to_the_bit(tmp_path):
    expected = nearest(clusters(300, 1)[0], clusters(2 * knn.QUERIES + 5, 2)[0], 10, CPU)
    for world in (1, 2, 3):
        for similarities, rows in on_ranks(world, tmp_path / str(world), neighbours_of_clusters):
            np.testing.assert_array_equal(similarities, expected[0].numpy())
            np.testing.assert_array_equal(rows, expected[1].numpy())
