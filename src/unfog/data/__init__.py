"""Data: pictures from files, folders, tables and the hub, and batches that are a pure function of a position."""
