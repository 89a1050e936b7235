"""Looking inside: what a model did with a picture, and how far an account of it can be believed."""
