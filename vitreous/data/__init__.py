"""Files to batches of pixels. Knows nothing of models or training."""
