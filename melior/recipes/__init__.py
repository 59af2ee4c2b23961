"""One file per published system, one docs page of the same name."""
