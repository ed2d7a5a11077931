import torch

from unfog.diffusion.nn.attention import CrossAttention, NormedHeads, SelfAttention, SpatialAttention, attend


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


def test_tokens_that_cannot_be_seen_do_not_matter() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(8, 2, qk_norm=True).double(), torch.randn(2, 6, 8).double()
    mask = torch.tensor([True, True, True, False, False, True]).expand(2, 6)
    other = torch.where(mask[..., None], x, 7 * x)
    torch.testing.assert_close(layer(x, None, mask)[:, :3], layer(other, None, mask)[:, :3])


def test_normed_queries_and_keys_forget_their_scale() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 5, 8).double().unbind(0)
    norm = NormedHeads(8).double()
    for large, plain in zip(norm(q[None] * 1e3, k[None] * 1e3), norm(q[None], k[None]), strict=True):
        # The epsilon of 1e-6 beside squares of about 1.
        torch.testing.assert_close(large, plain, rtol=1e-5, atol=1e-5)


def test_attention_to_a_condition_equals_its_definition() -> None:
    torch.manual_seed(0)
    layer, x, context = CrossAttention(8, 2, 6).double(), torch.randn(2, 5, 8).double(), torch.randn(2, 3, 6).double()
    q = layer.q(x).view(2, 5, 2, 4).transpose(1, 2)
    k, v = (part.view(2, 3, 2, 4).transpose(1, 2) for part in layer.kv(context).chunk(2, dim=-1))
    weights = torch.softmax(q @ k.transpose(-1, -2) / 2, dim=-1)
    torch.testing.assert_close(layer(x, context), layer.proj((weights @ v).transpose(1, 2).reshape(2, 5, 8)))


def test_an_example_that_sees_nothing_of_its_condition_reads_zeros() -> None:
    torch.manual_seed(0)
    layer, x, context = CrossAttention(8, 2, 6), torch.randn(2, 5, 8), torch.randn(2, 3, 6)
    torch.nn.init.ones_(layer.proj.bias)
    read = layer(x, context, torch.tensor([[True, False, True], [False, False, False]]))
    assert read[0].any()
    assert not read[1].any()
