"""The measurements of ``make bench``: Unfog beside diffusers and denoising-diffusion-pytorch on one machine."""
