"""Rankings against a loop over queries and scikit-learn's average precision."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from modeling_sit.evaluation import retrieval
from modeling_sit.evaluation.retrieval import average_precision_by_chance, rank_gallery, recall_by_chance


def features(count, seed):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-1, 1, count)[:, None]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("at_a_time", [2**20, 1, 150])
def test_equals_a_loop_over_queries(monkeypatch, multi_label, at_a_time):
    monkeypatch.setattr(retrieval, "SIMILARITIES_AT_A_TIME", at_a_time)
    gallery, queries = features(30, 0), features(12, 1)
    generator = torch.Generator().manual_seed(2)
    if multi_label:
        gallery_labels, query_labels = ((torch.rand(n, 5, generator=generator) < 0.3).float() for n in (30, 12))
        query_labels[3] = 0
    else:
        gallery_labels, query_labels = (torch.randint(4, (n,), generator=generator) for n in (30, 12))
        query_labels[3] = 4
    ranking = rank_gallery(gallery, gallery_labels, queries, query_labels)
    similarities = cosine_similarity(queries.numpy(), gallery.numpy())
    for query in range(12):
        hits = [
            bool(set(query_labels[query].nonzero()[:, 0].tolist()) & set(labels.nonzero()[:, 0].tolist()))
            if multi_label
            else labels == query_labels[query]
            for labels in gallery_labels
        ]
        hits = np.array(hits, dtype=bool)
        assert ranking.num_hits[query] == hits.sum()
        if hits.any():
            expected = average_precision_score(hits, similarities[query])
            assert ranking.average_precision[query].item() == pytest.approx(expected, abs=1e-6)
            assert ranking.first_hit[query] == 1 + np.flatnonzero(hits[np.argsort(-similarities[query])])[0]
    assert ranking.num_hits[3] == 0


def test_a_perfect_and_the_worst_ranking():
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert rank_gallery(gallery, labels, queries, torch.tensor([0, 1])).average_precision.tolist() == [1.0, 1.0]
    worst = rank_gallery(gallery, labels, queries, torch.tensor([1, 0]))
    assert worst.average_precision.tolist() == pytest.approx([(1 / 3 + 2 / 4) / 2] * 2)
    assert worst.first_hit.tolist() == [3, 3]


def test_of_images_equally_near_the_earlier_comes_first():
    ranking = rank_gallery(torch.ones(5, 2), torch.tensor([1, 1, 0, 1, 0]), torch.ones(1, 2), torch.tensor([0]))
    assert ranking.first_hit.item() == 3


@pytest.mark.parametrize("num_hits", [1, 2, 5, 6])
def test_chance_is_the_mean_over_all_orders(num_hits):
    orders = [np.isin(np.arange(6), hits) for hits in itertools.combinations(range(6), num_hits)]
    expected = np.mean([average_precision_score(order, -np.arange(6)) for order in orders])
    count = torch.tensor([num_hits])
    assert average_precision_by_chance(count, 6).item() == pytest.approx(expected)
    for rank in (1, 3, 6):
        assert recall_by_chance(count, 6, rank).item() == pytest.approx(np.mean([o[:rank].any() for o in orders]))
    assert average_precision_by_chance(torch.tensor([1]), 1).item() == 1


def test_ranks_by_whole_numbers_are_those_of_a_stable_order():
    generator = torch.Generator().manual_seed(0)
    # Many equals, both zeros, and both signs: as of images that are there twice.
    similarities = torch.randint(-6, 7, (300,), generator=generator).float() / 6
    similarities[similarities == 0] = torch.tensor([0.0, -0.0]).repeat(300)[: int((similarities == 0).sum())]
    is_hit = torch.rand(300, generator=generator) < 0.3
    expected = np.flatnonzero(is_hit.numpy()[np.argsort(-similarities.numpy(), kind="stable")]) + 1
    assert retrieval._ranks_of_hits(similarities, is_hit).tolist() == expected.tolist()
    assert retrieval._ranks_of_hits(similarities.double(), is_hit).tolist() == expected.tolist()
    assert retrieval._ranks_of_hits(similarities, torch.zeros(300, dtype=torch.bool)).tolist() == []


def test_gallery_in_parts(monkeypatch):
    gallery, queries, labels = features(30, 0), features(12, 1), torch.arange(30) % 4
    whole = rank_gallery(gallery, labels, queries, torch.arange(12) % 4)
    monkeypatch.setattr(retrieval, "GALLERY_AT_A_TIME", 7)
    parts = rank_gallery(gallery, labels, queries, torch.arange(12) % 4)
    torch.testing.assert_close(parts.average_precision, whole.average_precision)
    assert torch.equal(parts.first_hit, whole.first_hit)
