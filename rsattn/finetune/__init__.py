"""Fine-tuning: `rsattn finetune`, `compare` and `predict`. Needs `pip install 'rsattn[finetune]'`."""
