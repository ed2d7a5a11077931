"""The figures of docs/mathematics, made by the library itself: ``python -m benchmarks.figures``."""
