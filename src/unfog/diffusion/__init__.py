"""The mathematics of diffusion: schedules, processes, parameterizations, denoisers. It depends on torch alone."""
