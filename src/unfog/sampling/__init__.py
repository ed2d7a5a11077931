"""Samplers and what goes with them: grids, tables, guidance, codecs, conditioners."""
