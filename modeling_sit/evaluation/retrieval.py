"""Retrieval: how far up the training pictures with the same label stand among those that are nearest to a picture."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Similarities that are computed and sorted at a time: 16 MB in float32, and some ten times that with what is made of them.
SIMILARITIES_AT_A_TIME = 2**22


@dataclass(frozen=True)
class Ranking:
    """
    How well each query finds the gallery's pictures with its label.

    Args:
        average_precision (`torch.Tensor` of shape `(num_queries,)`): Of the whole gallery's ranking, float64.
        first_hit (`torch.Tensor` of shape `(num_queries,)`): Rank, from 1, of the first picture with the query's label, int64.
        answerable (`torch.Tensor` of shape `(num_queries,)`):
            Whether the gallery has any such picture. Where not, the other two are 0 and say nothing.
    """

    average_precision: torch.Tensor
    first_hit: torch.Tensor
    answerable: torch.Tensor


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
    precisions, first_hits, answerable = [], [], []
    for features, labels in zip(
        query_features.split(max(1, SIMILARITIES_AT_A_TIME // len(gallery))),
        query_labels.split(max(1, SIMILARITIES_AT_A_TIME // len(gallery))),
        strict=True,
    ):
        similarities = F.normalize(features, dim=1) @ gallery.T
        order = similarities.sort(dim=1, descending=True, stable=True).indices
        labels = labels.to(device)
        if labels.ndim == 2:
            hits = (labels.float() @ gallery_labels.float().T > 0).gather(1, order)
        else:
            hits = gallery_labels[order] == labels[:, None]
        num_hits = hits.cumsum(dim=1)
        ranks = torch.arange(1, len(gallery) + 1, device=device)
        precision = torch.where(hits, num_hits.double() / ranks, 0.0).sum(dim=1)
        precisions.append((precision / num_hits[:, -1].clamp_min(1)).cpu())
        answerable.append((num_hits[:, -1] > 0).cpu())
        first_hits.append(torch.where(num_hits[:, -1] > 0, hits.long().argmax(dim=1) + 1, 0).cpu())
    return Ranking(torch.cat(precisions), torch.cat(first_hits), torch.cat(answerable))
