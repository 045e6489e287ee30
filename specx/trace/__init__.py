"""A run as JSON, whole (``specx.result/1``) or step by step (``specx.trace/1``), and as a page."""
