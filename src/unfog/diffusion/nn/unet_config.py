"""The shape of a U-Net, as a value."""

from dataclasses import dataclass, field

from unfog.diffusion.nn.conv import Resample, Spacing
from unfog.diffusion.nn.embed import Sinusoidal, TimeEmbedding
from unfog.diffusion.nn.residual import BlockStyle

__all__ = ["UNetConfig"]

_COUNTS = (
    "in_channels",
    "out_channels",
    "patch",
    "groups",
    "embed_dim",
    "num_classes",
    "vector_dim",
    "stem_width",
    "context_dim",
)


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a U-Net. Level 0 is the finest; level i works at 1 / (patch 2^i) of the image's resolution.

    With one axis of space it takes sequences (B, C, L), with three volumes or videos (B, C, T, H, W).

    What a network costs is mostly decided at its finest level: give it few blocks (`blocks` may start with 0 or
    1), little width, or start at half resolution with `patch=2`.

    Args:
        in_channels: channels of the images that come in, >= 1.
        out_channels: channels that come out, >= 1; twice `in_channels` to learn variances too.
        widths: channels of each level; multiples of `groups`, at least twice that.
        blocks: residual blocks of each level on the way down, >= 0; one more follows on the way up.
        attention: the levels with attention after each of their blocks, over all pixels.
        middle_attention: whether the two blocks in the middle have attention between them.
        head_dim: features of an attention head, divides the width wherever there is attention; None leaves it
            to `heads`.
        patch: side of the pixel squares folded into channels before the first convolution; 1 leaves them.
        resample: how levels are joined.
        same_padding: put the zero border of the strided convolutions at the end only, as in TensorFlow; needed
            for published DDPM weights, see `conv.Downsample`. Only with `Resample.CONV`.
        scale_shift: whether the embedding scales and shifts (ADM) or is added (DDPM).
        rescale: multiply residual sums by 1/sqrt(2) (Song et al. 2021).
        groups: groups of every group norm, >= 1.
        norm_eps: epsilon of every group norm, > 0.
        dropout: share of features dropped in each block in training mode, in [0, 1).
        attention_dropout: share of attention weights dropped in training mode, in [0, 1).
        time: how noise levels are expanded.
        time_features: number of expanded features, even, >= 4; None is `widths[0]`.
        embed_dim: width of the embedding, >= 1; None is `4 * widths[0]`.
        num_classes: classes without the null, >= 1; None for a network without classes.
        vector_dim: length of vector conditions, >= 1; None for a network without them.
        attributes: number of values of each attribute without its null, each >= 1; () for a network without them.
        checkpoint: recompute the activations of each block in backward: less memory, about a third more time.
        axes: number of axes of space: 1, 2 or 3.
        halve_time: whether the first of three axes is halved between levels, and folded by `patch`, as the others are.
        heads: number of attention heads where `head_dim` is None, divides the width wherever there is attention;
            None is one head over all channels (DDPM).
        attend_once_up: on the way up, only the last block of a level has attention (Song et al. 2021).
        stem_width: channels of the first convolution; a multiple of `groups`, at least twice that; None is `widths[0]`.
        smooth: resample through the filter (1, 3, 3, 1) instead of averages and nearest neighbours (NCSN++). Not with
            `Resample.CONV`.
        project_resized: residual blocks that resize carry their input over by a 1x1 convolution (Song et al. 2021).
            Only with `Resample.RESIDUAL`.
        input_pyramid: feed every level the image too: convolved and halved from level to level, and summed with
            what comes down (the residual input of NCSN++).
        label_early: add the embedding of the class to the expanded noise level, before the perceptron, instead of
            behind it (Karras et al. 2022, for DDPM++ and NCSN++).
        image_channels: channels of an image that is given as a condition and laid beside the noisy one, >= 0.
        context_dim: width of the tokens of a context, >= 1; None for a network without it. Transformer blocks read it.
        transformer_depth: for each level, how many transformer blocks follow each of its residual blocks, >= 0; () is
            none. They stand instead of `attention`.
        middle_depth: how many transformer blocks stand in the middle instead of attention, >= 0.
        augmentation: how many numbers tell what was done to a picture in training, >= 0; added to the expanded noise
            level, before the perceptron (Karras et al. 2022). Of a picture that is not told of it was done nothing to.

    Raises:
        ValueError: for values outside these ranges or that contradict each other.
    """

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    attention: tuple[int, ...] = ()
    middle_attention: bool = True
    head_dim: int | None = None
    patch: int = 1
    resample: Resample = Resample.CONV
    same_padding: bool = False
    scale_shift: bool = True
    rescale: bool = False
    groups: int = 16
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    time: TimeEmbedding = field(default_factory=Sinusoidal)
    time_features: int | None = None
    embed_dim: int | None = None
    num_classes: int | None = None
    vector_dim: int | None = None
    attributes: tuple[int, ...] = ()
    checkpoint: bool = False
    axes: int = 2
    halve_time: bool = True
    heads: int | None = None
    attend_once_up: bool = False
    stem_width: int | None = None
    smooth: bool = False
    project_resized: bool = False
    input_pyramid: bool = False
    label_early: bool = False
    image_channels: int = 0
    context_dim: int | None = None
    transformer_depth: tuple[int, ...] = ()
    middle_depth: int = 0
    augmentation: int = 0

    def __post_init__(self) -> None:
        if not self.widths:
            raise ValueError("widths is empty; give the channels of at least one level.")
        if len(self.blocks) != len(self.widths):
            raise ValueError(f"blocks {self.blocks} and widths {self.widths} must be equally long: one a level.")
        if min(self.blocks) < 0:
            raise ValueError(f"blocks is {self.blocks}; numbers of blocks must be at least 0.")
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        self._check_transformers()
        self._check_attention()
        self._check_resampling()
        if any(count < 1 for count in self.attributes):
            raise ValueError(f"attributes is {self.attributes}; each must have at least 1 value.")
        for width in (self.stem, *self.widths):
            if width % self.groups or width < 2 * self.groups:
                raise ValueError(
                    f"width {width} does not suit {self.groups} groups: it must be a multiple of groups and hold "
                    "at least 2 channels for each, since a channel alone is normalised to nothing at 1x1 pixels."
                )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1).")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps is {self.norm_eps}; it must be positive.")
        if self.features < 4 or self.features % 2:
            raise ValueError(
                f"the noise level would be expanded to {self.features} features; give an even time_features >= 4."
            )
        for name in ("image_channels", "augmentation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0.")

    def _check_resampling(self) -> None:
        if self.axes not in (1, 2, 3):
            raise ValueError(f"axes is {self.axes}; expected 1 (sequences), 2 (images) or 3 (volumes, videos).")
        if not self.halve_time and self.axes != 3:
            raise ValueError("halve_time=False keeps the first of three axes; it needs axes=3.")
        if self.same_padding and self.resample is not Resample.CONV:
            raise ValueError("same_padding speaks of strided convolutions; it needs resample=Resample.CONV.")
        if self.smooth and self.resample is Resample.CONV:
            raise ValueError("smooth speaks of resampling by filters; it needs Resample.POOL or Resample.RESIDUAL.")
        if self.project_resized and self.resample is not Resample.RESIDUAL:
            raise ValueError("project_resized speaks of blocks that resize; it needs resample=Resample.RESIDUAL.")
        if self.input_pyramid and len(self.widths) == 1:
            raise ValueError("input_pyramid feeds the coarser levels; it needs more than one level.")

    def _check_transformers(self) -> None:
        depths = (*self.transformer_depth, self.middle_depth)
        if self.transformer_depth and len(self.transformer_depth) != len(self.widths):
            raise ValueError(f"transformer_depth {self.transformer_depth} must be () or have one number a level.")
        if min(depths) < 0:
            raise ValueError(f"transformer_depth {self.transformer_depth} and middle_depth must be at least 0.")
        if any(depths) and self.context_dim is None:
            raise ValueError("transformer blocks read a context; give context_dim, the width of its tokens.")
        if not any(depths) and self.context_dim is not None:
            raise ValueError("nothing would read the context; give transformer_depth or middle_depth.")
        if self.middle_depth and not self.middle_attention:
            raise ValueError("middle_depth puts transformer blocks instead of attention; leave middle_attention true.")
        both = [level for level in self.attention if self.depth_of(level)]
        if both:
            raise ValueError(f"levels {both} have attention and transformer blocks; leave them out of one of the two.")

    def _check_attention(self) -> None:
        levels = len(self.widths)
        if len(set(self.attention)) != len(self.attention) or not set(self.attention) <= set(range(levels)):
            raise ValueError(f"attention is {self.attention}; expected different levels in 0..{levels - 1}.")
        transformers = [level for level in range(levels) if self.depth_of(level)]
        attended = [*self.attention, *transformers, *([levels - 1] if self.middle_attention else [])]
        if self.attend_once_up and not (self.attention or transformers):
            raise ValueError("attend_once_up speaks of levels with attention; there are none.")
        if self.head_dim is not None and self.heads is not None:
            raise ValueError(f"head_dim {self.head_dim} and heads {self.heads} say the same; leave one of them None.")
        for level in attended:
            for name, divisor in (("head_dim", self.head_dim), ("heads", self.heads)):
                if divisor is not None and (divisor < 1 or self.widths[level] % divisor):
                    raise ValueError(f"{name} {divisor} does not divide width {self.widths[level]} of level {level}.")

    def depth_of(self, level: int) -> int:
        """Return how many transformer blocks follow each residual block of a level."""
        return self.transformer_depth[level] if self.transformer_depth else 0

    @property
    def spacing(self) -> Spacing:
        """How the axes shrink from level to level."""
        rest = (2,) * (self.axes - 1)
        return Spacing((2 if self.halve_time else 1, *rest), smooth=self.smooth)

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the block of pixels that is folded into channels, along each axis."""
        return tuple(self.patch if factor == 2 else 1 for factor in self.spacing.factors)

    @property
    def multiples(self) -> tuple[int, ...]:
        """What each axis of an input must be divisible by to be used without padding."""
        levels = len(self.widths)
        return tuple(
            int(side * factor ** (levels - 1)) for side, factor in zip(self.sides, self.spacing.factors, strict=True)
        )

    @property
    def stem(self) -> int:
        """Channels of the first convolution."""
        return self.widths[0] if self.stem_width is None else self.stem_width

    @property
    def multiple(self) -> int:
        """What every axis that is halved must be divisible by to be used without padding."""
        return max(self.multiples)

    @property
    def features(self) -> int:
        """Number of features to which a noise level is expanded."""
        return self.widths[0] if self.time_features is None else self.time_features

    @property
    def style(self) -> BlockStyle:
        """What all blocks share."""
        return BlockStyle(
            embed_dim=4 * self.widths[0] if self.embed_dim is None else self.embed_dim,
            groups=self.groups,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            head_dim=self.head_dim,
            scale_shift=self.scale_shift,
            rescale=self.rescale,
            axes=self.axes,
            heads=1 if self.heads is None else self.heads,
            project_resized=self.project_resized,
            context_dim=self.context_dim,
        )
