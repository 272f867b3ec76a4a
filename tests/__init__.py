"""The proof of covey, one folder per ring."""
