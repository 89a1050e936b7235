"""Image to tokens to encoder to head. Knows nothing of files or training."""
