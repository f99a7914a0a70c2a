"""What several families are built of; each needs torch.

noise.py   the noise processes (diffusion, flow matching) and their samplers
clip.py    captions -> text states by CLIP text encoders, as the WebUI encodes them
text.py    rows of text states -> a batch
vae.py     pixels <-> latents by diffusers' AutoencoderKL
"""
