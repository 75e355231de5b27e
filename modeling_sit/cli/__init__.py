"""What the programs in `scripts/` share: their flags, their recipes, and how they fail."""
