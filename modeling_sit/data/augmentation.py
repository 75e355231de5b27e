"""The augmentation of views after their crop, in batch on the images' device: flip, color jitter, gray, blur,
solarization, normalization. Every operation is drawn for each image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from modeling_sit.data.views import ViewArguments
from modeling_sit.runtime.errors import SiTError

# Operations that have a probability, and values that are drawn from a range, for every image.
CHANCES = ("horizontal_flip", "vertical_flip", "color_jitter", "grayscale", "blur", "solarize")
RANGES = ("brightness", "contrast", "saturation", "hue", "sigma")
JITTERS = ("brightness", "contrast", "saturation", "hue")
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

# ITU-R BT.601, as torchvision and Pillow have it.
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)

# On a CPU an image of this many numbers is augmented alone, because then it stays in the processor's cache. Of smaller
# images, enough are augmented at a time that the overhead of PyTorch's calls is small.
NUMBERS_OF_A_LARGE_IMAGE = 40_000
NUMBERS_AT_A_TIME = 1_000_000


@dataclass
class ViewParams:
    """
    The drawn parameters of the augmentation of a batch of views.

    Args:
        apply (`dict` of `torch.Tensor` of shape `(views,)`): Bool for each of `CHANCES`: whether it is done.
        value (`dict` of `torch.Tensor` of shape `(views,)`):
            For each of `RANGES`: factors of brightness, contrast and saturation, turns of the hue, and the blur's standard
            deviation in pixels.
        order (`torch.Tensor` of shape `(views, 4)`): Int64, the order of the `JITTERS`, as their indices there.
    """

    apply: dict[str, torch.Tensor]
    value: dict[str, torch.Tensor]
    order: torch.Tensor


class ViewAugmentation(nn.Module):
    """
    Augments and normalizes crops, in batch on their device. Parameters are drawn for every image, from PyTorch's global
    generator of that device. The operations and their parameters mean what torchvision's mean. The jitters come in a
    random order.

    Args:
        arguments (`ViewArguments`): Probabilities and ranges.
        image_shape (pair of `int`): Height and width of the crops in pixels.
        image_mean, image_std (sequences of `float`): One for each channel of values in [0, 1]. Of other
            channels than 1 or 3 there are no colors: no saturation, hue, grayscale or solarization, and contrast is that of
            each channel.
        num_views (`int`, *optional*, defaults to 2): Views of each image. Views after the second one have its
            probabilities.

    Raises:
        [`SiTError`]: If a blur reaches farther than the image.
    """

    def __init__(
        self,
        arguments: ViewArguments,
        image_shape: tuple[int, int],
        image_mean: Sequence[float],
        image_std: Sequence[float],
        num_views: int = 2,
    ):
        super().__init__()
        sigma = [value * max(image_shape) / 224 for value in arguments.blur_sigma]
        self.blur_radius = max(1, round(2 * sigma[1]))
        if any(arguments.blur_probability) and self.blur_radius >= min(image_shape):
            raise SiTError(
                f"{sigma[1]:g} pixels are too much blur for images of {image_shape[0]} x {image_shape[1]} pixels",
                argument="blur_sigma",
                remedy="lower it, or set `blur_probability` to 0 0",
            )
        brightness, contrast, saturation, hue = arguments.color_jitter
        if len(image_mean) != 3:  # no colors
            saturation, hue = 0.0, 0.0
        factors = [(max(0.0, 1 - strength), 1 + strength) for strength in (brightness, contrast, saturation)]
        self.ranges = dict(zip(RANGES, [*factors, (-hue, hue), tuple(sigma)], strict=True))
        self.jitters = [strength > 0 for strength in (brightness, contrast, saturation, hue)]
        chances = {
            "horizontal_flip": [arguments.horizontal_flip_probability],
            "vertical_flip": [arguments.vertical_flip_probability],
            "color_jitter": [arguments.color_jitter_probability if any(self.jitters) else 0.0],
            "grayscale": [arguments.grayscale_probability if len(image_mean) == 3 else 0.0],
            "blur": arguments.blur_probability,
            "solarize": arguments.solarize_probability if len(image_mean) in (1, 3) else [0.0],
        }
        # The last probability holds for all further views.
        chances = {name: [*chance, *chance[-1:] * num_views][:num_views] for name, chance in chances.items()}
        self.possible = {name: any(chance) for name, chance in chances.items()}
        self.solarize_threshold = arguments.solarize_threshold
        # `(operations, views, 1)`, kept on the device: the host would wait for a copy to it.
        self.register_buffer("chances", torch.tensor([chances[name] for name in CHANCES]).unsqueeze(-1))
        mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (image_mean, image_std))
        self.register_buffer("scale", (1 / std).float())
        self.register_buffer("shift", (-mean / std).float())

    @torch.no_grad()
    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Augment and normalize crops.

        Args:
            crops (`torch.Tensor` of shape `(num_views, batch, channels, height, width)`): Uint8; left unchanged.

        Returns:
            `torch.Tensor`: Float32 `(num_views * batch, channels, height, width)`, view 1 of all images first.
        """
        params = self.draw(crops.shape[1], crops.device)
        augment = self._augment_cpu if crops.device.type == "cpu" else self.augment_at_once
        return augment(crops.flatten(0, 1), params)

    def draw(self, num_images: int, device: torch.device) -> ViewParams:
        """Draw the parameters of all views of `num_images` images, view 1 of all images first."""
        num_views = self.chances.shape[1]
        uniform = torch.rand(len(CHANCES) + len(RANGES) + len(JITTERS), num_views, num_images, device=device)
        chances, numbers, order = uniform.split([len(CHANCES), len(RANGES), len(JITTERS)])
        return ViewParams(
            dict(zip(CHANCES, (chances < self.chances).flatten(1), strict=True)),
            {
                name: low + (high - low) * number
                for (name, (low, high)), number in zip(self.ranges.items(), numbers.flatten(1), strict=True)
            },
            order.flatten(1).argsort(dim=0).T,
        )

    def _augment_cpu(self, crops: torch.Tensor, params: ViewParams) -> torch.Tensor:
        """Views of crops `(views, channels, height, width)`, for a CPU.

        A few images at a time stay in its cache. An operation is done for those images only to which it applies.
        """
        views = torch.empty(crops.shape, device=crops.device)
        apply = {name: values.tolist() for name, values in params.apply.items()}
        order = params.order.tolist()
        numbers = crops[0].numel() if len(crops) else 1
        size = 1 if numbers >= NUMBERS_OF_A_LARGE_IMAGE else NUMBERS_AT_A_TIME // numbers
        for start in range(0, len(crops), size):
            chunk = range(start, min(start + size, len(crops)))
            part = _Chunk(torch.div(crops[chunk.start : chunk.stop], 255), chunk, params.value)
            requested = {name: [view for view in chunk if apply[name][view]] for name in CHANCES}
            part.apply(flip_horizontally, requested["horizontal_flip"])
            part.apply(flip_vertically, requested["vertical_flip"])
            for place in range(len(JITTERS)):
                for jitter, name in enumerate(JITTERS):
                    if self.jitters[jitter]:
                        part.apply(
                            ADJUSTMENTS[name],
                            [view for view in requested["color_jitter"] if order[view][place] == jitter],
                            name,
                        )
            part.apply(make_gray, requested["grayscale"])
            part.apply(self._blur, requested["blur"], "sigma")
            part.apply(self._solarize, requested["solarize"])
            torch.mul(part.views, self.scale, out=views[chunk.start : chunk.stop]).add_(self.shift)
        return views

    def augment_at_once(self, crops: torch.Tensor, params: ViewParams) -> torch.Tensor:
        """The same views as on a CPU, for accelerators.

        Every possible operation is computed for every image, and kept where it applies, so the host never waits to know
        where that is. Without branches, it compiles as a whole.
        """
        views = torch.div(crops, 255)
        apply = {name: values.view(-1, 1, 1, 1) for name, values in params.apply.items()}
        for name, flip in (("horizontal_flip", flip_horizontally), ("vertical_flip", flip_vertically)):
            if self.possible[name]:
                views = torch.where(apply[name], flip(views), views)
        if self.possible["color_jitter"]:
            views = self._jitter_at_once(views, params)
        if self.possible["grayscale"]:
            views = torch.where(apply["grayscale"], to_gray(views), views)
        if self.possible["blur"]:
            kernels = gaussian_kernels(params.value["sigma"], self.blur_radius)
            # A kernel of one pixel leaves an image as it is.
            none = (torch.arange(kernels.shape[1], device=kernels.device) == self.blur_radius).to(kernels.dtype)
            views = blur_by_convolution(views, torch.where(params.apply["blur"].unsqueeze(1), kernels, none))
        if self.possible["solarize"]:
            views = torch.where(apply["solarize"], self._solarize(views), views)
        return torch.addcmul(self.shift, views, self.scale)

    def _jitter_at_once(self, views: torch.Tensor, params: ViewParams) -> torch.Tensor:
        """The jitters of every view in its own order.

        All jitters but that of the hue are blends with another image, so a single blend can do a different jitter for
        each view. The jitter of the hue costs most, and is done once: the blends that come before it in a view's order
        are done first, the others afterwards.
        """
        jittered = params.apply["color_jitter"]
        factors = torch.stack([params.value[name] for name in JITTERS], dim=1)
        if not self.jitters[HUE]:
            for place in range(len(JITTERS)):
                views = self._blend_at_once(views, params.order[:, place], factors, jittered)
            return views
        place_of_hue = (params.order == HUE).long().argmax(dim=1)
        for place in range(len(JITTERS) - 1):
            views = self._blend_at_once(views, params.order[:, place], factors, jittered & (place < place_of_hue))
        turned = adjust_hue(views, params.value["hue"].view(-1, 1, 1, 1))
        views = torch.where(jittered.view(-1, 1, 1, 1), turned, views)
        for place in range(1, len(JITTERS)):
            views = self._blend_at_once(views, params.order[:, place], factors, jittered & (place > place_of_hue))
        return views

    def _blend_at_once(
        self, views: torch.Tensor, jitter: torch.Tensor, factors: torch.Tensor, requested: torch.Tensor
    ) -> torch.Tensor:
        """Do one of `JITTERS` to each view: the one of index `jitter`, unless it is the hue's, where `requested`."""
        factor = factors.gather(1, jitter.unsqueeze(1)).squeeze(1)
        factor = torch.where(requested & (jitter != HUE), factor, 1).view(-1, 1, 1, 1)
        gray = to_gray(views) if views.shape[1] == 3 else views
        jitter = jitter.view(-1, 1, 1, 1)
        other = torch.where(jitter == SATURATION, gray, mean_brightness(views)) * (jitter != BRIGHTNESS)
        return blend(views, other, factor)

    def _blur(self, views: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return blur(views, gaussian_kernels(sigma.flatten(), self.blur_radius))

    def _solarize(self, views: torch.Tensor) -> torch.Tensor:
        return solarize(views, self.solarize_threshold)


class _Chunk:
    """A few views, `(views, channels, height, width)`, whose numbers in the batch are `numbers`."""

    def __init__(self, views: torch.Tensor, numbers: range, parameters: dict[str, torch.Tensor]):
        self.views = views
        self.numbers = numbers
        self.parameters = parameters

    def apply(self, operation: Callable, requested: list[int], parameter: str | None = None) -> None:
        """Do an operation to the views of these numbers in the batch."""
        if not requested:
            return
        everywhere = len(requested) == len(self.views)
        parameters = []
        if parameter is not None:
            values = self.parameters[parameter]
            values = values[self.numbers.start : self.numbers.stop] if everywhere else values[requested]
            parameters = [values.view(-1, 1, 1, 1)]
        if everywhere:
            self.views = operation(self.views, *parameters)
        else:
            index = torch.tensor([number - self.numbers.start for number in requested])
            self.views[index] = operation(self.views[index], *parameters)


def flip_horizontally(views: torch.Tensor) -> torch.Tensor:
    """Views `(views, channels, height, width)` with left and right exchanged."""
    return views.flip(-1)


def flip_vertically(views: torch.Tensor) -> torch.Tensor:
    """Views `(views, channels, height, width)` upside down."""
    return views.flip(-2)


def to_gray(views: torch.Tensor) -> torch.Tensor:
    """Brightness `(views, 1, height, width)` of views of 3 channels (ITU-R BT.601) or of 1."""
    if views.shape[1] == 1:
        return views
    red, green, blue = views.split(1, dim=1)
    red_weight, green_weight, blue_weight = GRAY_WEIGHTS
    return (red * red_weight).add(green, alpha=green_weight).add(blue, alpha=blue_weight)


def make_gray(views: torch.Tensor) -> torch.Tensor:
    """Views `(views, channels, height, width)` with their brightness in every channel."""
    return to_gray(views).expand_as(views).contiguous()


def blend(views: torch.Tensor, other: torch.Tensor | float, factor: torch.Tensor) -> torch.Tensor:
    """`factor` of the views and `1 - factor` of another image, within [0, 1]; a factor above 1 leads away from it.

    Args:
        views (`torch.Tensor` of shape `(views, channels, height, width)`): In [0, 1].
        other (`torch.Tensor`): Of a shape that is broadcast to that of `views`.
        factor (`torch.Tensor` of shape `(views, 1, 1, 1)`): From 0 on.
    """
    return torch.addcmul(other * (1 - factor), views, factor).clamp_(0, 1)


def adjust_brightness(views: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Views `(views, channels, height, width)` in [0, 1], blended with black; as torchvision's. `factor` as in [`blend`]."""
    return (views * factor).clamp_(0, 1)


def adjust_contrast(views: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Views `(views, channels, height, width)` in [0, 1], each blended with its [`mean_brightness`]; as torchvision's."""
    return blend(views, mean_brightness(views), factor)


def adjust_saturation(views: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Views `(views, 3, height, width)` in [0, 1], blended with their brightness; as torchvision's."""
    return blend(views, to_gray(views), factor)


def adjust_hue(views: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the hue, leaving HSV's saturation and value; as torchvision's.

    Args:
        views (`torch.Tensor` of shape `(views, 3, height, width)`): In [0, 1].
        turns (`torch.Tensor` of shape `(views, 1, 1, 1)`): In [-0.5, 0.5], fractions of the circle.
    """
    red, green, blue = views.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # The hue in sixths of the circle, 0 at red. It depends on the highest channel, the first of several; 0 for gray.
    is_red, is_green, is_gray = (
        torch.eq(a, b, out=torch.empty_like(red)) for a, b in ((high, red), (high, green), (high, low))
    )
    # Weights of 0 and 1 choose one of two values exactly, and processors compute many at a time, unlike branches.
    sixths = torch.lerp((red - green).add_(chroma, alpha=4), (blue - red).add_(chroma, alpha=2), is_green)
    sixths = torch.lerp(sixths, green - blue, is_red)
    sixths = sixths.div_(is_gray.add_(chroma)).add_(6 * turns.squeeze(1))
    sixths = sixths.add_((sixths / 6).floor_(), alpha=-6)
    # How far each channel is above the lowest, as a fraction of the chroma: trapezia over the circle, a third apart.
    fractions = [
        (sixths - 3).abs_().sub_(1),
        (sixths - 2).abs_().neg_().add_(2),
        (sixths - 4).abs_().neg_().add_(2),
    ]
    return torch.stack([torch.addcmul(low, chroma, fraction.clamp_(0, 1)) for fraction in fractions], dim=1)


def solarize(views: torch.Tensor, threshold: float) -> torch.Tensor:
    """Views in [0, 1], inverted where they are `threshold` or brighter; as torchvision's."""
    is_bright = torch.ge(views, threshold, out=torch.empty_like(views))
    return is_bright.sub_(views).abs_()  # |1 - view| or |0 - view|: without a branch for each pixel


def gaussian_kernels(sigma: torch.Tensor, radius: int) -> torch.Tensor:
    """Gaussian weights `(kernels, 2 * radius + 1)` of sum 1 for standard deviations `(kernels,)` in pixels."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    weights = torch.exp(-0.5 * (offset / sigma.unsqueeze(1)).square())
    return weights / weights.sum(dim=1, keepdim=True)


def blur(views: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Blur each view by its own kernel, rows and columns; the image is reflected at its borders.

    For a CPU: a symmetric kernel needs one multiplication for two neighbors, and shifted sums of an image in the cache
    are several times as fast as PyTorch's convolutions of few channels, which pack and unpack the image.

    Args:
        views (`torch.Tensor` of shape `(views, channels, height, width)`): Float.
        kernels (`torch.Tensor` of shape `(views, 2 * radius + 1)`): Symmetric weights; the radius is below both sides.
    """
    radius = kernels.shape[1] // 2
    height, width = views.shape[-2:]
    weights = kernels.view(len(kernels), -1, 1, 1, 1).unbind(1)[radius:]
    padded = nn.functional.pad(views, [0, 0, radius, radius], mode="reflect")
    rows = padded[..., radius : radius + height, :] * weights[0]
    for offset in range(1, radius + 1):
        above, below = (padded[..., start : start + height, :] for start in (radius - offset, radius + offset))
        rows.addcmul_(above + below, weights[offset])
    padded = nn.functional.pad(rows, [radius, radius, 0, 0], mode="reflect")
    blurred = torch.mul(padded[..., radius : radius + width], weights[0])
    for offset in range(1, radius + 1):
        left, right = (padded[..., start : start + width] for start in (radius - offset, radius + offset))
        blurred.addcmul_(left + right, weights[offset])
    return blurred


def blur_by_convolution(views: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """As [`blur`], for accelerators: two convolutions over all images, with a kernel for every channel of each image."""
    count, channels, height, width = views.shape
    radius = kernels.shape[1] // 2
    padded = nn.functional.pad(views, [radius] * 4, mode="reflect").flatten(0, 1).unsqueeze(0)
    kernels = kernels.repeat_interleave(channels, dim=0)
    # Full float32: PyTorch's kernels for one channel per group do not round to TF32, as those for many channels may.
    blurred = nn.functional.conv2d(padded, kernels[:, None, :, None], groups=count * channels)
    blurred = nn.functional.conv2d(blurred, kernels[:, None, None, :], groups=count * channels)
    return blurred.view(count, channels, height, width)


def mean_brightness(views: torch.Tensor) -> torch.Tensor:
    """Mean brightness `(views, 1, 1, 1)` of gray or color views; of others `(views, channels, 1, 1)`, of each channel."""
    if views.shape[1] not in (1, 3):
        return views.mean(dim=(-2, -1), keepdim=True)
    return to_gray(views).mean(dim=(-3, -2, -1), keepdim=True)


ADJUSTMENTS = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}
