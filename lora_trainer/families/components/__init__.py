"""Components shared by families; these need torch.

noise.py   noise processes (diffusion, flow matching) and their samplers
clip.py    captions -> text states with CLIP text encoders, as in the WebUI
text.py    rows of text states -> a batch
vae.py     pixels <-> latents with diffusers' AutoencoderKL
"""
