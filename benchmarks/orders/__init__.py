"""Orders of convergence and errors of every sampler with a claimed order, beside those of other libraries."""
