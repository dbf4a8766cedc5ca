"""What a model does on clean images and under known triggers, before a repair and after it."""
