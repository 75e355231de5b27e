"""Fine-tuning a pretrained backbone to classify labelled pictures, on transformers' Trainer."""
