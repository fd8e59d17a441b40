"""Training: recipes, a streaming reader of label stores, and one file a method."""
