"""The published layouts of EAGLE heads."""
