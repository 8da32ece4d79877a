"""Judges the exported checkpoint: diffusers reads the file, draws the 200 prompts, the judge looks at them.

    python evaluate.py --model small.safetensors --judge DIR/judge.safetensors --bpe FILE --sheet samples.png

Everything runs in f32 on the CPU. Prompt i starts from torch.manual_seed(1000 + i)'s normals, DDIM, 25 steps,
guidance 5, so each picture can be made again by anything that has torch's random numbers.
"""
import argparse

import torch
from safetensors.torch import load_file

import nets as N
import prompts as P
import scene as S
import train as T


def load(path):
    """(text encoder, U-Net, VAE, scheduler) of diffusers and transformers, through diffusers' own name converters."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from diffusers.loaders import single_file_utils as one
    from transformers import CLIPTextConfig, CLIPTextModel
    ckpt = {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
    unet = UNet2DConditionModel(block_out_channels=N.WIDTHS, cross_attention_dim=N.TEXT, attention_head_dim=N.HEADS,
                                sample_size=16).eval()
    unet.load_state_dict(one.convert_ldm_unet_checkpoint(dict(ckpt), dict(unet.config)))
    vae = AutoencoderKL(block_out_channels=N.VAE_WIDTHS, layers_per_block=2, latent_channels=4, sample_size=128,
                        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4).eval()
    vae.load_state_dict(one.convert_ldm_vae_checkpoint(dict(ckpt), dict(vae.config)))
    text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=N.TEXT, intermediate_size=4 * N.TEXT,
                                        num_hidden_layers=N.TEXT_LAYERS, num_attention_heads=1, projection_dim=N.TEXT,
                                        hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407)).eval()
    prefix = "cond_stage_model.transformer."
    names = {k[len(prefix):]: v for k, v in ckpt.items() if k.startswith(prefix)}
    if not any(k.startswith("text_model.") for k in text.state_dict()):  # transformers 5 has no such level
        names = {k.replace("text_model.", "", 1): v for k, v in names.items()}
    missing, extra = text.load_state_dict(names, strict=False)
    assert not missing and all("position_ids" in k for k in extra), (missing, extra)
    ddim = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                         set_alpha_to_one=False, steps_offset=1)
    return text, unet, vae, ddim


@torch.no_grad()
def draw(models, ids, empty, seeds, steps=25, guidance=5.0):
    """ids [n, 77]: uint8 pictures [n, 3, 128, 128]."""
    text, unet, vae, ddim = models
    n = len(ids)
    context = torch.cat([text(ids)[0], text(empty)[0].expand(n, -1, -1)])
    x = torch.cat([torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(s)) for s in seeds])
    ddim.set_timesteps(steps)
    for t in ddim.timesteps:
        a, b = unet(torch.cat([x, x]), t, context).sample.chunk(2)
        x = ddim.step(b + guidance * (a - b), t, x).prev_sample
    y = vae.decode(x / N.SCALING).sample
    return ((y.clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8)


def labelled(u8, texts, path, columns=8):
    """A grid of pictures with their prompts."""
    import textwrap
    from PIL import Image, ImageDraw, ImageFont
    w, h = 136, 174
    im = Image.new("RGB", (columns * w, -(-len(texts) // columns) * h), (255, 255, 255))
    pen, font = ImageDraw.Draw(im), ImageFont.load_default(10)
    for i, (p, text) in enumerate(zip(u8, texts)):
        x, y = (i % columns) * w + 4, (i // columns) * h + 4
        im.paste(Image.fromarray(p.permute(1, 2, 0).numpy()), (x, y))
        pen.multiline_text((x, y + 130), "\n".join(textwrap.wrap(text, 25)), (40, 40, 40), font, spacing=1)
    im.save(path, optimize=True)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--model", required=True)
    a.add_argument("--judge", required=True)
    a.add_argument("--bpe", required=True)
    a.add_argument("--sheet", help="PNG of all 200 pictures")
    a.add_argument("--samples", help="PNG of every fifth picture with its prompt")
    a.add_argument("--seed", type=int, default=20, help="of the prompts")
    a.add_argument("--steps", type=int, default=25)
    a.add_argument("--guidance", type=float, default=5.0)
    a.add_argument("--list", action="store_true", help="say which prompts failed")
    o = a.parse_args()
    o.device = "cpu"
    models, tokens = load(o.model), S.Tokens(o.bpe)
    judge = N.Judge().unpack(load_file(o.judge))
    asked = P.two_hundred(o.seed)
    empty, made = torch.tensor([tokens.ids("")]), []
    for i in range(0, len(asked), 20):
        ids = torch.tensor([tokens.ids(p.text) for p in asked[i:i + 20]])
        made.append(draw(models, ids, empty, range(1000 + i, 1000 + i + len(ids)), o.steps, o.guidance))
    made = torch.cat(made)
    table, verdict = P.score(asked, *T.answers(o, judge, made))
    print(P.table_text(table))
    if o.list:
        for i, (p, ok) in enumerate(zip(asked, verdict)):
            if not ok:
                print("not as asked:", i, p.text)
    if o.samples:
        labelled(made[::5], [p.text for p in asked[::5]], o.samples)
    if o.sheet:
        T.sheet(made, o.sheet, 20)


if __name__ == "__main__":
    main()
