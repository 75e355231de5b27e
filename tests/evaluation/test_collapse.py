"""Collapse: the statistics against slow versions, and the warning on networks that collapsed and that did not."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modeling_sit import SiTForPreTraining, SiTImageProcessor
from modeling_sit.data.image_datasets import read_row
from modeling_sit.data.sources import load_images
from modeling_sit.evaluation.collapse import (
    COLLAPSED_RANKME,
    COLLAPSED_STD,
    collapse_warning,
    effective_rank,
    embedding_std,
)
from modeling_sit.losses import contrastive_loss


def random_rotation(size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


class TestEffectiveRank:
    @pytest.mark.parametrize("rank", [1, 2, 5, 12])
    def test_of_directions_that_are_equally_strong_is_their_number(self, rank):
        embeddings = 3.7 * random_rotation(20)[:, :rank] @ random_rotation(12, seed=1)[:rank]
        assert effective_rank(embeddings) == pytest.approx(rank, abs=1e-3)

    def test_of_one_hot_embeddings_is_their_number(self):
        assert effective_rank(torch.eye(9)) == pytest.approx(9, abs=1e-4)

    def test_of_two_unequal_directions(self):
        embeddings = torch.diag(torch.tensor([3.0, 1.0]))
        assert effective_rank(embeddings) == pytest.approx(0.75**-0.75 * 0.25**-0.25, abs=1e-5)

    @pytest.mark.parametrize("value", [1.0, 0.0])
    def test_of_collapsed_embeddings_is_1(self, value):
        assert effective_rank(torch.full((30, 16), value)) == pytest.approx(1, abs=1e-3)

    def test_equals_a_slow_version_of_the_papers_formula(self):
        embeddings = torch.randn(15, 7, generator=torch.Generator().manual_seed(0)) + 0.5
        singular_values = np.sqrt(np.linalg.eigvalsh(embeddings.double().numpy().T @ embeddings.double().numpy()))
        entropy = 0.0
        for value in singular_values:
            fraction = value / sum(singular_values) + 1e-7
            entropy -= fraction * np.log(fraction)
        assert effective_rank(embeddings) == pytest.approx(np.exp(entropy), rel=1e-9)

    def test_is_computed_in_double_precision(self):
        # A direction a billionth as strong as the other counts as next to none, not as noise of rounding.
        embeddings = (random_rotation(50)[:, :1] @ random_rotation(40, seed=1)[:1]).float()
        assert effective_rank(embeddings) == pytest.approx(1, abs=1e-3)


class TestEmbeddingStd:
    def test_of_one_hot_embeddings(self):
        assert embedding_std(5 * torch.eye(16)) == pytest.approx((1 - 1 / 16) ** 0.5)

    def test_of_both_ends_of_every_axis_is_1(self):
        assert embedding_std(torch.cat([torch.eye(8), -torch.eye(8)])) == pytest.approx(1)

    def test_of_normal_embeddings_is_about_1(self):
        assert embedding_std(torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))) == pytest.approx(
            1, abs=0.02
        )

    def test_of_collapsed_embeddings_is_0_whatever_their_lengths(self):
        direction = torch.randn(16, generator=torch.Generator().manual_seed(0))
        assert embedding_std(direction * torch.arange(1, 31)[:, None]) == pytest.approx(0, abs=1e-6)

    def test_equals_a_slow_version(self):
        embeddings = torch.randn(10, 6, generator=torch.Generator().manual_seed(0)) + 1
        rows = [row / np.sqrt((row**2).sum()) for row in embeddings.double().numpy()]
        deviations = [
            np.sqrt(np.mean([(row[d] - np.mean([r[d] for r in rows])) ** 2 for row in rows])) for d in range(6)
        ]
        assert embedding_std(embeddings) == pytest.approx(np.mean(deviations) * np.sqrt(6), rel=1e-9)


@pytest.fixture(scope="module")
def pixel_values() -> torch.Tensor:
    processor = SiTImageProcessor(size={"height": 16, "width": 16}, patch_size=8)
    train = load_images("digits").train
    return processor([read_row(train, row)[0] for row in range(64)], return_tensors="pt")["pixel_values"]


class TestCollapse:
    def statistics(self, student, pixel_values) -> dict[str, float]:
        with torch.no_grad():
            token = student.eval().encode(pixel_values)[0]
        student.train()
        return {"rankme": effective_rank(token), "embedding_std": embedding_std(token)}

    def train(self, student, pixel_values, loss_of, num_steps=200) -> dict[str, float]:
        optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(num_steps):
            views = [pixel_values + 0.1 * torch.randn(pixel_values.shape, generator=generator) for _ in range(2)]
            loss_of(*student.encode(torch.cat(views))).backward()
            optimizer.step()
            optimizer.zero_grad()
        return self.statistics(student, pixel_values)

    @pytest.mark.parametrize("seed", [0, 1])
    def test_names_a_network_that_collapsed_and_no_other(self, tiny_config, pixel_values, seed):
        torch.manual_seed(seed)
        student = SiTForPreTraining(tiny_config(drop_path_rate=0.0)).train()
        assert collapse_warning(self.statistics(student, pixel_values)) is None

        def contrast(token, projection):
            return contrastive_loss(projection, projection.detach())

        trained = self.train(copy.deepcopy(student), pixel_values, contrast)
        assert collapse_warning(trained) is None

        def attraction(token, projection):
            """Images are drawn together, and nothing holds them apart: what collapse means."""
            token = F.normalize(token, dim=1)
            return (token - token.roll(1, dims=0)).square().sum(dim=1).mean()

        collapsed = self.train(copy.deepcopy(student), pixel_values, attraction)
        warning = collapse_warning(collapsed)
        assert "embedding_std" in warning and "rankme" in warning
        # A margin on either side of both thresholds.
        assert collapsed["embedding_std"] < COLLAPSED_STD / 1.5 < COLLAPSED_STD * 1.5 < trained["embedding_std"]
        assert collapsed["rankme"] < COLLAPSED_RANKME < 1.2 * COLLAPSED_RANKME < trained["rankme"]

    @pytest.mark.parametrize(
        ("values", "named"),
        [
            ({"embedding_std": 0.5, "rankme": 1.2}, ["rankme 1.2 is below 1.3"]),
            ({"embedding_std": 0.01, "rankme": 2.0}, ["embedding_std 0.01 is below 0.03"]),
            ({"embedding_std": 0.01}, ["embedding_std 0.01"]),
            ({"rankme": 1.0, "projection_rankme": 40.0}, ["rankme 1 is"]),
        ],
    )
    def test_is_one_line_that_names_the_values_and_a_remedy(self, values, named):
        warning = collapse_warning(values)
        assert all(part in warning for part in named)
        assert "`base_learning_rate`" in warning and "\n" not in warning
        assert ("embedding_std" in warning) == (values.get("embedding_std", 1) < 0.03)

    def test_images_that_are_nearly_black_come_first(self):
        warning = collapse_warning({"rankme": 1.0}, lambda: "0 4095")
        assert warning.index("First give `intensity_range` 0 4095") < warning.index("`base_learning_rate`")

    def test_ignores_what_was_not_measured(self):
        assert collapse_warning({}) is None
        assert collapse_warning({"knn_accuracy": 0.0, "projection_rankme": 1.0, "teacher_agreement": 0.0}) is None
