"""Networks: from an array, a noise level and conditions to an array. They know nothing of diffusion."""
