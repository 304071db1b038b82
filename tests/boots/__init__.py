"""Whole boots."""
