"""Fine-tuning: a pretrained model learns to classify texts, or to answer prompts."""
