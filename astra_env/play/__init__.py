"""Imagined worlds in a browser: `astra-env play ID`."""
