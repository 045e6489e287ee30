"""Models of a preset's real size that compute what the bundled pair computes."""
