"""Broadcasting of per-example and per-frame numbers against data."""

from torch import Tensor


def align(value: Tensor, x: Tensor) -> Tensor:
    """Append axes to ``value`` until it broadcasts against ``x``.

    Args:
        value: a tensor whose shape is a prefix of ``x``'s: ``()`` when sampling, ``(B,)`` when training,
            ``(B, F)`` for one number per frame.
        x: the data.

    Returns:
        A view of ``value`` with ``x.ndim`` axes (``value`` itself when it has none).

    Raises:
        ValueError: if the shape of ``value`` is no prefix of that of ``x``.
    """
    if value.ndim == 0:
        return value
    if value.shape != x.shape[: value.ndim]:
        raise ValueError(
            f"a tensor of shape {tuple(value.shape)} does not fit data of shape {tuple(x.shape)}: expected (), "
            f"or a prefix of the data's shape such as {tuple(x.shape[:1])}"
        )
    return value.reshape(*value.shape, *(1,) * (x.ndim - value.ndim))
