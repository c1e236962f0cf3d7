"""Fine-tuning: a pretrained model learns to classify, or to answer."""
