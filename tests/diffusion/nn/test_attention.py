import torch

from unfog.diffusion.nn.attention import SelfAttention, SpatialAttention, attend


def test_attention_equals_its_definition() -> None:
    torch.manual_seed(0)
    batch, tokens, heads, dim = 2, 5, 3, 12
    qkv = torch.randn(batch, tokens, 3 * dim, dtype=torch.float64)
    q, k, v = (part.view(batch, tokens, heads, 4).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    weights = torch.softmax(q @ k.transpose(-1, -2) / 4**0.5, dim=-1)
    expected = (weights @ v).transpose(1, 2).reshape(batch, tokens, dim)
    torch.testing.assert_close(attend(qkv, heads, 0.0), expected)


def test_attention_does_not_depend_on_the_order_of_tokens() -> None:
    torch.manual_seed(0)
    layer, x, order = SelfAttention(8, 2).double(), torch.randn(1, 6, 8).double(), torch.randperm(6)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])


def test_attention_dropout_is_off_in_evaluation() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(8, 2, dropout=0.5), torch.randn(1, 6, 8)
    plain = SelfAttention(8, 2)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x), plain(x))


def test_attention_dropout_is_on_in_training() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(8, 2, dropout=0.5).train(), torch.randn(1, 6, 8)
    assert not torch.equal(layer(x), layer(x))


def test_fresh_spatial_attention_is_the_identity() -> None:
    x = torch.randn(2, 8, 3, 5)
    assert torch.equal(SpatialAttention(8, 2, groups=2)(x), x)


def test_rescaling_divides_the_sum_by_the_root_of_two() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 3, 5)
    layer, rescaled = SpatialAttention(8, 2, groups=2), SpatialAttention(8, 2, groups=2, rescale=True)
    torch.nn.init.normal_(layer.proj.weight)
    rescaled.load_state_dict(layer.state_dict())
    torch.testing.assert_close(rescaled(x) * 2**0.5, layer(x))


def test_channels_last_features_stay_channels_last() -> None:
    x = torch.randn(2, 8, 3, 5).to(memory_format=torch.channels_last)
    assert SpatialAttention(8, 2, groups=2)(x).is_contiguous(memory_format=torch.channels_last)
