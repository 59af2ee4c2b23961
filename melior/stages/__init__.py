"""The classic stages on text."""
