"""What rated answers teach: a mixture of objectives (ArmoRM), and pairs under goals."""
