"""A linear layer of packed GPTQ weights in plain PyTorch, for any device."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_WORD = 32
_AT_ONCE = 2**22  # weights dequantized at once


class PackedLinear(nn.Module):  # type: ignore[misc] # torch gives it no type
    """Dequantizes its weights when it is called, some inputs at a time, and multiplies by them.

    What it holds is what the format stores (see ``stored``): ``qweight`` (inputs * bits / 32,
    outputs), ``qzeros`` (groups, outputs * bits / 32), ``scales`` (groups, outputs), ``g_idx``
    (inputs). Inputs are (..., inputs); outputs have their dtype.
    """

    def __init__(self, inputs: int, outputs: int, bits: int, shapes: Mapping[str, Tensor]) -> None:
        """Make a layer with nothing in it.

        Args:
            inputs: columns of the weights.
            outputs: rows of the weights.
            bits: per weight: 2, 3, 4 or 8.
            shapes: empty tensors of the stored shapes and dtypes.

        """
        super().__init__()
        self.in_features, self.out_features, self.bits = inputs, outputs, bits
        for name, empty in shapes.items():
            self.register_buffer(name, empty)
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """The product with the dequantized weights, and the bias."""
        out = torch.zeros(*x.shape[:-1], self.out_features, dtype=torch.float32, device=x.device)
        # A whole number of packed words, and so of levels.
        step = max(_WORD, _AT_ONCE // self.out_features // _WORD * _WORD)
        zeros = unpack(self.qzeros.T.contiguous(), self.bits).T + 1
        for start in range(0, self.in_features, step):
            stop = min(start + step, self.in_features)
            words = self.qweight[start * self.bits // _WORD : stop * self.bits // _WORD]
            group = self.g_idx[start:stop].long()
            weight = unpack(words, self.bits).sub(zeros[group]).to(x.dtype)
            weight *= self.scales[group].to(x.dtype)
            out += x[..., start:stop] @ weight
        result = out.to(x.dtype)
        return result if self.bias is None else result + self.bias

    def extra_repr(self) -> str:
        """Its size, for a model that is printed."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


def unpack(words: Tensor, bits: int) -> Tensor:
    """Levels, int32 (n * 32 / bits, columns), of int32 words (n, columns), lowest bits first."""
    places = torch.arange(_WORD, device=words.device) * bits
    first, shift = places // _WORD, (places % _WORD).to(torch.int32)[:, None]
    mask = (1 << bits) - 1
    runs = words.reshape(-1, bits, words.shape[1])  # of 32 levels
    levels = (runs[:, first] >> shift) & mask
    over = shift + bits - _WORD  # bits of a level that lie in the next word
    split = torch.nonzero(over[:, 0] > 0).flatten()
    if len(split):
        # What came down with the sign of the word is not the level's.
        levels[:, split] &= (1 << (bits - over[split])) - 1
        high = runs[:, first[split] + 1] << (bits - over[split])
        levels[:, split] |= high & mask
    return levels.reshape(-1, words.shape[1])
