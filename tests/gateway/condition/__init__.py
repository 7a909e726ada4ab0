"""Levels, findings and samples."""
