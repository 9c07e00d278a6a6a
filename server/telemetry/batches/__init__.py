"""Metrics of files and batches."""
