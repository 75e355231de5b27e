"""How a folder becomes a model repository on the Hugging Face Hub: what of it goes up, when, and what if that fails."""
