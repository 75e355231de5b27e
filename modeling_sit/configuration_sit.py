"""Configuration of SiT models."""

import math
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin

if TYPE_CHECKING:
    # Never runs. Transformers saves with a checkpoint what its code imports from files beside it, and finds it by such lines.
    from .modeling_sit import SiTModel  # noqa: F401
    from .modeling_sit_backbone import SiTBackbone  # noqa: F401
    from .modeling_sit_detection import SiTForObjectDetection  # noqa: F401
    from .modeling_sit_segmentation import SiTForSemanticSegmentation  # noqa: F401

# Where transformers finds the classes in a repository that it loads code from: any of them loads any SiT checkpoint.
# A checkpoint of a segmentation model names its class for `AutoModelForImageSegmentation` too, which has two of them.
REMOTE_CODE_CLASSES = {
    "AutoConfig": "configuration_sit.SiTConfig",
    "AutoModel": "modeling_sit.SiTModel",
    "AutoModelForPreTraining": "modeling_sit.SiTForPreTraining",
    "AutoModelForImageClassification": "modeling_sit.SiTForImageClassification",
    "AutoBackbone": "modeling_sit_backbone.SiTBackbone",
    "AutoModelForSemanticSegmentation": "modeling_sit_segmentation.SiTForSemanticSegmentation",
    "AutoModelForObjectDetection": "modeling_sit_detection.SiTForObjectDetection",
    "AutoModelForInstanceSegmentation": "modeling_sit_detection.SiTForInstanceSegmentation",
}

POSITIVE_WHOLE_NUMBERS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "image_size",
    "patch_size",
    "num_channels",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "projection_hidden_size",
    "projection_size",
    "pyramid_size",
    "box_head_size",
    "mask_head_num_layers",
    "rois_per_image",
    "detections_per_image",
)
# Fields of detection and segmentation. They are written where they differ from the defaults.
DENSE_FIELDS = {
    "out_features": None,
    "out_indices": None,
    "pyramid_size": 256,
    "anchor_sizes": None,
    "box_head_size": 1024,
    "mask_head_num_layers": 4,
    "rois_per_image": 512,
    "detections_per_image": 100,
    "detection_threshold": 0.05,
    "nms_threshold": 0.5,
    "segmentation_head": "fpn",
    "semantic_loss_ignore_index": 255,
}
# Levels that boxes are proposed on: those of the feature pyramid, and one of half the coarsest.
NUM_ANCHOR_LEVELS = 5


class SiTConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    What a SiT checkpoint is: its backbone in the field names of ViT's configuration, its heads, and its losses. The
    defaults are SiT-S/16 for images of 224 x 224 pixels (21.67 M parameters in the backbone).

    Args:
        hidden_size (`int`, *optional*, defaults to 384): Width of the tokens.
        num_hidden_layers (`int`, *optional*, defaults to 12): Number of transformer blocks.
        num_attention_heads (`int`, *optional*, defaults to 6): Attention heads of a block; divides `hidden_size`.
        intermediate_size (`int`, *optional*): Width of a block's MLP. Default: 4 x `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of a block's MLP.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0): Dropout after embeddings, attention and MLP.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0): Dropout of attention weights.
        drop_path_rate (`float`, *optional*, defaults to 0.1):
            Stochastic depth in training: chance that an image skips a block's branch, rising linearly from 0 in the
            first block to this value in the last.
        initialization (`str`, *optional*):
            How weights begin. `"xavier"`: uniform, with the variance 2 / (inputs + outputs) of each layer (Glorot and Bengio
            2010), as in MAE and MoCo-v3; learnable positions are as large as the sine and cosine ones (0.7).
            `"normal"`: a truncated normal of standard deviation `initializer_range` everywhere but in the feature
            pyramid, as in ViT, which holds narrow models back. Default: `"normal"` if `initializer_range` is given, else
            `"xavier"`. The contrastive token, the classifier, the rotation head and the linear segmentation head have the
            truncated normal either way.
        initializer_range (`float`, *optional*):
            Standard deviation of the truncated normal. Default: 0.02.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6): Epsilon of the layer norms.
        image_size (`int` or pair of `int`, *optional*, defaults to 224): Height and width of images in pixels.
        patch_size (`int` or pair of `int`, *optional*, defaults to 16): Height and width of patches in pixels.
        num_channels (`int`, *optional*, defaults to 3): Channels of images.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have biases.
        position_embedding_type (`str`, *optional*, defaults to `"learnable"`):
            `"learnable"`, or `"sincos"` for fixed two-dimensional sine and cosine positions.
        pooling (`str`, *optional*, defaults to `"token"`):
            What the classifier reads: `"token"` (the contrastive token), `"mean"` (the mean of the patch tokens) or
            `"token_mean"` (both side by side).
        decoder_hidden_size (`int`, *optional*, defaults to 2048): Width of the pixel decoder's layers.
        decoder_num_hidden_layers (`int`, *optional*, defaults to 2):
            Linear layers of the pixel decoder, each with GELU, before its transposed convolution. The authors' code has
            3, as wide as the tokens.
        projection_hidden_size (`int`, *optional*, defaults to 4096): Width of the projection head's two hidden layers.
        projection_first_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the projection head's first layer; `"relu"` in the authors' code. The second's is GELU.
        projection_size (`int`, *optional*, defaults to 256): Width of the projections that are contrasted.
        projection_output_norm (`bool`, *optional*, defaults to `True`):
            Whether a batch norm without affine parameters ends the projection head, as in the authors' code.
        temperature (`float`, *optional*, defaults to 0.2): Temperature of the contrastive losses.
        reconstruction_weight (`float`, *optional*, defaults to 1.0):
            Factor of the reconstruction loss; 0 switches it off. The paper has 5 for small datasets, 1 for large ones.
        contrastive_weight (`float`, *optional*, defaults to 1.0): Factor of the contrastive loss; 0 switches it off.
        rotation_weight (`float`, *optional*, defaults to 0.0):
            Factor of the rotation loss, a third task: to tell by how many quarter turns a view was rotated. Above 0 the
            model has a head for it, and images have to be square.
        reconstruction_norm (`str`, *optional*, defaults to `"l1"`): `"l1"` or `"l2"`.
        reconstruction_region (`str`, *optional*, defaults to `"corrupted"`):
            `"corrupted"`: the loss counts corrupted pixels only; `"all"`: all pixels.
        use_teacher (`bool`, *optional*, defaults to `True`):
            Whether contrast is against a teacher's projections. `False`: NT-Xent between the model's own two views
            (the paper's first variant).
        out_indices (`list[int]`, *optional*):
            Which maps [`SiTBackbone`] gives: 0 for the embeddings, `n` for block `n`. Default: the last.
        out_features (`list[str]`, *optional*): The same by name: `"stem"`, `"stage1"` and so on.
        pyramid_size (`int`, *optional*, defaults to 256): Channels of the feature pyramid of detection and segmentation.
        anchor_sizes (`list[float]`, *optional*):
            Side in pixels of the boxes that a detector starts from, one for each of the strides 4, 8, 16, 32 and 64. Default:
            4 x the stride. Where objects are of other sizes, they are not found.
        box_head_size (`int`, *optional*, defaults to 1024): Width of a detector's two layers on a region.
        mask_head_num_layers (`int`, *optional*, defaults to 4):
            Convolutions of 3 x 3 of the mask head, with `pyramid_size` channels.
        rois_per_image (`int`, *optional*, defaults to 512): Regions of an image that a detector trains on, 1/4 with an object.
        detections_per_image (`int`, *optional*, defaults to 100): The most objects that a detector finds in an image.
        detection_threshold (`float`, *optional*, defaults to 0.05): Objects of lower scores are left out, from 0 to 1.
        nms_threshold (`float`, *optional*, defaults to 0.5):
            Of two boxes of a class whose intersection over union is larger than this, the one with the lower score is left
            out, from 0 to 1.
        segmentation_head (`str`, *optional*, defaults to `"fpn"`):
            Head of [`SiTForSemanticSegmentation`]: `"fpn"` (feature pyramid) or `"linear"`.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255): Label of pixels without a class.

    Example:

    ```python
    >>> from modeling_sit import SiTConfig, SiTModel

    >>> model = SiTModel(SiTConfig(image_size=64, patch_size=8, hidden_size=192, num_attention_heads=3))
    >>> model.config.intermediate_size
    768
    ```
    """

    # Other models are called SiT: a plain "sit" could clash with a later release of transformers.
    model_type = "sit_gmml"

    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    drop_path_rate: float = 0.1
    initialization: str | None = None
    initializer_range: float | None = None
    layer_norm_eps: float = 1e-6
    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    position_embedding_type: str = "learnable"
    pooling: str = "token"
    decoder_hidden_size: int = 2048
    decoder_num_hidden_layers: int = 2
    projection_hidden_size: int = 4096
    projection_first_act: str = "gelu"
    projection_size: int = 256
    projection_output_norm: bool = True
    temperature: float = 0.2
    reconstruction_weight: float = 1.0
    contrastive_weight: float = 1.0
    rotation_weight: float = 0.0
    reconstruction_norm: str = "l1"
    reconstruction_region: str = "corrupted"
    use_teacher: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    pyramid_size: int = 256
    anchor_sizes: list[float] | None = None
    box_head_size: int = 1024
    mask_head_num_layers: int = 4
    rois_per_image: int = 512
    detections_per_image: int = 100
    detection_threshold: float = 0.05
    nms_threshold: float = 0.5
    segmentation_head: str = "fpn"
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.initialization is None:  # checkpoints of plain ViTs, and older ones of SiT, have a range alone
            self.initialization = "xavier" if self.initializer_range is None else "normal"
        if self.initializer_range is None:
            self.initializer_range = 0.02
        self._check()
        self._check_dense()
        kwargs.pop("stage_names", None)  # some backbones of transformers write it; here depth says it
        maps = {name: kwargs.pop(name, None) for name in ("out_features", "out_indices")}
        if any(value is not None for value in maps.values()):
            self.set_output_features_output_indices(**maps)
        kwargs.pop("model_type", None)  # a plain ViT's configuration becomes a SiT's
        kwargs["auto_map"] = {**REMOTE_CODE_CLASSES, **kwargs.get("auto_map", {})}
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        choices = {
            "initialization": ("xavier", "normal"),
            "position_embedding_type": ("learnable", "sincos"),
            "pooling": ("token", "mean", "token_mean"),
            "reconstruction_norm": ("l1", "l2"),
            "reconstruction_region": ("corrupted", "all"),
            "segmentation_head": ("fpn", "linear"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in POSITIVE_WHOLE_NUMBERS:
            values = getattr(self, name)
            for value in values if isinstance(values, (list, tuple)) else [values]:
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise ValueError(f"{name} must be a whole number above 0, got {values!r}")
        for name in ("hidden_act", "projection_first_act"):
            if getattr(self, name) not in ACT2FN:
                raise ValueError(f"{name} must be one of {', '.join(sorted(ACT2FN))}, got {getattr(self, name)!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
            )
        if self.position_embedding_type == "sincos" and self.hidden_size % 4:
            raise ValueError(f"sincos positions need a hidden_size that is a multiple of 4, got {self.hidden_size}")
        for name in ("reconstruction_weight", "contrastive_weight", "rotation_weight"):
            if not getattr(self, name) >= 0:  # not a number is refused too
                raise ValueError(f"{name} must be a number from 0 on, got {getattr(self, name)}")
        if self.rotation_weight > 0 and self.image_shape[0] != self.image_shape[1]:
            raise ValueError(
                f"rotation_weight={self.rotation_weight} needs square images, for a quarter turn swaps height and "
                f"width; got image_size={self.image_size}"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        for name in ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not _is_number(getattr(self, name)) or not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be a number in [0, 1), got {getattr(self, name)!r}")
        for name in ("layer_norm_eps", "initializer_range"):
            if not _is_number(getattr(self, name)) or not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number from 0 on, got {getattr(self, name)!r}")

    def _check_dense(self) -> None:
        for name in ("detection_threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:  # not a number is refused too
                raise ValueError(f"{name} must be a number from 0 to 1, got {getattr(self, name)}")
        if isinstance(self.semantic_loss_ignore_index, bool) or not isinstance(self.semantic_loss_ignore_index, int):
            raise ValueError(
                f"semantic_loss_ignore_index must be a whole number, got {self.semantic_loss_ignore_index!r}"
            )
        if self.anchor_sizes is not None:
            sizes = self.anchor_sizes
            are_numbers = isinstance(sizes, (list, tuple)) and all(
                isinstance(size, (int, float)) and not isinstance(size, bool) and size > 0 for size in sizes
            )
            if not are_numbers or len(sizes) != NUM_ANCHOR_LEVELS:
                raise ValueError(f"anchor_sizes must be {NUM_ANCHOR_LEVELS} numbers above 0, got {sizes!r}")
            self.anchor_sizes = list(sizes)

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written to `config.json`."""
        return {
            name: value
            for name, value in super().to_diff_dict().items()
            if name not in DENSE_FIELDS or value != DENSE_FIELDS[name]
        }

    @property
    def stage_names(self) -> list[str]:
        """Names of the maps that [`SiTBackbone`] can give: the embeddings, and each block's output."""
        return ["stem", *(f"stage{number}" for number in range(1, self.num_hidden_layers + 1))]

    @property
    def out_features(self) -> list[str]:
        """Names of the maps that [`SiTBackbone`] gives."""
        return self.stage_names[-1:] if self._out_features is None else self._out_features

    @out_features.setter
    def out_features(self, out_features: list[str]) -> None:
        self.set_output_features_output_indices(out_features=out_features, out_indices=None)

    @property
    def out_indices(self) -> list[int]:
        """Numbers of the maps that [`SiTBackbone`] gives."""
        return [self.num_hidden_layers] if self._out_indices is None else self._out_indices

    @out_indices.setter
    def out_indices(self, out_indices: list[int]) -> None:
        self.set_output_features_output_indices(out_features=None, out_indices=list(out_indices))

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of images in pixels."""
        return _pair(self.image_size)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Height and width of patches in pixels."""
        return _pair(self.patch_size)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
