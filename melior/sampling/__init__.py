"""Ways to obtain candidates."""
