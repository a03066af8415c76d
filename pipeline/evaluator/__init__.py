"""What a model answers on held-out images, and what TFMA measures of it."""
