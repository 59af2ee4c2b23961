"""Whatever says how good something is."""
