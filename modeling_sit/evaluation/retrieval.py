"""Retrieval: the ranks of the training images with the label of an image, when all are sorted by their similarity to
it."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

# Similarities that are computed at a time: 128 MB in float32. With fewer queries at a time, reading
# the gallery would take most of the time.
SIMILARITIES_AT_A_TIME = 2**25
GALLERY_AT_A_TIME = 16384


@dataclass(frozen=True)
class Ranking:
    """
    How well each query finds the gallery's images with its label.

    Args:
        average_precision (`torch.Tensor` of shape `(num_queries,)`): Of the whole gallery's ranking, float64.
        first_hit (`torch.Tensor` of shape `(num_queries,)`): Rank, from 1, of the first image with the query's label,
            int64.
        num_hits (`torch.Tensor` of shape `(num_queries,)`):
            Images of the gallery with the query's label, int64. Without any, the other two are 0 and mean
            nothing.
    """

    average_precision: torch.Tensor
    first_hit: torch.Tensor
    num_hits: torch.Tensor


def average_precision_by_chance(num_hits: torch.Tensor, num_gallery: int) -> torch.Tensor:
    """Mean average precision of a gallery in random order, by the number of its images that are hits, at least 1."""
    if num_gallery == 1:
        return torch.ones_like(num_hits, dtype=torch.float64)
    harmonic = (1 / torch.arange(1, num_gallery + 1, dtype=torch.float64)).sum()
    hits = num_hits.double()
    return (hits - 1) / (num_gallery - 1) + harmonic / num_gallery * (num_gallery - hits) / (num_gallery - 1)


def recall_by_chance(num_hits: torch.Tensor, num_gallery: int, rank: int) -> torch.Tensor:
    """Chance of a hit among the first `rank` of a gallery in random order, by the number of its images that are
    hits."""
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
    Rank the whole gallery for each query by cosine similarity; of images equally near, the earlier one first.

    An image is a hit if it has the query's label; where images have several, if they have one in common.

    Args:
        gallery_features (`torch.Tensor` of shape `(num_gallery, hidden_size)`):
            Features of the images to be found, any device.
        gallery_labels (`torch.Tensor` of shape `(num_gallery,)`, or `(num_gallery, num_labels)` of 0 and 1):
            Their labels.
        query_features (`torch.Tensor` of shape `(num_queries, hidden_size)`):
            Features of the queries, none of them in the gallery. The computation is done on their device.
        query_labels (`torch.Tensor` of shape `(num_queries,)` or `(num_queries, num_labels)`):
            Their labels.

    Returns:
        [`Ranking`]: On the CPU. Working memory is bounded, whatever the number of queries, and of the gallery up to
        `SIMILARITIES_AT_A_TIME`; only a gallery that lies on another device than the queries is copied to theirs.
    """
    device = query_features.device
    gallery = gallery_features.to(device)
    gallery_labels = gallery_labels.to(device)
    num_queries = len(query_features)
    # Allocated first: small results that stay among large ones that are freed fragment the memory.
    average_precision = torch.zeros(num_queries, dtype=torch.float64)
    first_hit = torch.zeros(num_queries, dtype=torch.long)
    num_hits_of_all = torch.zeros(num_queries, dtype=torch.long)
    at_a_time = max(1, SIMILARITIES_AT_A_TIME // len(gallery))
    # One block for all chunks of queries: a chunk's own would be there beside the one before it and beside its parts.
    block = query_features.new_empty(min(at_a_time, num_queries), len(gallery))
    for start in range(0, num_queries, at_a_time):
        chunk = F.normalize(query_features[start : start + at_a_time], dim=1)
        similarities = block[: len(chunk)]
        for part, columns in zip(
            gallery.split(GALLERY_AT_A_TIME), similarities.split(GALLERY_AT_A_TIME, dim=1), strict=True
        ):
            columns.copy_(chunk @ F.normalize(part, dim=1).T)
        for query, row in enumerate(similarities, start):
            ranks = _ranks_of_hits(row, _is_hit(gallery_labels, query_labels[query].to(device)))
            num_hits_of_all[query] = len(ranks)
            if len(ranks) > 0:
                first_hit[query] = ranks[0]
                precision = torch.arange(1, len(ranks) + 1, device=ranks.device, dtype=torch.float64) / ranks
                average_precision[query] = precision.mean()
    return Ranking(average_precision, first_hit, num_hits_of_all)


def _is_hit(gallery_labels: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    if label.ndim == 0:
        return gallery_labels == label
    return (gallery_labels.bool() & label.bool()).any(dim=1)


def _ranks_of_hits(similarities: torch.Tensor, is_hit: torch.Tensor) -> torch.Tensor:
    """Ranks from 1 of the hits, ascending, of one query's similarities `(num_gallery,)`; of equals, the first come
    first."""
    if similarities.device.type != "cpu" or similarities.dtype != torch.float32:
        order = similarities.sort(descending=True, stable=True).indices
        return is_hit[order].nonzero()[:, 0] + 1
    # NumPy sorts integers several times as fast as PyTorch finds a stable order. The upper half of a key orders as the
    # similarity does: it is its bits, with all but the sign inverted for negative numbers; minus zero becomes zero.
    # The lower half is the index: all keys differ, and bisection finds the ranks.
    bits = (similarities + 0.0).numpy().view(np.int32)
    ascending = np.where(bits < 0, bits ^ np.int32(2**31 - 1), bits)
    keys = (~ascending).astype(np.int64) << 32 | np.arange(len(bits))
    of_hits = keys[is_hit.numpy()]
    keys.sort()
    of_hits.sort()
    return torch.from_numpy(np.searchsorted(keys, of_hits) + 1)
