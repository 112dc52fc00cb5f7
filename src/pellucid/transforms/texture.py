"""What keeps contours and takes texture: saturation, and the styles of paintings."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.draws import Draws, uniform
from pellucid.errors import PellucidError
from pellucid.inputs import check_images
from pellucid.stylising import adain, cut_out, decoder, encoder, paintings, three_channels, transfer_network
from pellucid.types import LUMA, Images

LEAST = 5  # pixels that the longer side must have for the feed-forward network's instance norms


def saturate(x: Images, *, p: float = 8.0, generator: Draws = None) -> Images:
    """`sign(2v - 1) |2v - 1|^(2/p) / 2 + 1/2` for every pixel value v: p = 2 is the identity, p = inf black and white.

    Below 2 contrast shrinks towards grey. At v = 1/2 the result is 1/2 and, for p above 2, the derivative infinite:
    it is taken as 0 there. The levels of the paper are 1/4, 1/2, 1, 2, 4, 8, 16, 64, 1024.
    Source: Zhang & Zhu 2019, sec. 3.2, after Ding et al. 2019. Raises `PellucidError` unless p > 0.
    """
    del generator
    if not p > 0:
        raise PellucidError(f"saturate(p={p!r}) must be above 0: 2 changes nothing, inf leaves black and white")
    check_images(x)
    if p == 2:
        return x
    u = 2 * x - 1
    if math.isinf(p):
        return u.sign() / 2 + 0.5
    grey = u == 0
    return torch.where(grey, 0, u.sign() * torch.where(grey, 1, u).abs() ** (2 / p)) / 2 + 0.5


def stylize(
    x: Images,
    *,
    encoder_weights: str = "",
    decoder_weights: str = "",
    styles: str = "paintings",
    split: str = "train",
    alpha: float = 1.0,
    generator: Draws = None,
) -> Images:
    """`decode((1 - α) e(x) + α AdaIN(e(x), e(s)))`, `AdaIN(a, b) = σ(b) (a - μ(a)) / σ(a) + μ(b)` per channel.

    e is VGG-19 up to its relu4_1, s a painting drawn for each image from `styles`, a data set that `pellucid data list`
    knows or a folder, its shorter side scaled to the image's and its centre cut out. The weight files are those of
    Huang & Belongie's networks as the common PyTorch port names them (vgg_normalised and decoder); they are not brought
    along. Grey images are stylised as RGB and come back as luma. The result is cut to [0, 1].

    Source: Huang & Belongie 2017, eqs. 8 and 14; Geirhos et al. 2019 (α = 1, paintings drawn with replacement).
    Raises `PellucidError` unless 0 <= α <= 1, for missing or foreign weights, and for images below 16 pixels a side.
    """
    if not 0 <= alpha <= 1:
        raise PellucidError(
            f"stylize(alpha={alpha!r}) must be in [0, 1]: 0 keeps the content's statistics, 1 none of it"
        )
    check_images(x)
    if min(x.shape[2:]) < 16:
        raise PellucidError(f"stylize wants images of at least 16 pixels a side, not {tuple(x.shape[2:])}")
    if len(x) == 0:
        return x
    encode, decode = encoder(encoder_weights, x), decoder(decoder_weights, x)
    known = paintings(styles, split, max(x.shape[2:]))
    rows = (uniform(generator, x).double() * len(known)).long().clamp_max(len(known) - 1)
    content = encode(three_channels(x))
    style = encode(cut_out(known.batch(rows.cpu())[0], (x.shape[2], x.shape[3])).to(x))
    found = decode((1 - alpha) * content + alpha * adain(content, style))
    return _as_given(found[:, :, : x.shape[2], : x.shape[3]], x)


def fast_style(x: Images, *, weights: str = "", generator: Draws = None) -> Images:
    """`(150 tanh(t(255 x)) + 127.5) / 255`, t the feed-forward network of one style; cut to [0, 1].

    The network of Johnson et al. 2016 as fast-style-transfer has it: convolutions 9x9, and two 3x3 of stride 2; five
    residual blocks; two transposed convolutions; 9x9; after each an instance norm. `weights` is a .safetensors file
    with its tensors under the names conv1, conv2, conv3, res1 to res5, up1, up2, conv_out (docs/transforms.md).
    Grey images are stylised as RGB and come back as luma.

    Source: Johnson et al. 2016; Ulyanov et al. 2016 for the instance norm. As fast-style-transfer's evaluation feeds
    it, with pixels up to 255; its training had them up to 1, which moves the result by a few thousandths.
    Raises `PellucidError` for missing or foreign weights, and for images whose longer side is below 5 pixels.
    """
    del generator
    check_images(x)
    if max(x.shape[2:]) < LEAST:
        raise PellucidError(
            f"fast_style wants images of at least {LEAST} pixels on the longer side, not {x.shape[2]} x {x.shape[3]}: "
            "of smaller ones two strides of 2 leave a single position, and instance norms nothing"
        )
    if len(x) == 0:
        return x
    return _as_given(transfer_network(weights, x)(three_channels(x)), x)


def _as_given(found: Float[Tensor, "b 3 h w"], x: Images) -> Images:
    """In the box, and grey where the images were."""
    found = found.clamp(0, 1)
    return found if x.shape[1] == 3 else torch.einsum("bchw,c->bhw", found, found.new_tensor(LUMA))[:, None]
