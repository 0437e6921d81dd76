"""Fine-tuning: recipes, seeds, results."""
