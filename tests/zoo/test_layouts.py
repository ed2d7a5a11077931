import pytest

from unfog.zoo.layouts import kind_of


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["temb.dense.0.weight", "mid.block_1.norm1.weight", "x"], "it seems to be a DDPM of pytorch_diffusion"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "it seems to be a Stable Diffusion checkpoint"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], "it seems to be an autoencoder"),
        (["input_blocks.0.0.weight"], "it seems to be a U-Net or classifier of guided-diffusion of another kind"),
        (["module.a", "module.b"], "its names begin with 'module.', as DataParallel saves them"),
        (["unet.attn.lora_A.weight"], "it seems to be a LoRA"),
        (["d", "c", "b", "a"], "it is none that Unfog knows; its tensors are a, b, c, ..."),
    ],
)
def test_people_are_told_what_they_have(names: list[str], told: str) -> None:
    assert kind_of(names).startswith(told)
