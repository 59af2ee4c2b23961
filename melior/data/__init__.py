"""Records on disk, and tensors made of them."""
