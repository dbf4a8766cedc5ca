"""The operator's commands: they ask a running guard over its admin face, and load no model themselves."""
