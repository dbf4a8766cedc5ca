"""Export: a model and its check for servers that run them without the guard."""
