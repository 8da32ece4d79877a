"""The four networks in plain torch: CLIP text encoder, U-Net, VAE (all with diffusers' and transformers' parameter
names, so that a state dict moves over as it is) and the classifier that judges pictures.

Stable Diffusion 1's structure at small widths: 4 levels, 2 layers each, attention on the first 3, 8 heads, GEGLU,
32 groups; the text encoder has one head of 64, as CLIP-L has 12 heads of 64.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = (64, 64, 32, 32)
HEADS = 8
TEXT = 64
TEXT_LAYERS = 4
VAE_WIDTHS = (32, 32, 64, 64)
GROUPS = 32
SCALING = 0.18215


def timesteps(t, dim):
    f = torch.exp(-math.log(10000) * torch.arange(dim // 2, device=t.device, dtype=torch.float32) / (dim // 2))
    a = t.float()[:, None] * f[None]
    return torch.cat([a.cos(), a.sin()], 1)


# ---------------------------------------------------------------- text encoder

class ClipAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = [nn.Linear(c, c) for _ in range(4)]

    def forward(self, x):
        n, t, c = x.shape
        split = lambda y: y.view(n, t, c // 64, 64).transpose(1, 2)
        y = F.scaled_dot_product_attention(split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x)),
                                           is_causal=True)
        return self.out_proj(y.transpose(1, 2).reshape(n, t, c))


class ClipMlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)

    def forward(self, x):
        y = self.fc1(x)
        return self.fc2(y * torch.sigmoid(1.702 * y))


class ClipLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn, self.layer_norm1 = ClipAttention(c), nn.LayerNorm(c)
        self.mlp, self.layer_norm2 = ClipMlp(c), nn.LayerNorm(c)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    """Rows of tokens outside our grammar are fixed random words on a grid of four values: they have to exist, a LoRA
    may learn to mean something by them, and on the grid they compress to an eighth."""

    def __init__(self, c, used):
        super().__init__()
        g = torch.Generator().manual_seed(77)
        base = (torch.randint(0, 4, (49408, c), generator=g).float() - 1.5) * 0.02
        where = torch.full((49408,), 0)
        where[used] = torch.arange(len(used))
        known = torch.zeros(49408, dtype=torch.bool)
        known[used] = True
        self.register_buffer("base", base, persistent=False)
        self.register_buffer("where", where, persistent=False)
        self.register_buffer("known", known, persistent=False)
        self.rows = nn.Parameter(base[used].clone())
        self.used = used
        self.position = nn.Parameter(torch.randn(77, c, generator=g) * 0.01)

    def forward(self, ids):
        # a product with one-hot rows: its backward is one GEMM, where a gather's would add 60,000 times to one row
        hot = (self.where[ids][..., None] == torch.arange(len(self.used), device=ids.device)).to(self.rows.dtype)
        e = torch.where(self.known[ids][..., None], hot @ self.rows, F.embedding(ids, self.base))
        return e + self.position


class TextEncoder(nn.Module):
    def __init__(self, used, c=TEXT, layers=TEXT_LAYERS):
        super().__init__()
        self.embeddings = Embeddings(c, used)
        self.layers = nn.ModuleList(ClipLayer(c) for _ in range(layers))
        self.final_layer_norm = nn.LayerNorm(c)

    def forward(self, ids):
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.final_layer_norm(x)


# ---------------------------------------------------------------- blocks of U-Net and VAE

class Resnet(nn.Module):
    def __init__(self, cin, cout, temb=0, eps=1e-5):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, cin, eps), nn.Conv2d(cin, cout, 3, padding=1)
        if temb:
            self.time_emb_proj = nn.Linear(temb, cout)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, cout, eps), nn.Conv2d(cout, cout, 3, padding=1)
        if cin != cout:
            self.conv_shortcut = nn.Conv2d(cin, cout, 1)

    def forward(self, x, temb=None):
        h = self.conv1(F.silu(self.norm1(x)))
        if temb is not None:
            h = h + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, c, context):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(c, c, bias=False), nn.Linear(context, c, bias=False)
        self.to_v, self.to_out = nn.Linear(context, c, bias=False), nn.ModuleList([nn.Linear(c, c)])

    def forward(self, x, context=None):
        context = x if context is None else context
        n, t, c = x.shape
        split = lambda y: y.view(n, -1, HEADS, c // HEADS).transpose(1, 2)
        y = F.scaled_dot_product_attention(split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context)))
        return self.to_out[0](y.transpose(1, 2).reshape(n, t, c))


class Geglu(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.proj = nn.Linear(c, 8 * c)

    def forward(self, x):
        a, b = self.proj(x).chunk(2, -1)
        return a * F.gelu(b)


class FeedForward(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.net = nn.ModuleList([Geglu(c), nn.Identity(), nn.Linear(4 * c, c)])

    def forward(self, x):
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(c), Attention(c, c)
        self.norm2, self.attn2 = nn.LayerNorm(c), Attention(c, TEXT)
        self.norm3, self.ff = nn.LayerNorm(c), FeedForward(c)

    def forward(self, x, context):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm, self.proj_in = nn.GroupNorm(GROUPS, c, 1e-6), nn.Conv2d(c, c, 1)
        self.transformer_blocks, self.proj_out = nn.ModuleList([TransformerBlock(c)]), nn.Conv2d(c, c, 1)

    def forward(self, x, context):
        n, c, h, w = x.shape
        y = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(n, h * w, c)
        y = self.transformer_blocks[0](y, context)
        return x + self.proj_out(y.reshape(n, h, w, c).permute(0, 3, 1, 2))


class Down(nn.Module):
    def __init__(self, c, asymmetric=False):
        super().__init__()
        self.conv, self.asymmetric = nn.Conv2d(c, c, 3, 2, 0 if asymmetric else 1), asymmetric

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Up(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One level of U-Net or VAE, down or up: resnets, attentions where the level has them, a resampler."""

    def __init__(self, channels, temb=0, attention=False, down=False, up=False, eps=1e-5, asymmetric=False):
        super().__init__()
        out = channels[0][1]
        self.resnets = nn.ModuleList(Resnet(i, o, temb, eps) for i, o in channels)
        if attention:
            self.attentions = nn.ModuleList(Transformer(out) for _ in channels)
        if down:
            self.downsamplers = nn.ModuleList([Down(out, asymmetric)])
        if up:
            self.upsamplers = nn.ModuleList([Up(out)])


class UNetMid(nn.Module):
    def __init__(self, c, temb):
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList([Resnet(c, c, temb), Resnet(c, c, temb)]), nn.ModuleList(
            [Transformer(c)])


class TimeEmbedding(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(c, 4 * c), nn.Linear(4 * c, 4 * c)

    def forward(self, x):
        return self.linear_2(F.silu(self.linear_1(x)))


class UNet(nn.Module):
    """eps = unet(x [n, 4, h, w], t [n], context [n, 77, TEXT])"""

    def __init__(self, widths=WIDTHS):
        super().__init__()
        w, temb, last = list(widths), 4 * widths[0], len(widths) - 1
        self.first = w[0]
        self.conv_in, self.time_embedding = nn.Conv2d(4, w[0], 3, padding=1), TimeEmbedding(w[0])
        self.down_blocks = nn.ModuleList(
            Level([(w[max(i - 1, 0)], w[i]), (w[i], w[i])], temb, i < last, down=i < last) for i in range(last + 1))
        self.mid_block = UNetMid(w[-1], temb)
        skips = [w[0]] + [c for i in range(last + 1) for c in [w[i]] * (3 if i < last else 2)]
        self.up_blocks, c = nn.ModuleList(), w[-1]
        for i in reversed(range(last + 1)):
            channels = []
            for _ in range(3):
                channels.append((c + skips.pop(), w[i]))
                c = w[i]
            self.up_blocks.append(Level(channels, temb, i < last, up=i > 0))
        self.conv_norm_out, self.conv_out = nn.GroupNorm(GROUPS, w[0], 1e-5), nn.Conv2d(w[0], 4, 3, padding=1)

    def forward(self, x, t, context):
        temb = self.time_embedding(timesteps(t, self.first).to(x.dtype))
        x = self.conv_in(x)
        skips = [x]
        for level in self.down_blocks:
            for i, r in enumerate(level.resnets):
                x = r(x, temb)
                x = level.attentions[i](x, context) if hasattr(level, "attentions") else x
                skips.append(x)
            if hasattr(level, "downsamplers"):
                x = level.downsamplers[0](x)
                skips.append(x)
        m = self.mid_block
        x = m.resnets[1](m.attentions[0](m.resnets[0](x, temb), context), temb)
        for level in self.up_blocks:
            for i, r in enumerate(level.resnets):
                x = r(torch.cat([x, skips.pop()], 1), temb)
                x = level.attentions[i](x, context) if hasattr(level, "attentions") else x
            x = level.upsamplers[0](x) if hasattr(level, "upsamplers") else x
        return self.conv_out(F.silu(self.conv_norm_out(x)))


# ---------------------------------------------------------------- VAE

class VaeAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.group_norm = nn.GroupNorm(GROUPS, c, 1e-6)
        self.to_q, self.to_k, self.to_v = [nn.Linear(c, c) for _ in range(3)]
        self.to_out = nn.ModuleList([nn.Linear(c, c)])

    def forward(self, x):
        n, c, h, w = x.shape
        y = self.group_norm(x).permute(0, 2, 3, 1).reshape(n, 1, h * w, c)
        y = F.scaled_dot_product_attention(self.to_q(y), self.to_k(y), self.to_v(y))
        return x + self.to_out[0](y[:, 0]).reshape(n, h, w, c).permute(0, 3, 1, 2)


class VaeMid(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList([Resnet(c, c, eps=1e-6), Resnet(c, c, eps=1e-6)]), \
            nn.ModuleList([VaeAttention(c)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    def __init__(self, w):
        super().__init__()
        last = len(w) - 1
        self.conv_in = nn.Conv2d(3, w[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level([(w[max(i - 1, 0)], w[i]), (w[i], w[i])], down=i < last, eps=1e-6, asymmetric=True)
            for i in range(last + 1))
        self.mid_block = VaeMid(w[-1])
        self.conv_norm_out, self.conv_out = nn.GroupNorm(GROUPS, w[-1], 1e-6), nn.Conv2d(w[-1], 8, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down_blocks:
            for r in level.resnets:
                x = r(x)
            x = level.downsamplers[0](x) if hasattr(level, "downsamplers") else x
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.conv_in, self.mid_block = nn.Conv2d(4, w[-1], 3, padding=1), VaeMid(w[-1])
        self.up_blocks, c = nn.ModuleList(), w[-1]
        for i in reversed(range(len(w))):
            self.up_blocks.append(Level([(c, w[i]), (w[i], w[i]), (w[i], w[i])], up=i > 0, eps=1e-6))
            c = w[i]
        self.conv_norm_out, self.conv_out = nn.GroupNorm(GROUPS, c, 1e-6), nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, z):
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            for r in level.resnets:
                x = r(x)
            x = level.upsamplers[0](x) if hasattr(level, "upsamplers") else x
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Vae(nn.Module):
    def __init__(self, widths=VAE_WIDTHS):
        super().__init__()
        self.encoder, self.decoder = Encoder(widths), Decoder(widths)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)
        nn.init.constant_(self.quant_conv.bias[4:], -4)  # start with little noise on the latents

    def encode(self, x):
        """mean and log variance, [n, 4, h/8, w/8] each"""
        return self.quant_conv(self.encoder(x)).chunk(2, 1)

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))


@torch.no_grad()
def whiten(vae, mean, std):
    """Folds 'latent := (latent - mean) / std / 0.18215', per channel, into the two 1x1 convolutions, so that latents
    times Stable Diffusion's 0.18215 have mean 0 and variance 1 without a new constant anywhere."""
    k = 1 / (std * SCALING)
    q, p = vae.quant_conv, vae.post_quant_conv
    q.weight[:4] *= k[:, None, None, None]
    q.bias[:4] = (q.bias[:4] - mean) * k
    q.bias[4:] += 2 * k.log()
    p.bias += (p.weight[:, :, 0, 0] * mean).sum(1)
    p.weight /= k[None, :, None, None]


# ---------------------------------------------------------------- the judge

class Judge(nn.Module):
    """A small convolutional network that reads a picture: for each shape and colour (160 pairs) how many there are
    (0..3), where their middle is and how big they are, and the kind of background."""
    PAIRS = 160

    def __init__(self, w=(32, 64, 96, 128)):
        super().__init__()
        body, c = [], 3
        for o in w:
            body += [nn.Conv2d(c, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU(True),
                     nn.Conv2d(o, o, 3, 1, 1), nn.BatchNorm2d(o), nn.ReLU(True)]
            c = o
        self.body = nn.Sequential(*body, nn.Conv2d(c, 48, 1))
        self.hidden = nn.Linear(48 * 64, 512)
        self.count, self.place = nn.Linear(512, self.PAIRS * 4), nn.Linear(512, self.PAIRS * 3)
        self.ground = nn.Linear(512, 10)

    def forward(self, x):
        h = F.relu(self.hidden(self.body(x).flatten(1)))
        return self.count(h).view(-1, self.PAIRS, 4), self.place(h).view(-1, self.PAIRS, 3), self.ground(h)

    def packed(self):
        """The weights as int8 with one scale a row: a fourth of the size; one verdict of 200 moves."""
        out = {}
        for k, v in self.state_dict().items():
            if v.dim() > 1:
                rows = v.detach().float().flatten(1)
                scale = rows.abs().amax(1).clamp_min(1e-12) / 127
                out[k], out[k + ".scale"] = (rows / scale[:, None]).round().to(torch.int8).view(v.shape), scale
            else:
                out[k] = v
        return out

    def unpack(self, tensors):
        state = {}
        for k, v in tensors.items():
            if k.endswith(".scale"):
                continue
            scale = tensors.get(k + ".scale")
            state[k] = v if scale is None else v.float() * scale.view(-1, *[1] * (v.dim() - 1))
        self.load_state_dict(state)
        return self.eval()
