"""Tests of tuning and capacity."""
