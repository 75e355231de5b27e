"""Losses against slow loops over plain Python numbers, and against closed forms."""

import math

import pytest
import torch

from modeling_sit.losses import contrastive_loss, nt_xent_loss, reconstruction_loss, rotation_loss

TOLERANCE = 1e-5


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_mask(*shape, share=0.4, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


# Slow, obvious versions.


def cosine(a: list[float], b: list[float]) -> float:
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def cross_entropy(logits: list[float], right: int) -> float:
    return math.log(sum(math.exp(logit) for logit in logits)) - logits[right]


def slow_reconstruction_loss(reconstruction, target, mask=None, norm="l1") -> float:
    total, count = 0.0, 0
    batch, channels, height, width = reconstruction.shape
    for image in range(batch):
        for y in range(height):
            for x in range(width):
                if mask is not None and not mask[image, 0, y, x].item():
                    continue
                for channel in range(channels):
                    difference = reconstruction[image, channel, y, x].item() - target[image, channel, y, x].item()
                    total += abs(difference) if norm == "l1" else difference**2
                    count += 1
    return total / count


def slow_contrastive_loss(projections, teacher_projections, temperature=0.2, offset=0) -> float:
    student, teacher = projections.tolist(), teacher_projections.tolist()
    batch, total_batch = len(student) // 2, len(teacher) // 2
    loss = 0.0
    for student_view, teacher_view in ((0, 1), (1, 0)):
        candidates = [teacher[teacher_view * total_batch + image] for image in range(total_batch)]
        direction = 0.0
        for image in range(batch):
            view = student[student_view * batch + image]
            logits = [cosine(view, candidate) / temperature for candidate in candidates]
            direction += cross_entropy(logits, offset + image)
        loss += 2 * temperature * direction / batch
    return loss


def slow_nt_xent_loss(projections, temperature=0.2) -> float:
    views = projections.tolist()
    batch = len(views) // 2
    loss = 0.0
    for index, view in enumerate(views):
        partner = index + batch if index < batch else index - batch
        others = [other for other in range(len(views)) if other != index]
        logits = [cosine(view, views[other]) / temperature for other in others]
        loss += cross_entropy(logits, others.index(partner))
    return loss / len(views)


def slow_rotation_loss(logits, labels) -> float:
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    return sum(cross_entropy(row, label) for row, label in rows) / len(labels)


# Reconstruction.


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_reconstruction_equals_slow_version(norm, masked, channels):
    reconstruction, target = random(3, channels, 5, 7), random(3, channels, 5, 7, seed=1, scale=2)
    mask = random_mask(3, 1, 5, 7) if masked else None
    loss = reconstruction_loss(reconstruction, target, mask, norm=norm)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(slow_reconstruction_loss(reconstruction, target, mask, norm), abs=TOLERANCE)


@pytest.mark.parametrize(("norm", "expected"), [("l1", 0.5), ("l2", 0.25)])
@pytest.mark.parametrize("masked", [True, False])
def test_reconstruction_of_a_constant_error_is_that_error_per_channel_of_a_pixel(norm, expected, masked):
    target = random(2, 3, 8, 8)
    mask = random_mask(2, 1, 8, 8, share=0.1) if masked else None
    assert reconstruction_loss(target - 0.5, target, mask, norm=norm).item() == pytest.approx(expected, abs=1e-6)


def test_perfect_reconstruction_costs_nothing():
    target = random(2, 3, 4, 4)
    assert reconstruction_loss(target.clone(), target, random_mask(2, 1, 4, 4)).item() == 0


def test_only_corrupted_pixels_count():
    target, mask = random(2, 3, 6, 6), random_mask(2, 1, 6, 6)
    elsewhere_wrong = torch.where(mask, target, target + 100)
    assert reconstruction_loss(elsewhere_wrong, target, mask).item() == 0
    assert reconstruction_loss(elsewhere_wrong, target).item() > 1


def test_every_corrupted_pixel_of_the_batch_counts_the_same():
    # One wrong pixel in the first image, three right ones in the second: a quarter, not the mean of means (a half).
    target = torch.zeros(2, 3, 4, 4)
    reconstruction = target.clone()
    reconstruction[0, :, 0, 0] = 1
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0, 0] = True
    mask[1, 0, 0, :3] = True
    assert reconstruction_loss(reconstruction, target, mask).item() == pytest.approx(0.25, abs=1e-6)


def test_empty_mask_costs_nothing_and_has_finite_gradients():
    reconstruction = random(2, 3, 4, 4).requires_grad_()
    loss = reconstruction_loss(reconstruction, random(2, 3, 4, 4, seed=1), torch.zeros(2, 1, 4, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(reconstruction.grad, torch.zeros_like(reconstruction))


def test_full_mask_equals_no_mask():
    reconstruction, target = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    full = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    assert reconstruction_loss(reconstruction, target, full).item() == pytest.approx(
        reconstruction_loss(reconstruction, target).item(), abs=1e-6
    )


def test_mask_of_a_single_pixel():
    reconstruction, target = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[1, 0, 2, 3] = True
    expected = (reconstruction - target)[1, :, 2, 3].abs().mean().item()
    assert reconstruction_loss(reconstruction, target, mask).item() == pytest.approx(expected, abs=1e-6)


def test_reconstruction_gradient_reaches_corrupted_pixels_only():
    reconstruction, target = random(2, 3, 4, 4).requires_grad_(), random(2, 3, 4, 4, seed=1)
    mask = random_mask(2, 1, 4, 4)
    reconstruction_loss(reconstruction, target, mask).backward()
    assert torch.equal(reconstruction.grad != 0, mask.expand(2, 3, 4, 4))


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="l1"):
        reconstruction_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), norm="l3")


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("counts", [(1, 20), (0, 7), (1, 0), (0, 0)])
def test_processes_with_unequal_masks_average_to_the_whole_batch(counts, norm):
    """Two processes with an image each, so many corrupted pixels in them, dividing by the mean of these numbers."""
    target, mask = random(2, 3, 5, 6), torch.zeros(2, 1, 5, 6, dtype=torch.bool)
    for image, count in enumerate(counts):
        mask[image].view(-1)[:count] = True
    whole, split = (random(2, 3, 5, 6, seed=1).requires_grad_() for _ in range(2))
    expected = reconstruction_loss(whole, target, mask, norm)
    expected.backward()
    shards = [
        reconstruction_loss(split[i : i + 1], target[i : i + 1], mask[i : i + 1], norm, torch.tensor(sum(counts) / 2))
        for i in range(2)
    ]
    (sum(shards) / 2).backward()
    assert sum(shards).item() / 2 == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(split.grad, whole.grad, rtol=1e-6, atol=1e-9)


def test_number_of_pixels_of_the_mask_itself_changes_no_bit():
    reconstruction, target, mask = random(2, 3, 5, 7), random(2, 3, 5, 7, seed=1), random_mask(2, 1, 5, 7)
    default = reconstruction_loss(reconstruction, target, mask)
    assert torch.equal(default, ((reconstruction - target).abs() * mask).sum() / (mask.sum() * 3))
    for dtype in (torch.int64, torch.float32, torch.float64):
        loss = reconstruction_loss(reconstruction, target, mask, num_pixels=mask.sum().to(dtype))
        assert loss.dtype == torch.float32 and torch.equal(loss, default)
    assert torch.equal(reconstruction_loss(reconstruction, target, mask, num_pixels=mask.sum() * 2), default / 2)


def test_number_of_pixels_without_a_mask_is_refused():
    with pytest.raises(ValueError, match="num_pixels"):
        reconstruction_loss(random(2, 3, 4, 4), random(2, 3, 4, 4), num_pixels=torch.tensor(5))


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 1, 4, 4), (2, 3, 4, 1), (3, 4, 4)])
def test_target_that_would_be_broadcast_is_refused(shape):
    with pytest.raises(ValueError) as error:
        reconstruction_loss(random(2, 3, 4, 4), random(*shape))
    assert str(shape) in str(error.value) and "(2, 3, 4, 4)" in str(error.value)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 1, 4, 4), (2, 1, 4, 1), (2, 4, 4), (4, 4)])
def test_mask_that_would_be_broadcast_is_refused(shape):
    with pytest.raises(ValueError) as error:
        reconstruction_loss(random(2, 3, 4, 4), random(2, 3, 4, 4), random_mask(*shape))
    assert str(shape) in str(error.value) and "(2, 3, 4, 4)" in str(error.value)


# Contrast with a teacher.


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize(("batch", "total_batch", "offset"), [(4, 4, 0), (1, 1, 0), (3, 9, 0), (3, 9, 3), (3, 9, 6)])
def test_contrast_equals_slow_version(batch, total_batch, offset, temperature):
    student, teacher = random(2 * batch, 16), random(2 * total_batch, 16, seed=1)
    loss = contrastive_loss(student, teacher, temperature, offset)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(slow_contrastive_loss(student, teacher, temperature, offset), abs=TOLERANCE)


@pytest.mark.parametrize(("batch", "total_batch", "offset"), [(4, 4, 0), (2, 6, 4)])
def test_contrast_of_perfect_matches(batch, total_batch, offset):
    """Both views of an image alike, other images orthogonal: every row is one right logit 1/T among zeros."""
    temperature = 0.2
    images = 3 * torch.eye(total_batch)
    teacher = torch.cat([images, images])
    student = torch.cat([images[offset : offset + batch]] * 2)
    direction = math.log(math.exp(1 / temperature) + total_batch - 1) - 1 / temperature
    expected = 2 * temperature * 2 * direction
    assert contrastive_loss(student, teacher, temperature, offset).item() == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize(("batch", "total_batch", "offset"), [(4, 4, 0), (2, 6, 1)])
def test_contrast_of_orthogonal_views_is_that_of_a_guess(batch, total_batch, offset):
    basis = torch.eye(2 * batch + 2 * total_batch)
    student, teacher = basis[: 2 * batch], basis[2 * batch :]
    expected = 4 * 0.2 * math.log(total_batch)
    assert contrastive_loss(student, teacher, 0.2, offset).item() == pytest.approx(expected, abs=TOLERANCE)


def test_contrast_is_crossed():
    """Student's view 1 against the teacher's view 2 and the reverse: never view 1 against view 1."""
    basis = torch.eye(8)
    view_1, view_2 = basis[:4], basis[4:]
    crossed = contrastive_loss(torch.cat([view_1, view_2]), torch.cat([view_2, view_1]))
    straight = contrastive_loss(torch.cat([view_1, view_2]), torch.cat([view_1, view_2]))
    assert crossed.item() < 0.1
    assert straight.item() == pytest.approx(0.8 * math.log(4), abs=TOLERANCE)


def test_shards_of_a_batch_average_to_the_whole():
    student, teacher = random(12, 8), random(12, 8, seed=1)
    view_1, view_2 = student.chunk(2)
    shards = [
        contrastive_loss(torch.cat([view_1[start : start + 2], view_2[start : start + 2]]), teacher, offset=start)
        for start in (0, 2, 4)
    ]
    assert sum(shards).item() / 3 == pytest.approx(contrastive_loss(student, teacher).item(), abs=TOLERANCE)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_only_directions_count(factor):
    student, teacher = random(8, 16), random(8, 16, seed=1)
    assert contrastive_loss(factor * student, teacher / factor).item() == pytest.approx(
        contrastive_loss(student, teacher).item(), abs=TOLERANCE
    )
    assert nt_xent_loss(factor * student).item() == pytest.approx(nt_xent_loss(student).item(), abs=TOLERANCE)


def test_contrast_gradient_reaches_the_student_not_the_teacher():
    student, teacher = random(8, 16).requires_grad_(), random(8, 16, seed=1).requires_grad_()
    contrastive_loss(student, teacher).backward()
    assert teacher.grad is None
    assert torch.isfinite(student.grad).all()
    assert (student.grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("offset", [-1, 3, 4])
def test_images_outside_the_teachers_are_refused(offset):
    with pytest.raises(ValueError, match=str(offset)):
        contrastive_loss(random(4, 8), random(8, 8), offset=offset)


@pytest.mark.parametrize(("num_views", "num_teacher_views", "named"), [(5, 8, 5), (4, 7, 7)])
def test_contrast_of_an_odd_number_of_views_is_refused(num_views, num_teacher_views, named):
    with pytest.raises(ValueError, match=f"odd number of rows: {named}"):
        contrastive_loss(random(num_views, 8), random(num_teacher_views, 8))


# NT-Xent without a teacher.


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_nt_xent_equals_slow_version(batch, temperature):
    projections = random(2 * batch, 16)
    loss = nt_xent_loss(projections, temperature)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(slow_nt_xent_loss(projections, temperature), abs=TOLERANCE)


def test_nt_xent_of_orthogonal_views_chooses_among_2n_minus_1():
    assert nt_xent_loss(torch.eye(8)).item() == pytest.approx(math.log(7), abs=TOLERANCE)


def test_nt_xent_of_perfect_matches():
    images = torch.eye(4)
    expected = math.log(math.exp(1 / 0.2) + 6) - 1 / 0.2
    assert nt_xent_loss(torch.cat([images, images]), 0.2).item() == pytest.approx(expected, abs=TOLERANCE)


def test_nt_xent_of_a_single_image_has_nothing_to_choose():
    assert nt_xent_loss(random(2, 8)).item() == pytest.approx(0, abs=1e-6)


def test_nt_xent_gradient_reaches_both_views():
    projections = random(8, 16).requires_grad_()
    nt_xent_loss(projections).backward()
    assert torch.isfinite(projections.grad).all()
    assert (projections.grad.abs().sum(dim=1) > 0).all()


def rows_of(all_projections, offset, batch):
    """One process's rows: its images' view 1, then their view 2."""
    view_1, view_2 = all_projections.chunk(2)
    return torch.cat([view_1[offset : offset + batch], view_2[offset : offset + batch]])


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("batches", [(3, 3), (1, 2, 4), (1, 1, 1)])
def test_processes_nt_xent_average_to_the_whole_batch(batches, temperature):
    """Loss and gradient. Processes with more images weigh more here, as the means of unequal batches have to."""
    total = sum(batches)
    whole = random(2 * total, 8).requires_grad_()
    expected = nt_xent_loss(whole, temperature)
    expected.backward()
    gathered = random(2 * total, 8).requires_grad_()
    loss, offset = 0.0, 0
    for batch in batches:
        of_process = nt_xent_loss(rows_of(gathered, offset, batch), temperature, gathered, offset)
        loss, offset = loss + of_process * batch / total, offset + batch
    loss.backward()
    assert loss.item() == pytest.approx(slow_nt_xent_loss(whole.detach(), temperature), abs=TOLERANCE)
    torch.testing.assert_close(gathered.grad, whole.grad, rtol=1e-5, atol=1e-7)


def test_nt_xent_of_a_process_of_a_single_image_chooses_among_all():
    gathered = torch.eye(8)
    assert nt_xent_loss(rows_of(gathered, 2, 1), 0.2, gathered, 2).item() == pytest.approx(math.log(7), abs=TOLERANCE)


def test_nt_xent_gathered_from_one_process_changes_no_bit():
    projections = random(10, 8)
    assert torch.equal(nt_xent_loss(projections, 0.3, projections, 0), nt_xent_loss(projections, 0.3))


@pytest.mark.parametrize("offset", [-1, 3, 4])
def test_nt_xent_images_outside_all_are_refused(offset):
    with pytest.raises(ValueError, match=f"offset {offset}"):
        nt_xent_loss(random(4, 8), 0.2, random(8, 8), offset)


def test_nt_xent_offset_without_all_projections_is_refused():
    with pytest.raises(ValueError, match="offset 1"):
        nt_xent_loss(random(4, 8), offset=1)


@pytest.mark.parametrize(("num_views", "num_all", "named"), [(5, None, 5), (1, None, 1), (4, 9, 9)])
def test_nt_xent_of_an_odd_number_of_views_is_refused(num_views, num_all, named):
    with pytest.raises(ValueError, match=f"odd number of rows: {named}"):
        nt_xent_loss(random(num_views, 8), 0.2, None if num_all is None else random(num_all, 8))


# Rotation.


def test_rotation_equals_slow_version():
    logits, labels = random(6, 4), torch.tensor([0, 3, 1, 2, 2, 0])
    loss = rotation_loss(logits, labels)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(slow_rotation_loss(logits, labels), abs=TOLERANCE)


def test_rotation_of_no_idea_chooses_among_4():
    assert rotation_loss(torch.zeros(6, 4), torch.arange(6) % 4).item() == pytest.approx(math.log(4), abs=1e-6)


@pytest.mark.parametrize("shape", [(5,), (1,), (6, 4), (6, 1)])
def test_rotation_labels_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="rotation_labels"):
        rotation_loss(random(6, 4), torch.zeros(shape, dtype=torch.int64))


# Precision and purity.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_gives_the_float32_loss_of_its_values(dtype):
    pixels, target, mask = random(2, 3, 4, 4).to(dtype), random(2, 3, 4, 4, seed=1).to(dtype), random_mask(2, 1, 4, 4)
    student, teacher = random(8, 16).to(dtype), random(8, 16, seed=1).to(dtype)
    labels = torch.arange(8) % 4
    for loss, expected in (
        (reconstruction_loss(pixels, target, mask), slow_reconstruction_loss(pixels, target, mask)),
        (contrastive_loss(student, teacher), slow_contrastive_loss(student, teacher)),
        (nt_xent_loss(student), slow_nt_xent_loss(student)),
        (nt_xent_loss(student, 0.2, student), slow_nt_xent_loss(student)),
        (rotation_loss(student[:, :4], labels), slow_rotation_loss(student[:, :4], labels)),
    ):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, abs=TOLERANCE)


def test_autocast_does_not_coarsen_the_losses():
    """Mixed precision wraps the model's forward, and so the losses; their similarities must not become bfloat16."""
    student, teacher = random(64, 32), random(64, 32, seed=1)
    pixels, target, mask = random(2, 3, 8, 8), random(2, 3, 8, 8, seed=1), random_mask(2, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [
            contrastive_loss(student, teacher),
            nt_xent_loss(student),
            nt_xent_loss(student, 0.2, student),
            reconstruction_loss(pixels, target, mask),
        ]
    expected = [
        slow_contrastive_loss(student, teacher),
        slow_nt_xent_loss(student),
        slow_nt_xent_loss(student),
        slow_reconstruction_loss(pixels, target, mask),
    ]
    assert {loss.dtype for loss in losses} == {torch.float32}
    assert [loss.item() for loss in losses] == pytest.approx(expected, abs=TOLERANCE)


def test_losses_of_large_values_are_finite():
    assert torch.isfinite(contrastive_loss(random(8, 16, scale=1e6), random(8, 16, seed=1, scale=1e6), 0.01))
    assert torch.isfinite(nt_xent_loss(random(8, 16, scale=1e6), 0.01))


def test_zero_projections_give_a_finite_loss():
    assert contrastive_loss(torch.zeros(8, 16), torch.zeros(8, 16)).item() == pytest.approx(0.8 * math.log(4))
    assert nt_xent_loss(torch.zeros(8, 16)).item() == pytest.approx(math.log(7))


def test_inputs_are_left_unchanged():
    student, teacher = random(8, 16), random(8, 16, seed=1)
    pixels, target, mask = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1), random_mask(2, 1, 4, 4)
    inputs = [student, teacher, pixels, target, mask]
    copies = [tensor.clone() for tensor in inputs]
    contrastive_loss(student, teacher)
    nt_xent_loss(student)
    reconstruction_loss(pixels, target, mask)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))
