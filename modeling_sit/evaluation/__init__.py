"""How good the frozen features are: extraction, the protocols that measure them, and the metrics."""
