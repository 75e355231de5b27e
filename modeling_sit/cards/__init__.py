"""Model cards: written from what was run and measured, and updated in place."""
