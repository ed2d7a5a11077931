"""Conditioners: raw conditions to tensors, and their null."""
