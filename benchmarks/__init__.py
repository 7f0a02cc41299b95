"""Measurements of world models, environments and policies; each writes its figures as JSON."""
