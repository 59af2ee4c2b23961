"""Learning to act from logs and from a modelled world."""
