"""What to read, in which order, as tensors."""
