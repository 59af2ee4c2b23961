"""Learning from what a model's own judges agree on (SCIR)."""
