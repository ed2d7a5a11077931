"""The laboratory: samplers on mixtures of Gaussians, whose score is exact, against the exact solution."""
