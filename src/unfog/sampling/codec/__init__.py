"""Codecs: data to latent and back."""
