"""Published U-Nets by name.

Each function gives a configuration; the numbers of parameters beside it are exact and are tested. With classes, every
network here has one row more than the published one: the learned null.

Source: the papers and, where a paper leaves a number out, the published settings of its authors' code: Ho, Jain, Abbeel
2020, arXiv 2006.11239 (github.com/hojonathanho/diffusion); Nichol and Dhariwal 2021, arXiv 2102.09672
(github.com/openai/improved-diffusion, README); Dhariwal and Nichol 2021, arXiv 2105.05233
(github.com/openai/guided-diffusion, README); Song et al. 2021, arXiv 2011.13456 (configs of
github.com/yang-song/score_sde_pytorch); Karras et al. 2022, arXiv 2206.00364, appendix F; Rombach et al. 2022, arXiv
2112.10752; Podell et al. 2023, arXiv 2307.01952.
"""

from dataclasses import replace

from unfog.diffusion.nn.conv import Resample
from unfog.diffusion.nn.embed import Fourier, Sinusoidal
from unfog.diffusion.nn.unet_config import UNetConfig

__all__ = [
    "adm_imagenet64",
    "adm_imagenet128",
    "adm_imagenet256",
    "adm_imagenet512",
    "adm_upsampler256",
    "adm_upsampler512",
    "ddpm256",
    "ddpm_cifar10",
    "ddpmpp_cifar10",
    "edm_ddpmpp_cifar10",
    "edm_imagenet64",
    "edm_ncsnpp_cifar10",
    "iddpm_cifar10",
    "iddpm_imagenet64",
    "ncsnpp_cifar10",
    "stable_diffusion_1",
    "stable_diffusion_2",
    "stable_diffusion_xl",
]

_DDPM_TIME = Sinusoidal(freq_shift=1, sin_first=True)


def ddpm_cifar10() -> UNetConfig:
    """Give the U-Net of DDPM for 32x32 CIFAR-10: 35.7 million parameters (35,746,307).

    Its noise levels are the integers 0..999. Down-sampling pads as TensorFlow does, so that published weights
    can be loaded.

    Source:
        Ho, Jain, Abbeel 2020, arXiv 2006.11239, appendix B.
    """
    return UNetConfig(
        in_channels=3,
        out_channels=3,
        widths=(128, 256, 256, 256),
        blocks=(2, 2, 2, 2),
        attention=(1,),
        same_padding=True,
        scale_shift=False,
        groups=32,
        norm_eps=1e-6,
        dropout=0.1,
        time=_DDPM_TIME,
    )


def ddpm256() -> UNetConfig:
    """Give the U-Net of DDPM for 256x256 LSUN and CelebA-HQ: 114 million parameters (113,673,219).

    Source:
        Ho, Jain, Abbeel 2020, arXiv 2006.11239, appendix B.
    """
    return replace(
        ddpm_cifar10(),
        widths=(128, 128, 256, 256, 512, 512),
        blocks=(2, 2, 2, 2, 2, 2),
        attention=(4,),
        dropout=0.0,
    )


def iddpm_cifar10() -> UNetConfig:
    """Give the U-Net of Improved DDPM for 32x32 CIFAR-10 with learned variances: 52,546,438 parameters ("50M").

    Its noise levels are 1000 / steps times the integers 0..steps - 1, as is that of `iddpm_imagenet64` without classes.

    Source:
        Nichol and Dhariwal 2021, arXiv 2102.09672; the settings of the authors' README.
    """
    return UNetConfig(
        in_channels=3,
        out_channels=6,
        widths=(128, 256, 256, 256),
        blocks=(3, 3, 3, 3),
        attention=(1, 2),
        heads=4,
        groups=32,
        dropout=0.3,
    )


def iddpm_imagenet64(num_classes: int | None = None) -> UNetConfig:
    """Give the U-Net of Improved DDPM for 64x64 ImageNet with learned variances.

    Without classes 121 million parameters, exactly 121,063,942 (the authors' README says 100M). With classes it is
    wider: with 1000 of them 273 million (270M), exactly 273,049,350 and 768 more for the null.

    Args:
        num_classes: classes without the null, or None for the unconditional network.

    Source:
        Nichol and Dhariwal 2021, arXiv 2102.09672; the settings of the authors' README.
    """
    base = 128 if num_classes is None else 192
    return UNetConfig(
        in_channels=3,
        out_channels=6,
        widths=(base, 2 * base, 3 * base, 4 * base),
        blocks=(3, 3, 3, 3),
        attention=(2, 3),
        heads=4,
        groups=32,
        num_classes=num_classes,
    )


def _adm(widths: tuple[int, ...], blocks: int, attention: tuple[int, ...], num_classes: int | None) -> UNetConfig:
    return UNetConfig(
        in_channels=3,
        out_channels=6,
        widths=widths,
        blocks=(blocks,) * len(widths),
        attention=attention,
        head_dim=64,
        resample=Resample.RESIDUAL,
        groups=32,
        num_classes=num_classes,
    )


def adm_imagenet64(num_classes: int | None = None) -> UNetConfig:
    """Give the U-Net of ADM for 64x64 ImageNet with learned variances: 296 million parameters.

    With `num_classes=1000` exactly 295,904,454, and those of the row of the learned null more.

    Args:
        num_classes: classes without the null, or None for an unconditional network.

    Source:
        Dhariwal and Nichol 2021, arXiv 2105.05233, section 3 and appendix I.
    """
    return replace(_adm((192, 384, 576, 768), 3, (1, 2, 3), num_classes), dropout=0.1)


def adm_imagenet128(num_classes: int | None = None) -> UNetConfig:
    """Give the U-Net of ADM for 128x128 ImageNet with learned variances: 422 million parameters.

    With `num_classes=1000` exactly 421,529,606, and those of the row of the learned null more.

    Args:
        num_classes: classes without the null, or None for an unconditional network.

    Every attention has 4 heads, as in the settings of the authors' README.

    Source:
        Dhariwal and Nichol 2021, arXiv 2105.05233, section 3 and appendix I.
    """
    return replace(_adm((256, 256, 512, 768, 1024), 2, (2, 3, 4), num_classes), head_dim=None, heads=4)


def adm_imagenet256(num_classes: int | None = None) -> UNetConfig:
    """Give the U-Net of ADM for 256x256 ImageNet with learned variances: 552.8 million parameters.

    With `num_classes=1000` it has 553.8 million, and 1024 more than published: the row of the learned null.

    Args:
        num_classes: classes without the null, or None for the unconditional network.

    Source:
        Dhariwal and Nichol 2021, arXiv 2105.05233, section 3 and appendix I.
    """
    return _adm((256, 256, 512, 512, 1024, 1024), 2, (3, 4, 5), num_classes)


def adm_imagenet512(num_classes: int | None = None) -> UNetConfig:
    """Give the U-Net of ADM for 512x512 ImageNet with learned variances: 559 million parameters.

    With `num_classes=1000` exactly 558,997,638, and those of the row of the learned null more.

    Args:
        num_classes: classes without the null, or None for an unconditional network.

    Source:
        Dhariwal and Nichol 2021, arXiv 2105.05233, section 3 and appendix I.
    """
    shape = _adm((128, 256, 256, 512, 512, 1024, 1024), 2, (4, 5, 6), num_classes)
    return replace(shape, time_features=256, embed_dim=1024)


def adm_upsampler256(num_classes: int | None = None) -> UNetConfig:
    """Give ADM's network from 64x64 to 256x256: 312 million parameters.

    With `num_classes=1000` exactly 311,795,910, and 768 of the row of the learned null more. Its condition
    `image` is the small picture, enlarged to 256x256 bilinearly.

    Args:
        num_classes: classes without the null, or None for an unconditional network.

    Source:
        Dhariwal and Nichol 2021, arXiv 2105.05233, appendix I; the settings of the authors' README.
    """
    shape = _adm((192, 192, 384, 384, 768, 768), 2, (3, 4, 5), num_classes)
    return replace(shape, head_dim=None, heads=4, image_channels=3)


def adm_upsampler512(num_classes: int | None = None) -> UNetConfig:
    """Give ADM's network from 128x128 to 512x512: 309 million parameters.

    With `num_classes=1000` exactly 308,835,270, and 768 of the row of the learned null more. Its condition
    `image` is the small picture, enlarged to 512x512 bilinearly.

    Args:
        num_classes: classes without the null, or None for an unconditional network.

    Source:
        Dhariwal and Nichol 2021, arXiv 2105.05233, appendix I; the settings of the authors' README.
    """
    shape = _adm((192, 192, 384, 384, 768, 768), 2, (4, 5), num_classes)
    return replace(shape, image_channels=3)


def ddpmpp_cifar10() -> UNetConfig:
    """Give DDPM++ of Song et al. for 32x32 CIFAR-10: "DDPM++ cont.", exactly 61,804,419 parameters.

    Source:
        Song et al. 2021, arXiv 2011.13456, appendix H; the authors' configs/vp/cifar10_ddpmpp_continuous.py.
    """
    return UNetConfig(
        in_channels=3,
        out_channels=3,
        widths=(128, 256, 256, 256),
        blocks=(4, 4, 4, 4),
        attention=(1,),
        attend_once_up=True,
        resample=Resample.RESIDUAL,
        project_resized=True,
        scale_shift=False,
        rescale=True,
        groups=32,
        norm_eps=1e-6,
        dropout=0.1,
        time=_DDPM_TIME,
    )


def ncsnpp_cifar10() -> UNetConfig:
    """Give NCSN++ of Song et al. for 32x32 CIFAR-10: "NCSN++ cont.", exactly 62,758,787 parameters.

    Its noise level is log(sigma). The published network divides its answer by sigma, which is no part of this one.

    Source:
        Song et al. 2021, arXiv 2011.13456, appendix H; the authors' configs/ve/cifar10_ncsnpp_continuous.py.
    """
    return replace(ddpmpp_cifar10(), smooth=True, input_pyramid=True, time=Fourier(), time_features=256, embed_dim=512)


def edm_ddpmpp_cifar10(num_classes: int | None = None) -> UNetConfig:
    """Give EDM's DDPM++ for 32x32 CIFAR-10: 55.7 million parameters, exactly 55,732,739 without classes.

    Its noise level is log(sigma) / 4. The published conditional networks add the class to the expanded noise level, as
    here. They are told of augmentation, too: that is `augmentation=9` of the config, and 1,152 parameters more.

    Args:
        num_classes: classes without the null, each row of whose table adds 128 parameters, or None.

    Source:
        Karras et al. 2022, arXiv 2206.00364, appendix F.
    """
    return replace(
        ddpmpp_cifar10(),
        widths=(256, 256, 256),
        blocks=(4, 4, 4),
        stem_width=128,
        dropout=0.13,
        time_features=128,
        embed_dim=512,
        label_early=True,
        num_classes=num_classes,
    )


def edm_ncsnpp_cifar10(num_classes: int | None = None) -> UNetConfig:
    """Give EDM's NCSN++ for 32x32 CIFAR-10: 56 million parameters, exactly 56,395,523 without classes.

    Its noise level is log(sigma) / 4; see `edm_ddpmpp_cifar10`.

    Args:
        num_classes: classes without the null, each row of whose table adds 256 parameters, or None.

    Source:
        Karras et al. 2022, arXiv 2206.00364, appendix F.
    """
    return replace(edm_ddpmpp_cifar10(num_classes), smooth=True, input_pyramid=True, time=Fourier(), time_features=256)


def edm_imagenet64(num_classes: int | None = None) -> UNetConfig:
    """Give EDM's ADM for 64x64 ImageNet: 296 million parameters.

    `adm_imagenet64` without learned variances: with `num_classes=1000` exactly 295,899,267, and 768 of the row of the
    learned null more. Its noise level is log(sigma) / 4.

    Args:
        num_classes: classes without the null, or None for an unconditional network.

    Source:
        Karras et al. 2022, arXiv 2206.00364, appendix F.
    """
    return replace(adm_imagenet64(num_classes), out_channels=3)


def stable_diffusion_1() -> UNetConfig:
    """Give the U-Net of Stable Diffusion 1: 859.5 million parameters (859,520,964).

    On latents of 4 channels, with noise levels 0..999 and the 77 tokens of CLIP ViT-L/14 as context.

    Source:
        Rombach et al. 2022, arXiv 2112.10752; github.com/CompVis/stable-diffusion, configs.
    """
    return UNetConfig(
        in_channels=4,
        out_channels=4,
        widths=(320, 640, 1280, 1280),
        blocks=(2, 2, 2, 2),
        heads=8,
        scale_shift=False,
        groups=32,
        context_dim=768,
        transformer_depth=(1, 1, 1, 0),
        middle_depth=1,
    )


def stable_diffusion_2() -> UNetConfig:
    """Give the U-Net of Stable Diffusion 2: 865.9 million parameters (865,910,724).

    As `stable_diffusion_1`, with the tokens of OpenCLIP ViT-H/14 as context and heads of 64 features.
    """
    return replace(stable_diffusion_1(), heads=None, head_dim=64, context_dim=1024)


def stable_diffusion_xl() -> UNetConfig:
    """Give the U-Net of Stable Diffusion XL: 2.57 billion parameters (2,567,463,684).

    The context holds the tokens of two text encoders side by side (768 + 1280 features). The vector is the pooled text
    embedding (1280) followed by 256 cosines and sines (`embed.sinusoids`) of each of six numbers: original height and
    width, top and left of the crop, target height and width.

    Source:
        Podell et al. 2023, arXiv 2307.01952, table 1 and section 2.2.
    """
    return UNetConfig(
        in_channels=4,
        out_channels=4,
        widths=(320, 640, 1280),
        blocks=(2, 2, 2),
        head_dim=64,
        scale_shift=False,
        groups=32,
        vector_dim=1280 + 6 * 256,
        context_dim=2048,
        transformer_depth=(0, 2, 10),
        middle_depth=10,
    )
