"""Fine-tuning a pretrained backbone to classify labeled images, on transformers' Trainer."""
