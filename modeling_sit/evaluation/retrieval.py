"""Retrieval: how far up the training pictures with the same label stand among those that are nearest to a picture."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Similarities that are computed and sorted at a time: 4 MB in float32, and some fifteen times that with what is made of them.
SIMILARITIES_AT_A_TIME = 2**20


@dataclass(frozen=True)
class Ranking:
    """
    How well each query finds the gallery's pictures with its label.

    Args:
        average_precision (`torch.Tensor` of shape `(num_queries,)`): Of the whole gallery's ranking, float64.
        first_hit (`torch.Tensor` of shape `(num_queries,)`): Rank, from 1, of the first picture with the query's label, int64.
        num_hits (`torch.Tensor` of shape `(num_queries,)`):
            Pictures of the gallery with the query's label, int64. Where there are none, the other two are 0 and say nothing.
    """

    average_precision: torch.Tensor
    first_hit: torch.Tensor
    num_hits: torch.Tensor


def average_precision_by_chance(num_hits: torch.Tensor, num_gallery: int) -> torch.Tensor:
    """Mean average precision of a gallery in random order, by the number of its pictures that are hits, at least 1."""
    if num_gallery == 1:
        return torch.ones_like(num_hits, dtype=torch.float64)
    harmonic = (1 / torch.arange(1, num_gallery + 1, dtype=torch.float64)).sum()
    hits = num_hits.double()
    return (hits - 1) / (num_gallery - 1) + harmonic / num_gallery * (num_gallery - hits) / (num_gallery - 1)


def recall_by_chance(num_hits: torch.Tensor, num_gallery: int, rank: int) -> torch.Tensor:
    """Chance of a hit among the first `rank` of a gallery in random order, by the number of its pictures that are hits."""
    misses = num_gallery - num_hits.double()
    places = torch.arange(rank, dtype=torch.float64)
    return 1 - ((misses[:, None] - places).clamp_min(0) / (num_gallery - places)).prod(dim=1)


@torch.no_grad()
def rank_gallery(
    gallery_features: torch.Tensor,
    gallery_labels: torch.Tensor,
    query_features: torch.Tensor,
    query_labels: torch.Tensor,
) -> Ranking:
    """
    Rank the whole gallery for each query by cosine similarity; of pictures equally near, the earlier one first.

    A picture is a hit if it has the query's label; where pictures have several, if they have one in common.

    Args:
        gallery_features (`torch.Tensor` of shape `(num_gallery, hidden_size)`):
            Features of the pictures to be found, any device.
        gallery_labels (`torch.Tensor` of shape `(num_gallery,)`, or `(num_gallery, num_labels)` of 0 and 1):
            Their labels.
        query_features (`torch.Tensor` of shape `(num_queries, hidden_size)`):
            Features of the queries, none of them in the gallery. The computation is done on their device.
        query_labels (`torch.Tensor` of shape `(num_queries,)` or `(num_queries, num_labels)`):
            Their labels.

    Returns:
        [`Ranking`]: On the CPU. Working memory does not depend on the number of queries.
    """
    device = query_features.device
    gallery = F.normalize(gallery_features.to(device), dim=1)
    gallery_labels = gallery_labels.to(device)
    num_queries = len(query_features)
    # Made beforehand: small results that are kept among large ones that are freed leave holes which memory does not fill.
    average_precision = torch.zeros(num_queries, dtype=torch.float64)
    first_hit = torch.zeros(num_queries, dtype=torch.long)
    num_hits_of_all = torch.zeros(num_queries, dtype=torch.long)
    ranks = torch.arange(1, len(gallery) + 1, device=device)
    at_a_time = max(1, SIMILARITIES_AT_A_TIME // len(gallery))
    for start in range(0, num_queries, at_a_time):
        queries = slice(start, start + at_a_time)
        similarities = F.normalize(query_features[queries], dim=1) @ gallery.T
        order = similarities.sort(dim=1, descending=True, stable=True).indices
        labels = query_labels[queries].to(device)
        if labels.ndim == 2:
            hits = (labels.float() @ gallery_labels.float().T > 0).gather(1, order)
        else:
            hits = gallery_labels[order] == labels[:, None]
        num_hits = hits.cumsum(dim=1)
        total = num_hits[:, -1]
        precision = torch.where(hits, num_hits.double() / ranks, 0.0).sum(dim=1)
        average_precision[queries] = (precision / total.clamp_min(1)).cpu()
        first_hit[queries] = torch.where(total > 0, hits.long().argmax(dim=1) + 1, 0).cpu()
        num_hits_of_all[queries] = total.cpu()
    return Ranking(average_precision, first_hit, num_hits_of_all)
