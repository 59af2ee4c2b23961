"""Networks that give probabilities."""
