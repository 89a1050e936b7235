"""A Vision Transformer you can see through."""
