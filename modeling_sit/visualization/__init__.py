"""Images of what a model has learned."""
