"""The Hugging Face Hub: model cards, and pushing a model repository."""
