"""Pure losses: tensors in, one number per example out."""
