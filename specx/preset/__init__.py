"""A pair and its settings as one YAML file: reading, checking, changing."""
